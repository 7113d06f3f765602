"""Every judge as an Inspect scorer; the room's `__init__` says what it reads from a sample, and what it writes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState
from inspect_ai.util import collect
from pydantic import BaseModel

from midward.errors import InputError
from midward.judges.judge import Judge, JudgeInfo, Verdict, verdict_of

#: The texts of a sample that are judged apart.
TEXTS = ("reply", "replay", "authored")
KEY = "texts"


class Judged(BaseModel):
    """The metadata of a judge's `Score`: its verdict on each text, and those texts that it couldn't score.

    A text that the attack has no use for is in neither.
    """

    judge: str
    version: str
    hash: str
    measures: str
    verdicts: dict[str, Verdict]
    unscored: list[str]

    def outcome(self, text: str) -> bool | None:
        """What it says of a text, of what it measures; None where it is unscored, or there is no such text."""
        verdict = self.verdicts.get(text)
        return None if verdict is None else verdict.refused if self.measures == "refused" else verdict.success


def texts_of(state: TaskState) -> dict[str, str | None]:
    """What is to be judged apart: name -> text, or None where it should be there and couldn't be made.

    From `state.store`, else from `state.metadata`, under "texts"; `reply` is the sample's output unless it is given.

    Raises:
        InputError: a name that isn't in TEXTS, or a value that is no text.
    """
    given = state.store.get(KEY) or (state.metadata or {}).get(KEY) or {}
    if not isinstance(given, Mapping):
        raise InputError(f"the sample's texts must be a mapping of names to texts; received {given!r}")
    for name, text in given.items():
        if name not in TEXTS or not isinstance(text, str | None):
            raise InputError(
                f"the sample's texts may be {', '.join(TEXTS)}, each a text or None; received {name!r}: {text!r}"
            )
    return {"reply": state.output.completion, **given}


def goal_of(state: TaskState) -> str:
    """The plain goal: `goal` in the sample's metadata, else the sample's input."""
    return str((state.metadata or {}).get("goal") or state.input_text)


async def verdicts_of(judge: Judge, name: str, state: TaskState) -> dict[str, Verdict]:
    """The judge's verdict on each of the sample's texts; equal texts are judged once."""
    goal, texts, metadata = goal_of(state), texts_of(state), state.metadata or {}
    asked = list(dict.fromkeys(text for text in texts.values() if text is not None))
    verdicts = await collect(*(verdict_of(judge, name, goal, text, metadata) for text in asked))
    by_text = dict(zip(asked, verdicts, strict=True))
    missing = Verdict(name, None, explanation="there is no such text: it couldn't be made")
    return {name: missing if text is None else by_text[text] for name, text in texts.items()}


def scorer_of(info: JudgeInfo) -> Callable[..., Scorer]:
    """The Inspect scorer of a judge. Its options are those of the judge's factory."""

    def judged(**options: Any) -> Scorer:
        judge = info.make(**options)

        async def score(state: TaskState, target: Target) -> Score:
            verdicts = await verdicts_of(judge, info.name, state)
            outcomes = {name: info.outcome(verdict) for name, verdict in verdicts.items()}
            return Score(
                value={name: _number(outcomes.get(name)) for name in TEXTS},
                explanation="; ".join(f"{name}: {verdict.explanation}" for name, verdict in verdicts.items()),
                reason="grader_failed" if None in outcomes.values() else None,
                metadata=Judged(
                    judge=info.name,
                    version=info.version,
                    hash=info.hash,
                    measures=info.measures,
                    verdicts=verdicts,
                    unscored=[name for name, outcome in outcomes.items() if outcome is None],
                ).model_dump(mode="json"),
            )

        return score

    judged.__signature__ = inspect.signature(info.factory)  # type: ignore[attr-defined]
    metrics = {name: [mean(), stderr()] for name in TEXTS}
    return scorer(metrics=metrics, name=info.name)(judged)


def _number(outcome: bool | None) -> float:
    return float("nan") if outcome is None else float(outcome)
