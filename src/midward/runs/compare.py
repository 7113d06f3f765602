"""Two runs of one verb, compared by what both were asked: one path for `midward compare` and each verb's --compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from midward._tables import grouped
from midward.errors import InputError
from midward.runs.run import ROWS, Run
from midward.stats import Mean, Paired, corrected, gap_of, paired_of
from midward.store import RowFile

Row = dict[str, Any]
#: Fields of rows that say what was asked, besides those of the cell.
ASKED = ("set", "subtask", "goal", "subject", "phrase", "draw")
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
        over the rows' subjects and seeds (`stats.paired_of`, `stats.gap_of`).

    Raises:
        InputError: the runs share nothing that was asked.
    """
    both = all(any(row.get("subject") for row in rows) for rows in (first, second))
    names = [name for name in ASKED if both or name != "subject"]  # files of an earlier version have none

    def asked(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in names)

    mine, theirs = (grouped(rows, lambda row: tuple(row.get(name) for name in cell)) for rows in (first, second))
    made: Differences = []
    met = False
    for values, rows in mine.items():
        others = theirs.get(values, [])
        if not {*map(asked, rows)} & {*map(asked, others)}:
            continue
        met = True
        about = dict(zip(cell, values, strict=True))
        for measure in measures:
            pair = paired_of(rows, others, measure, asked)
            made += [(about | {"measure": about.get("measure", measure)}, pair)] if pair.n else []
        for field in means:
            gap = gap_of(rows, others, field, asked)
            made += [(about | {"measure": field}, gap)] if gap else []
    if not met:
        raise InputError("the two runs share nothing that was asked; compare runs over the same goals.")
    return made


def records(found: Differences) -> list[Row]:
    """Differences of one table as JSON: what tells each, and its record, p corrected (Holm) for all of them."""
    pairs = iter(corrected([number for _, number in found if isinstance(number, Paired)]))
    return [about | (next(pairs) if isinstance(number, Paired) else number).record() for about, number in found]
