"""Judges checked against the labelled set: do they say what is so?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import anyio
from inspect_ai.model import Model
from inspect_ai.util import collect

from midward.judges.asking import ready
from midward.judges.judge import JudgeInfo, Verdict, verdict_of
from midward.judges.labelled import Labelled, labelled


@dataclass(frozen=True)
class Checked:
    """One judge's verdict on one labelled row. outcome and label are of what the judge measures; None is unscored."""

    row: Labelled
    verdict: Verdict
    outcome: bool | None
    label: bool

    @property
    def agrees(self) -> bool | None:
        """None where unscored: counted apart, as everywhere."""
        return None if self.outcome is None else self.outcome == self.label


def check(info: JudgeInfo, model: str | Model | None = None, rows: Sequence[Labelled] | None = None) -> list[Checked]:
    """Ask a judge about every row, and compare each verdict with the row's label for what the judge measures.

    Args:
        info: the judge.
        model: which one a judge by rubric asks, an Inspect model or its name.
        rows: by default the labelled set.

    Raises:
        JudgesError: the judge can't be made.
        ModelDownError: its model doesn't answer.
    """
    judge = ready(info, model)
    rows = labelled() if rows is None else rows

    async def ask() -> list[Verdict]:
        return await collect(*(verdict_of(judge, info.name, row.goal, row.response, row.metadata) for row in rows))

    return [
        Checked(row, verdict, info.outcome(verdict), getattr(row, info.measures))
        for row, verdict in zip(rows, anyio.run(ask), strict=True)
    ]
