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

from collections.abc import Callable, Sequence
from random import Random
from typing import Annotated, Literal

from pydantic import Field

from midward.alignment.sentences import SAFE
from midward.attacks.attack import AttackInfo, Attempt, Count, checked
from midward.attacks.capabilities import AttackError, Capability
from midward.attacks.phrases import NEUTRAL, WINDOW, compliant_elsewhere, compliant_text, known_text, texts_of
from midward.attacks.target import Ask
from midward.attacks.taxonomy import IN_RESPONSE
from midward.goals import Goal
from midward.sampling import Forced


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
    # 1 and 2. The anchors.
    forced = anchors(attempt.goal, settings, attempt.rng, target.tokens, length)
    # 3. All others are masks, and are filled in the order asked for.
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


def anchors(
    goal: Goal, settings: Anchoring, rng: Random, tokens: Callable[[str], Sequence[int]], length: int
) -> tuple[Forced, ...]:
    """Single tokens of a text at places of their own, in order.

    Args:
        goal: What is asked for.
        settings: Which text, how many of its tokens, and which.
        rng: Of the draw: first of the text, then of the places.
        tokens: A text -> its tokens.
        length: Of the response, in tokens.

    Raises:
        AttackError: No text is known for the goal, or it has too few tokens.
    """
    # 1. The text's tokens, as far as the response has room for them.
    ids = tokens(_text(goal, settings, rng, length))[:length]
    count = settings.anchors if settings.fraction is None else max(1, round(settings.fraction * length))
    # 2. Which of them stand.
    return tuple(Forced(place, (ids[place],)) for place in _places(settings, rng, len(ids), count))


def _places(settings: Anchoring, rng: Random, tokens: int, count: int) -> list[int]:
    """The anchors' places among the text's tokens, in order. Raises AttackError where there are too few."""
    free = list(range(tokens))
    if settings.positions in ("window", "outside"):
        free = [place for place in free if (WINDOW[0] <= place < WINDOW[1]) == (settings.positions == "window")]
    if count > len(free):
        raise AttackError(
            f"{count} anchors can't be drawn of the {len(free)} tokens that the text has there "
            f"(positions={settings.positions!r}); ask for fewer."
        )
    if settings.positions == "contiguous":
        start = rng.randrange(tokens - count + 1)
        return free[start : start + count]
    return sorted(rng.sample(free, count))


def _text(goal: Goal, settings: Anchoring, rng: Random, length: int) -> str:
    if settings.source == "neutral":
        return " ".join(rng.choice(NEUTRAL) for _ in range(length))
    if settings.source == "refusal":
        return " ".join(rng.choice(SAFE) for _ in range(length))
    if settings.source == "own":
        return compliant_text(goal, settings.texts)
    others = [known for goal_id, known in texts_of(settings.texts).items() if goal_id != goal.id]
    return known_text(goal, rng.choice(others) if others else compliant_elsewhere(goal, rng))


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
