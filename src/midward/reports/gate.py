"""A release criterion, decided by the ends of intervals: what `midward gate` computes.

A threshold names a measure as `midward compare` and the tables do, and holds in every cell that has it. Each cell gets
the verdict that a report's page gives (`midward.stats.Bound`); a threshold is broken where one cell is, and held where
all are. A comparison with earlier runs is one criterion more.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from midward._hints import did_you_mean, printable
from midward._tables import read_table
from midward.errors import InputError
from midward.reports.builders.shared import name_of
from midward.reports.compare import SAMPLES, Row, Side, against, measures_any, side, unlike
from midward.reports.report.find import RunFolder, find
from midward.stats import FEW, Bound, Mean, Paired, Rate, Standing, corrected, mean_of, rate_of, together

#: Measures that a run has of every row of the cells that it asks about: None is unscored there. Of others, a cell that
#: has nothing but None wasn't asked.
ASKED = {"success", "flagged", "value"}


@dataclass(frozen=True)
class Threshold:
    """What a measure may be. name: the measure, and behind dots what tells the cells that are meant."""

    name: str
    bound: Bound

    def __str__(self) -> str:
        return f"{printable(self.name, '')} {'at most' if self.bound.most else 'at least'} {100 * self.bound.share:g} %"


@dataclass(frozen=True)
class Cell:
    """One number of a run.

    Attributes:
        run: the run's label.
        about: what tells the cell in its run: model, attack, set ...
        measure: its own name.
        meant: what else it is called: what a judge measures, of the one whose verdicts the report's table shows.
        field: of the rows that it is in.
        unscored: how many verdicts there aren't.
    """

    run: str
    about: Mapping[str, Any]
    measure: str
    meant: str
    rows: Sequence[Row]
    field: str
    unscored: int

    @property
    def places(self) -> set[str]:
        """What a threshold may call it by, behind its measure."""
        return {self.run, *(str(value) for value in self.about.values() if value not in (None, ""))}

    def called(self, name: str) -> bool:
        """Whether a name is its measure's: its own one, or one of the same words (asr, success)."""
        return name_of(name) in (name_of(self.measure), name_of(self.meant))

    def number(self) -> Rate | Mean:
        """With its interval over goals and seeds."""
        partly = any(row[self.field] not in (0, 1, None) for row in self.rows)
        number = mean_of(self.rows, self.field, (0.0, 1.0)) if partly else None
        return number or replace(rate_of(self.rows, self.field), unscored=self.unscored)

    def record(self, bound: Bound) -> Row:
        """As JSON, with its verdict, and how many goals in all would decide it (`Bound.needed`)."""
        number = self.number()
        verdict, of_scored = bound.standing(number, self.unscored), bound.standing(number)
        needed = bound.needed(self.rows, self.field) if verdict == of_scored == "unclear" else None
        record = {"run": self.run, "measure": self.measure, **self.about, "verdict": verdict, "needed": needed}
        return record | {"unscored": self.unscored, **number.record()}


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
                number = float(share.strip(" \"'"))  # of a file a text stands in quotes: YAML takes 1e-1 for one
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
        verdict; runs, label -> verb and folder; criteria, each with criterion (in words), verdict and cells: records of
        numbers with run, measure, what tells the cell, verdict, needed and unscored; differs, two labels -> what else
        than the model isn't alike.

    Raises:
        InputError: there is no threshold and no baseline; a run isn't finished or can't be read; no run has a measure
            that is named; the baseline has nothing to compare with.
    """
    if not asked and not baseline:
        raise InputError("there is nothing to decide: give --max, --min or --baseline.")
    runs = _runs(folders)
    sides = {label: _side(run) for label, run in runs.items()}
    cells = [cell for label, each in sides.items() for cell in _cells(runs[label], each)]
    criteria: list[Row] = []
    for threshold in asked:
        records = [_doubted(cell.record(threshold.bound), runs) for cell in _chosen(threshold.name, cells)]
        about = {"criterion": str(threshold), "name": threshold.name, **vars(threshold.bound)}
        criteria.append({**about, "verdict": together(record["verdict"] for record in records), "cells": records})
    differs: dict[str, list[str]] = {}
    if baseline:
        worse, differs = _baseline(runs, sides, _runs(baseline))
        criteria.append(worse)
    verdict = together(criterion["verdict"] for criterion in criteria)
    of = {label: {"verb": run.run.verb, "folder": os.path.relpath(run.folder)} for label, run in runs.items()}
    return {"verdict": verdict, "runs": of, "criteria": criteria, "differs": differs}


def _doubted(record: Row, runs: Mapping[str, RunFolder]) -> Row:
    """Of an attack whose figures are no evidence nothing is clear, as on its page."""
    run = runs[record["run"]]
    warning = run.summary.get("warning") if run.run.verb == "attack" else None
    return record | ({"verdict": "unclear", "needed": None, "warning": warning} if warning else {})


# --- what was measured ---------------------------------------------------------------------------------------


def _runs(folders: Sequence[Path]) -> dict[str, RunFolder]:
    """The finished runs by their labels."""
    found = find(folders)
    if found.troubles:
        raise InputError("; ".join(f"{label}: {why}" for label, why in found.troubles))
    runs = {run.label: run for run in found.runs if measures_any(run.run.verb)}
    if not runs:
        there = "; there is " + ", ".join(f"{run.label} (midward {run.run.verb})" for run in found.runs)
        raise InputError(
            f"no run below {', '.join(map(str, folders))} has measures{there if found.runs else ''}. Give folders of "
            "midward attack, guard eval, utility, dynamics or a probe."
        )
    for label, run in runs.items():
        if run.summary is None or run.run.finished is None:
            raise InputError(f"{label} isn't finished: the command that made it goes on with it.")
    return runs


def _side(run: RunFolder) -> Side:
    """What a run measured; a row that isn't asked a measure lacks its field."""
    measured = side(run.folder, run.run)
    rows = [
        {name: value for name, value in row.items() if name not in measured.measures or _asks(name, row)}
        for row in measured.rows
    ]
    for group in _groups(rows, measured.cell).values():
        for name in measured.measures:
            silent = all(row.get(name) is None for row in group)
            if silent and name not in ASKED and not measured.judges and not any(row.get("error") for row in group):
                for row in group:
                    row.pop(name, None)
    return replace(measured, rows=rows)


def _asks(measure: str, row: Row) -> bool:
    """Attack success is of harmful goals, right answers are of harmless ones."""
    harmful = row.get("harmful")
    return harmful is None or not measure.endswith("correct" if harmful else "success")


def _groups(rows: Sequence[Row], cell: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Model and what tells the cell -> its rows."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in ("model", *cell)), []).append(row)
    return groups


def _cells(run: RunFolder, measured: Side) -> Iterator[Cell]:
    """All shares of a run."""
    shown = next((judge for judge, of in measured.judges.items() if of != "refused"), None)
    groups, names, lost = _groups(measured.rows, measured.cell), ("model", *measured.cell), _lost(run)
    for key in dict.fromkeys([*groups, *lost]):
        group, missing = groups.get(key, []), lost.get(key, 0)
        about = {name: value for name, value in zip(names, key, strict=True) if value is not None}
        for field in measured.measures:
            rows = [row for row in group if field in row]
            values = [row[field] for row in rows]
            if (group and not rows) or not all(value is None or 0 <= value <= 1 for value in values):
                continue
            of = measured.judges.get(field)
            if not group and of == "refused":
                continue
            meant = "refused" if of == "refused" else "success" if field == shown else ""
            named = {name: value for name, value in about.items() if name != "measure"}
            measure = str(about.get("measure", field))
            yield Cell(run.label, named, measure, meant, rows, field, values.count(None) + missing)


def _lost(run: RunFolder) -> dict[tuple[Any, ...], int]:
    """Of an attack, the cell of each model, attack and set -> how many samples were lost with their log: unscored ones,
    as those that failed."""
    if run.run.verb != "attack":
        return {}
    done = Counter((row["row"], row["attack"], row["goals"]) for row in read_table(run.folder / SAMPLES))
    seeds = Counter(model.label for model in run.run.models)
    return {
        (model, attack, goals): max(0, count * max(1, seeds[model]) - done[model, attack, goals])
        for model in run.summary["rows"]
        for attack in run.summary["attacks"]
        for goals, count in run.summary["goals"].items()
    }


def _chosen(name: str, cells: Sequence[Cell]) -> list[Cell]:
    """The cells that a threshold's name means."""
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
    return chosen


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
    runs: Mapping[str, RunFolder], sides: Mapping[str, Side], earlier: Mapping[str, RunFolder]
) -> tuple[Row, dict[str, list[str]]]:
    """Whether anything is measurably worse than before, paired by what both were asked, and what else differs. One
    family of comparisons: p is corrected for all of them."""
    cells: list[Row] = []
    families: list[list[Paired]] = [[], [], []]  # as it was scored; what is unscored at its worst, and at its best
    differs: dict[str, list[str]] = {}
    paired: set[str] = set()
    for label, run in runs.items():
        met = []
        for other, before in earlier.items():
            if before.run.verb != run.run.verb:
                continue
            try:
                pairs = _pairs(sides[label], _side(before))
            except InputError:  # they share nothing
                continue
            met.append(other)
            labels = label, f"{other} (baseline)"
            if words := unlike(labels, (run.run, before.run)):
                differs[" and ".join(labels)] = words
            for about, better, three in pairs:
                cells.append({"run": label, "minus": labels[1], **about, "better": better})
                for family, pair in zip(families, three, strict=True):
                    family.append(pair)
        if not met:
            raise InputError(f"the baseline has no run of midward {run.run.verb} over what {label} was asked.")
        paired |= {*met}
    if alone := [label for label in earlier if label not in paired]:
        raise InputError(f"no run was asked what {', '.join(alone)} of the baseline was; give runs of the same.")
    records = []
    for about, seen, worst, best in zip(cells, *map(corrected, families), strict=True):
        verdict: Standing = "held" if seen.goals >= FEW else "unclear"
        if _worse(best, about["better"]):
            verdict = "broken"
        elif _worse(worst, about["better"]):
            verdict = "unclear"
        record = {**about, "verdict": verdict, "unscored": worst.n - seen.n, **seen.record()}
        records.append(_doubted(record, runs))
    verdict = together(record["verdict"] for record in records)
    return {
        "criterion": "not measurably worse than the baseline",
        "name": "baseline",
        "verdict": verdict,
        "cells": records,
    }, differs


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
