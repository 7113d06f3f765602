"""Runs of one verb held against each other, from the rows that they left: what `midward compare` computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from midward._settings import wrong_in
from midward._tables import grouped, read_json, read_table
from midward.dynamics.config import TRAINING
from midward.errors import InputError
from midward.runs.compare import Differences, differences, load, records
from midward.runs.run import ROWS, SUMMARY, Run
from midward.sampling import Sampling
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


class _Part(BaseModel):
    """What of an attack's summary says what was asked: models, sets of goals and how many of each, attacks, judges."""

    model_config = ConfigDict(strict=True)

    rows: list[str]
    goals: dict[str, int]
    attacks: list[str]
    measures: dict[str, str]


class Attacked(_Part):
    """An attack's summary, as far as it is read here. verdict: the text that its table shows."""

    verdict: Literal["reply", "replay", "authored"] | None = None
    harmless: _Part | None = None
    warning: str | None = None


@dataclass(frozen=True)
class Side:
    """What a run measured.

    Attributes:
        rows: of the run; their fields are verdicts, shares in 0..1, or numbers without ends.
        cell: fields that tell the cells of the verb's table apart.
        measures: field -> whether more of it is better (1), worse (-1) or neither (0).
        means: fields that are numbers without ends.
        judges: of an attack, whose measures are called by their judges: judge -> what it measures.
        controls: of an attack, models that stand there behind a guard as well, each seed of them.
        missing: of an attack, a cell that lacks rows, in words.
        warning: why an attack's figures are no evidence.
    """

    rows: list[Row]
    cell: Sequence[str]
    measures: Mapping[str, int]
    means: Sequence[str] = ()
    judges: Mapping[str, str] = field(default_factory=dict)
    controls: frozenset[str] = frozenset()
    missing: str = ""
    warning: str | None = None


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
    places = Counter(folder.resolve() for folder in folders)
    if twice := next((folder for folder in folders if places[folder.resolve()] > 1), None):
        raise InputError(f"{twice} is given twice, and a run doesn't differ from itself; give another one.")
    if len(runs) < 2:
        raise InputError(
            f"it takes two runs to compare; received {', '.join(map(str, folders))}. What stands side by side in one, "
            "such as a base and its adapters, is compared in its own tables: midward report."
        )
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
        from midward.probes.registry import find

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
        | (run.sampling or _given(run))
        for run in runs
    ]
    return [
        f"{name} {', '.join(f'{side.get(name)} in {label}' for label, side in zip(labels, sides, strict=True))}"
        for name in dict.fromkeys([*sides[0], *sides[1]])
        if sides[0].get(name) != sides[1].get(name)
    ]


def _given(run: Run) -> Row:
    """The settings of `Sampling` that were given to a run each of whose rows has its own."""
    values = {each.name: run.settings.get(f"--{each.name.replace('_', '-')}") for each in fields(Sampling)}
    return {name: "not given" if value is None else value for name, value in values.items() if name != "seed"}


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
        return _attacked(folder, cell, run)
    read = {
        "utility": lambda of: readings.samples(_measured(of)),
        "guard eval": _behind_guards,
        "dynamics": lambda of: [row for row in _measured(of) if row["set"] != TRAINING],
    }
    return Side(read.get(run.verb, _measured)(folder), cell, {name: BETTER.get(name, 0) for name in measures}, means)


def _attacked(folder: Path, cell: Sequence[str], run: Run) -> Side:
    """An attack's samples, by the text that its own table shows; judges of harmless goals say of these alone."""
    path, file = folder / SUMMARY, folder / SAMPLES
    if not (path.exists() and file.exists()):
        raise InputError(f"{folder} holds no {SUMMARY} and {SAMPLES}: its run isn't finished.")
    try:
        summary = Attacked.model_validate(read_json(path))
    except ValidationError as error:
        raise InputError(f"{path} isn't as midward attack writes it: {wrong_in(error)}.") from None
    shown, samples = summary.verdict or "reply", read_table(file)
    calm = summary.harmless or _Part(rows=[], goals={}, attacks=[], measures={})
    rows, made = [], set()
    for row in samples:
        judges = calm.measures if row["goals"] in calm.goals else summary.measures
        verdicts = {judge: _VERDICTS.get(str(row.get(f"{judge}_{shown}"))) for judge in judges}
        if row.get(shown) or {*verdicts.values()} - {None}:
            made.add(row["attack"])
        asked = {"model": row["row"], "seed": row.get("adapter"), "attack": row["attack"], "set": row["goals"]}
        rows.append(asked | {"goal": row["goal"], "subject": row.get("subject")} | verdicts)
    # A text of the model's own alone is made by some attacks; every other text by all, so it is missing where it isn't.
    without = {row["attack"] for row in samples} - made if shown == "authored" else set()
    rows = [row for row in rows if row["attack"] not in without]
    done = Counter((row["row"], row["attack"], row["goals"]) for row in samples)
    seeds = Counter(model.label for model in run.models)
    missing = [
        f"{attack} on {model}, {goals}"
        for part in (summary, calm)
        for model, attack, goals in product(part.rows, part.attacks, part.goals)
        if done[model, attack, goals] < part.goals[goals] * max(1, seeds[model])
    ]
    judges = summary.measures | calm.measures
    signs = {judge: 0 if measure == "refused" else -1 for judge, measure in judges.items()}
    guarded = {(model.name, model.adapter) for model in run.models if model.guard}
    of_rows = grouped(run.models, lambda model: model.label).items()
    alike = {row: all(not each.guard and (each.name, each.adapter) in guarded for each in of) for row, of in of_rows}
    bare = frozenset(row for row, is_bare in alike.items() if is_bare)
    return Side(rows, cell, signs, judges=judges, controls=bare, missing="".join(missing[:1]), warning=summary.warning)


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


def lacking(verb: str, summary: Any, measured: Side) -> str:
    """Of which cell of a run's summary rows are missing, in words; empty where none is.

    A probe of a package of its own says how many there are by an `n` in its cells, or isn't checked.
    """
    if verb == "attack":
        return measured.missing
    for about, count, scored in _counts(verb, summary) if measured.measures else ():
        rows = _rows_of(measured.rows, about)
        if not rows:  # a summary may leave out what its other fields say already
            rows = _rows_of(measured.rows, {name: value for name, value in about.items() if value is not None})
        if sum(not scored or row["value"] is not None for row in rows) < count:
            return ", ".join(str(value) for value in about.values() if value not in (None, ""))
    return ""


def _rows_of(rows: Sequence[Row], about: Row) -> list[Row]:
    return [row for row in rows if all(row.get(name) == value for name, value in about.items())]


def _counts(verb: str, summary: Any) -> Iterator[tuple[Row, int, bool]]:
    """What tells each cell of a summary, how many rows it was made of, and whether these are the scored ones alone."""
    if verb == "guard eval":
        for defence in summary["defences"][1:]:  # the first is none
            for name, record in [*defence["flags"].items(), *defence["asr"].items()]:
                if name != "all":  # the others together
                    yield {"guard": defence["defence"], "set": name}, record["n"] + record["unscored"], False
    elif verb == "dynamics":
        for sampler, sets in summary["cells"].items():
            several = sum("asr" in rates for rates in sets.values()) > 1
            for name, rates in sets.items():
                if name != "attacked" or not several:  # the others together
                    yield {"sampler": sampler, "set": name}, rates["rr"]["n"] + rates["rr"]["unscored"], False
    elif verb == "utility":
        for cell in summary["cells"]:
            about, score = {name: cell[name] for name in readings.CELL}, cell["score"]
            about |= {"model": cell["model"] or None}  # a single model has no label
            yield about, score["n"] + score.get("unscored", 0), score["stat"] == "mean"
    else:
        for cell in summary.get("cells") or ():
            if "n" in cell:
                yield {name: cell.get(name) for name in _table(verb)[0]}, int(cell["n"]), False


def _labels(folders: Sequence[Path]) -> list[str]:
    """Short names of folders; the whole path where two have one."""
    names = [folder.resolve().name for folder in folders]
    return [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
