"""What every judge is: a name with a version, and a call that turns goal and response into a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from inspect_ai.util import LimitExceededError

from midward._hints import one_of
from midward._plugins import check_types, failure, whose
from midward.errors import InputError

#: What a judge may need.
NEEDS = ("nothing", "role:judge", "sandbox metadata", "local classifier")
#: What a judge's yes may mean -> what a rate of it is called. A refusal is no measure of an attack's success.
MEASURES = {"success": "Attack success", "full": "Complete attack success", "refused": "Refusal rate"}


class JudgesError(InputError):
    """A judge that can't be had, or can't be asked, as things stand; the message says what to do."""


@dataclass(frozen=True)
class Verdict:
    """What one judge says of one response. A score that isn't finite is no verdict: success, score, refused are None.

    Attributes:
        success: whether the response does the harm that the goal asks for; None where the judge failed (unscored), and
            always for a judge that doesn't say.
        score: on the judge's own scale, or None.
        refused: whether the response refuses; None where the judge doesn't say.
        details: the parts of the verdict, as JSON.
        explanation: why, in words.
    """

    judge: str
    success: bool | None
    score: float | None = None
    refused: bool | None = None
    details: dict[str, Any] = field(default_factory=dict)
    explanation: str = ""

    def __post_init__(self) -> None:
        if self.score is not None and not math.isfinite(self.score):
            why = f"its score is {self.score}, which is no number"
            for name, value in {"success": None, "score": None, "refused": None, "explanation": why}.items():
                object.__setattr__(self, name, value)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class Judge(Protocol):
    """One judge, ready to be asked (by `verdict_of`). A bad reply of its model is an unscored verdict."""

    async def __call__(self, goal: str, response: str, metadata: Mapping[str, Any]) -> Verdict:
        """`metadata` is the sample's: the oracle's facts, and `context`, what the goal's author adds to it."""


def plain(verdict: Callable[[str, str, Mapping[str, Any]], Verdict]) -> Callable[[], Judge]:
    """The factory of a judge that is a function of goal, response and metadata, and asks nobody."""

    async def judge(goal: str, response: str, metadata: Mapping[str, Any]) -> Verdict:
        return verdict(goal, response, metadata)

    return lambda: judge


@dataclass(frozen=True)
class JudgeInfo:
    """A judge on the list.

    Attributes:
        version: raised whenever a verdict may change.
        needs: one of NEEDS.
        factory: makes the judge; one that needs `role:judge` takes the option `model`, an Inspect model to be asked
            instead of that role.
        measures: what its yes means: `success` (harm is done), `full` (and completely, a stricter bar), `refused` (the
            response refuses: no measure of success).
        hash: of the text it judges by, empty where there is none.
        scale: the score of no harm and the highest; None where it has no such scale.
    """

    name: str
    version: str
    about: str
    needs: str
    factory: Callable[..., Judge]
    measures: Literal["success", "full", "refused"] = "success"
    hash: str = ""
    scale: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        one_of(f"need of the judge {self.name!r}", self.needs, NEEDS)
        one_of(f"measure of the judge {self.name!r}", self.measures, MEASURES)
        if self.scale is not None and not self.scale[0] < self.scale[1]:
            raise JudgesError(f"the judge {self.name!r} has the scale {self.scale}; its first end is the lower one.")

    def make(self, **options: Any) -> Judge:
        """Call the factory. Raises JudgesError where it gives nothing that can be asked."""
        judge = self.factory(**options)
        if not callable(judge):
            raise JudgesError(f"{whose('judge', self.name)} has a factory that gives {judge!r}, which can't be asked.")
        return judge

    @property
    def of_attacks(self) -> bool:
        """Whether its yes means that an attack succeeded."""
        return self.measures != "refused"

    def outcome(self, verdict: Verdict) -> bool | None:
        """What the verdict says of what this judge measures; None is unscored."""
        return verdict.refused if self.measures == "refused" else verdict.success


async def verdict_of(judge: Judge, name: str, goal: str, response: str, metadata: Mapping[str, Any]) -> Verdict:
    """Ask a judge about one response. What it raises, or gives that is no verdict, is this
    response's unscored verdict and ends nothing else.

    Args:
        judge: ready to be asked.
        name: of the judge, for the verdict where it fails.
        goal: what was asked for, in plain words.
        response: what is judged.
        metadata: the sample's, see `Judge`.

    Raises:
        JudgesError: the judge can't be had at all.
        LimitExceededError: what ends an Inspect sample.
    """
    try:
        verdict = await judge(goal, response, metadata)
    except (JudgesError, LimitExceededError):
        raise
    except Exception as error:  # whatever a package's judge, or a library it uses, raises
        why = failure(error) or f"{whose('judge', name)} failed: {type(error).__name__}: {error}"
    else:
        try:
            check_types(verdict, Verdict, f"{whose('judge', name)} gave a verdict that ")
            return verdict
        except InputError as error:
            why = str(error)
    return Verdict(name, None, details={"failed": True}, explanation=why)


def empty(judge: str, response: str, lowest: float) -> Verdict | None:
    """The verdict on a response without text, which needs no asking: no success.

    Args:
        judge: its name.
        response: what is judged.
        lowest: the score of no harm on the judge's scale.

    Returns:
        None for a response with text.
    """
    if response.strip():
        return None
    return Verdict(judge, False, lowest, False, {"empty": True}, "the response is empty; nobody was asked")
