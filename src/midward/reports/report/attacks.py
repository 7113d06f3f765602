"""Attack success: of `midward attack`, and of the demo, whose summary is brought into the same shape."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from midward.errors import InputError
from midward.reports.report.chart import Chart, Point, Series
from midward.reports.report.find import Run
from midward.reports.report.parts import (
    Block,
    Built,
    Card,
    Figure,
    Heat,
    Share,
    Table,
    Talk,
    Texts,
    Turn,
    gap,
    listed,
    number,
    share,
    short,
    some,
)
from midward.reports.report.verdict import Cells, Gaps, against, cards_of, changes, kept

SHOWN = 3  # goals of an attack whose texts are on the page; samples.csv has all
_TEXTS = {
    "reply": "the reply in the loop",
    "replay": "a fresh reply to the winning prompt",
    "authored": "only what the model wrote itself",
}


def attack(run: Run, texts: Texts) -> Built:
    """A run of `midward attack`."""
    found, data = Built(), run.data
    models = [str(name) for name in data["rows"]]
    if not (data["judges"] and data["goals"]):
        raise InputError("it names no judge, or no goals")
    measures = _measures(data)
    judges = [judge for judge in data["judges"] if measures[judge] != "refused"]
    first: str | None = judges[0] if judges else None
    by_goals = {name: _cells(data["asr"][first]["reply"][name], models) for name in data["goals"] if first}
    for goals, main in by_goals.items():
        what = "all of the harm, " if first and measures[first] == "full" else ""
        where = f"{run.label}, {goals}, {what}judged by {first}"
        others, same = [], []
        for judge, text in product(judges, _TEXTS):
            cells = _cells(data["asr"][judge][text][goals], models)
            if (judge, text) == (first, "reply") or not _scored(cells):
                continue
            if cells == main:
                same.append(f"{judge} on {_TEXTS[text]}")
            else:
                title = f"{run.label}, {goals}, judged by {judge}; {_TEXTS[text]}"
                others.append(_plain(f"success-{goals}-{judge}-{text}", title, models, cells))
        found.add("attacks", Heat(f"success-{goals}", where, models, main, _repeated(same, bool(others))))
        gaps = _gaps(data["paired"][first]["reply"][goals])
        found.add("attacks", _paired(f"paired-{goals}", where, gaps), *others)
        found.claims += changes(gaps, "attacks", goals)
    for judge in (judge for judge in data["judges"] if measures[judge] == "refused"):
        found.add("refusals", *_refusals(run, models, judge))
    if first:
        trouble = data.get("unscored", {}).get(first, {}).get("reply")
        found.cards = cards_of(run, models, by_goals, texts(trouble["why"]) if trouble else "")
        if warning := data.get("warning"):
            found.cards = [
                replace(card, tone="unclear", line=f"{card.line}. Warning: {warning}") for card in found.cards
            ]
    else:
        said = f"{listed(data['judges'])} says who refused, and nothing of attack success"
        found.cards = [Card(model, run.label, "unclear", "-", said, "") for model in models]
        found.lacks.append(f"{run.label} has no judge of attack success: {said}")
    for judge in (calm := data.get("harmless") or {}).get("judges", ()):
        found.add("refusals", *_refusals(replace(run, data=calm), models, judge))
    about = data.get("models") or {}
    judged = f", judged by {first}" if first else ""
    found.cards = [
        replace(card, of=f"{short(about[card.model])}{judged}") if card.model in about else card for card in found.cards
    ]
    found.add("attacks", _costs(data.get("costs") or {}, run))
    found.settings = {key: data[key] for key in ("profile", "goals", "judges", "roles", "seed") if key in data}
    if calm:
        found.settings["harmless"] = calm["goals"]
    _logged(run, found, texts)
    _talks(run, found, texts, str(first or data["judges"][0]), refusals=first is None)
    return found


def _measures(data: Mapping[str, Any]) -> dict[str, str]:
    """judge -> what its yes means. Runs from before that was written down had these judges, and put all into `asr`."""
    old = {"refusal": "refused", "strongreject": "full"}
    return data.get("measures") or {judge: old.get(judge, "success") for judge in data["judges"]}


def _refusals(run: Run, models: Sequence[str], judge: str) -> Iterator[Block | None]:
    """Refusal rates, which are no attack success: not in its map, and without a word of which way is safer."""
    rates = run.data.get("refusals", run.data["asr"])[judge]
    for goals, text in product(run.data["goals"], _TEXTS):
        cells = _cells(rates[text][goals], models)
        if _scored(cells):
            title = f"Refusal rate: {run.label}, {goals}, by {judge}; {_TEXTS[text]}"
            yield _plain(f"refusals-{goals}-{judge}-{text}", title, models, cells)
        if text == "reply":
            gaps = _gaps(run.data["paired"][judge][text][goals])
            about = "Points of refusals on the same goals, first minus second: above zero the first refuses more."
            yield _paired(f"refusals-paired-{goals}-{judge}", f"{run.label}, {goals}, refusals by {judge}", gaps, about)


def demo(run: Run, texts: Texts) -> Built:
    """A run of `midward demo`."""
    found, data = Built(), run.data
    models = list(data["models"])
    sets = list(data["models"][models[0]])
    attacks = [name for name in sets if "asr" in data["models"][models[0]][name]]
    harmless = [name for name in sets if name not in attacks]

    def reading(names: Sequence[str], column: str) -> Cells:
        return {name: {model: share(data["models"][model][name][column]) for model in models} for name in names}

    pairs = {name: {pair: gap(cells[name]) for pair, cells in data["paired"].items() if name in cells} for name in sets}
    gaps = {name: {pair: one for pair, one in row.items() if one} for name, row in pairs.items()}
    cells = reading(attacks, "asr")
    where = f"{run.label}, judged by the sandbox's oracle"
    found.cards = cards_of(run, models, {"sandbox": cells})
    found.add("attacks", Heat("success", where, models, cells))
    found.add("attacks", _paired("paired", where, {name: gaps[name] for name in attacks}))
    for section, column, title in (
        ("attacks", "full", "all six steps right"),
        ("refusals", "refused", "refusals by the oracle"),
    ):
        found.add(section, _plain(f"attacks-{column}", f"{run.label}, {title}", models, reading(attacks, column)))
    found.claims += changes({name: gaps[name] for name in attacks}, "attacks", "the sandbox")
    right = {name: gaps[name] for name in harmless}
    found.add("use", _right(run, models, reading(harmless, "correct"), right))
    for column, title in (("refused", "refusals"), ("coherent", "responses that the grammar parses")):
        found.add("use", _plain(f"use-{column}", f"{run.label}, {title}", models, reading(harmless, column)))
    found.claims += kept(right)
    found.add("order", _order(run, data["decoding_order"]))
    if isinstance(data.get("guard"), dict):
        found.lacks.append(f"{run.label} has no guard: {data['guard']['why']}")
    found.settings = data["plan"]
    found.model = "sandbox"
    _logged(run, found, texts)
    _talks(run, found, texts, "oracle")
    return found


def _cells(found: Mapping[str, Any], models: Sequence[str]) -> Cells:
    def one(record: Mapping[str, Any]) -> Share:
        errors = record.get("errors") or 0
        return share(record, note=f", {some(errors, 'error')}" if errors else "")

    return {name: {model: one(row[model]) for model in models if model in row} for name, row in found.items()}


def _scored(cells: Cells) -> bool:
    return any(one.value is not None for row in cells.values() for one in row.values())


def _repeated(same: Sequence[str], others: bool) -> str:
    """The line of readings that are left out as they equal the map. others: whether further ones differ."""
    which = "Further readings" if others else "The other readings" if len(same) > 1 else "The other reading"
    verb = "gives" if len(same) == 1 and not others else "give"
    return f"{which} ({', '.join(same)}) {verb} the same numbers." if same else ""


def _gaps(found: Mapping[str, Any]) -> Gaps:
    read = {name: {pair: gap(one) for pair, one in row.items()} for name, row in found.items()}
    return {name: {pair: one for pair, one in row.items() if one} for name, row in read.items()}


def _plain(name: str, title: str, models: Sequence[str], cells: Cells) -> Table:
    rows = [[attack, *(row.get(model, "-") for model in models)] for attack, row in cells.items()]
    return Table(name, title, ["", *models], rows, small=True)


def _paired(
    name: str,
    where: str,
    gaps: Gaps,
    about: str = "Points of attack success on the same goals, first minus second: below zero the first is safer.",
) -> Table | None:
    """Every pair of models by attack, those against the first model first."""
    titles = list(dict.fromkeys(title for row in gaps.values() for title in row))
    if not titles:
        return None
    rows = [[attack, *(row.get(title, "-") for title in titles)] for attack, row in gaps.items()]
    several = max((one.family for row in gaps.values() for one in row.values()), default=1)
    note = f" Holm: p corrected for the {several} comparisons that were made." if several > 1 else ""
    return Table(name, f"Paired by goal: {where}", ["attack", *titles], rows, about + note)


def _right(run: Run, models: Sequence[str], cells: Cells, gaps: Gaps) -> Table:
    base = models[0]
    pairs = [title for title in dict.fromkeys(t for row in gaps.values() for t in row) if against(title)[1] == base]
    rows = [
        [name, *(row[model] for model in models), *(gaps[name].get(title, "-") for title in pairs)]
        for name, row in cells.items()
    ]
    return Table(
        "right-answers",
        f"Right answers: {run.label}",
        ["asked", *models, *pairs],
        rows,
        f"Harmless requests, in wrappers too, questions about banned things, and tasks; then the difference to {base} "
        "on the same requests, in points.",
    )


def _order(run: Run, series: Mapping[str, Sequence[float]]) -> Figure | None:
    lines = [
        Series(name, [Point(n, number(y)) for n, y in enumerate(positions, 1) if y is not None and y == y])
        for name, positions in series.items()
    ]
    if not any(line.points for line in lines):
        return None
    chart = Chart("denoising step", "mean position of new tokens", [line for line in lines if line.points])
    return Figure(
        "decoding-order",
        f"Decoding order: {run.label}, base model",
        "Mean response position of the tokens committed at each step; one block, so that any order is open.",
        chart,
    )


def _costs(costs: Mapping[str, Any], run: Run) -> Table | None:
    rows = []
    for name, by_model in costs.items():
        for model, one in by_model.items():
            means = [
                "-" if one.get(key) is None else f"{number(one[key]):.1f}" for key in ("queries", "nfe", "seconds")
            ]
            failed = [str(one.get(key, 0)) for key in ("errors", "role_failures", "budget_spent")]
            rows.append([name, model, str(one["n"]), *means, *failed, ", ".join(one.get("access") or []) or "-"])
    if not rows:
        return None
    headers = [
        "attack",
        "model",
        "goals",
        "queries",
        "forwards",
        "seconds",
        "errors",
        "role failures",
        "budget spent",
        "access",
    ]
    return Table("costs", f"What it took, a goal: {run.label}", headers, rows, small=True)


# --- texts and logs ------------------------------------------------------------------------------------------


def _talks(run: Run, found: Built, texts: Texts, judge: str, *, refusals: bool = False) -> None:
    """What was asked and answered: all of it for samples.csv, a few goals an attack for the page.

    refusals: the judge says who refused, and nothing of success.
    """
    if not (run.folder / "samples.csv").exists():
        found.lacks.append(f"{run.label} has no samples.csv: what was said stands in its Inspect logs only")
        return
    calm = run.data.get("harmless") or {}
    try:
        rows = run.table("samples.csv")
        found.samples = [
            {
                "run": run.label,
                **{name: row[name] for name in ("row", "goals", "attack")},
                "goal": texts.name(row["goal"]),
                "verdict": _verdict(row, calm["judges"][0], True)
                if row["goals"] in calm.get("goals", ())
                else _verdict(row, judge, refusals),
                "prompt": texts(row["prompt"]),
                "asked": texts(row.get("asked") or row["prompt"]),
                "reply": texts(row.get("reply")),
                "error": texts(row.get("error")),
            }
            for row in rows
        ]
    except (ValueError, KeyError, OSError) as error:
        found.lacks.append(f"{run.label}/samples.csv can't be shown{texts.because(error)}")
        return
    by_attack: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for one in found.samples:
        place = by_attack.setdefault((one["goals"], one["attack"]), {})
        place.setdefault(one["goal"], []).append(one)
    for (goals, attack), by_goal in by_attack.items():
        # Goals on which something succeeded come first.
        order = sorted(by_goal.values(), key=lambda some: not any(one["verdict"] == "success" for one in some))
        for some_ in order[:SHOWN]:
            turns = [
                Turn(
                    one["row"],
                    "" if one["asked"] in ("", some_[0]["prompt"]) else one["asked"],
                    one["reply"] or one["error"],
                    one["verdict"],
                )
                for one in some_
            ]
            found.talks.append(Talk(f"{run.label}: {attack} on {goals}", some_[0]["prompt"], turns))


def _verdict(row: Mapping[str, Any], judge: str, refusals: bool) -> str:
    if row.get("error"):
        return "error"
    judged = ("refused", "no refusal") if refusals else ("success", "no success")
    for column, names in ((f"{judge}_reply", judged), ("right", ("right", "wrong"))):
        said = row.get(column)
        if said in ("1", "True", "0", "False"):
            return names[said in ("0", "False")]
    return "unscored"


def _logged(run: Run, found: Built, texts: Texts) -> None:
    """Models, their arguments and versions, as Inspect's log headers hold them."""
    path = run.folder / "logs" / "logs.json"
    try:
        headers = json.loads(path.read_text(encoding="utf-8"))
        rows: dict[str, Any] = {}
        for header in headers.values():
            one = header["eval"]
            about = one.get("metadata") or {}
            rows.setdefault(str(about.get("row")), {"model": one["model"], **(one.get("model_args") or {})})
            found.versions |= {name: str(version) for name, version in (one.get("packages") or {}).items()}
        found.settings = {**found.settings, "models": rows}
        found.model = found.model or listed(list(dict.fromkeys(texts.path(row["model"]) for row in rows.values())))
    except FileNotFoundError:
        found.lacks.append(f"{run.label} has no logs/logs.json: which model it was asked of isn't known")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        found.lacks.append(f"{run.label}/logs/logs.json can't be read{texts.because(error)}")
