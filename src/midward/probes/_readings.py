"""From rows to figures: one cell a condition, with intervals, and paired comparisons by goal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from midward._hints import differing
from midward.errors import InputError
from midward.stats import Mean, Paired, mean, paired, rate
from midward.store import RowFile

Row = dict[str, Any]
Condition = tuple[str, str, int | None, int | None]  # set ("harmful" or "benign"), kind, position, tokens

UNFORCED = "none"  # the kind of a row without a phrase


def condition(row: Row) -> Condition:
    """Which cell a row belongs to."""
    return ("harmful" if row["harmful"] else "benign", row["kind"], row["position"], row["tokens"])


def conditions(rows: Sequence[Row]) -> dict[Condition, list[Row]]:
    """The rows of each condition, in the order in which conditions first appear."""
    found: dict[Condition, list[Row]] = {}
    for row in rows:
        found.setdefault(condition(row), []).append(row)
    return found


def cells(rows: Sequence[Row]) -> list[Row]:
    """One row a condition, as it goes into the table. Shares are in 0..1.

    asr: attack success of harmful goals with its 95 % Wilson interval, unscored beside it. score: mean of the judge's
    own scale with its 95 % interval over goals. own_refusal: refusals in what the model wrote itself. landed:
    responses that reach behind the phrase. correct: right answers to benign goals. coherent: by the oracle. A field
    that doesn't apply is None.
    """
    out = []
    for (group, kind, position, tokens), some in conditions(rows).items():
        harmful = group == "harmful"
        cell: Row = {"set": group, "kind": kind, "position": position, "tokens": tokens, "n": len(some)}
        for name, field, wanted in (
            ("asr", "success", harmful),
            ("own_refusal", "own_refusal", True),
            ("correct", "correct", not harmful),
        ):
            found = rate(row[field] for row in some).record()
            there = wanted and bool(found["n"])
            cell |= {name: found["value"] if there else None}
            cell |= {f"{name}_{end}": found[end] if there else None for end in ("low", "high")}
            if name == "asr":
                cell["unscored"] = found["unscored"] if harmful else None
        scores = [row["score"] for row in some if row["score"] is not None]
        score = mean(scores) if harmful and scores else None
        cell |= {"score": score and score.value}
        cell |= {f"score_{end}": score and getattr(score, end) for end in ("low", "high")}
        cell |= {name: rate(row[name] for row in some).record()["value"] for name in ("landed", "coherent")}
        out.append(cell)
    return out


def by_goal(rows: Sequence[Row], field: str = "success") -> dict[str, bool | None]:
    """Goal -> one field, of the rows of one condition."""
    return {row["goal"]: row[field] for row in rows}


def compare(first: Sequence[Row], second: Sequence[Row], field: str = "success") -> Paired:
    """first - second by goal, of the rows of one condition each."""
    return paired([by_goal(first, field)], [by_goal(second, field)])


def slope(rows: Sequence[Row], field: str = "success") -> Mean | None:
    """How a field changes over ten positions, in points: the mean over goals of each one's least-squares slope. rows:
    of one kind at several positions.

    None where fewer than two positions are scored, or all goals have one slope: that gives an interval no width.
    """
    by_position: dict[int, dict[str, bool | None]] = {}
    for row in rows:
        by_position.setdefault(row["position"], {})[row["goal"]] = row[field]
    places = sorted(by_position)
    goals = [goal for goal in by_position[places[0]] if all(by_position[p].get(goal) is not None for p in places)]
    if len(places) < 2 or not goals:
        return None
    values = np.array([[float(by_position[p][goal] or 0) for p in places] for goal in goals])  # [goals, positions]
    at = np.array(places, dtype=float) - np.mean(places)
    found = mean(1000 * (values @ at) / (at @ at))
    return None if found.low is None else found


def load_run(
    folder: Path, probe: str, judge: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> tuple[Row, list[Row]]:
    """What an earlier run left in its folder: its summary, and the rows that are of the run it sums up.

    Raises InputError where the folder holds none of this probe, or one by another judge (`Bench.key`) or with other
    settings (but the seed): what differs then isn't the model.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        run, theirs = summary["run"], summary["judge"]
        if summary["probe"] != probe:
            raise KeyError
    except (OSError, ValueError, KeyError):
        raise InputError(
            f"{folder} holds no finished run of midward probe {probe} (in its summary.json); run it first."
        ) from None
    if told := differing(theirs, judge):
        raise InputError(f"{folder} was judged otherwise ({'; '.join(told)}), so it can't be compared.")
    if told := differing(summary.get("settings") or {}, settings or {}, but=("seed",)):
        raise InputError(f"{folder} was run with other settings, so it can't be compared: {'; '.join(told)}.")
    return summary, [row for row in RowFile(folder / "rows.jsonl").rows.values() if row["run"] == run]


def sampled_otherwise(sampling: Mapping[str, Any], others: Mapping[Path, tuple[Row, list[Row]]]) -> list[str]:
    """A line for each run to be compared with that was sampled with other settings, which a model's defaults may be."""
    told = {folder: differing(summary["sampling"], sampling) for folder, (summary, _) in others.items()}
    return [f"{folder} was sampled otherwise: {'; '.join(what)}" for folder, what in told.items() if what]


def against(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """Paired differences, these rows minus the others, by condition: success of harmful goals, right answers of benign
    ones. Only rows with the same goal, condition and phrase meet. Raises InputError where none do."""

    def by_what(some: Sequence[Row]) -> dict[tuple[Any, ...], Row]:
        return {(row["goal"], *condition(row), row["phrase"]): row for row in some}

    mine, theirs = by_what(rows), by_what(others)
    shared = [key for key in mine if key in theirs]
    if not shared:
        raise InputError(
            "the two runs share no row: goals, phrases, positions and seed must be the same to be compared by goal."
        )
    out = []
    for (group, kind, position, tokens), some in conditions([mine[key] for key in shared]).items():
        field = "success" if group == "harmful" else "correct"
        goals = {row["goal"] for row in some}
        rest = [theirs[key] for key in shared if key[0] in goals and condition(mine[key]) == condition(some[0])]
        if all(row[field] is None for row in (*some, *rest)):
            continue
        found = compare(some, rest, field)
        out.append(
            {
                "set": group,
                "kind": kind,
                "position": position,
                "tokens": tokens,
                "measure": field,
                "value": found.value,
                "low": found.low,
                "high": found.high,
                "p": found.p,
                "n": found.n,
            }
        )
    return out
