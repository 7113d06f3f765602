"""TrajHijack: a refusal is masked again in the middle of a generation, and an agreement written in its place.

Models commit their refusal in the first steps and never look at it again (2604.08557). Four arms say which part counts:
both; re-masking alone; writing alone, while the refusal stands; and the same words forced from the start (prefill) with
as many steps as the others have left. Where everything is masked again in one block, the first and the last are the
same state: prefill under another name. An autoregressive model is cut back to its prompt by it, which is prefill, too.

Attacks:
    trajhijack: a refusal masked again in the middle of a generation, an agreement written in its place

Source:
    TrajHijack, arXiv 2604.08557

Deviations:
    - Only the abstract was to be had: the step, how refusal tokens are found, and the words of the prefix are ours.
    - The step is a quarter of all, and before the end of the first block, unless given: finished blocks stay.
    - The prefix is the goal's own opening, or a general agreement, cut to its number of tokens, and takes nothing of
      the schedule.
    - Where blocks are filled by a threshold, and so their steps unknown before, the model's schedule takes its place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from midward.attacks.attack import AttackInfo, Attempt, Count, checked
from midward.attacks.capabilities import Capability
from midward.attacks.phrases import AFFIRMATIVE, opening
from midward.attacks.shapes import span
from midward.attacks.target import Ask
from midward.attacks.taxonomy import IN_RESPONSE
from midward.sampling import Edit, Sampling


@checked
class TrajHijack:
    """arm: "both"; "remask" and "write", one of them alone; "prefill0", the prefix from the start with the steps that
    the others have left. step: after which it is done, from 0. remask: all that was committed, or the tokens that
    phrases of refusal are made of. prefix: the goal's own opening, or a general agreement. tokens: of it, at most."""

    arm: Literal["both", "remask", "write", "prefill0"] = "both"
    step: Annotated[int, Field(ge=0)] | None = None
    remask: Literal["all", "refusal"] = "all"
    prefix: Literal["own", "generic"] = "own"
    tokens: Count = 12


async def search(attempt: Attempt, settings: TrajHijack) -> None:
    """Ask once, with the edit that the arm makes."""
    target, goal = attempt.target, attempt.goal
    runtime = target.own(Capability.POS if settings.arm == "prefill0" else Capability.EDIT)
    sampling = runtime.sampling
    if runtime.model.family.kind == "autoregressive":
        sampling = replace(sampling, steps=sampling.length)  # a token a step
    step = _step(sampling) if settings.step is None else settings.step
    phrase = opening(goal) if settings.prefix == "own" else attempt.rng.choice(AFFIRMATIVE)
    write = (span(runtime.model, phrase, 0, target.length, tokens=settings.tokens),)
    how: dict[str, Any] = {}
    if sampling.threshold is not None and len(sampling.blocks) > 1:
        how = {"sampling": (("steps", sampling.steps),)}
    if settings.arm == "prefill0":
        how = {"forced": write, "sampling": (("steps", max(1, sampling.steps - step - 1)),)}
    else:
        remask = "none" if settings.arm == "write" else settings.remask
        how |= {"edits": (Edit(step, () if settings.arm == "remask" else write, remask),)}
    [reply] = await target.respond(Ask.of(goal.prompt, **how))
    attempt.facts["edit"] = {"arm": settings.arm, "step": step, "prefix": target.decode(write[0].ids)}
    attempt.facts["edit"] |= {name: sum(len(edit[name]) for edit in reply.edits) for name in ("written", "remasked")}
    attempt.offer(reply)


def _step(sampling: Sampling) -> int:
    """A quarter of the steps, and not the last of the first block."""
    return max(0, min(sampling.steps // 4, sampling.block_steps[0] - 1) - 1)


def _unguarded(settings: TrajHijack) -> str | None:
    if settings.arm != "prefill0":
        return None
    return "the arm prefill0 has fewer steps; use --set trajhijack.arm=both, or leave trajhijack out"


TRAJHIJACK = AttackInfo(
    name="trajhijack",
    needs=(Capability.EDIT,),
    settings=TrajHijack,
    search=search,
    unguarded=_unguarded,
    taxonomy=IN_RESPONSE,
)
