"""From rows to scores with intervals, and two sides compared sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from midward._tables import grouped
from midward.runs.compare import Differences, differences, records
from midward.stats import mean_of, rate_of

Row = dict[str, Any]
CELL = ("task", "subtask", "measure")
Cell = tuple[str, str, str]  # task, subtask ("" for all of them), measure


def by_cell(rows: Sequence[Row]) -> dict[Cell, list[Row]]:
    """The samples of each task and measure, and of its subtasks where there are several; in the rows' order."""
    rows = [_sample(row) for row in rows]
    cells: dict[Cell, list[Row]] = grouped(rows, lambda row: (row["set"], "", row["measure"]))
    parts: dict[Cell, list[Row]] = grouped(rows, lambda row: (row["set"], row["subtask"], row["measure"]))
    return cells | {cell: part for cell, part in parts.items() if len(part) < len(cells[cell[0], "", cell[2]])}


def cells(rows: Sequence[Row]) -> list[Row]:
    """A record for each model and each of `by_cell`: model, task, subtask, measure, score, flagged.

    score: the record of a `Rate` where every sample is right or wrong, else of a `Mean`; over samples (of all subtasks
    together, each sample the same weight) and a model's training seeds. flagged: answered with the guard's stub.
    """
    records = []
    for model, own in grouped(rows, lambda row: row.get("model", "")).items():
        for (task, subtask, measure), samples in by_cell(own).items():
            known = [row for row in samples if row["value"] is not None]
            exact = all(row["value"] in (0, 1) for row in known)
            ends = (0.0, 1.0) if all(0 <= row["value"] <= 1 for row in known) else None
            score: Any = rate_of(samples, "value") if exact else mean_of(samples, "value", ends)
            record = {"task": task, "subtask": subtask, "measure": measure, "score": score.record()}
            records.append({"model": model, **record, "flagged": sum(row["flagged"] for row in samples)})
    return records


def against(models: Mapping[str, Sequence[Row]], other: Sequence[Row]) -> list[Row]:
    """Each model minus another, a record for each of `by_cell` that both have: model, task, subtask, measure, and those
    of a `Paired`. Only samples of the same exercise meet; p is corrected for all records together.

    Args:
        models: label -> its rows, of all its training seeds; see `midward.stats.paired_of`.
        other: the same of what is subtracted.

    Raises:
        InputError: a model shares no sample with the other.
    """
    theirs = samples(other)
    found: Differences = []
    for model, rows in models.items():
        pairs = differences(samples(rows), theirs, CELL, ["value"])
        found += [({"model": model, **about}, pair) for about, pair in pairs]
    return records(found)


def samples(rows: Sequence[Row]) -> list[Row]:
    """A row for each sample and each of `by_cell` that it is in, with that cell's task, subtask and measure."""
    return [
        {**row, "set": None, "task": task, "subtask": subtask}
        for (task, subtask, _), cell in by_cell(rows).items()
        for row in cell
    ]


def _sample(row: Row) -> Row:
    """A row with what `harness.run` has of each sample; those that `measure` wrote say who was `correct`. Its goal is
    which exercise it is."""
    if "measure" not in row:
        value = None if row["correct"] is None else float(row["correct"])
        flagged = bool((row.get("guard") or {}).get("flagged"))
        row = row | {"subtask": row["set"], "measure": "correct", "value": value, "flagged": flagged}
    return row | {"goal": f"{row['subtask']} {row['goal']} {row['subject']}"}
