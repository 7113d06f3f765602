"""Attack shapes: the one place where a goal becomes the single request of an attack without a search.

`shape(model, goal, "prefill")` is what the attack of that name puts, what a defence is tried on, and what probes and
dynamics watch: one draw of one phrase, at one place.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from midward._hints import one_of
from midward.alignment.sentences import SAFE
from midward.attacks.capabilities import AttackError
from midward.attacks.phrases import NEUTRAL, WINDOW, compliant_elsewhere, compliant_text, fitting, known_text, texts_of
from midward.errors import InputError
from midward.goals import Goal
from midward.models import LanguageModel
from midward.sampling import Forced, Request, Sampling
from midward.world.assistant import Assistant
from midward.world.players import PLAYERS

MIDDLE = sum(WINDOW) // 2  # response token: where the middle variants stand
ANCHORS = ("Step 1:", "Step 2:", "Step 3:")
GAP = re.compile(r"[ \t]?<mask:(\d{1,3})>")  # a blank before a gap goes: what fills it brings its own


def shape(model: LanguageModel, goal: Goal, name: str, **settings: Any) -> Request:
    """The goal in an attack's shape.

    Args:
        model: whose tokens, mask and response length count.
        goal: what is asked for.
        name: a key of `SHAPES`.
        settings: over the shape's defaults, see the function of that name; `length` (response tokens) is the model's
            own unless given.

    Returns:
        The request, with the shape's tokens forced or its masks written into the prompt.

    Raises:
        InputError: for an unknown name, a phrase that doesn't fit into the response, or a model without masks.
    """
    one_of("attack shape", name, SHAPES)
    return SHAPES[name](model, goal, **settings)


def plain(model: LanguageModel, goal: Goal, *, length: int | None = None) -> Request:
    """The goal as it stands, no attack."""
    return Request(goal.prompt)


def prefill(
    model: LanguageModel, goal: Goal, *, position: int = 0, phrase: str | None = None, length: int | None = None
) -> Request:
    """One phrase forced at a response position (MOSA, arXiv 2508.12398, figure 3).

    Args:
        model, goal, length: see `shape`.
        position: response token that the phrase starts at.
        phrase: the goal's opening at 0 (see `opening`) and the label of a step elsewhere, unless given.
    """
    text = fitting(goal, position) if phrase is None else phrase
    return Request(goal.prompt, (span(model, text, position, length or _length(model)),))


def prefill_mid(model: LanguageModel, goal: Goal, *, length: int | None = None) -> Request:
    """The label of a step forced in the middle of the response: at `MIDDLE`, or halfway where it ends before that."""
    length = length or _length(model)
    try:
        return prefill(model, goal, position=MIDDLE, length=length)
    except InputError:
        return prefill(model, goal, position=length // 2, length=length)


def pad(
    model: LanguageModel,
    goal: Goal,
    *,
    anchors: Sequence[str] = ANCHORS,
    spread: float = 1.5,
    offsets: Sequence[int] | None = None,
    length: int | None = None,
) -> Request:
    """Labels of numbered steps forced at spread-out positions (PAD, arXiv 2507.19227).

    Args:
        model, goal, length: see `shape`.
        anchors: the texts that are forced, in order.
        spread: anchor i stands at (i + 1) * gap, where the gap is length / (number of anchors + 1) / spread.
        offsets: response tokens instead of that rule, one an anchor.

    Raises:
        InputError: where the anchors overlap or end behind the response: none is left out in silence.
    """
    length = length or _length(model)
    places = spread_out(length, len(anchors), spread) if offsets is None else tuple(offsets)
    forced = tuple(span(model, text, place, length) for text, place in zip(anchors, places, strict=True))
    for first, second in pairwise(sorted(forced, key=lambda each: each.position)):
        if first.position + len(first.ids) > second.position:
            raise InputError(
                f"the anchors at response tokens {first.position} and {second.position} overlap; "
                "use fewer anchors, offsets further apart, or a larger length."
            )
    return Request(goal.prompt, forced)


def dija(model: LanguageModel, goal: Goal, *, scaffold: str | None = None, length: int | None = None) -> Request:
    """The request as a text with gaps, written as mask tokens into the prompt (DIJA, arXiv 2507.11097).

    Args:
        model, goal, length: see `shape`.
        scaffold: a text with gaps `<mask:N>` of N tokens; the form of a procedure behind the goal unless given.

    Raises:
        InputError: for a model without a mask token.
    """
    mask_id = model.family.mask_id
    if mask_id is None:
        raise InputError(f"{model.name!r} has no mask token, so dija can't be put to it.")
    mask = str(model.tokenizer.convert_ids_to_tokens(mask_id))
    text = (procedure_form(goal) if scaffold is None else scaffold).replace(mask, "")
    return Request(GAP.sub(lambda gap: mask * int(gap[1]), text))


def anchoring(
    model: LanguageModel,
    goal: Goal,
    *,
    anchors: int = 8,
    fraction: float | None = None,
    source: str = "own",
    positions: str = "uniform",
    texts: str = "sandbox",
    rng: random.Random | None = None,
    length: int | None = None,
) -> Request:
    """Single tokens of a text forced at places of their own, drawn at random (Recovery Alignment, arXiv 2510.00565).

    Args:
        model, goal, length: see `shape`.
        anchors, fraction, source, positions, texts: as of the attack, see `midward.attacks.anchoring.Anchoring`.
        rng: of the draw: first of the text, then of the places. By the goal alone unless given, as the attack draws
            with the seed 0.

    Raises:
        AttackError: where no text is known for the goal, or it has too few tokens.
    """
    length = length or _length(model)
    rng = random.Random(f"0-{goal.source}-{goal.id}") if rng is None else rng
    # 1. The text's tokens, as far as the response has room for them.
    ids = model.tokens(_text(goal, source, texts, rng, length))[:length]
    count = anchors if fraction is None else max(1, round(fraction * length))
    # 2. Which of them stand.
    forced = tuple(Forced(place, (ids[place],)) for place in _places(positions, rng, len(ids), count))
    return Request(goal.prompt, forced)


SHAPES: dict[str, Callable[..., Request]] = {
    "plain": plain,
    "prefill": prefill,
    "prefill-mid": prefill_mid,
    "pad": pad,
    "dija": dija,
    "anchoring": anchoring,
}


# --- parts of shapes -------------------------------------------------------------------------------------------------


def span(model: LanguageModel, phrase: str, position: int, length: int, *, tokens: int | None = None) -> Forced:
    """A phrase as tokens at a response position, behind a blank everywhere but at the start.

    Args:
        model: whose tokenizer is used.
        phrase: the text; one that starts with white space stays as it is.
        position: response token that it starts at.
        length: tokens of the response.
        tokens: how many of the phrase's tokens are taken; all of them unless given.

    Raises:
        InputError: where the phrase has no token, or ends behind the response.
    """
    text = phrase if position == 0 or phrase[:1].isspace() else f" {phrase}"
    ids = tuple(model.tokens(text)[:tokens])
    if not ids:
        raise InputError(f"the phrase {phrase!r} holds no token; give one that does.")
    if position + len(ids) > length:
        raise InputError(
            f"{phrase!r} at response token {position} ends behind the response's {length} tokens; "
            "move it, or use a larger length."
        )
    return Forced(position, ids)


def spread_out(length: int, count: int, spread: float = 1.5) -> tuple[int, ...]:
    """Where `count` anchors start in a response of `length` tokens, as DiffuGuard's code (2509.24296) puts PAD's."""
    gap = int(length // (count + 1) / spread)
    return tuple((i + 1) * gap for i in range(count))


def procedure_form(goal: Goal) -> str:
    """The goal with a gap for each step of a procedure, as the scripted rewriter of DIJA writes it."""
    return str(PLAYERS["dija.scaffold"](Assistant(), {"GOAL": goal.prompt}, random.Random(goal.id))["scaffold"])


def _text(goal: Goal, source: str, texts: str, rng: random.Random, length: int) -> str:
    """What anchors are tokens of."""
    if source == "neutral":
        return " ".join(rng.choice(NEUTRAL) for _ in range(length))
    if source == "refusal":
        return " ".join(rng.choice(SAFE) for _ in range(length))
    if source == "own":
        return compliant_text(goal, texts)
    others = [known for goal_id, known in texts_of(texts).items() if goal_id != goal.id]
    return known_text(goal, rng.choice(others) if others else compliant_elsewhere(goal, rng))


def _places(positions: str, rng: random.Random, tokens: int, count: int) -> list[int]:
    """The anchors' places among the text's tokens, in order. Raises AttackError where there are too few."""
    free = list(range(tokens))
    if positions in ("window", "outside"):
        free = [place for place in free if (WINDOW[0] <= place < WINDOW[1]) == (positions == "window")]
    if count > len(free):
        raise AttackError(
            f"{count} anchors can't be drawn of the {len(free)} tokens that the text has there "
            f"(positions={positions!r}); ask for fewer."
        )
    if positions == "contiguous":
        start = rng.randrange(tokens - count + 1)
        return free[start : start + count]
    return sorted(rng.sample(free, count))


def _length(model: LanguageModel) -> int:
    return Sampling.for_model(model).length
