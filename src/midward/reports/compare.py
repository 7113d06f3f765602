"""Runs of one verb held against each other, from the rows that they left: what `midward compare` computes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from midward._tables import read_table
from midward.errors import InputError
from midward.runs.compare import Differences, differences, load, records
from midward.runs.measure import ROWS
from midward.runs.run import SUMMARY, Run
from midward.utility import readings

Row = dict[str, Any]
#: Fields of rows that tell the cells of a table apart, those of them that a verb's rows have.
CELL = ("attack", "guard", "set", "sampler", "kind", "position", "word", "tokens", "task", "subtask", "measure")
#: Fields that are verdicts or shares in 0..1 -> whether more of it is better (1), worse (-1) or neither (0).
MEASURES = {"success": -1, "refused": 0, "correct": 1, "own_refusal": 0, "hit": 0, "anywhere": 0}
MEASURES |= {"flagged": -1}  # of harmless requests
_VERDICTS = {"1": True, "0": False, "True": True, "False": False}  # as the files of a verb have them


def between(folders: Sequence[Path]) -> dict[str, Any]:
    """The first run minus each of the others.

    Args:
        folders: two runs or more of one verb.

    Returns:
        verb; first, the label of the first; differs, label -> what else than the model isn't alike, in words; pairs:
        records of differences, each with the other's label (`minus`), what tells its cell, a measure, and whether more
        of it is better (1), worse (-1) or neither (0). Paired by what both were asked; p is corrected (Holm) over all
        of them.

    Raises:
        InputError: the folders aren't finished runs of one verb, or share nothing that was asked.
    """
    runs = {folder: Run.load(folder) for folder in folders}
    if len(runs) < 2:
        raise InputError(f"it takes two runs to compare; received {', '.join(map(str, folders))}.")
    verbs = {run.verb for run in runs.values()}
    if len(verbs) > 1:
        verbs_of = "; ".join(f"{folder}: midward {run.verb}" for folder, run in runs.items())
        raise InputError(f"only runs of one verb can be compared; received {verbs_of}.")
    (first, measures), *others = (_rows(folder, run) for folder, run in runs.items())
    labels = _labels(list(runs))
    found: Differences = []
    by_label = dict(zip(labels, runs.values(), strict=True))
    differs = {label: _differs((labels[0], label), (by_label[labels[0]], run)) for label, run in by_label.items()}
    for label, (other, theirs) in zip(labels[1:], others, strict=True):
        shared = {name: better for name, better in measures.items() if name in theirs}
        found += [({"minus": label, **about}, pair) for about, pair in _against(first, other, shared)]
    differs = {label: words for label, words in differs.items() if words}
    return {"verb": next(iter(verbs)), "first": labels[0], "differs": differs, "pairs": records(found)}


def _differs(labels: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """What else than the model two runs don't share, in words: seed, goals, judges, sampling."""
    sides = [
        {"seed": run.seed}
        | {f"goals of {name}": count for name, count in run.goals.items()}
        | {"judges": [judge.get("judge") for judge in run.judges]}
        | (run.sampling or {})
        for run in runs
    ]
    return [
        f"{name} {', '.join(f'{side.get(name)} in {label}' for label, side in zip(labels, sides, strict=True))}"
        for name in dict.fromkeys([*sides[0], *sides[1]])
        if sides[0].get(name) != sides[1].get(name)
    ]


def _against(first: Sequence[Row], other: Sequence[Row], measures: Mapping[str, int]) -> Differences:
    """One run minus another. Where both are of one model each, these are what is compared, whatever they are called."""
    sides = (first, other)
    several = any(len({row.get("model") for row in rows}) > 1 for rows in sides)
    names = [*(["model"] if several else []), *CELL]
    cell = [name for name in names if any(row.get(name) is not None for rows in sides for row in rows)]
    found = differences(first, other, cell, list(measures))
    if not found:
        raise InputError("the runs share nothing that was scored on both sides.")
    return [(about | {"better": measures.get(about["measure"], 1)}, pair) for about, pair in found]


def _rows(folder: Path, run: Run) -> tuple[list[Row], dict[str, int]]:
    """The rows of a run and its measures. An attack's rows are in samples.csv; its judges are the measures."""
    if run.verb == "utility":
        return readings.samples(_measured(folder)), {"value": 1}
    if run.verb != "attack":
        rows = _behind_guards(folder) if run.verb == "guard eval" else _measured(folder)
        return rows, {
            name: better for name, better in MEASURES.items() if any(_is_share(row.get(name)) for row in rows)
        }
    summary, samples = folder / SUMMARY, folder / "samples.csv"
    if not (summary.exists() and samples.exists()):
        raise InputError(f"{folder} holds no {SUMMARY} and samples.csv: its run isn't finished.")
    judges = json.loads(summary.read_text(encoding="utf-8"))["measures"]
    rows = [
        {
            "model": row["row"],
            "seed": row.get("adapter"),
            "attack": row["attack"],
            "set": row["goals"],
            "goal": row["goal"],
        }
        | {judge: _VERDICTS.get(row[f"{judge}_reply"]) for judge in judges}
        for row in read_table(samples)
    ]
    return rows, {judge: 0 if measure == "refused" else -1 for judge, measure in judges.items()}


def _measured(folder: Path) -> list[Row]:
    """The rows of the measuring loop; of several files (a sampler each) all."""
    files = {path.stem.removeprefix("rows-"): path.name for path in sorted(folder.glob("rows-*.jsonl"))}
    if not files:
        return load(folder, ROWS)[1]
    return [{**row, "sampler": sampler} for sampler, file in files.items() for row in load(folder, file)[1]]


def _behind_guards(folder: Path) -> list[Row]:
    """What came through each guard of harmful requests, and what it flagged of harmless ones, as scores.csv has it."""
    path = folder / "scores.csv"
    if not path.exists():
        raise InputError(f"{folder} holds no scores.csv: its run isn't finished.")
    rows = []
    for row in read_table(path):
        success, flagged = _VERDICTS.get(row["success"]), _VERDICTS.get(row["flagged"])
        through = None if success is None or flagged is None else success and not flagged
        measured = {"success": through} if row["harmful"] == "True" else {"flagged": flagged}
        rows.append({"guard": row["guard"], "set": row["set"], "goal": row["goal"], **measured})
    return rows


def _is_share(value: Any) -> bool:
    return isinstance(value, bool | int | float) and 0 <= value <= 1


def _labels(folders: Sequence[Path]) -> list[str]:
    """Short names of folders; the whole path where two have one."""
    names = [folder.resolve().name for folder in folders]
    return [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
