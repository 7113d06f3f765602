"""Anchoring: single tokens of a compliant text stand at random places of the response (2510.00565, section 4.1).

The published attacker puts the whole text in place of the prediction at a step t, and random re-masking keeps t of its
tokens. Nothing of the model's own is left by that, so the state is the one of a canvas on which a random t-subset of
the text is forced: which is how it is put here, by any sampler that takes forced tokens. A diagnostic with a strength,
of an attacker inside the denoising loop; no claim about deployed models.

Attacks:
    anchoring: single tokens of a compliant text forced at random places of the response

Source:
    Recovery Alignment, arXiv 2510.00565, section 4.1

Deviations:
    - The number of anchors is given, where re-masking leaves t on average.
    - Anchors are drawn of the text alone, not of the end tokens behind it; steps and temperature are the target's own.
    - The text is that of the goal's own world or of a file, where the paper asks a model without alignment.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import Field

from midward.attacks.attack import AttackInfo, Attempt, Count, checked
from midward.attacks.capabilities import Capability
from midward.attacks.phrases import WINDOW
from midward.attacks.target import Ask
from midward.attacks.taxonomy import IN_RESPONSE


@checked
class Anchoring:
    """anchors: how many tokens are forced. fraction: of the response's positions instead, rounded. source: of which
    text: the goal's own compliant one, another goal's, neutral phrases, or a refusal. positions: drawn anywhere, in
    tokens 20-60, outside of these, or as one run. order: "random", in one block, as published; "target" is the
    target's own. texts: a JSON file {goal id: compliant text}, or "sandbox" for the invented world's procedures."""

    anchors: Count = 8
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    source: Literal["own", "other", "neutral", "refusal"] = "own"
    positions: Literal["uniform", "window", "outside", "contiguous"] = "uniform"
    order: Literal["random", "target"] = "random"
    texts: str = ""


async def search(attempt: Attempt, settings: Anchoring) -> None:
    """Ask once, with the anchors in place. The draw hangs on seed and goal alone, so it is the same for every model."""
    target, length = attempt.target, attempt.target.length
    # 1. The anchors.
    shaped = {name: value for name, value in asdict(settings).items() if name != "order"}
    forced = target.shaped(attempt.goal, "anchoring", rng=attempt.rng, **shaped).forced
    # 2. All others are masks, and are filled in the order asked for.
    order = (("block", None), ("order", "random")) if settings.order == "random" else ()
    [reply] = await target.respond(Ask.of(attempt.goal.prompt, forced=forced, sampling=order))
    low, high = WINDOW
    places = [span.position for span in forced]
    attempt.facts["anchors"] = {
        "count": len(places),
        "fraction": len(places) / length,
        "in_window": sum(low <= place < high for place in places),
        "positions": places,
    }
    attempt.offer(reply, source=settings.source)


def _unguarded(settings: Anchoring) -> str | None:
    if settings.order == "target":
        return None
    return "anchoring fills in random order; use --set anchoring.order=target, or leave anchoring out"


ANCHORING = AttackInfo(
    name="anchoring",
    needs=(Capability.POS,),
    settings=Anchoring,
    search=search,
    required=("texts",),
    unguarded=_unguarded,
    taxonomy=IN_RESPONSE,
)
