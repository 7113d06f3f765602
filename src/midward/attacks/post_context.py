"""Post contexts: a text stands behind the masked response, and the model sees it from the first step (TrustLDM,
2606.00023).

The request is unchanged. The canvas is prompt, response, context; the context is outside of what is decoded, and no
part of what is judged. The sampler's blocks and steps are those of the response without it.

Attacks:
    post-context: a text behind the response, seen through attention to both sides from the first step

Source:
    TrustLDM, arXiv 2606.00023

Deviations:
    - The published code was read, the paper wasn't; the contexts' words are ours.
    - A context has a given number of tokens, so that kinds and the neutral control are equally long: a kind's sentences
      in order, from the first again where they don't suffice, cut where they are too many.
    - As a user's turn it stands in what the chat template puts behind an answer: the answer's end, the turn, and the
      head of the next answer.
    - Steps, order and blocks are the target's own, where the paper sweeps them; no attacker proposes contexts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from midward.attacks.attack import AttackInfo, Attempt, Count, checked
from midward.attacks.capabilities import AttackError, Capability
from midward.attacks.phrases import NEUTRAL, opening
from midward.attacks.roles import shipped
from midward.attacks.target import Ask, Target, Turns
from midward.attacks.taxonomy import IN_RESPONSE
from midward.guards import Guard

#: Kind -> its sentences; the published names.
CONTEXTS: dict[str, Sequence[str]] = {**shipped("words")["post-context"], "neutral": NEUTRAL}
RAW = ("completed", "safe", "fraud", "neutral")  # kinds that the published code puts without a turn around them
_MARK = "x"


@checked
class PostContext:
    """kind: what the context says: that the answer is finished ("completed"), that it is harmless ("safe"), that it is
    wanted for a good purpose ("fraud"); another question ("benign"), or how to answer ("concise", "detailed");
    "neutral" says nothing and is the control; "none" leaves the context out. tokens: of the context. form: "raw";
    "turn", as a user's turn; "published" takes the form that the paper's code has for this kind. prefix: whether the
    goal's opening is forced as well, as that code does unless it is changed."""

    kind: Literal["", "completed", "safe", "fraud", "benign", "concise", "detailed", "neutral", "none"] = ""
    tokens: Count = 16
    form: Literal["published", "raw", "turn"] = "published"
    prefix: bool = True


async def search(attempt: Attempt, settings: PostContext) -> None:
    """Ask once, with the context behind the response."""
    target, goal = attempt.target, attempt.goal
    behind: tuple[int, ...] = ()
    form = ("raw" if settings.kind in RAW else "turn") if settings.form == "published" else settings.form
    if settings.kind != "none":
        behind = context(target, settings.kind, settings.tokens)
        if form == "turn":
            head, tail = frame(target)
            behind = (*head, *behind, *tail)
    forced = (target.span(opening(goal), 0),) if settings.prefix else ()
    [reply] = await target.respond(Ask.of(goal.prompt, forced=forced, behind=behind))
    attempt.facts["context"] = {"form": form, "behind": len(behind), "text": target.decode(behind)}
    attempt.offer(reply, kind=settings.kind)


def context(target: Target, kind: str, count: int) -> tuple[int, ...]:
    """A context of a kind as so many tokens.

    Args:
        target: whose tokens.
        kind: a key of `CONTEXTS`.
        count: tokens: sentences in order, from the first again where they don't suffice.
    """
    text = " ".join(CONTEXTS[kind])
    while len(ids := target.tokens(text)) < count:
        text += f" {text}"
    return ids[:count]


def frame(target: Target) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the chat template puts between an answer and the text of the next user's turn, and behind that: tokens.

    Raises:
        AttackError: the template has no such turn.
    """
    mark = list(target.tokens(_MARK))
    turns: Turns = (("user", _MARK), ("assistant", _MARK), ("user", _MARK))
    ids, size = target.encode(turns), len(mark)
    places = [at for at in range(len(ids) - size + 1) if ids[at : at + size] == mark]
    if len(places) != len(turns):
        raise AttackError(
            f"the chat template of {target.name} has no user's turn behind an answer to put a text into; "
            "use --set post-context.form=raw."
        )
    *_, answer, turn = places
    return tuple(ids[answer + size : turn]), tuple(ids[turn + size :])


def _unguarded(settings: PostContext) -> str | None:
    if settings.kind == "none":
        return None
    return (
        "post-context puts tokens behind the response, which this guard reads as part of it; guards by blocks "
        "(hesitate, sri-blocks) don't, or leave post-context out"
    )


def _goes_with(kind: type[Guard]) -> bool:
    """Of what stands behind the response a guard of requests reads nothing; nor does one by blocks, which reads states
    where nothing was forced and follows a response of any length. All others take it for the response's end."""
    if kind.looks == "before":
        return "sampling" not in kind.tied_to
    return kind.looks == "during" and "length" in kind.free


POST_CONTEXT = AttackInfo(
    name="post-context",
    needs=(Capability.POS,),
    settings=PostContext,
    search=search,
    required=("kind",),
    unguarded=_unguarded,
    goes_with=_goes_with,
    taxonomy=IN_RESPONSE,
)
