"""From rows to scores with intervals, and two sides compared sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from midward.runs.compare import Differences, differences, records
from midward.stats import mean, rate

Row = dict[str, Any]
Cell = tuple[str, str, str]  # task, subtask ("" for all of them), measure


def by_cell(rows: Sequence[Row]) -> dict[Cell, list[Row]]:
    """The samples of each task and measure, and of its subtasks where there are several; in the rows' order."""
    rows = [_sample(row) for row in rows]
    cells: dict[Cell, list[Row]] = {}
    for row in rows:
        cells.setdefault((row["set"], "", row["measure"]), []).append(row)
    parts: dict[Cell, list[Row]] = {}
    for row in rows:
        parts.setdefault((row["set"], row["subtask"], row["measure"]), []).append(row)
    return cells | {cell: part for cell, part in parts.items() if len(part) < len(cells[cell[0], "", cell[2]])}


def cells(rows: Sequence[Row]) -> list[Row]:
    """A record for each model and each of `by_cell`: model, task, subtask, measure, score, flagged.

    score: the record of a `Rate` where every sample is right or wrong, else of a `Mean`; over samples (of all subtasks
    together, each sample the same weight) and a model's training seeds. flagged: answered with the guard's stub.
    """
    records = []
    for model in dict.fromkeys(row.get("model", "") for row in rows):
        own = [row for row in rows if row.get("model", "") == model]
        for (task, subtask, measure), samples in by_cell(own).items():
            known = [row for row in samples if row["value"] is not None]
            exact = all(row["value"] in (0, 1) for row in known)
            scored = samples if exact else known
            labels = {"goals": [asked_of(row) for row in scored], "seeds": [row.get("seed", 0) for row in scored]}
            values = [row["value"] for row in scored]
            ends = (0.0, 1.0) if all(0 <= value <= 1 for value in values if value is not None) else None
            score = rate(values, **labels) if exact else mean(values, **labels, ends=ends)
            record = {"task": task, "subtask": subtask, "measure": measure, "score": score.record()}
            records.append({"model": model, **record, "flagged": sum(row["flagged"] for row in samples)})
    return records


def against(models: Mapping[str, Sequence[Sequence[Row]]], other: Sequence[Sequence[Row]]) -> list[Row]:
    """Each model minus another, a record for each of `by_cell` that both have: model, task, subtask, measure, and those
    of a `Paired`. Only samples of the same exercise meet; p is corrected for all records together.

    Args:
        models: label -> its rows, a list for each training seed; see `midward.stats.paired`.
        other: the same of what is subtracted.

    Raises:
        InputError: a model shares no sample with the other.
    """
    theirs = samples([row | {"seed": seed} for seed, run in enumerate(other) for row in run])
    found: Differences = []
    for model, runs in models.items():
        mine = samples([row | {"seed": seed} for seed, run in enumerate(runs) for row in run])
        pairs = differences(mine, theirs, ("task", "subtask", "measure"), ["value"])
        found += [({"model": model, **about}, pair) for about, pair in pairs]
    return records(found)


def samples(rows: Sequence[Row]) -> list[Row]:
    """A row for each sample and each of `by_cell` that it is in, with that cell's task, subtask and measure."""
    return [
        {**row, "goal": asked_of(row), "set": None, "subject": None, "task": task, "subtask": subtask}
        for (task, subtask, _), cell in by_cell(rows).items()
        for row in cell
    ]


def _sample(row: Row) -> Row:
    """A row with what `harness.run` has of each sample; those that `measure` wrote say who was `correct`."""
    if "measure" in row:
        return row
    value = None if row["correct"] is None else float(row["correct"])
    flagged = bool((row.get("guard") or {}).get("flagged"))
    return row | {"subtask": row["set"], "measure": "correct", "value": value, "flagged": flagged}


def asked_of(row: Row) -> str:
    """Which exercise a sample is of."""
    return f"{row['subtask']} {row['goal']} {row['subject']}"
