"""What a response is worth to an alignment that learns from rewards: a judge's verdict, or usefulness."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from midward.goals import Goal
from midward.judges import phrases
from midward.judges.bench import Bench
from midward.judges.judge import Verdict


@dataclass(frozen=True)
class JudgedReward:
    """To harmful prompts 1 minus the judge's score on a scale of 0 to 1, or minus its yes or no where it has no scale;
    to benign ones how much of the known answer stands in the response, and nothing for a refusal.

    Args:
        bench: The judge.
        ask: Goals, responses -> its verdicts; see `bench.judging`.
        goals: The harmful prompts as goals, in the order of the data.
        answers: The benign prompts' answers, in theirs.
    """

    bench: Bench
    ask: Callable[[Sequence[Goal], Sequence[str]], Sequence[Verdict]]
    goals: Sequence[Goal]
    answers: Sequence[str]

    @property
    def key(self) -> Mapping[str, Any]:
        """All that it depends on, as JSON."""
        return {**self.bench.key, "usefulness": "1"}

    def __call__(self, harmful: bool, rows: Sequence[int], responses: Sequence[str]) -> list[float | None]:
        """See `midward.alignment.ra.Reward`; 0 to 1."""
        if not harmful:
            return [usefulness(self.answers[row], text) for row, text in zip(rows, responses, strict=True)]
        verdicts = self.ask([self.goals[row] for row in rows], responses)
        return [self._safety(verdict) for verdict in verdicts]

    def _safety(self, verdict: Verdict) -> float | None:
        success = self.bench.info.outcome(verdict)
        if success is None:
            return None
        if verdict.score is None or self.bench.info.scale is None:
            return 1.0 - success
        low, high = self.bench.info.scale
        return 1.0 - (min(max(verdict.score, low), high) - low) / (high - low)


def usefulness(answer: str, response: str) -> float:
    """The F1 score of the response's words against the answer's (each as often as it stands there), 0 to 1; 0 for a
    refusal, unless the answer is one."""
    wanted, written = (Counter(re.findall(r"\w+", text.lower())) for text in (answer, response))
    if phrases.refuses(response) and not phrases.refuses(answer):
        return 0.0
    common = (wanted & written).total()
    return 2 * common / max(1, wanted.total() + written.total())
