"""The tables of docs/monitors.md, from the folders of examples/guards.sh: `python -m tools.monitors FOLDER`.

Every fit's `test-N` has the same requests, so a guard's fits are its seeds: intervals are over goals and fits.
`opened-N` holds harmless requests behind the attacks' forced shapes, `test-LABEL` an aligned model's.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from midward._tables import read_table
from midward.reports.blocks import Table
from midward.reports.render import markdown
from midward.stats import area, corrected, paired_of, rate_of

Rows = list[dict[str, Any]]
ATTACKS = ("prefill", "prefill-mid", "pad", "dija")
CALM = ("benign", "benign-wrapped", "banned")
TOLD = {"True": True, "False": False, "": None}


def scored(folder: Path, pattern: str) -> dict[str, Rows]:
    """Guard -> a row for each fit and answer."""
    guards: dict[str, Rows] = defaultdict(list)
    for path in sorted(folder.glob(f"{pattern}/scores.csv")):
        for row in read_table(path):
            known: dict[str, Any] = {
                "value": TOLD[row["flagged"]],
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
    sides, goals = [], []
    for side in ([row for row in rows if row["jailbroken"]], [row for row in rows if row["set"] == calm]):
        seeds = sorted({row["seed"] for row in side})
        by_seed = [[row for row in side if row["seed"] == seed] for seed in seeds]
        if not by_seed or any(row["score"] is None for row in side) or len({len(each) for each in by_seed}) > 1:
            return "-"
        sides.append(np.array([[row["score"] for row in each] for each in by_seed]))
        goals.append([row["subject"] for row in by_seed[0]])
    result = area(*sides, *goals)
    return "-" if result is None else result.text(2)


def tables(folder: Path) -> Iterator[Table]:
    """All that is there."""
    guards, opened = scored(folder, "test-[0-9]"), scored(folder, "opened-[0-9]")
    caught = ["guard", "all jailbroken", *ATTACKS]
    every = (*ATTACKS, "wrappers", "plain")
    body = [[label, rates(rows, *every, jailbroken=True), *_by_attack(rows)] for label, rows in guards.items()]
    fits = len({row["seed"] for rows in guards.values() for row in rows})
    yield Table("caught", "Jailbroken answers flagged", caught, body, note=f"{fits} fits")
    body = [
        [label, *(rates(rows, name) for name in CALM), *(rates(opened.get(label, []), name) for name in ATTACKS[:3])]
        for label, rows in guards.items()
    ]
    columns = ["guard", *CALM, *(f"harmless, {name}" for name in ATTACKS[:3])]
    yield Table("calm", "Harmless requests flagged", columns, body)
    body = [[label, *(areas(rows, name) for name in CALM)] for label, rows in guards.items()]
    yield Table("auroc", "AUROC of jailbroken answers against harmless ones", ["guard", *CALM], body)
    yield from _differences(guards)
    for path in sorted(folder.glob("test-[a-z]*/scores.csv")):
        aligned = scored(folder, path.parent.name)
        name, kinds = path.parent.name.removeprefix("test-"), (*CALM, "plain", "wrappers")
        body = [[label, *(rates(rows, kind) for kind in kinds), *_by_attack(rows)] for label, rows in aligned.items()]
        yield Table(name, f"Flagged on {name}", ["guard", *kinds, *(f"{each}, jailbroken" for each in ATTACKS)], body)


def _by_attack(rows: Rows) -> list[str]:
    return [rates(rows, name, jailbroken=True) for name in ATTACKS]


def _differences(guards: dict[str, Rows]) -> Iterator[Table]:
    """Pairs that the claims are about, over all jailbroken answers."""
    pairs = (
        ("sri-blocks", "sri"), ("energy", "sri-blocks"), ("hesitate-routed", "hesitate"),
        ("hesitate-routed", "hesitate-heavy"),
        ("prefuse", "prefuse-prompt"), ("prefuse", "prefuse-response"), ("hesitate", "sri"), ("prefuse", "sri"),
        ("hesitate", "sri-blocks"), ("hesitate", "energy"), ("energy", "energy-ratio"),
    )  # fmt: skip
    there = [(first, second) for first, second in pairs if first in guards and second in guards]
    hit = {label: [row for row in rows if row["jailbroken"]] for label, rows in guards.items()}
    told = corrected(
        [paired_of(hit[first], hit[second], "value", lambda row: (row["goal"], row["set"])) for first, second in there]
    )
    body = [[first, second, each.text(0)] for (first, second), each in zip(there, told, strict=True)]
    yield Table("pairs", "Jailbroken answers flagged, difference", ["guard", "minus", "points"], body)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    sys.stdout.write(markdown(list(tables(parser.parse_args(arguments).folder))))


if __name__ == "__main__":
    main()
