"""`midward utility`: scores by task, and differences to other runs by sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from midward.reports.blocks import Block, Cell, Table, reading_of
from midward.reports.builders.shared import change, table
from midward.stats import Paired


def blocks(folder: Path, run: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Block]:
    """Scores by task.

    summary: cells, each with task, subtask, measure, score (a record), flagged, and model where there are several;
    compared, what was subtracted (a model, or the folder of another run) -> records of differences, each with task,
    subtask, measure and model.
    """
    made: list[Block] = []
    if summary["cells"]:
        made.append(_scores("utility", "Scores by task", _columns({"": summary})))
    names = ("task", "subtask", "measure", "model", "flagged")
    if flagged := [{name: cell.get(name) for name in names} for cell in summary["cells"] if cell.get("flagged")]:
        note = "Samples that were answered with the guard's stub, and count as the answers that they are."
        made.append(table("flagged", "Flagged samples", flagged, note=note, folded=True))
    for place, (other, pairs) in enumerate((summary.get("compared") or {}).items()):
        made += _compared(place, Path(other).name, pairs)
    return made


def side_by_side(summaries: Mapping[str, Mapping[str, Any]]) -> Table:
    """The scores of several runs. summaries: the run's label -> its summary."""
    return _scores("utility-all", "Scores by task, run by run", _columns(summaries))


def _columns(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Cell]]:
    """run and model -> task -> score."""
    columns: dict[str, dict[str, Cell]] = {}
    for label, summary in summaries.items():
        for cell in summary["cells"]:
            name = ": ".join(filter(None, (label, cell.get("model"))))
            columns.setdefault(name or "score", {})[_task(cell)] = cell["score"]
    return columns


def _scores(name: str, title: str, columns: Mapping[str, Mapping[str, Cell]]) -> Table:
    tasks = list(dict.fromkeys(task for column in columns.values() for task in column))
    rows = [[task, *(column.get(task) for column in columns.values())] for task in tasks]
    return Table(name, title, ["task", *columns], rows, "Means over samples with 95 % intervals.")


def _compared(place: int, other: str, records: Any) -> Iterator[Block]:
    by_model: dict[str, dict[str, Paired]] = {}
    alike = {"measure": None} if len({record.get("measure") for record in records}) == 1 else {}
    for record in records:
        if pair := reading_of(record, Paired):
            by_model.setdefault(record.get("model") or "", {})[_task({**record, **alike})] = pair
    if by_model:
        yield table(f"utility-compared-{place}", f"Minus {other}, by sample", records)
    for model, gaps in by_model.items():
        sides = f"{model} against {other}" if model else f"Against {other}"
        better = dict.fromkeys(gaps, 1)
        yield change(sides, gaps, better, what="right answers", of="task", still="held")


def _task(cell: Mapping[str, Any]) -> str:
    return ", ".join(str(cell[name]) for name in ("task", "subtask", "measure") if cell.get(name))
