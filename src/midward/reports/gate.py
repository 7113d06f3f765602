"""A release criterion, decided by the ends of intervals: what `midward gate` computes.

A threshold names a measure as `midward compare` and the tables do, and holds in every cell that has it. Each cell gets
the verdict that a report's page gives (`midward.stats.Bound`); a threshold is broken where one cell is, and held where
all are. A comparison with earlier runs is one criterion more.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from midward._hints import did_you_mean, printable
from midward.errors import InputError
from midward.reports.cells import Cell, cells_of, read
from midward.reports.compare import Row, Side, against, measures_any, unlike
from midward.reports.report.find import RunFolder, find
from midward.stats import FEW, Bound, Paired, Standing, corrected, together

Key = tuple[tuple[str, Any], ...]  # items of what tells a number


@dataclass(frozen=True)
class Threshold:
    """What a measure may be. name: the measure, and behind dots what tells the cells that are meant."""

    name: str
    bound: Bound

    def __str__(self) -> str:
        return f"{printable(self.name, '')} {'at most' if self.bound.most else 'at least'} {100 * self.bound.share:g} %"


def thresholds(most: Sequence[str], least: Sequence[str]) -> list[Threshold]:
    """Of the texts NAME=SHARE behind --max and --min.

    Raises:
        InputError: one is none, its share isn't between 0 and 1, or a name is given twice.
    """
    given = []
    for flag, texts in (("--max", most), ("--min", least)):
        for text in texts:
            name, _, share = text.rpartition("=")
            name = name.strip()
            try:
                # Of a file a text stands in quotes: YAML takes 1e-1 for one. Python reads digits of all scripts.
                number = float(share.strip(" \"'")) if share.isascii() else math.nan
            except ValueError:
                number = math.nan
            if not name or math.isnan(number):
                raise InputError(f"{flag} takes NAME=SHARE, like asr.pad=0.2; received {text!r}.")
            if not 0 < number < 1:
                hint = f" For {number:g} % give {number / 100:g}." if 1 <= number < 100 else ""
                raise InputError(f"{flag} {name}: a share lies between 0 and 1, both excluded; received {share}.{hint}")
            given.append(Threshold(name, Bound(number, most=flag == "--max")))
    for (name, most_of), count in Counter((each.name, each.bound.most) for each in given).items():
        if count > 1:
            raise InputError(f"{'--max' if most_of else '--min'} {name} is given {count} times; give it once.")
    return given


def decide(folders: Sequence[Path], asked: Sequence[Threshold], baseline: Sequence[Path] = ()) -> dict[str, Any]:
    """Whether runs meet a release criterion.

    Args:
        folders: of runs, or above them; verbs that measure nothing are passed over.
        asked: what each measure may be.
        baseline: folders of earlier runs, than which these mustn't be measurably worse.

    Returns:
        verdict; runs, label -> verb and folder; criteria, each with criterion (in words), verdict, cells: records of
        numbers with run, measure, what tells the cell, verdict, needed and unscored, and left_out: bare models that
        aren't counted beside their guarded ones; differs, two labels -> what else than the model isn't alike.

    Raises:
        InputError: there is no threshold and no baseline; a run isn't finished or can't be read; no run has a measure
            that is named; the baseline has nothing to compare with.
    """
    if not asked and not baseline:
        raise InputError("there is nothing to decide: give --max, --min or --baseline.")
    (runs, sides), (before, earlier) = _read(folders), _read(baseline) if baseline else ({}, {})
    cells = [cell for label, each in sides.items() for cell in cells_of(label, each)]
    criteria: list[Row] = []
    for threshold in asked:
        chosen, left = _chosen(threshold.name, cells)
        _check(chosen, runs)
        records = [_doubted(cell.record(threshold.bound), sides) for cell in chosen]
        about = {"criterion": str(threshold), "name": threshold.name, **vars(threshold.bound), "left_out": left}
        criteria.append({**about, "verdict": together(record["verdict"] for record in records), "cells": records})
    differs: dict[str, list[str]] = {}
    if baseline:
        for some, each in ((runs, sides), (before, earlier)):
            _check([cell for label in each for cell in cells_of(label, each[label])], some)
        worse, differs = _baseline(runs, sides, before, earlier)
        criteria.append(worse)
    verdict = together(criterion["verdict"] for criterion in criteria)
    of = {label: {"verb": run.run.verb, "folder": os.path.relpath(run.folder)} for label, run in runs.items()}
    return {"verdict": verdict, "runs": of, "criteria": criteria, "differs": differs}


def _doubted(record: Row, sides: Mapping[str, Side]) -> Row:
    """Of an attack whose figures are no evidence nothing is clear, as on its page."""
    warning = sides[record["run"]].warning
    return record | ({"verdict": "unclear", "needed": None, "warning": warning} if warning else {})


def _check(cells: Sequence[Cell], runs: Mapping[str, RunFolder]) -> None:
    """Raises InputError where a value is no share."""
    for cell in cells:
        if cell.wrong is not None:
            place = ", ".join([cell.measure, *map(str, cell.about.values())])
            folder = os.path.relpath(runs[cell.run].folder)
            raise InputError(f"{folder}: {place} holds {cell.wrong:g}, and a share lies in 0..1; measure it again.")


def _read(folders: Sequence[Path]) -> tuple[dict[str, RunFolder], dict[str, Side]]:
    """The finished runs by their labels, and what each measured."""
    found = find(folders)
    others = ", ".join(f"{run.label} (midward {run.run.verb})" for run in found.runs)
    found.runs = [run for run in found.runs if measures_any(run.run.verb)]
    pairs = list(found.read(read))
    if found.troubles:
        raise InputError("; ".join(f"{label} {why}" for label, why in found.troubles) + ".")
    if not pairs:
        raise InputError(
            f"no run below {', '.join(map(str, folders))} has measures{others and f'; there is {others}'}. Give "
            "folders of midward attack, guard eval, utility, dynamics or a probe."
        )
    return {run.label: run for run, _ in pairs}, {run.label: measured for run, measured in pairs}


def _chosen(name: str, cells: Sequence[Cell]) -> tuple[list[Cell], list[str]]:
    """The cells that a threshold's name means, and the models that it leaves out: what stands in a run behind a guard
    counts so, and bare only where it is named."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):  # a measure may have dots in its name, as what tells a cell may
        measured = [cell for cell in cells if cell.called(".".join(parts[:count]))]
        if measured:
            break
    else:
        there = list(dict.fromkeys(name for cell in cells for name in (cell.meant, cell.measure) if name))
        there = ["asr" if name == "success" else name for name in there]
        raise InputError(
            f"no run has a measure {parts[0]!r}.{did_you_mean(parts[0], there)} "
            f"There is: {', '.join(dict.fromkeys(there)) or 'none'}."
        )
    known = sorted({place for cell in measured for place in cell.places})
    places = _split(parts[count:], {*known})
    if places is None:
        rest = ".".join(parts[count:])
        raise InputError(
            f"{name!r}: no run has {rest!r} of {'.'.join(parts[:count])}.{did_you_mean(rest, known)} "
            f"There is: {', '.join(known)}."
        )
    chosen = [cell for cell in measured if {*places} <= cell.places]
    if not chosen:
        raise InputError(f"{name!r}: no run has {' and '.join(places)} together; give one cell's.")
    counted = [cell for cell in chosen if not cell.control or str(cell.about["model"]) in places] or chosen
    left = [f"{cell.about['model']} in {cell.run}" for cell in chosen if cell not in counted]
    return counted, list(dict.fromkeys(left))


def _split(parts: Sequence[str], known: set[str]) -> list[str] | None:
    """What parts name, joined by dots where a name has some; None where they name something unknown."""
    if not parts:
        return []
    for count in range(len(parts), 0, -1):
        rest = _split(parts[count:], known) if (head := ".".join(parts[:count])) in known else None
        if rest is not None:
            return [head, *rest]
    return None


# --- against earlier runs ------------------------------------------------------------------------------------


def _baseline(
    runs: Mapping[str, RunFolder],
    sides: Mapping[str, Side],
    earlier: Mapping[str, RunFolder],
    before: Mapping[str, Side],
) -> tuple[Row, dict[str, list[str]]]:
    """Whether anything is measurably worse than before, paired by what both were asked, and what else differs. One
    family of comparisons: p is corrected for all of them."""
    cells: list[Row] = []
    families: list[list[Paired]] = [[], [], []]  # as it was scored; what is unscored at its worst, and at its best
    differs: dict[str, list[str]] = {}
    paired: set[tuple[str, Key]] = set()  # label of a run, and a cell of it
    met: set[str] = set()
    for label, run in runs.items():
        for other, then in earlier.items():
            if then.run.verb != run.run.verb:
                continue
            labels = label, f"{other} (baseline)"
            try:
                pairs = _pairs(sides[label], before[other])
            except InputError:  # they share nothing
                continue
            met |= {label, labels[1]}
            if words := unlike(labels, (run.run, then.run)):
                differs[" and ".join(labels)] = words
            for about, better, three in pairs:
                cells.append({"run": label, "minus": labels[1], **about, "better": better})
                for family, pair in zip(families, three, strict=True):
                    family.append(pair)
                for name, each in zip(labels, (sides[label], before[other]), strict=True):
                    paired |= {(name, key) for key in _keys(each) if about.items() <= {*key}}
        if label not in met:
            raise InputError(f"the baseline has no run of midward {run.run.verb} over what {label} was asked.")
    if alone := [label for label in earlier if f"{label} (baseline)" not in met]:
        raise InputError(f"no run was asked what {', '.join(alone)} of the baseline was; give runs of the same.")
    records = []
    for about, seen, worst, best in zip(cells, *map(corrected, families), strict=True):
        verdict: Standing = "held" if seen.goals >= FEW else "unclear"
        if _worse(best, about["better"]):
            verdict = "broken"
        elif _worse(worst, about["better"]) or _worse(seen, about["better"]):
            verdict = "unclear"
        record = {**about, "verdict": verdict, "unscored": worst.n - seen.n, **seen.record()}
        records.append(_doubted(record, sides))
    nothing = {"verdict": "unclear", "unscored": 0, "gone": True, **Paired(None, None, None, 0, 0).record()}
    for other, each in before.items():
        name = f"{other} (baseline)"
        gone = [dict(key) for key in _keys(each) if (name, key) not in paired]
        records += [{"run": name, **about, "better": 1, **nothing} for about in gone]
    new = [
        {"run": label, **dict(key)}
        for label, each in sides.items()
        for key in _keys(each)
        if (label, key) not in paired
    ]
    verdict = together(record["verdict"] for record in records)
    return {
        "criterion": "not measurably worse than the baseline",
        "name": "baseline",
        "verdict": verdict,
        "cells": records,
        "new": new,
    }, differs


def _keys(measured: Side) -> dict[Key, None]:
    """What tells each number that has a better side: model, cell and measure."""
    made: dict[Key, None] = {}
    for row in measured.rows:
        about = {name: row.get(name) for name in ("model", *measured.cell)}
        for name, sign in measured.measures.items():
            if sign and name in row:
                made[tuple((about | {"measure": about.get("measure", name)}).items())] = None
    return made


def _pairs(mine: Side, before: Side) -> list[tuple[Row, int, list[Paired]]]:
    """Differences of what has a better side: what tells each, that side, and the difference as it was scored, with what
    is unscored at its worst, and at its best."""
    better = {name: sign for name, sign in mine.measures.items() if sign and name in before.measures}
    mine, before = (replace(each, measures=better) for each in (mine, before))
    filled = [against(_filled(mine, not worst), _filled(before, worst)) for worst in (True, False)]
    try:
        seen = against(mine, before)
    except InputError:  # nothing was scored on both sides
        seen = []
    of = [{tuple(about.items()): pair for about, pair in found} for found in (seen, *filled)]
    made = []
    for key in of[1]:
        about = dict(key)
        sign = better.get(about["measure"], 1)  # a task of utility calls its measure otherwise
        three = [each.get(key, Paired(None, None, None, 0, 0)) for each in of]
        made.append((about, sign, [pair for pair in three if isinstance(pair, Paired)]))
    return made


def _filled(measured: Side, well: bool) -> Side:
    """With what is unscored taken for the better side, or for the worse."""
    rows = []
    for row in measured.rows:
        fills = {name: float(well == (sign > 0)) for name, sign in measured.measures.items() if name in row}
        rows.append({**row, **{name: fill for name, fill in fills.items() if row[name] is None}})
    return replace(measured, rows=rows)


def _worse(pair: Paired, better: int) -> bool:
    return pair.apart() and better * (pair.value or 0) < 0
