"""`midward utility`: scores by task, and differences to other runs by sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from midward.reports.blocks import Block, Cell, Statement, Table, apart, listed, reading, some
from midward.stats import FEW, Paired


def blocks(folder: Path, run: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Block]:
    """Scores by task. summary: cells, each with task, subtask, measure, score (a record), flagged; compared, the folder
    of another run -> records of differences, each with task, subtask and measure."""
    made: list[Block] = []
    rows = [[*_labels(cell), cell.get("score", cell), cell.get("flagged") or 0] for cell in summary["cells"]]
    if rows:
        note = "Means over samples with 95 % intervals. Flagged: answered with the guard's stub, and counted as it is."
        made.append(Table("utility", "Scores by task", ["task", "measure", "score", "flagged"], rows, note))
    for place, (other, pairs) in enumerate((summary.get("compared") or {}).items()):
        made += _compared(place, Path(other).name, pairs)
    return made


def _compared(place: int, other: str, pairs: Any) -> Iterator[Block]:
    gaps = {", ".join(_labels(pair)): pair_of for pair in pairs if isinstance(pair_of := reading(pair), Paired)}
    if not gaps:
        return
    family = max(pair.family for pair in gaps.values())
    note = "By sample." + (f" Holm: p corrected for {some(family, 'comparison')}." if family > 1 else "")
    rows: list[list[Cell]] = [[task, pair] for task, pair in gaps.items()]
    yield Table(f"utility-compared-{place}", f"This run minus {other}", ["task", "difference"], rows, note)
    yield kept(f"Against {other}", gaps)


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


def _labels(cell: Mapping[str, Any]) -> list[str]:
    task = ", ".join(str(cell[name]) for name in ("task", "subtask") if cell.get(name))
    return [task, str(cell.get("measure") or "")]


def side_by_side(summaries: Mapping[str, Mapping[str, Any]]) -> Table:
    """The scores of several runs. summaries: the run's label -> its summary."""
    columns = {
        label: {", ".join(_labels(cell)): cell.get("score", cell) for cell in summary["cells"]}
        for label, summary in summaries.items()
    }
    tasks = list(dict.fromkeys(task for column in columns.values() for task in column))
    rows = [[task, *(column.get(task) for column in columns.values())] for task in tasks]
    return Table("utility-all", "Scores by task, run by run", ["task", *columns], rows)
