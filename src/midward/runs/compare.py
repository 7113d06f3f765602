"""Two runs of one verb, compared by what both were asked: one path for `midward compare` and each verb's --compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from midward.errors import InputError
from midward.runs.measure import ROWS
from midward.runs.run import Run
from midward.stats import Mean, Paired, corrected, mean, paired
from midward.store import RowFile

Row = dict[str, Any]
#: Fields of rows that say what was asked, besides those of the cell.
ASKED = ("set", "subtask", "goal", "subject", "phrase")
#: What tells a cell of the table, with its measure, and the difference there.
Differences = list[tuple[Row, Paired | Mean]]


def load(folder: str | Path, file: str = ROWS) -> tuple[Run, list[Row]]:
    """A run's record and its rows. Raises InputError where the folder has none."""
    run = Run.load(folder)
    path = Path(folder) / file
    if not path.exists():
        raise InputError(f"{folder} holds no {file}: its run was stopped before the first row.")
    return run, list(RowFile(path).rows.values())


def differences(
    first: Sequence[Row], second: Sequence[Row], cell: Sequence[str], measures: Sequence[str], means: Sequence[str] = ()
) -> Differences:
    """First minus second, cell by cell, paired by what both were asked; `records` corrects p.

    Args:
        first: rows of one run; those of several training seeds of a model have a `seed`.
        second: rows of the other.
        cell: fields that tell the cells of the table apart (set, kind of phrase, position, ...).
        measures: fields of the rows: verdicts, or shares in 0..1; None is unscored.
        means: fields that are numbers without ends.

    Returns:
        For each cell and measure that was scored on both sides: the cell's fields with `measure`, and the difference,
        an interval clustered by the rows' `subject`.

    Raises:
        InputError: the runs share nothing that was asked.
    """
    names = dict.fromkeys([*cell, *ASKED])
    sides: list[dict[tuple[Any, ...], dict[Any, dict[tuple[Any, ...], Row]]]] = [{}, {}]  # cell -> seed -> asked -> row
    for side, rows in zip(sides, (first, second), strict=True):
        for row in rows:
            seeds = side.setdefault(tuple(row.get(name) for name in cell), {})
            seeds.setdefault(row.get("seed"), {})[tuple(row.get(name) for name in names)] = row
    made: Differences = []
    met = False
    for values, runs in sides[0].items():
        others = sides[1].get(values, {})
        mine, theirs = (
            {asked: row for rows in side.values() for asked, row in rows.items()} for side in (runs, others)
        )
        shared = [(row, theirs[asked]) for asked, row in mine.items() if asked in theirs]
        if not shared:
            continue
        met = True
        subjects = {asked: row.get("subject") or asked for asked, row in mine.items()}
        about = dict(zip(cell, values, strict=True))
        for measure in measures:
            verdicts = [
                [{asked: row.get(measure) for asked, row in rows.items()} for rows in side.values()]
                for side in (runs, others)
            ]
            pair = paired(verdicts[0], verdicts[1], subjects.__getitem__)
            made += [(about | {"measure": about.get("measure", measure)}, pair)] if pair.n else []
        for field in means:
            gaps = [row[field] - other[field] for row, other in shared if row.get(field) is not None]
            made += [(about | {"measure": field}, mean(gaps))] if gaps else []
    if not met:
        raise InputError("the two runs share nothing that was asked; compare runs over the same goals.")
    return made


def records(found: Differences) -> list[Row]:
    """Differences of one table as JSON: what tells each, and its record, p corrected (Holm) for all of them."""
    pairs = iter(corrected([number for _, number in found if isinstance(number, Paired)]))
    return [about | (next(pairs) if isinstance(number, Paired) else number).record() for about, number in found]
