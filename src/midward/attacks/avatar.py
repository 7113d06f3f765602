"""AVATAR: talks about harmless stand-ins, then carries the answer back to the goal (Yan et al., 2412.12145).

The paper's code is nowhere to be found, so this is a re-implementation from its description; numbers are ours.

Attacks:
    avatar: speaks of harmless stand-ins over several turns, then has the answer carried back to the goal

Source:
    Yan et al. 2024, arXiv 2412.12145

Deviations:
    - A re-implementation from the paper's description: no code and no settings of it were found.
    - One attacker makes all metaphors; the paper gathers them from several models.
    - Similarity and toxicity are graded by the scorer, not by embeddings and a classifier.
    - The target's last reply is judged; its un-mapped paraphrase and the transcript get in-loop scores only.
    - Where the context has no room, the oldest exchanges are left out of a dialogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from midward.attacks.attack import AttackInfo, Attempt, Count, InLoop, checked
from midward.attacks.capabilities import Capability
from midward.attacks.roles import PROMPTS, SCORE, text, texts, whole
from midward.attacks.target import Ask, Reply, Turns
from midward.attacks.taxonomy import IN_PROMPT, OBFUSCATION
from midward.errors import InputError
from midward.judges.phrases import refusal_in

Kind = Literal["scenario", "detail", "calibration"]


ENTITIES = PROMPTS["avatar.entities"]
MAPPING = PROMPTS["avatar.mapping"]
WEIGH = PROMPTS["avatar.weigh"]
SPEAK = PROMPTS["avatar.speak"]
RESTORE = PROMPTS["avatar.restore"]


@checked
class Avatar:
    """mappings: metaphors that are made. kept: the best of them, each with its dialogue. turns: messages of a dialogue,
    the last one calibrates. tries: how often a message that was turned down may be worded anew, and sent, in all.
    entities: of the goal, the most. words: what an answer is asked to keep to. cutoff: the score that ends the search.
    """

    mappings: Count = 8
    kept: Count = 4
    turns: Annotated[int, Field(ge=2)] = 5
    tries: Count = 2
    entities: Count = 4
    words: Count = 100
    cutoff: InLoop = 10


@dataclass
class _Dialogue:
    """One metaphor, and what was said of it. heard: all replies; exchanges: message and reply of each turn that wasn't
    turned down, the history that the model sees."""

    number: int
    pairs: dict[str, str]
    exchanges: list[tuple[str, Reply]] = field(default_factory=list)
    heard: list[Reply] = field(default_factory=list)
    calibrated: bool = False
    over: bool = False

    @property
    def mapping(self) -> str:
        return "\n".join(f"{entity} = {stand_in}" for entity, stand_in in self.pairs.items())

    @property
    def history(self) -> Turns:
        return tuple(
            turn for message, reply in self.exchanges for turn in (("user", message), ("assistant", reply.text))
        )

    @property
    def transcript(self) -> str:
        return "\n\n".join(reply.text for _, reply in self.exchanges)

    @property
    def missing(self) -> list[str]:
        """Stand-ins that no reply has named."""
        heard = self.transcript.lower()
        return [stand_in for stand_in in self.pairs.values() if stand_in.lower() not in heard]

    def kind(self, last: bool) -> Kind:
        if last or (self.exchanges and not self.missing):
            return "calibration"
        return "detail" if self.exchanges else "scenario"


async def search(attempt: Attempt, settings: Avatar) -> None:
    """Make metaphors, and lead all their dialogues side by side, a turn at a time."""
    dialogues = await _dialogues(attempt, settings)
    for turn in range(settings.turns):
        live = [dialogue for dialogue in dialogues if not dialogue.over]
        if not live or attempt.target.left == 0:
            break
        await _turn(attempt, settings, live, turn)
        await _finish(attempt, [dialogue for dialogue in live if dialogue.over])
        if attempt.reached(settings.cutoff):
            break
    await _finish(attempt, [dialogue for dialogue in dialogues if not dialogue.over])
    attempt.spent = attempt.target.left == 0 and any(not dialogue.over for dialogue in dialogues)


async def _dialogues(attempt: Attempt, settings: Avatar) -> list[_Dialogue]:
    """The best metaphors; those that can't be read, or are there already, are dropped."""
    goal = attempt.goal.prompt

    def read(answer: dict[str, Any]) -> tuple[list[str], list[str]]:
        return list(dict.fromkeys(texts("entities")(answer)))[: settings.entities], texts("relations")(answer)

    answer = await attempt.roles.ask(ENTITIES, {"GOAL": goal}, read, turn=0)
    if answer is None:
        return []
    entities, relations = answer
    material = {"GOAL": goal, "ENTITIES": "\n".join(entities), "RELATIONS": "\n".join(relations)}
    materials, read_pairs = [material] * settings.mappings, partial(_pairs, entities=entities)
    answers = await attempt.roles.ask_all(MAPPING, materials, read_pairs, temperature=1.0)
    mappings = [pairs for i, pairs in enumerate(answers) if pairs is not None and pairs not in answers[:i]]
    dialogues = [_Dialogue(number, pairs) for number, pairs in enumerate(mappings)]
    fields = [{**material, "STAND INS": dialogue.mapping} for dialogue in dialogues]
    weights = await attempt.roles.ask_all(WEIGH, fields, _weight, temperature=0.0)
    weighed = [(weight, dialogue) for weight, dialogue in zip(weights, dialogues, strict=True) if weight is not None]
    weighed.sort(key=lambda pair: -pair[0])  # stable: the first of equals
    kept = [dialogue for _, dialogue in weighed[: settings.kept]]
    attempt.facts["metaphors"] = {"made": len(mappings), "weighed": len(weighed), "kept": len(kept)}
    return kept


def _pairs(answer: dict[str, Any], entities: Sequence[str]) -> dict[str, str]:
    named = answer["pairs"]
    if not isinstance(named, dict) or not set(entities) <= named.keys():
        raise InputError(f"pairs must name every entity; received {named!r}")
    pairs = {entity: text(entity)(named).strip() for entity in entities}
    if len(set(pairs.values())) < len(pairs):
        raise InputError(f"the stand-ins must differ from each other; received {named!r}")
    return pairs


def _weight(answer: dict[str, Any]) -> int:
    return whole(0, 10, "similarity")(answer) - whole(0, 10, "toxicity")(answer)


async def _turn(attempt: Attempt, settings: Avatar, live: Sequence[_Dialogue], turn: int) -> None:
    """One turn of every dialogue; a message that is turned down is worded anew and sent again. Sets `over`."""
    kinds = {dialogue.number: dialogue.kind(turn == settings.turns - 1) for dialogue in live}
    refused: dict[int, str] = {}
    waiting = list(live)
    for round_ in range(settings.tries):
        if attempt.target.left == 0:
            return
        fields = [_fields(attempt, settings, each, kinds[each.number], refused.get(each.number)) for each in waiting]
        first = (turn * settings.tries + round_) * settings.kept
        messages = await attempt.roles.ask_all(SPEAK, fields, text("message"), turn=settings.mappings + first)
        sent = [(dialogue, message) for dialogue, message in zip(waiting, messages, strict=True) if message is not None]
        for dialogue, message in zip(waiting, messages, strict=True):
            dialogue.over = message is None  # nobody goes on with it
        asks = [Ask(_fitting(attempt, (*dialogue.history, ("user", message)))) for dialogue, message in sent]
        replies = await attempt.target.respond(*asks) if asks else []
        waiting = []
        for (dialogue, message), reply in zip(sent, replies, strict=False):
            dialogue.heard.append(reply)
            if refusal_in(reply.text):
                refused[dialogue.number] = message
                waiting.append(dialogue)
            else:
                dialogue.exchanges.append((message, reply))
                dialogue.calibrated = dialogue.over = kinds[dialogue.number] == "calibration"
        if not waiting:
            return
    for dialogue in waiting:
        dialogue.over = True  # turned down for good


def _fields(attempt: Attempt, settings: Avatar, dialogue: _Dialogue, kind: Kind, refused: str | None) -> dict[str, str]:
    """What the attacker is shown of a dialogue."""
    return {
        "GOAL": attempt.goal.prompt,
        "STAND INS": dialogue.mapping,
        "KIND": kind,
        "MISSING": ", ".join(dialogue.missing),
        "WORDS": str(settings.words),
        "DIALOGUE": "\n\n".join(f"{role}: {text}" for role, text in dialogue.history) or "none",
        "TURNED DOWN": refused or "none",
    }


def _fitting(attempt: Attempt, turns: Turns) -> Turns:
    """The turns without as many of the oldest exchanges as leave no room for a response. An endpoint elsewhere is left
    to say so itself."""
    target, dropped = attempt.target, 0
    room = None if target.runtime is None else target.runtime.model.max_positions - target.length
    while room is not None and len(turns) > 1 and len(target.encode(turns)) > room:
        turns, dropped = turns[2:], dropped + 1
    if dropped:
        attempt.facts["exchanges_forgotten"] = attempt.facts.get("exchanges_forgotten", 0) + dropped
    return turns


async def _finish(attempt: Attempt, dialogues: Sequence[_Dialogue]) -> None:
    """Report the dialogues' last replies, scored; beside them how the un-mapped answer and the transcript score."""
    ended = [dialogue for dialogue in dialogues if dialogue.heard]
    scores = await attempt.score(*(dialogue.heard[-1] for dialogue in ended))
    calibrated = [dialogue for dialogue in ended if dialogue.calibrated]
    fields = [{"STAND INS": each.mapping, "ANSWER": each.exchanges[-1][1].text} for each in calibrated]
    restored = await attempt.roles.ask_all(RESTORE, fields, text("text"), temperature=0.0)
    readings = {(each.number, "restored"): plain for each, plain in zip(calibrated, restored, strict=True) if plain}
    readings |= {(each.number, "transcript"): each.transcript for each in calibrated}
    side_scores = dict(zip(readings, await attempt.score_texts(*readings.values()), strict=True))
    for dialogue, score in zip(ended, scores, strict=True):
        for reply in dialogue.heard[:-1]:
            attempt.offer(reply, partial=True, dialogue=dialogue.number)
        attempt.offer(
            dialogue.heard[-1],
            score=score,
            dialogue=dialogue.number,
            metaphor=dict(dialogue.pairs),
            calibrated=dialogue.calibrated,
            exchanges=len(dialogue.exchanges),
            score_restored=side_scores.get((dialogue.number, "restored")),
            score_transcript=side_scores.get((dialogue.number, "transcript")),
        )


def _calls(settings: Avatar) -> dict[str, int]:
    kept = min(settings.kept, settings.mappings)
    messages, made = kept * settings.turns * settings.tries, settings.mappings
    return {"target": messages, "attacker": made + messages, "rewriter": 1 + kept, "scorer": made + 3 * kept}


AVATAR = AttackInfo(
    name="avatar",
    needs=(Capability.CHAT, Capability.HIST),
    settings=Avatar,
    calls=_calls,
    search=search,
    prompts=(ENTITIES, MAPPING, WEIGH, SPEAK, RESTORE, SCORE),
    taxonomy=(*IN_PROMPT, OBFUSCATION),
)
