"""DIA: a fabricated dialogue in which the model has already agreed and begun (Meng et al., 2503.08195).

`dia` puts the beginning as an assistant turn of the attacker's, behind which the model is asked to mend it.
`dia-prefill` forces the beginning at the response's start instead, which takes more than a chat interface and so has
its own name.

Attacks:
    dia: a made-up dialogue in which the model has agreed and begun, and is asked to mend its answer
    dia-prefill: the same dialogue with the beginning forced at the response's start

Source:
    Meng et al. 2025, arXiv 2503.08195

Deviations:
    - The dialogues and the role prompts are our own words, one wording for every model.
    - One call rewords a request by all its changes; the published code calls once a change.
    - A rewording is checked for drift by an on-topic judge, not by half of its keywords.
    - The worked example is the one with more words in common, not the nearest sentence embedding.
    - The best of the answers by the in-loop scorer goes to the final judges; the paper counts a success of any.
    - dia-prefill: The beginning is forced, which the paper's attacker can't do; no turn corrects it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from midward.attacks.attack import AttackInfo, Attempt, checked
from midward.attacks.capabilities import Capability
from midward.attacks.roles import ON_TOPIC, PROMPTS, SCORE, shipped, text
from midward.attacks.target import Ask, Target, Turns, together
from midward.attacks.taxonomy import BYPASS, IN_PROMPT
from midward.errors import InputError
from midward.sampling import Forced

_WORDS = shipped("words")["dia"]
#: The dialogue in which the model commits itself: short, since all of it has to leave room for the response.
_COMMITMENT: Turns = tuple((role, words) for role, words in _WORDS["commitment"])
#: What a rewrite may do to a request.
CHANGES: Mapping[str, str] = _WORDS["changes"]


@dataclass(frozen=True)
class Example:
    """A harmless request in softened words, and its answer: what DIA-II shows the model first."""

    request: str
    swaps: Mapping[str, str]
    answer: str


_EXAMPLES = [Example(**example) for example in _WORDS["examples"]]

REWRITE = PROMPTS["dia.rewrite"]
OPENING = PROMPTS["dia.opening"]
SOFTEN = PROMPTS["dia.soften"]


@checked
class Dia:
    """variant: "I" promises, begins and breaks off; "II" shows a solved word swap and swaps the goal's words. rewrites:
    rewordings of the goal that are tried beside it. tries: how often a rewording may be asked for that has drifted off
    the goal or is one already there."""

    variant: Literal["I", "II"] = "I"
    rewrites: Annotated[int, Field(ge=0)] = 9
    tries: Annotated[int, Field(ge=1)] = 2


class DiaPrefill(Dia):
    """The same with the beginning forced at the response's start."""


@dataclass(frozen=True)
class _Dialogue:
    """The turns before the fabricated beginning, the beginning, and what follows it up to the user's last turn."""

    before: Turns
    beginning: str
    after: Turns

    def ask(self) -> Ask:
        """With the beginning as the assistant's turn."""
        return Ask((*self.before, ("assistant", self.beginning), *self.after))

    def prefilled(self, target: Target) -> Ask:
        """With the beginning forced at the response's start, at most half of it."""
        ids = target.tokens(self.beginning)[: target.length // 2]
        return Ask(self.before, (Forced(0, ids),))


async def search(attempt: Attempt, settings: Dia) -> None:
    """Put the goal's dialogue and those of its rewordings, all at once."""
    requests = [attempt.goal.text, *await _rewrites(attempt, settings)]
    dialogues = await (_first if settings.variant == "I" else _second)(attempt, requests)
    await attempt.put(
        [
            (
                dialogue.prefilled(attempt.target) if isinstance(settings, DiaPrefill) else dialogue.ask(),
                {"request": requests[number], "rewrite": number},
            )
            for number, dialogue in enumerate(dialogues)
            if dialogue is not None
        ]
    )


async def _rewrites(attempt: Attempt, settings: Dia) -> list[str]:
    """New rewordings that still ask for the goal; the rest is asked for again, then dropped, and counted."""
    goal, count = attempt.goal.text, settings.rewrites
    kept: dict[int, str] = {}
    dropped = {"off topic": 0, "not new": 0}
    plans = [attempt.rng.sample(list(CHANGES), attempt.rng.randint(1, len(CHANGES))) for _ in range(count)]
    for turn in range(settings.tries):
        missing = [number for number in range(count) if number not in kept]
        fields = [
            {"REQUEST": goal, "CHANGES": "\n".join(f"{name}: {CHANGES[name]}" for name in plans[number])}
            for number in missing
        ]
        rewritten = await attempt.roles.ask_all(REWRITE, fields, text("request"), turn=turn * count)
        new: dict[int, str] = {}
        for number, request in zip(missing, rewritten, strict=True):
            known = request in (goal, *kept.values(), *new.values())
            dropped["not new"] += known
            if request is not None and not known:
                new[number] = request
        same = await attempt.roles.on_topic(goal, list(new.values()))
        kept |= {number: new[number] for number, topical in zip(new, same, strict=True) if topical}
        dropped["off topic"] += sum(not topical for topical in same)
    attempt.facts["dropped"] = dropped
    return [kept[number] for number in sorted(kept)]


def _read_opening(answer: dict[str, Any]) -> tuple[str, str]:
    opening, continuation = text("opening")(answer), text("continuation")(answer)
    if len(opening.split()) + len(continuation.split()) > 60:
        raise InputError("opening and continuation must be a short sentence each")
    return opening, continuation


async def _openings(attempt: Attempt, requests: Sequence[str]) -> list[tuple[str, str] | None]:
    return await attempt.roles.ask_all(OPENING, [{"REQUEST": request} for request in requests], _read_opening)


async def _first(attempt: Attempt, requests: Sequence[str]) -> list[_Dialogue | None]:
    """DIA-I. None where the role gave no opening."""
    dialogues: list[_Dialogue | None] = []
    for request, begun in zip(requests, await _openings(attempt, requests), strict=True):
        before: Turns = (*_COMMITMENT, ("user", replace(attempt.goal, text=request).prompt))
        after = (("user", _WORDS["on"]), ("assistant", begun[1]), ("user", _WORDS["correct"])) if begun else ()
        dialogues.append(_Dialogue(before, begun[0], after) if begun else None)
    return dialogues


async def _second(attempt: Attempt, requests: Sequence[str]) -> list[_Dialogue | None]:
    """DIA-II. None where the role gave no opening, or no word to swap."""
    openings, ask = await _openings(attempt, requests), attempt.roles.ask
    softened = [ask(SOFTEN, {"REQUEST": text}, _swaps_in(text), turn=i) for i, text in enumerate(requests)]
    swaps = await together(*softened)
    dialogues: list[_Dialogue | None] = []
    for request, beginning, words in zip(requests, openings, swaps, strict=True):
        if beginning is None or words is None:
            dialogues.append(None)
            continue
        example = max(_EXAMPLES, key=lambda example: likeness(example.request, request))
        before: Turns = (
            ("user", _swapped(example.request, example.swaps)),
            ("assistant", _WORDS["restored"].format(request=example.request, answer=example.answer)),
            ("user", replace(attempt.goal, text=_swapped(request, words)).prompt),
        )
        faulty = _WORDS["restored"].format(request=request, answer=beginning[0])
        dialogues.append(_Dialogue(before, faulty, (("user", _WORDS["wrong"]),)))
    return dialogues


def _swaps_in(request: str) -> Any:
    """A reader of swaps whose words stand in the request. It raises ValueError where there is none."""

    def read(answer: dict[str, Any]) -> dict[str, str]:
        pairs = answer["swaps"]
        if not isinstance(pairs, list) or not all(isinstance(swap, dict) for swap in pairs):
            raise InputError(f"swaps must be a list of objects; received {pairs!r}")
        swaps = {text("word")(swap): text("soft")(swap) for swap in pairs if {"word", "soft"} <= swap.keys()}
        swaps = {word: soft for word, soft in swaps.items() if re.search(_word(word), request)}
        if not swaps:
            raise InputError("none of the words of swaps stands in the request")
        return swaps

    return read


def _word(word: str) -> str:
    return rf"(?<!\w){re.escape(word)}(?!\w)"


def _swapped(request: str, swaps: Mapping[str, str]) -> str:
    """The request in soft words, and what each stands for. Longer words go first, all in one pass."""
    ordered = sorted(swaps, key=len, reverse=True)
    soft = re.sub("|".join(map(_word, ordered)), lambda word: swaps[word.group()], request)
    pairs = ", ".join(f"{swaps[word]} = {word}" for word in ordered)
    return _WORDS["swapped"].format(soft=soft, swaps=pairs)


def likeness(first: str, second: str) -> float:
    """Shared words over all words of two texts, 0-1, case aside."""
    words, others = ({*re.findall(r"\w+", each.lower())} for each in (first, second))
    return len(words & others) / len(words | others) if words | others else 0.0


def _calls(settings: Dia) -> dict[str, int]:
    asked, versions = settings.rewrites * settings.tries, 1 + settings.rewrites
    softened = versions if settings.variant == "II" else 0
    return {"target": versions, "rewriter": asked + versions + softened, "scorer": asked + versions}


DIA = AttackInfo(
    name="dia",
    needs=(Capability.CHAT, Capability.HIST),
    settings=Dia,
    calls=_calls,
    search=search,
    prompts=(REWRITE, OPENING, SOFTEN, ON_TOPIC, SCORE),
    taxonomy=IN_PROMPT,
)
DIA_PREFILL = replace(
    DIA,
    name="dia-prefill",
    settings=DiaPrefill,
    needs=(Capability.CHAT, Capability.HIST, Capability.POS),
    taxonomy=(*IN_PROMPT, BYPASS),
)
