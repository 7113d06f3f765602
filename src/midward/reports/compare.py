"""Runs of one verb held against each other, from the rows that they left: what `midward compare` computes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midward._tables import read_table
from midward.errors import InputError
from midward.probes.registry import find
from midward.runs.compare import Differences, differences, load, records
from midward.runs.run import ROWS, SUMMARY, Run
from midward.utility import readings

Row = dict[str, Any]
#: verb -> fields of rows that tell the cells of its table apart, and its measures, verdicts or shares in 0..1. An
#: attack's measures are its judges; a probe says its own.
TABLES: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "attack": (("attack", "set"), ()),
    "guard eval": (("guard", "set"), ("success", "flagged")),
    "dynamics": (("sampler", "set"), ("success", "refused", "correct")),
    "utility": (readings.CELL, ("value",)),
}
#: Measure -> whether more of it is better (1) or worse (-1); of others neither (0). Flagged are harmless requests.
BETTER = {"success": -1, "correct": 1, "value": 1, "flagged": -1}
SAMPLES = "samples.csv"  # of an attack
_VERDICTS = {"1": True, "0": False, "True": True, "False": False}  # as the files of a verb have them


@dataclass(frozen=True)
class Side:
    """What a run measured.

    Attributes:
        rows: of the run; their fields are verdicts, shares in 0..1, or numbers without ends.
        cell: fields that tell the cells of the verb's table apart.
        measures: field -> whether more of it is better (1), worse (-1) or neither (0).
        means: fields that are numbers without ends.
        judges: of an attack, whose measures are called by their judges: judge -> what it measures.
    """

    rows: list[Row]
    cell: Sequence[str]
    measures: Mapping[str, int]
    means: Sequence[str] = ()
    judges: Mapping[str, str] = field(default_factory=dict)


def between(folders: Sequence[Path]) -> dict[str, Any]:
    """The first run minus each of the others.

    Args:
        folders: two runs or more of one verb.

    Returns:
        verb; first, the label of the first; differs, label -> what else than the model isn't alike, in words; pairs:
        records of differences, each with the other's label (`minus`), what tells its cell, a measure, and whether more
        of it is better (1), worse (-1) or neither (0). Paired by what both were asked; p is corrected (Holm) over all
        of one other run, as the verb's own --compare does.

    Raises:
        InputError: the folders aren't finished runs of one verb that can be compared, or share nothing that was asked.
    """
    runs = {folder: Run.load(folder) for folder in folders}
    if len(runs) < 2:
        raise InputError(f"it takes two runs to compare; received {', '.join(map(str, folders))}.")
    verbs = {run.verb for run in runs.values()}
    if len(verbs) > 1:
        verbs_of = "; ".join(f"{folder}: midward {run.verb}" for folder, run in runs.items())
        raise InputError(f"only runs of one verb can be compared; received {verbs_of}.")
    first, *others = (side(folder, run) for folder, run in runs.items())
    labels = _labels(list(runs))
    pairs: list[Row] = []
    by_label = dict(zip(labels, runs.values(), strict=True))
    differs = {label: unlike((labels[0], label), (by_label[labels[0]], run)) for label, run in by_label.items()}
    for label, other in zip(labels[1:], others, strict=True):
        better = {**BETTER, **first.measures}
        found = against(first, other, first.means)
        pairs += [{"minus": label, **row, "better": better.get(row["measure"], 0)} for row in records(found)]
    differs = {label: words for label, words in differs.items() if words}
    return {"verb": verbs.pop(), "first": labels[0], "differs": differs, "pairs": pairs}


def measures_any(verb: str) -> bool:
    """Whether a verb's runs hold measures."""
    return verb in TABLES or verb.startswith("probe ")


def _table(verb: str) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    """What tells the cells of a verb's table apart, its measures, and its numbers without ends."""
    if verb.startswith("probe "):
        probe = find(verb.removeprefix("probe "))
        return probe.cell, probe.measures, probe.means
    if verb not in TABLES:
        raise InputError(f"runs of midward {verb} can't be compared; give runs of {', '.join(TABLES)} or of a probe.")
    return *TABLES[verb], ()


def unlike(labels: Sequence[str], runs: Sequence[Run]) -> list[str]:
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


def against(first: Side, other: Side, means: Sequence[str] = ()) -> Differences:
    """One run minus another. Where both are of one model each, these are what is compared, whatever they are called.

    Raises:
        InputError: they share nothing that was scored on both sides.
    """
    several = any(len({row.get("model") for row in each.rows}) > 1 for each in (first, other))
    cell = [*(["model"] if several else []), *first.cell]
    found = differences(
        first.rows, other.rows, cell, [name for name in first.measures if name in other.measures], means
    )
    if not found:
        raise InputError("the runs share nothing that was scored on both sides.")
    return found


def side(folder: Path, run: Run) -> Side:
    """What a run measured.

    Raises:
        InputError: it isn't finished, or of a verb that measures nothing.
    """
    cell, measures, means = _table(run.verb)
    if run.verb == "attack":
        return _attacked(folder, cell)
    read = {"utility": lambda of: readings.samples(_measured(of)), "guard eval": _behind_guards}.get(
        run.verb, _measured
    )
    return Side(read(folder), cell, {name: BETTER.get(name, 0) for name in measures}, means)


def _attacked(folder: Path, cell: Sequence[str]) -> Side:
    """An attack's samples, by the text that its own table shows; judges of harmless goals say of these alone."""
    path, samples = folder / SUMMARY, folder / SAMPLES
    if not (path.exists() and samples.exists()):
        raise InputError(f"{folder} holds no {SUMMARY} and {SAMPLES}: its run isn't finished.")
    summary = json.loads(path.read_text(encoding="utf-8"))
    shown, calm = summary.get("verdict") or "reply", summary.get("harmless") or {"goals": {}, "measures": {}}
    rows = []
    for row in read_table(samples):
        judges = calm["measures"] if row["goals"] in calm["goals"] else summary["measures"]
        verdicts = {judge: _VERDICTS.get(str(row.get(f"{judge}_{shown}"))) for judge in judges}
        if shown != "reply" and not (row[shown] or row["error"]) and {*verdicts.values()} == {None}:
            continue  # the attack has no such text
        asked = {"model": row["row"], "seed": row.get("adapter"), "attack": row["attack"], "set": row["goals"]}
        rows.append(asked | {"goal": row["goal"], "subject": row.get("subject")} | verdicts)
    judges = summary["measures"] | calm["measures"]
    signs = {judge: 0 if measure == "refused" else -1 for judge, measure in judges.items()}
    return Side(rows, cell, signs, judges=judges)


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
        asked = {name: row.get(name) for name in ("guard", "set", "goal", "subject")}
        rows.append(asked | measured)
    return rows


def _labels(folders: Sequence[Path]) -> list[str]:
    """Short names of folders; the whole path where two have one."""
    names = [folder.resolve().name for folder in folders]
    return [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
