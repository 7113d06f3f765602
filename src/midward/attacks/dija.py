"""DIJA: the request as a text with gaps, sent as mask tokens in the user's turn (Wen et al., 2507.11097).

Attacks:
    dija: the request as a text with gaps, sent as mask tokens in the user's turn

Source:
    Wen et al. 2025, arXiv 2507.11097

Deviations:
    - The rewriter's instruction and its eight examples are our own words.
    - Gaps are filled by the target's own steps and temperature, all of them: the published sampler leaves masks
      standing where it counts the response's alone.
    - With fill_then_answer the judged text is the whole filled turn and the reply, not what stands behind the part it
      shares with the plain prompt.
    - A blank before a gap is dropped, since the tokens that fill it bring their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from midward.attacks.attack import AttackInfo, Attempt, Count, checked
from midward.attacks.capabilities import Capability
from midward.attacks.roles import PROMPTS, text
from midward.attacks.shapes import GAP
from midward.attacks.target import Ask
from midward.attacks.taxonomy import IN_PROMPT
from midward.errors import InputError

REWRITE = PROMPTS["dija.scaffold"]


@checked
class Dija:
    """mode: "fill_only": there is no reply, the filled text is the result (the published code on LLaDA);
    "fill_then_answer": the text is filled together with a reply, and both are the result (its code on Dream).
    tries: how often the rewriter is asked for a text with gaps. tail: tokens of the one gap behind the plain goal where
    it gave none. most: tokens of all gaps together; a text with more isn't taken."""

    mode: Literal["fill_only", "fill_then_answer"] = "fill_only"
    tries: Count = 5
    tail: Count = 36
    most: Count = 256


async def search(attempt: Attempt, settings: Dija) -> None:
    """Ask once, with the text whose gaps are mask tokens."""
    target = attempt.target
    written, fields = None, {"GOAL": attempt.goal.prompt}

    def read(answer: dict[str, Any]) -> str:
        return scaffold_of(answer, settings.most)

    for turn in range(settings.tries):
        written = await attempt.roles.ask(REWRITE, fields, read, temperature=0.3, turn=turn)
        if written is not None:
            break
    scaffold = written or f"{attempt.goal.prompt} <mask:{settings.tail}>"
    attempt.facts["scaffold"] = {
        "by": "tail" if written is None else "rewriter",
        "gaps": [int(count) for count in GAP.findall(scaffold)],
        "mode": settings.mode,
    }
    request = target.shaped(attempt.goal, "dija", scaffold=scaffold)
    [reply] = await target.respond(Ask.of(str(request.prompt), fill=settings.mode))
    attempt.offer(reply, scaffold=scaffold)


def scaffold_of(answer: dict[str, Any], most: int) -> str:
    """The rewriter's text with gaps. Raises InputError where it has none, or more than `most` tokens in all."""
    scaffold = text("scaffold")(answer)
    gaps = [int(count) for count in GAP.findall(scaffold)]
    if not gaps or 0 in gaps or sum(gaps) > most:
        raise InputError(f"a text with gaps <mask:N>, N 1 or more and {most} or less in all; received gaps {gaps}")
    return scaffold


def fills_only(name: str) -> Callable[[Any], str | None]:
    """Why an attack of this name, with a setting `mode` like DIJA's, can't run behind a guard of responses."""

    def unguarded(settings: Any) -> str | None:
        if settings.mode == "fill_then_answer":
            return None
        return (
            f"{name} only fills the prompt, at a length of its own; use --set {name}.mode=fill_then_answer, or leave "
            f"{name} out"
        )

    return unguarded


DIJA = AttackInfo(
    name="dija",
    needs=(Capability.PMASK,),
    settings=Dija,
    calls=lambda settings: {"target": 1, "rewriter": settings.tries},
    search=search,
    prompts=(REWRITE,),
    unguarded=fills_only("dija"),
    taxonomy=IN_PROMPT,
)
