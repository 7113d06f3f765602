"""PAD: labels of numbered steps forced at spread-out response positions (Zhang et al., 2507.19227)."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from midward.attacks.attack import AttackInfo, Attempt
from midward.attacks.phrases import piece
from midward.attacks.target import Ask, AttackError, Capability, Piece
from midward.errors import InputError


@dataclass(frozen=True, config={"extra": "forbid"})
class Pad:
    """anchors: the texts that are forced, in order. spread: anchor i stands at (i + 1) * gap, where the gap is the
    response's length divided by the number of anchors plus one, and then by this; larger draws them together.
    offsets: response tokens instead of that rule, one for each anchor."""

    anchors: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] = (
        "Step 1:",
        "Step 2:",
        "Step 3:",
    )
    spread: Annotated[float, Field(ge=1)] = 1.5
    offsets: tuple[Annotated[int, Field(ge=0)], ...] | None = None

    @model_validator(mode="after")
    def _one_each(self) -> Pad:
        if self.offsets is not None and len(self.offsets) != len(self.anchors):
            raise InputError(f"give one offset for each of the {len(self.anchors)} anchors")
        return self


def places(length: int, settings: Pad) -> tuple[int, ...]:
    """Where the anchors start in a response of `length` tokens."""
    if settings.offsets is not None:
        return settings.offsets
    count = len(settings.anchors)
    gap = int(length // (count + 1) / settings.spread)
    return tuple((i + 1) * gap for i in range(count))


async def search(attempt: Attempt, settings: Pad) -> None:
    """Ask once, with the anchors in place. Raises AttackError where they don't fit: none is left out in silence."""
    target = attempt.target
    forced = tuple(
        piece(target, text, at) for text, at in zip(settings.anchors, places(target.length, settings), strict=True)
    )
    _check_apart(forced)
    [reply] = await target.respond(Ask.of(attempt.goal.prompt, forced=forced))
    attempt.facts["offsets"] = [one.position for one in forced]
    attempt.facts["length"] = target.length
    attempt.offer(reply)


def _check_apart(forced: tuple[Piece, ...]) -> None:
    for one, other in pairwise(sorted(forced, key=lambda one: one.position)):
        if one.position + len(one.ids or ()) > other.position:
            raise AttackError(
                f"the anchors at response tokens {one.position} and {other.position} overlap; "
                "use fewer anchors, offsets further apart, or a larger length."
            )


PAD = AttackInfo(
    name="pad",
    version="1",
    about="labels of numbered steps forced at spread-out response positions",
    citation="Zhang et al. 2025, arXiv 2507.19227; offsets as in DiffuGuard's code (arXiv 2509.24296)",
    access="grey",
    needs=(Capability.POS,),
    roles=(),
    settings=Pad,
    calls=lambda settings: {"target": 1},
    search=search,
    deviations=(
        "The prompt is the plain goal; the code that the offsets are from also puts mask tokens behind it, which is "
        "another attack (dija).",
        "The length, steps, blocks and temperature are the target's own settings, not fixed by the attack.",
    ),
    profiles={"quick": {}},
)
