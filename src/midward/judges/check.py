"""Judges checked against the labelled set: do they say what is so?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import anyio
from inspect_ai.model import Model
from inspect_ai.util import collect

from midward.judges.asking import first_call, judge_model
from midward.judges.judge import JudgeInfo, Verdict, verdict_of
from midward.judges.labelled import Labelled, labelled


@dataclass(frozen=True)
class Checked:
    """One judge's verdict on one labelled row. `said` and `label` are of what the judge measures; None is unscored."""

    row: Labelled
    verdict: Verdict
    said: bool | None
    label: bool

    @property
    def agrees(self) -> bool | None:
        """None where unscored: counted apart, as everywhere."""
        return None if self.said is None else self.said == self.label


def check(info: JudgeInfo, model: str | Model | None = None, rows: Sequence[Labelled] | None = None) -> list[Checked]:
    """Ask a judge about every row (the labelled set), each compared with its label for what the judge measures.

    model: which judges that need `role:judge` ask, an Inspect model or its name. Raises JudgesError where the judge
    can't be made, and ModelDownError where its model doesn't answer.
    """
    if info.needs == "role:judge" and isinstance(model, str):
        first_call(model)
    judge = info.factory(model=judge_model(model)) if info.needs == "role:judge" else info.factory()
    rows = labelled() if rows is None else rows

    async def run() -> list[Verdict]:
        return await collect(*(verdict_of(judge, info.name, row.goal, row.response, row.metadata) for row in rows))

    verdicts = anyio.run(run)
    return [
        Checked(row, verdict, info.outcome(verdict), getattr(row, info.measures))
        for row, verdict in zip(rows, verdicts, strict=True)
    ]
