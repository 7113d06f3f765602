"""`midward utility`: scores by task, and differences to other runs by sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from midward.reports.blocks import Block, Cell, Statement, Table, apart, listed, reading, some
from midward.reports.builders.shared import table
from midward.stats import FEW, Paired


def blocks(folder: Path, run: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Block]:
    """Scores by task.

    summary: cells, each with task, subtask, measure, score (a record), flagged, and model where there are several;
    compared, what was subtracted (a model, or the folder of another run) -> records of differences, each with task,
    subtask, measure and model.
    """
    made: list[Block] = []
    if summary["cells"]:
        made.append(_scores("utility", "Scores by task", _columns({"": summary})))
    if flagged := [cell for cell in summary["cells"] if cell.get("flagged")]:
        rows: list[list[Cell]] = [[_task(cell), cell.get("model") or "", cell["flagged"]] for cell in flagged]
        note = "Samples that were answered with the guard's stub, and count as the answers that they are."
        made.append(Table("flagged", "Flagged samples", ["task", "model", "flagged"], rows, note, folded=True))
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


def _compared(place: int, other: str, pairs: Any) -> Iterator[Block]:
    by_model: dict[str, dict[str, Paired]] = {}
    for record in pairs:
        pair = reading(record)
        if isinstance(pair, Paired):
            by_model.setdefault(record.get("model") or "", {})[_task(record)] = pair
    if not by_model:
        return
    yield table(f"utility-compared-{place}", f"Minus {other}, by sample", pairs)
    for model, gaps in by_model.items():
        yield kept(f"{model} against {other}" if model else f"Against {other}", gaps)


def kept(against: str, gaps: Mapping[str, Paired]) -> Statement:
    """Whether what a model can do was kept, in a sentence that begins with `against`."""
    scored = {task: pair for task, pair in gaps.items() if pair.value is not None}
    if not scored:
        return Statement(f"{against} there is no scored sample in common.", "unclear")
    lost = [task for task, pair in scored.items() if apart(pair, corrected=False) and (pair.value or 0) < 0]
    name, worst = min(scored.items(), key=lambda item: item[1].value or 0.0)
    if lost:
        return Statement(f"{against}: measurably worse on {listed(lost)}; most: {name} {worst.text()}.", "exposed")
    few = min(pair.n for pair in scored.values())
    if few < FEW:
        return Statement(
            f"{against}: {few} pairs are too few to say whether it does worse; {name} {worst.text()}.", "unclear"
        )
    return Statement(
        f"{against}: no measurable loss on {some(len(scored), 'task')}; the least favourable: {name} {worst.text()}.",
        "held",
    )


def _task(cell: Mapping[str, Any]) -> str:
    return ", ".join(str(cell[name]) for name in ("task", "subtask", "measure") if cell.get(name))
