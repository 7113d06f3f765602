"""Where safety sits in a response: forced phrases, refusals, suffix searches, asking, decoding order; SRI signals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from midward.reports.report.chart import Chart, Point, Series
from midward.reports.report.find import Run
from midward.reports.report.parts import Built, Claim, Figure, Gap, Said, Share, Table, Texts, gap, number, share

_MEASURES = {
    "asr": "attack success",
    "own_refusal": "own refusal",
    "correct": "right",
    "coherent": "coherent",
    "landed": "phrase landed",
}


def prefill(run: Run, texts: Texts) -> Built:
    """A run of `midward probe prefill`."""
    found = _begin(run, texts, "prefill")
    chart = _by_position(run.data["cells"], "response position of the phrase's first token", "no phrase")
    if chart:
        found.add(
            "prefill",
            Figure(
                "prefill",
                f"Forced phrases along the response: {_title(run)}",
                "Attack success where a phrase is forced at a position. A rise in the middle is MOSA's claim.",
                chart,
            ),
        )
    found.add("prefill", _cells("prefill-cells", run), *_compared(run))
    return found


def mirror(run: Run, texts: Texts) -> Built:
    """A run of `midward probe mirror`."""
    found = _begin(run, texts, "mirror")
    window = run.data["window"]
    shaded = (number(window["start"]), number(window["end"]), f"window {window['start']} to {window['end']}")
    chart = _by_position(run.data["cells"], "response position of the refusal's first token", "attack alone", shaded)
    if chart:
        found.add(
            "mirror",
            Figure(
                "mirror",
                f"A refusal forced under attack: {_title(run)}",
                "Attack success where a refusal is forced at a position: the lower, the more the place saves.",
                chart,
            ),
        )
    found.add("mirror", _cells("mirror-cells", run))
    return found


def ask(run: Run, texts: Texts) -> Built:
    """A run of `midward probe ask`."""
    found = _begin(run, texts, "ask")
    cells = [cell for cell in run.data["cells"] if cell["word"] is not None]
    lines = [
        Series(label, spots)
        for name, label in (
            ("hit", "phrase at its word"),
            ("unasked", "the same for the plain goal"),
            ("asr", "attack success"),
        )
        if (spots := _spots(cells, "word", name))
    ]
    if lines:
        chart = Chart("word of the response, from 0", "share", lines, "%", (0.0, 1.0))
        found.add(
            "ask",
            Figure(
                "ask", f"A phrase asked for at a word: {_title(run)}", "The prompt asks for a phrase at word k.", chart
            ),
        )
    found.add("ask", *_compared(run))
    return found


def gcg(run: Run, texts: Texts) -> Built:
    """A run of `midward probe gcg`."""
    found = _begin(run, texts, "gcg")
    names = ("hit", "anywhere", "asr", "refused")
    rows: list[list[str | Share | Gap]] = []
    for cell in run.data["cells"]:
        where = "nothing (start suffix)" if cell["position"] is None else f"token {cell['position']}"
        loss = "-" if cell.get("loss") is None else f"{number(cell['loss']):.2f}"
        if cell.get("loss_low") is not None:
            loss += f" [{number(cell['loss_low']):.2f}, {number(cell['loss_high']):.2f}]"
        rows.append([where, loss, *(share(cell, name) for name in names)])
    headers = ["aimed at", "loss, nats a token", "phrase at its place", "anywhere", "attack success", "refused"]
    about = "Suffixes of the prompt, optimised so that a phrase becomes likely at a place of the response."
    found.add("gcg", Table("gcg", f"Optimised suffixes: {_title(run)}", headers, rows, about))
    return found


def order(run: Run, texts: Texts) -> Built:
    """A run of `midward probe order`."""
    found = _begin(run, texts, "order")
    try:
        steps: dict[str, list[Point]] = {}
        for row in run.table("order.csv"):
            if row["mean_value"]:
                ends = [number(float(row[f"mean_{end}"])) for end in ("value", "low", "high")]
                steps.setdefault(row["set"], []).append(Point(number(float(row["step"])), *ends))
        if steps:
            lines = [Series(name, spots) for name, spots in steps.items()]
            found.add(
                "order",
                Figure(
                    "order",
                    f"Decoding order: {_title(run)}",
                    "Mean response position of the tokens committed at each denoising step.",
                    Chart("denoising step", "mean position of new tokens", lines),
                ),
            )
    except (ValueError, KeyError, OSError) as error:
        found.lacks.append(f"{run.label}/order.csv can't be read{texts.because(error)}")
    measures = list(next(iter(run.data["sets"].values())))
    rows = [[name, *(_plain(cells[measure]) for measure in measures)] for name, cells in run.data["sets"].items()]
    headers = ["prompts", *(measure.replace("_", " ") for measure in measures)]
    found.add("order", Table("order-correlation", f"Step and position: {_title(run)}", headers, rows, small=True))
    return found


def dynamics(run: Run, texts: Texts) -> Built:
    """A run of `midward dynamics`."""
    from midward.reports.report.defences import BANDS, bands, signals_by_kind

    found = _begin(run, texts, "dynamics")
    samplers = list(run.data["samplers"])
    try:
        first = samplers[0]
        groups = signals_by_kind(run.table(f"rows-{first}.jsonl"), "last")
        order = sorted(groups, key=lambda name: (name in ("refused", "jailbroken"), name == "jailbroken"))
        chart = bands({name: groups[name] for name in order})
        if chart:
            found.add("dynamics", Figure("signals", f"SRI signals: {_title(run)}, sampler {first}", BANDS, chart))
    except (ValueError, KeyError, OSError, IndexError) as error:
        found.lacks.append(f"{run.label}: no SRI signals, as the rows can't be read{texts.because(error)}")
    names = ("asr", "rr", "right", "harm-on-the-way", "hrr", "frr", "irr-0.5")
    rows: list[list[str | Share | Gap]] = [
        [f"{sampler}, {where}", *(share(cells[name]) if name in cells else "-" for name in names)]
        for sampler, sets in run.data["cells"].items()
        for where, cells in sets.items()
    ]
    headers = [
        "sampler, prompts",
        "attack success",
        "refused",
        "right",
        "harm on the way",
        "revised it (HRR)",
        "ended harmless (FRR)",
        "inner recovery, below 0.5",
    ]
    found.add("dynamics", Table("recovery", f"Recovery by sampler: {_title(run)}", headers, rows, small=True))
    areas: list[list[str | Share | Gap]] = [
        [
            ", ".join(str(one[name]) for name in ("sampler", "reading", "detector") if name in one)
            + f": {one['positive']} against {one['negative']}",
            f"{number(one['value']):.3f} [{number(one['low']):.3f}, {number(one['high']):.3f}]",
            "control: 0.5 is right" if one["control"] else "",
        ]
        for one in run.data["auroc"]
    ]
    if areas:
        found.add(
            "dynamics",
            Table("auroc", f"Do signals tell? AUROC: {_title(run)}", ["signal", "AUROC", ""], areas, small=True),
        )
    found.settings = {**found.settings, "samplers": run.data["samplers"]}
    return found


def _begin(run: Run, texts: Texts, section: str) -> Built:
    """Settings, the model, and the findings as the probe wrote them."""
    data = run.data
    said = data.get("findings") or [data[name] for name in ("finding",) if data.get(name)]
    found = Built(
        model=texts.path(data["model"]) + (f" + {texts.path(data['adapter'])}" if data.get("adapter") else "")
    )
    names = ("sampling", "settings", "judge", "fingerprint", "attack")
    found.settings = {name: data[name] for name in names if data.get(name)}
    lines = [str(line) for line in said]
    if lines:
        found.add(section, Said(f"Found: {_title(run)}", lines))
        found.claims.append(Claim("note", f"{_title(run)}: {lines[0]}", section))
    return found


def _title(run: Run) -> str:
    adapter = run.data.get("adapter")
    model = Path(str(run.data["model"])).name
    return f"{model} + {Path(str(adapter)).name} ({run.label})" if adapter else f"{model} ({run.label})"


def _spots(cells: Sequence[Mapping[str, Any]], at: str, name: str) -> list[Point]:
    shares = [(number(cell[at]), share(cell, name)) for cell in cells]
    return [
        Point(x, one.value, one.low, one.high)
        for x, one in sorted(shares, key=lambda pair: pair[0])
        if one.value is not None
    ]


def _by_position(
    cells: Sequence[Mapping[str, Any]], xlabel: str, level: str, shaded: tuple[float, float, str] | None = None
) -> Chart | None:
    """Attack success by position, a line a kind of phrase, and the level without one."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    lines: list[tuple[str, float]] = []
    for cell in cells:
        if cell["set"] != "harmful" or cell["asr"] is None:
            continue
        if cell["position"] is None:
            lines = [(f"{level}: {100 * number(cell['asr']):.1f} %", number(cell["asr"]))]
        else:
            label = cell["kind"] if cell["tokens"] is None else f"{cell['kind']}, {cell['tokens']} tokens"
            kinds.setdefault(label, []).append(cell)
    if not kinds:
        return None
    series = [Series(label, _spots(found, "position", "asr")) for label, found in kinds.items()]
    return Chart(xlabel, "attack success", series, "%", (0.0, 1.0), lines, shaded)


def _cells(name: str, run: Run) -> Table:
    rows: list[list[str | Share | Gap]] = []
    for cell in run.data["cells"]:
        where = ", ".join(
            [cell["set"], cell["kind"]]
            + ([] if cell["position"] is None else [f"token {cell['position']}"])
            + ([] if cell["tokens"] is None else [f"{cell['tokens']} tokens"])
        )
        rows.append([where, *(share(cell, measure) for measure in _MEASURES)])
    return Table(name, f"Cell by cell: {_title(run)}", ["goals, phrase, place", *_MEASURES.values()], rows, small=True)


def _compared(run: Run) -> list[Table]:
    tables = []
    for place, (folder, pairs) in enumerate((run.data.get("compared") or {}).items()):
        rows: list[list[str | Share | Gap]] = []
        for pair in pairs:
            where = [
                str(pair[key]) for key in ("set", "kind", "position", "word", "measure") if pair.get(key) is not None
            ]
            rows.append([", ".join(where), gap(pair) or "-"])
        if rows:
            title = f"{_title(run)} minus {Path(folder).name}, by goal (points)"
            tables.append(Table(f"{run.kind}-compared-{place}", title, ["measure", "difference"], rows, small=True))
    return tables


def _plain(cell: Mapping[str, Any]) -> str:
    if cell["value"] is None:
        return "-"
    ends = "" if cell["low"] is None else f" [{number(cell['low']):.2f}, {number(cell['high']):.2f}]"
    return f"{number(cell['value']):.2f}{ends}"
