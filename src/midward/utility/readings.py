"""From rows to rates with intervals, and two sides compared sample by sample."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from midward._tables import read_table
from midward.errors import InputError
from midward.stats import corrected, mean, paired, rate

Row = dict[str, Any]
Cell = tuple[str, str, str]  # task, subtask ("" for all of them), measure


def by_cell(rows: Sequence[Row]) -> dict[Cell, list[Row]]:
    """The rows of each task and measure, and of its subtasks where there are several; in the rows' order."""
    found: dict[Cell, list[Row]] = {}
    for row in rows:
        found.setdefault((row["task"], "", row["measure"]), []).append(row)
    parts: dict[Cell, list[Row]] = {}
    for row in rows:
        parts.setdefault((row["task"], row["subtask"], row["measure"]), []).append(row)
    several = {
        (task, measure)
        for task, subtask, measure in parts
        if len(parts[task, subtask, measure]) < len(found[task, "", measure])
    }
    return found | {cell: some for cell, some in parts.items() if (cell[0], cell[2]) in several}


def cells(rows: Sequence[Row]) -> list[Row]:
    """A row for each of `by_cell`: task, subtask, measure, n, value, low, high, unscored, flagged.

    value: the mean over samples (of all subtasks together, each sample the same weight). low, high: 95 %; Wilson's
    where every sample is right or wrong, else Student's. flagged: answered with the guard's stub.
    """
    out = []
    for (task, subtask, measure), some in by_cell(rows).items():
        values = [row["value"] for row in some if row["value"] is not None]
        if all(value in (0, 1) for value in values):
            found = rate(None if row["value"] is None else bool(row["value"]) for row in some).record()
        else:
            found = mean(values).record()
        value, low, high = (found[name] for name in ("value", "low", "high"))
        out.append(
            {
                "task": task,
                "subtask": subtask,
                "measure": measure,
                "n": len(values),
                "value": value,
                "low": low,
                "high": high,
                "unscored": len(some) - len(values),
                "flagged": sum(row["flagged"] for row in some),
            }
        )
    return out


def against(first: Sequence[Sequence[Row]], second: Sequence[Sequence[Row]]) -> list[Row]:
    """first - second, a row for each of `by_cell` that both have: task, subtask, measure, and a `Paired`'s fields.

    Each side is the rows of one run or of several (training seeds); see `midward.stats.paired`. Only samples of the
    same exercise meet. p is corrected for all rows together. Raises InputError where the sides share no sample.
    """

    def by_sample(run: Sequence[Row]) -> dict[Cell, dict[str, Any]]:
        return {
            cell: {f"{row['subtask']} {row['id']} {row['doc']}": row["value"] for row in some}
            for cell, some in by_cell(run).items()
        }

    mine, theirs = [by_sample(run) for run in first], [by_sample(run) for run in second]
    labels, pairs = [], []
    for cell in mine[0]:
        a = [run[cell] for run in mine if cell in run]
        b = [run[cell] for run in theirs if cell in run]
        if not {sample for run in a for sample in run} & {sample for run in b for sample in run}:
            continue
        labels.append(dict(zip(("task", "subtask", "measure"), cell, strict=True)))
        pairs.append(paired(a, b))
    if not pairs:
        raise InputError("the two runs share no sample: they must be of the same tasks and exercises to be compared.")
    return [label | pair.record() for label, pair in zip(labels, corrected(pairs), strict=True)]


def load_run(folder: Path) -> tuple[Mapping[str, Any], list[Row]]:
    """What an earlier `midward utility` left: its summary and its samples. Raises InputError where there is none."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        rows = [
            row | {"value": float(row["value"]) if row["value"] else None, "flagged": row["flagged"] == "True"}
            for row in read_table(folder / "samples.csv")
        ]
        if summary["verb"] != "utility":
            raise ValueError
    except (OSError, ValueError, KeyError):
        raise InputError(
            f"{folder} holds no finished run of midward utility (summary.json and samples.csv); run it first."
        ) from None
    return summary, rows
