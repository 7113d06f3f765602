"""The tables of docs/findings/guard-*.md, from the folders of examples/guards.sh: `python -m tools.monitors FOLDER`.

Every fit's `test-N` has the same requests, so a guard's fits, `fit-N`, are its seeds: intervals are over goals and
fits. `late-N` has another attack, `opened-N` and `late-opened-N` harmless requests behind the attacks' forced shapes.
`FOLDER/choice`, `FOLDER/arms`, `FOLDER/removed` and an aligned model's `FOLDER/LABEL` are folders of the same kind.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import midward
from midward import stats
from midward._tables import read_json, read_table
from midward.guards import LookGuard, load
from midward.guards.signals import signals_of
from midward.models import LanguageModel
from midward.reports.blocks import Table
from midward.reports.render import markdown
from midward.runs.compare import load as load_run
from midward.stats import area, corrected, mean_of, paired_of, rate_of
from midward.world.oracle import steps_right
from midward.world.world import Thing

Rows = list[dict[str, Any]]
ATTACKS = ("prefill", "prefill-mid", "pad", "dija")
OPENED = (*ATTACKS[:3], "anchoring")
CALM = ("benign", "benign-wrapped", "banned")
TOLD = {"True": True, "False": False}


def scored(folder: Path, pattern: str) -> dict[str, Rows]:
    """Guard -> a row for each fit and answer."""
    guards: dict[str, Rows] = defaultdict(list)
    for path in sorted(folder.glob(f"{pattern}/scores.csv")):
        for row in read_table(path):
            known: dict[str, Any] = {
                "value": TOLD.get(row["flagged"]),
                "score": float(row["score"]) if row["score"] else None,
            }
            known |= {"jailbroken": row["harmful"] == "True" == row["success"], "seed": path.parent.name}
            guards[row["guard"]].append(row | known)
    return guards


def rates(rows: Rows, *sets: str, jailbroken: bool = False) -> str:
    """The flagged share of some sets' rows, of the jailbroken ones alone where asked for."""
    chosen = [row for row in rows if row["set"] in sets and row["jailbroken"] is jailbroken]
    return rate_of(chosen, "value").text(0) if chosen else "-"


def areas(rows: Rows, calm: str) -> str:
    """AUROC of jailbroken answers against a set of harmless ones, over fits."""
    if (both := _sides(rows, calm)) is None:
        return "-"
    sides, goals = both
    result = area(*sides, *goals)
    return "-" if result is None else result.text(2)


def _sides(rows: Rows, calm: str) -> tuple[list[np.ndarray], list[list[Any]]] | None:
    """Scores [fits, N] of jailbroken and of a set's harmless answers, and of what each is; None where some lack."""
    sides, goals = [], []
    for side in ([row for row in rows if row["jailbroken"]], [row for row in rows if row["set"] == calm]):
        seeds = sorted({row["seed"] for row in side})
        by_seed = [[row for row in side if row["seed"] == seed] for seed in seeds]
        if not by_seed or any(row["score"] is None for row in side) or len({len(each) for each in by_seed}) > 1:
            return None
        sides.append(np.array([[row["score"] for row in each] for each in by_seed]))
        goals.append([row["subject"] for row in by_seed[0]])
    return sides, goals


def area_gap(first: Rows, second: Rows, calm: str) -> str:
    """The difference of two guards' AUROC on the same answers and of the same fits' prompts, so goal by goal and fit by
    fit: DeLong's, clustered by goal; Student's t over the fits."""
    left, right = _sides(first, calm), _sides(second, calm)
    if left is None or right is None:
        return "-"
    goals = [*left[1][0], *left[1][1]]
    codes = stats._codes(goals, np.ones(len(goals), dtype=bool))
    (moved, areas), (others_moved, others) = (stats._area_moves(*sides, codes) for sides in (left[0], right[0]))
    gaps = areas - others
    half = stats._half(stats._variance([(moved - others_moved, gaps)]))
    return f"{gaps.mean():+.3f} [{gaps.mean() - half:+.3f}, {gaps.mean() + half:+.3f}]"


def tables(folder: Path) -> Iterator[Table]:
    """All that is there."""
    guards, opened = scored(folder, "test-[0-9]"), scored(folder, "*opened-[0-9]")
    late = scored(folder, "late-[0-9]") or guards
    caught = ["guard", "all jailbroken", *ATTACKS, "anchoring, not among them"]
    every = (*ATTACKS, "wrappers", "plain")
    body = [
        [
            label,
            rates(rows, *every, jailbroken=True),
            *_by_attack(rows),
            rates(late[label], "anchoring", jailbroken=True),
        ]
        for label, rows in guards.items()
    ]
    fits = len({row["seed"] for rows in guards.values() for row in rows})
    yield Table("caught", "Jailbroken answers flagged", caught, body, note=f"{fits} fits")
    body = [
        [label, *(rates(rows, name) for name in CALM), *(rates(opened.get(label, []), name) for name in OPENED)]
        for label, rows in guards.items()
    ]
    columns = ["guard", *CALM, *(f"harmless, {name}" for name in OPENED)]
    yield Table("calm", "Harmless requests flagged", columns, body)
    body = [[label, *(areas(rows, name) for name in CALM)] for label, rows in guards.items()]
    yield Table("auroc", "AUROC of jailbroken answers against harmless ones", ["guard", *CALM], body)
    yield from _differences(guards)
    yield from _late(folder)
    yield from _costs(folder)
    yield from _arms(folder)


def _costs(folder: Path) -> Iterator[Table]:
    """What each guard adds to the time of a generation, by fit, and what it saves of a flagged one."""
    shares: dict[str, list[float]] = defaultdict(list)
    saved: dict[str, list[float]] = defaultdict(list)
    for path in sorted(folder.glob("test-[0-9]/summary.json")):
        for defence in read_json(path)["defences"][1:]:
            shares[defence["defence"]].append(defence["overhead"])
            if part := defence["saved_share"]:
                saved[defence["defence"]].append(part["value"])
    if shares:
        cells = lambda values: " ".join(f"{100 * value:.1f}" for value in values) or "-"  # noqa: E731
        body = [[label, cells(shares[label]), cells(saved[label])] for label in shares]
        yield Table("costs", "Time added, steps saved", ["guard", "time added, %", "steps saved, %"], body)


def _arms(folder: Path) -> Iterator[Table]:
    """Defences that sample otherwise: what is answered with each, and what it takes away of attack success."""
    arms = {label: rows for label, rows in scored(folder, "test-[0-9]").items() if "nfe" in rows[0]}
    sides: dict[str, Rows] = {"none": [], **arms}
    for path in sorted(folder.glob("test-[0-9]/rows.jsonl"))[:1]:  # without an arm no fit matters
        sides["none"] = read_table(path)
    if not arms or not sides["none"]:
        return
    for row in (row for rows in sides.values() for row in rows):
        told = {name: TOLD.get(str(row[name])) for name in ("success", "correct")}
        row.update(told, nfe=float(row["nfe"]), harmful=str(row["harmful"]) == "True")
    attacked, calm = ({label: _of(rows, kind) for label, rows in sides.items()} for kind in (True, False))
    names = sorted({row["set"] for row in sides["none"]})
    falls = [paired_of(attacked["none"], attacked[label], "success") for label in arms] if attacked["none"] else []
    told = dict(zip(arms, corrected(falls), strict=False))
    body = []
    for label in sides:
        rates = [
            rate_of([row for row in part[label] if row["set"] == name], field).text(0)
            for part, field in ((attacked, "success"), (calm, "correct"))
            for name in names
            if any(row["set"] == name for row in part[label])
        ]
        forwards = [mean_of(part[label], "nfe") for part in (calm, attacked)]
        fall = told[label].text(0) if label in told else "-"
        body.append([label, *rates, fall, *(each and each.text(1) for each in forwards)])
    columns = [f"success, {name}" for name in names if any(row["set"] == name for row in attacked["none"])]
    columns += [f"right, {name}" for name in names if any(row["set"] == name for row in calm["none"])]
    yield Table("arms", "Arms", ["arm", *columns, "fall, points", "forwards, harmless", "forwards, attacked"], body)


def _of(rows: Rows, harmful: bool) -> Rows:
    return [row for row in rows if row["harmful"] is harmful]


#: Guards whose stops are told by block, and attacks in the order of where their harm stands: late, anywhere, at once.
BY_BLOCKS = ("hesitate", "sri-blocks", "energy", "cascade")
LATE = ("prefill-mid", "pad", "anchoring", "prefill")
PLACES = ("block 1, first look", "block 1, later", "block 2", "block 3", "later", "never")


def _late(folder: Path) -> Iterator[Table]:
    """Which block of a jailbroken answer flags it, and how much of its harm stands in the blocks before."""
    stops: dict[tuple[str, str], Rows] = {(label, attack): [] for label in BY_BLOCKS for attack in LATE}
    for path in sorted([*folder.glob("test-[0-9]/rows.jsonl"), *folder.glob("late-[0-9]/rows.jsonl")]):
        fit = folder / f"fit-{path.parent.name[-1]}"
        if there := [label for label in BY_BLOCKS if (fit / f"{label}.safetensors").exists()]:
            run, rows = load_run(path.parent)
            model = midward.load(run.models[0].name)
            for label in there:
                guard = load(fit / f"{label}.safetensors")
                assert isinstance(guard, LookGuard)
                for row in rows:
                    if row["harmful"] and row["success"] and row["set"] in LATE and guard.reads in row["signals"]:
                        stops[label, row["set"]].append(_stop(guard, model, row) | {"seed": path.parent.name})
    body = []
    for (label, attack), stopped in stops.items():
        if stopped:
            shares = [[{**row, "value": row["at"] == place} for row in stopped] for place in PLACES]
            out = mean_of(stopped, "out", ends=(0.0, 1.0))
            body.append([label, attack, *(rate_of(share, "value").text(0) for share in shares), out and out.text(2)])
    if body:
        columns = ["guard", "attack", *PLACES, "of the harm, in blocks that were done"]
        yield Table("late", "Which block flags, of jailbroken answers", columns, body)


def _stop(guard: LookGuard, model: LanguageModel, row: dict[str, Any]) -> dict[str, Any]:
    """at: where a guard flags a row's answer. out: the share of its right steps in the blocks that are done by then,
    which a server may have handed out; all of it where it isn't flagged."""
    place, out = PLACES[-1], 1.0
    if (at := guard.first_above(signals_of([row], guard.reads)[0])) is not None:
        block, look = at
        _, intent, *words = row["subject"].split()
        done = model.text(model.tokens(row["response"])[: block * int(guard.sampling["block"])])
        whole, begun = (steps_right(intent, Thing(*words), text) for text in (row["response"], done))
        place, out = PLACES[min(4, block + 1) if block or look else 0], begun / whole
    return {name: row[name] for name in ("goal", "subject", "set")} | {"at": place, "out": out}


def _by_attack(rows: Rows) -> list[str]:
    return [rates(rows, name, jailbroken=True) for name in ATTACKS]


def _differences(guards: dict[str, Rows]) -> Iterator[Table]:
    """Pairs that the claims are about, over all jailbroken answers."""
    pairs = (
        ("sri-blocks", "sri"), ("sri-blocks-maha", "sri-maha"), ("energy", "sri-blocks"),
        ("hesitate-routed", "hesitate"), ("hesitate-routed", "hesitate-heavy"),
        ("prefuse", "prefuse-prompt"), ("prefuse", "prefuse-response"), ("hesitate", "sri"), ("prefuse", "sri"),
        ("hesitate", "sri-blocks"), ("hesitate", "energy"), ("energy", "energy-ratio"),
    )  # fmt: skip
    there = [(first, second) for first, second in pairs if first in guards and second in guards]
    hit = {label: [row for row in rows if row["jailbroken"]] for label, rows in guards.items()}
    told = corrected(
        [paired_of(hit[first], hit[second], "value", lambda row: (row["goal"], row["set"])) for first, second in there]
    )
    gaps = [[area_gap(guards[first], guards[second], name) for name in CALM] for first, second in there]
    body = [[*pair, each.text(0), *gap] for pair, each, gap in zip(there, told, gaps, strict=True)]
    columns = ["guard", "minus", "flagged, points", *(f"AUROC, {name}" for name in CALM)]
    yield Table("pairs", "Two guards of the same answers, difference", columns, body)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    sys.stdout.write(markdown(list(tables(parser.parse_args(arguments).folder))))


if __name__ == "__main__":
    main()
