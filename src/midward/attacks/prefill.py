"""Positional prefill: one phrase forced at a response position before the first step (MOSA, 2508.12398, figure 3).

An affirmative phrase at the start is the classical prefill; a procedural one in the middle is what only a model that
fills any position can be made to see. A run is one position; a curve over positions is several runs.

Attacks:
    prefill: one phrase forced at a response position: agreement at 0, the label of a step further on
    prefill-mid: the label of a step forced in the middle of the response

Source:
    MOSA, arXiv 2508.12398, figure 3

Deviations:
    - MOSA's phrase sets are unpublished: ours are the goal set's target text (or a plain agreement) at 0, and the label
      of the step that a text of ten tokens a step has reached elsewhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from midward.attacks.attack import AttackInfo, Attempt, checked
from midward.attacks.capabilities import Capability
from midward.attacks.phrases import NEUTRAL, fitting, opening, procedural
from midward.attacks.target import Ask
from midward.attacks.taxonomy import IN_RESPONSE

Phrase = Annotated[str, Field(min_length=1)]


@checked
class Prefill:
    """position: response token the phrase starts at. kind: "auto" is affirmative at 0 and procedural elsewhere;
    "neutral" is the control at the same place. phrases: of your own instead, one is drawn for each goal; the draw is
    the same for every model."""

    position: Annotated[int, Field(ge=0)] = 0
    kind: Literal["auto", "affirmative", "procedural", "neutral"] = "auto"
    phrases: tuple[Phrase, ...] = ()


@checked
class PrefillMid(Prefill):
    """The same with a procedural phrase at token 40."""

    position: Annotated[int, Field(ge=0)] = 40


async def search(attempt: Attempt, settings: Prefill) -> None:
    """Ask once, with the phrase in place."""
    phrase = _phrase(attempt, settings)
    target, position = attempt.target, settings.position
    request = target.shaped(attempt.goal, "prefill", position=position, phrase=phrase)
    [reply] = await target.respond(Ask.of(attempt.goal.prompt, forced=request.forced))
    attempt.offer(reply, phrase=phrase, landed=reply.landed)
    attempt.note_middle(phrase, position, unit="tokens")


def _phrase(attempt: Attempt, settings: Prefill) -> str:
    kind = settings.kind
    if settings.phrases:
        return attempt.rng.choice(settings.phrases)
    if kind == "neutral":
        return attempt.rng.choice(NEUTRAL)
    if kind == "auto":
        return fitting(attempt.goal, settings.position)
    return opening(attempt.goal) if kind == "affirmative" else procedural(settings.position)


PREFILL = AttackInfo(name="prefill", needs=(Capability.POS,), settings=Prefill, search=search, taxonomy=IN_RESPONSE)
PREFILL_MID = replace(PREFILL, name="prefill-mid", settings=PrefillMid)
