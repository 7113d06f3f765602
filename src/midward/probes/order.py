"""The order probe: in which order the positions of a response are committed (MOSA, arXiv 2508.12398, figure 5).

All steps are run, as in the figure, which has 128 tokens, 32 steps and one block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from midward.dynamics.order import Order as Commits
from midward.dynamics.order import by_prompt, correlation, heat, parts
from midward.errors import InputError
from midward.goals import Goal
from midward.models import LanguageModel
from midward.probes.configs import Order
from midward.probes.probe import Probe, Row, groups
from midward.runs.measure import Case, Reader
from midward.sampling import Request, Response, Sampling, Trace
from midward.stats import from_record, mean_of

PARTS = ("part_padding", "part_between")


class CommitOrder(Reader):
    """Fields: commit [length], the step that committed each position (below 0 where none did), as `Trace` counts it;
    end, the position of the first end token, the length where there is none."""

    def __init__(self, model: LanguageModel) -> None:
        self.ends = model.family.end_ids
        self.trace = Trace(needs_all_steps=True)
        self.watchers = (self.trace,)

    def fields(self, place: int, case: Case, response: Response, readings: Sequence[Any]) -> Row:
        if response.error is not None:
            return {"commit": None, "end": None}
        steps = self.trace.commit_step[place]
        end = next((at for at, token in enumerate(response.raw_ids) if token in self.ends), len(steps))
        return {"commit": steps.tolist(), "end": end}


def cases(model: LanguageModel, goals: Sequence[Goal], config: Order, sampling: Sampling) -> list[Case]:
    """Each prompt as it stands. Raises InputError for a model without an order of its own."""
    if model.family.kind != "diffusion":
        raise InputError(
            f"{model.name!r} is of the {model.family.kind} kind: it commits nothing in an order of its own."
        )
    return [Case(goal, Request(goal.prompt)) for goal in goals]


def orders(rows: Sequence[Row]) -> list[Commits]:
    """The order of each row; all have a response."""
    return [Commits(tuple(row["commit"]), row["end"]) for row in rows]


def cell(rows: Sequence[Row]) -> dict[str, Row | None]:
    """Rank correlations of step and position, of all tokens and of the text alone; what adds up to the first; and the
    share of padding. Means over prompts with their intervals. rows: with a response."""
    prompts = orders(rows)
    split = np.array([parts(commits) for commits in prompts])
    values = {
        "correlation": split.sum(1),
        "correlation_text": [correlation(commits, text=True) for commits in prompts],
        "part_text": split[:, 0],
        "part_padding": split[:, 1],
        "part_between": split[:, 2],
        "padding_share": [1 - commits.end / len(commits.steps) for commits in prompts],
    }
    ends = {"correlation": (-1.0, 1.0), "correlation_text": (-1.0, 1.0), "padding_share": (0.0, 1.0)}
    return {name: _mean(numbers, rows, ends.get(name)) for name, numbers in values.items()}


def _mean(values: Any, rows: Sequence[Row], ends: tuple[float, float] | None = None) -> Row | None:
    """Of the values [N] of rows that are numbers; None where there is none. ends: least and most there can be."""
    numbers = zip(np.clip(np.asarray(values, dtype=float), *(ends or (None, None))).tolist(), rows, strict=True)
    number = mean_of([{**row, "value": value} for value, row in numbers if value == value], "value", ends=ends)
    return number.record() if number else None


def finding(total: Mapping[str, Row | None], sampling: Sampling) -> str:
    """What the cell of all prompts says, in a sentence."""
    whole, text = total["correlation"], total["correlation_text"]
    if whole is None:
        return "All tokens were committed at one step: there is no order to correlate with the position."
    block = sampling.block or sampling.length
    blocks = "one block" if block == sampling.length else f"blocks of {block}"
    steps = f"{sampling.steps} steps" if sampling.threshold is None else f"threshold {sampling.threshold:g}"
    padding, between = (from_record(part).text(sign="+") if (part := total[name]) else "-" for name in PARTS)
    return (
        f"Over {whole['n']} prompts ({sampling.length} tokens, {steps}, {blocks}) the rank correlation "
        f"of step and position is {from_record(whole).text()}; {padding} of it is end-token padding and {between} its "
        f"place behind the text. Within the text alone it is {from_record(text).text() if text else '-'}."
    )


def summary(rows: Sequence[Row], config: Order, sampling: Sampling) -> dict[str, Any]:
    """The probe's `summary`: `sets`, of each set and of "all" the `cell`; of each set the mean position committed at
    each step (`steps`, None where none was) and the share of prompts that committed a position at a step (`maps`,
    [positions, steps])."""
    known = [row for row in rows if row["commit"] is not None]
    by_set = {name: group for (name,), group in groups(known, "set").items()}
    cells = {name: cell(group) for name, group in (by_set | {"all": known}).items() if group}
    steps = {name: [_mean(column, group) for column in by_prompt(orders(group)).T] for name, group in by_set.items()}
    maps = {name: heat(orders(group)).round(4).tolist() for name, group in by_set.items()}
    return {"sets": cells, "findings": [finding(cells["all"], sampling)], "steps": steps, "maps": maps}


ORDER = Probe("order", Order, cases, summary, readers=lambda model, config, sampling: (lambda: CommitOrder(model),))
