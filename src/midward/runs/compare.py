"""Two runs of one verb, compared by what both were asked."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from midward.errors import InputError
from midward.runs.measure import ROWS
from midward.runs.run import Run
from midward.stats import Paired, corrected, paired
from midward.store import RowFile

Row = dict[str, Any]


def load(folder: str | Path, file: str = ROWS) -> tuple[Run, list[Row]]:
    """A run's record and its rows. Raises InputError where the folder has none."""
    run = Run.load(folder)
    path = Path(folder) / file
    if not path.exists():
        raise InputError(f"{folder} holds no {file}: its run was stopped before the first row.")
    return run, list(RowFile(path).rows.values())


def compare(
    first: Sequence[Row],
    second: Sequence[Row],
    measures: Sequence[str],
    *,
    cell_of: Callable[[Row], Hashable],
    asked_of: Callable[[Row], Hashable],
) -> dict[tuple[Hashable, str], Paired]:
    """First minus second, cell by cell, paired by what both were asked; p corrected (Holm) over the whole table.

    Args:
        first: rows of one run.
        second: rows of the other.
        measures: fields of the rows: verdicts, or shares in 0..1; None is unscored.
        cell_of: which cell of the table a row belongs to (set, kind of phrase, position, ...).
        asked_of: what a row's model was asked, the same in both runs.

    Returns:
        (cell, measure) -> the difference, an interval clustered by the rows' `subject`.

    Raises:
        InputError: the runs share nothing that was asked.
    """
    sides = [_cells(rows, cell_of, asked_of) for rows in (first, second)]
    shared = [cell for cell in sides[0] if cell in sides[1] and sides[0][cell].keys() & sides[1][cell].keys()]
    if not shared:
        raise InputError("the two runs share nothing that was asked; compare runs over the same goals.")
    subjects = {asked_of(row): row.get("subject") or asked_of(row) for row in first}
    differences = {}
    for cell in shared:
        for measure in measures:
            mine, theirs = ([{asked: row.get(measure) for asked, row in side[cell].items()}] for side in sides)
            differences[cell, measure] = paired(mine, theirs, subjects.__getitem__)
    return dict(zip(differences, corrected(list(differences.values())), strict=True))


def _cells(
    rows: Sequence[Row], cell_of: Callable[[Row], Hashable], asked_of: Callable[[Row], Hashable]
) -> dict[Hashable, dict[Hashable, Row]]:
    cells: dict[Hashable, dict[Hashable, Row]] = {}
    for row in rows:
        cells.setdefault(cell_of(row), {})[asked_of(row)] = row
    return cells
