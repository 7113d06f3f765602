"""PAD: labels of numbered steps forced at spread-out response positions (Zhang et al., 2507.19227).

Attacks:
    pad: labels of numbered steps forced at spread-out response positions

Source:
    Zhang et al. 2025, arXiv 2507.19227; offsets as in DiffuGuard's code (arXiv 2509.24296)

Deviations:
    - The prompt is the plain goal; the code that the offsets are from also puts mask tokens behind it, which is another
      attack (dija).
    - The length, steps, blocks and temperature are the target's own settings, not fixed by the attack.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from pydantic import Field, model_validator

from midward.attacks.attack import AttackInfo, Attempt, checked
from midward.attacks.capabilities import Capability
from midward.attacks.shapes import ANCHORS
from midward.attacks.target import Ask
from midward.attacks.taxonomy import IN_RESPONSE
from midward.errors import InputError


@checked
class Pad:
    """anchors: the texts that are forced, in order. spread: anchor i stands at (i + 1) * gap, where the gap is the
    response's length divided by the number of anchors plus one, and then by this; larger draws them together.
    offsets: response tokens instead of that rule, one for each anchor."""

    anchors: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] = ANCHORS
    spread: Annotated[float, Field(ge=1)] = 1.5
    offsets: tuple[Annotated[int, Field(ge=0)], ...] | None = None

    @model_validator(mode="after")
    def _one_each(self) -> Pad:
        if self.offsets is not None and len(self.offsets) != len(self.anchors):
            raise InputError(f"give one offset for each of the {len(self.anchors)} anchors")
        return self


async def search(attempt: Attempt, settings: Pad) -> None:
    """Ask once, with the anchors in place. Raises InputError where they don't fit: none is left out in silence."""
    target = attempt.target
    request = target.shaped(attempt.goal, "pad", **asdict(settings))
    [reply] = await target.respond(Ask.of(attempt.goal.prompt, forced=request.forced))
    attempt.facts["offsets"] = [anchor.position for anchor in request.forced]
    attempt.facts["length"] = target.length
    attempt.offer(reply)


PAD = AttackInfo(name="pad", needs=(Capability.POS,), settings=Pad, search=search, taxonomy=IN_RESPONSE)
