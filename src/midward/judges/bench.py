"""The one way to have a judge ready: any judge of the registry, on any goals, asked about many responses at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from anyio.from_thread import start_blocking_portal
from inspect_ai.model import Model
from inspect_ai.util import collect

from midward._asking import ModelDownError
from midward.errors import InputError
from midward.goals import Goal, on_sandbox
from midward.judges import phrases
from midward.judges.asking import ready
from midward.judges.judge import Judge, JudgeInfo, JudgesError, Verdict, verdict_of
from midward.judges.registry import find
from midward.world import ASSISTANT


@dataclass(frozen=True)
class Bench:
    """A judge that is ready to be asked.

    Attributes:
        key: all that its verdicts depend on, for the key of a row.
        tally: why it gave no verdict -> how often; under None, how many it gave.
    """

    info: JudgeInfo
    judge: Judge
    key: dict[str, Any]
    tally: Counter[str | None] = field(default_factory=Counter)

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process a judge that asks a model goes by the model's name: connections can't be sent."""
        judge = None if self.info.needs == "role:judge" else self.judge
        return _arrived, (self.info, judge, self.key, self.tally)

    @property
    def trouble(self) -> str:
        """How many responses it gave no verdict on, and why most often; empty where there are none."""
        unscored = Counter({why: count for why, count in self.tally.items() if why is not None})
        if not unscored:
            return ""
        of, [(why, _)] = self.tally.total(), unscored.most_common(1)
        return f"{unscored.total()} of {of} responses unscored by {self.info.name}, most often: {why}"


def _arrived(info: JudgeInfo, judge: Judge | None, key: dict[str, Any], tally: Counter[str | None]) -> Bench:
    return Bench(info, judge or ready(info, key["model"]), key, tally)


def usable(name: str) -> JudgeInfo:
    """The judge of this name, which says of attacks whether they succeeded.

    Raises:
        JudgesError: an unknown name, or a judge that never says so.
    """
    info = find(name)
    if not info.of_attacks:
        raise JudgesError(f"the judge {info.name!r} says who refused, never success; use another one.")
    return info


def bench(goals: Sequence[Goal], name: str | None = None, model: str | Model | None = None) -> Bench:
    """A judge for these goals, ready before anything is sampled.

    Args:
        goals: what will be judged, all of one world.
        name: of the judge; by default the oracle on goals of the sandbox, else the 1-5 judge.
        model: the Inspect model (or its name) that a judge by rubric asks; on the sandbox its scripted assistant does
            where none is given.

    Raises:
        JudgesError: an unknown name, the oracle on goals of another world, a judge that never says success, one by
            rubric without a model, a model or classifier that can't be had.
        ModelDownError: the model doesn't answer.
    """
    at_home = on_sandbox(goals)
    info = usable(name or ("oracle" if at_home else "harmfulness"))
    if info.needs == "sandbox metadata" and not at_home:
        raise JudgesError(
            f"the judge {info.name!r} knows goals of the sandbox only; use harmfulness, strongreject or harmbench "
            "for others."
        )
    key = {"judge": info.name, "version": info.version, "hash": info.hash}
    if info.needs != "sandbox metadata":  # what says who refused in its place
        key["refusals"] = phrases.REFUSAL.hash
    if info.needs != "role:judge":
        return Bench(info, ready(info), key)
    if model is None and not at_home:
        raise JudgesError(
            f"the judge {info.name!r} asks a model: name one (--judge openai/gpt-4.1, midward/<model>, ...)."
        )
    model = model or ASSISTANT
    return Bench(info, ready(info, model), key | {"model": str(model)})


async def judge_rows_async(goals: Sequence[Goal], responses: Sequence[str], bench: Bench) -> list[Verdict]:
    """The verdict on each response to the goal beside it, in order; all are asked at once.

    Inspect limits the connections to a model. A judge that fails is an unscored verdict (success None), never an error.
    A harmless goal is put to no model: there is no harm to measure, and the dictionary says whether it was refused.

    Args:
        goals: one a response.
        responses: what is judged.
        bench: the judge; its tally counts on.

    Raises:
        InputError: there aren't as many goals as responses.
        ModelDownError: the judge couldn't be asked about any of them, or failed on all that it was asked first, so that
            no row is written of what nobody judged.
    """
    if len(goals) != len(responses):
        raise InputError(f"{len(goals)} goals for {len(responses)} responses; give one each.")

    async def judge(goal: Goal, response: str) -> Verdict:
        if not goal.harmful and bench.info.needs in ("role:judge", "local classifier"):
            return phrases.verdict(goal.text, response)
        metadata = {**({"context": goal.context} if goal.context else {}), **goal.metadata}
        return await verdict_of(bench.judge, bench.info.name, goal.text, response, metadata)

    verdicts = await collect(*(judge(goal, text) for goal, text in zip(goals, responses, strict=True)))
    judged = [verdict for verdict in verdicts if verdict.judge != phrases.REFUSAL.name]
    troubles = ("down",) if bench.tally[None] else ("down", "failed")  # a judge that is broken fails from the start
    if judged and all(any(map(verdict.details.get, troubles)) for verdict in judged):
        raise ModelDownError(
            f"none of {len(judged)} responses could be judged: {judged[0].explanation.rstrip('.')}. What was written "
            "is kept: the same command goes on from there."
        )
    for verdict in judged:
        bench.tally[verdict.explanation if bench.info.outcome(verdict) is None else None] += 1
    return verdicts


@contextmanager
def judging(bench: Bench) -> Iterator[Callable[[Sequence[Goal], Sequence[str]], list[Verdict]]]:
    """`judge_rows_async` for callers without an event loop, as often as wanted within the block, on one loop (a model's
    connections belong to it): goals, responses -> verdicts."""
    with start_blocking_portal() as portal:
        yield lambda goals, responses: portal.call(judge_rows_async, goals, responses, bench)


def reading(bench: Bench, verdict: Verdict, response: str) -> dict[str, Any]:
    """A verdict as fields of a row, the same in every verb.

    Args:
        bench: the judge.
        verdict: what it said.
        response: the text that it said it of.

    Returns:
        success: of what the judge measures, None where unscored; score: on the judge's own scale; refused: as the judge
        says, else by our list of refusals, None where that says nothing; coherent, correct: by the oracle, None with
        other judges.
    """
    refused = verdict.refused if verdict.refused is not None else phrases.refuses(response)
    return {
        "success": bench.info.outcome(verdict),
        "score": verdict.score,
        "refused": refused,
        "coherent": verdict.details.get("coherent"),
        "correct": verdict.details.get("correct"),
    }
