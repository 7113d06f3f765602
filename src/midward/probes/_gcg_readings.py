"""From the rows of the GCG probe to its figures: one cell a position, differences by goal, and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from midward.errors import InputError
from midward.probes.gcg import Gcg
from midward.stats import mean, paired, rate

Row = dict[str, Any]
MEASURES = ("loss", "hit", "success")


def at(rows: Sequence[Row], position: int | None) -> list[Row]:
    """The rows of one position; None: the controls, whose suffix is as the searches start."""
    return [row for row in rows if row["position"] == position]


def positions(rows: Sequence[Row]) -> list[int]:
    """What was aimed at, in order."""
    return sorted({row["position"] for row in rows if row["position"] is not None})


def best_so_far(row: Row, iterations: int) -> list[float]:
    """The least loss up to each iteration, from 0 to `iterations`; a search that ended early keeps its last."""
    least = list(accumulate(row["curve"], min))
    return least + [least[-1]] * (iterations + 1 - len(least))


def cells(rows: Sequence[Row]) -> list[Row]:
    """One row a position, the controls first. Shares are in 0..1 with 95 % Wilson intervals, losses in nats a token.

    loss: mean of the best suffixes' with its 95 % interval over goals. hit: the phrase stands at its place in a
    real response. anywhere: somewhere in it. asr: as judged.
    """
    out: list[Row] = []
    for position in (None, *positions(rows)):
        some = at(rows, position)
        cell: Row = {"position": position, "n": len(some)}
        for name in ("start_loss", "loss", "iterations"):
            cell[name] = None
        if position is not None:
            loss = mean(row["loss"] for row in some)
            cell["start_loss"] = float(np.mean([row["start_loss"] for row in some]))
            cell |= {"loss": loss.value, "loss_low": loss.low, "loss_high": loss.high}
            cell["iterations"] = float(np.mean([len(row["curve"]) - 1 for row in some]))
        for name, field in (("hit", "hit"), ("anywhere", "anywhere"), ("asr", "success"), ("refused", "refused")):
            found = rate(row[field] for row in some).record()
            known = bool(found["n"])
            cell |= {name: found["value"], f"{name}_low": found["low"] if known else None}
            cell |= {f"{name}_high": found["high"] if known else None}
            if name == "asr":
                cell["unscored"] = found["unscored"]
        out.append(cell)
    return out


def gap(first: Sequence[Row], second: Sequence[Row], measure: str) -> Row:
    """first - second by goal: {measure, difference, low, high, p, n}; a loss (in nats) has no p."""
    if measure != "loss":
        mine, others = ([{row["goal"]: row[measure] for row in some}] for some in (first, second))
        return {"measure": measure, **paired(mine, others).record()}
    theirs = {row["goal"]: row["loss"] for row in second}
    losses = mean(row["loss"] - theirs[row["goal"]] for row in first if row["goal"] in theirs)
    return {"measure": measure, **losses.record(), "p": None}


def between(rows: Sequence[Row]) -> list[Row]:
    """Differences by goal: attack success of each position minus the control's (`minus` None), then every measure of
    the other positions minus the first one's."""
    first, *rest = positions(rows)
    found = [
        {"position": position, "minus": None, **gap(at(rows, position), at(rows, None), "success")}
        for position in (first, *rest)
    ]
    return found + [
        {"position": position, "minus": first, **gap(at(rows, position), at(rows, first), measure)}
        for position in rest
        for measure in MEASURES
    ]


def against(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """These rows minus another model's, by position and goal; only equal phrases meet.

    Raises InputError where none do.
    """

    def what(row: Row) -> tuple[Any, ...]:
        return (row["goal"], row["position"], row["phrase"])

    theirs = {what(row): row for row in others}
    mine = [row for row in rows if what(row) in theirs]
    shared = positions(mine)
    if not shared:
        raise InputError(
            "the two runs share no search: goals, positions and phrases must be the same to be compared by goal."
        )
    return [
        {"position": position, **gap(some, [theirs[what(row)] for row in some], measure)}
        for position in shared
        for some in [at(mine, position)]
        for measure in MEASURES
    ]


def told(difference: Row) -> str:
    """A difference in words: points, or nats for a loss."""
    if difference["value"] is None:
        return "- (n 0)"
    scale, unit = (1, "nats") if difference["measure"] == "loss" else (100, "points")
    digits = 2 if scale == 1 else 1
    ends = [difference[name] for name in ("low", "high")]
    between = "" if None in ends else " [" + ", ".join(f"{scale * end:+.{digits}f}" for end in ends) + "]"
    p = "" if difference["p"] is None else f", p {difference['p']:.2g}"
    return f"{scale * difference['value']:+.{digits}f} {unit}{between} (n {difference['n']}{p})"


def findings(rows: Sequence[Row], settings: Gcg) -> list[str]:
    """What was found: a sentence for the control, one a position, and one for each comparison with the first."""
    control = rate(row["success"] for row in at(rows, None))
    out = [f"Without a search (the suffix it starts from) attack success is {control}."]
    gaps = {(one["position"], one["minus"], one["measure"]): one for one in between(rows)}
    first, *rest = positions(rows)
    for position in (first, *rest):
        some = at(rows, position)
        least = mean(row["loss"] for row in some)
        start = np.mean([row["start_loss"] for row in some])
        out.append(
            f"At token {position}, {settings.iterations} iterations of width {settings.width} take the phrase's loss "
            f"from {start:.2f} to {least.text()} nats a token; it stands there in "
            f"{rate(row['hit'] for row in some)} of real responses, and attack success is "
            f"{rate(row['success'] for row in some)}, by goal {told(gaps[position, None, 'success'])} against none."
        )
    for position in rest:
        loss, hit, success = (told(gaps[position, first, measure]) for measure in MEASURES)
        out.append(
            f"By goal, token {position} minus token {first}: loss {loss}, the phrase at its place {hit}, attack "
            f"success {success}."
        )
    return out
