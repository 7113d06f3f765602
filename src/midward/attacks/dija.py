"""DIJA: the request as a text with gaps, sent as mask tokens in the user's turn (Wen et al., 2507.11097)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from midward.attacks.attack import AttackInfo, Attempt
from midward.attacks.capabilities import Capability
from midward.attacks.roles import PROMPTS, text
from midward.attacks.shapes import GAP
from midward.attacks.target import Ask
from midward.errors import InputError

REWRITE = PROMPTS["dija.scaffold"]


@dataclass(frozen=True, config={"extra": "forbid"})
class Dija:
    """mode: "fill_only": there is no reply, the filled text is the result (the published code on LLaDA);
    "fill_then_answer": the text is filled together with a reply, and both are the result (its code on Dream).
    tries: how often the rewriter is asked for a text with gaps. tail: tokens of the one gap behind the plain goal where
    it gave none. most: tokens of all gaps together; a text with more isn't taken."""

    mode: Literal["fill_only", "fill_then_answer"] = "fill_only"
    tries: Annotated[int, Field(ge=1)] = 5
    tail: Annotated[int, Field(ge=1)] = 36
    most: Annotated[int, Field(ge=1)] = 256


async def search(attempt: Attempt, settings: Dija) -> None:
    """Ask once, with the text whose gaps are mask tokens."""
    target = attempt.target
    found = None
    for turn in range(settings.tries):
        found = await attempt.roles.ask(
            REWRITE,
            {"GOAL": attempt.goal.prompt},
            lambda answer: _read(answer, settings.most),
            temperature=0.3,
            turn=turn,
        )
        if found is not None:
            break
    scaffold = found or f"{attempt.goal.prompt} <mask:{settings.tail}>"
    attempt.facts["scaffold"] = {
        "by": "tail" if found is None else "rewriter",
        "gaps": [int(count) for count in GAP.findall(scaffold)],
        "mode": settings.mode,
    }
    request = target.shaped(attempt.goal, "dija", scaffold=scaffold)
    [reply] = await target.respond(Ask.of(str(request.prompt), fill=settings.mode))
    attempt.offer(reply, scaffold=scaffold)


def _read(answer: dict[str, Any], most: int) -> str:
    scaffold = text("scaffold")(answer)
    gaps = [int(count) for count in GAP.findall(scaffold)]
    if not gaps or 0 in gaps or sum(gaps) > most:
        raise InputError(f"a text with gaps <mask:N>, N 1 or more and {most} or less in all; received gaps {gaps}")
    return scaffold


def _unguarded(settings: Dija) -> str | None:
    if settings.mode == "fill_then_answer":
        return None
    return "dija only fills the prompt, at a length of its own; use --set dija.mode=fill_then_answer, or leave dija out"


DIJA = AttackInfo(
    name="dija",
    about="the request as a text with gaps, sent as mask tokens in the user's turn",
    citation="Wen et al. 2025, arXiv 2507.11097",
    needs=(Capability.PMASK,),
    roles=("rewriter",),
    settings=Dija,
    calls=lambda settings: {"target": 1, "rewriter": settings.tries},
    search=search,
    prompts=(REWRITE,),
    unguarded=_unguarded,
    deviations=(
        "The rewriter's instruction and its eight examples are our own words.",
        "Gaps are filled by the target's own steps and temperature, all of them: the published sampler leaves masks "
        "standing where it counts the response's alone.",
        "With fill_then_answer the judged text is the whole filled turn and the reply, not what stands behind the part "
        "it shares with the plain prompt.",
        "A blank before a gap is dropped, since the tokens that fill it bring their own.",
    ),
)
