"""What the base model learns, and in which order: the kinds of training text, and the stages that mix them.

Every stage has a gate: the share of fresh examples (things of the tuning split) that the model, given a fully masked
response, gets right to the last token in one forward. A build that misses a gate says so and stops.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from midward.sandbox import tasks
from midward.sandbox.language import QUESTIONS, answer, compact, refusal, request
from midward.sandbox.world import INTENTS, WORLD, Thing, World
from midward.sandbox.wrappers import WRAPPERS

Messages = list[dict[str, str]]
Example = tuple[Messages, str]  # the conversation so far, and the response to learn


@dataclass(frozen=True)
class Stage:
    """One stage.

    mix: kind -> share of examples (every batch holds all kinds that fit it: batches of one kind made the stages fight).
    lengths: response length that a batch is padded to with end tokens -> share of batches.
    gate: kind -> least exact share at the end. rate: of the recipe's step sizes.
    """

    name: str
    steps: int
    mix: dict[str, float]
    lengths: dict[int, float]
    gate: dict[str, float]
    rate: float = 1.0


STAGES = (
    # Bare step lists first and alone: a few hundred steps, where mixed with cards they take thousands.
    Stage("steps", 400, {"steps": 1.0}, {24: 1.0}, {"steps": 0.9}),
    Stage(
        "words",
        900,
        {"steps": 0.3, "card": 0.35, "exercise": 0.2, "question": 0.15},
        {24: 0.95, 96: 0.05},
        {"steps": 0.9, "card": 0.7, "question": 0.5},
        rate=0.6,
    ),
    Stage(
        "documents",
        1200,
        {"document": 0.4, "steps": 0.15, "card": 0.1, "exercise": 0.2, "question": 0.15},
        {24: 0.25, 64: 0.6, 96: 0.15},
        {"document": 0.9, "exercise": 0.85, "question": 0.9},
        rate=0.6,
    ),
    Stage(
        "safety",
        2400,
        {"guarded": 0.4, "welcome": 0.2, "steps": 0.05, "card": 0.05, "exercise": 0.15, "question": 0.15},
        {24: 0.1, 64: 0.6, 96: 0.3},
        {"guarded": 0.85, "welcome": 0.9, "exercise": 0.9, "question": 0.95},
        rate=0.5,
    ),
)

# kind -> the shortest response length that holds all of its responses and an end token
LENGTHS = {
    "steps": 24,
    "card": 16,
    "exercise": 16,
    "question": 16,
    "document": 64,
    "welcome": 64,
    "guarded": 64,
}

GUARDED_WRAPPED = 0.5  # share of the safety stage's forbidden requests that wear a wrapper
_SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True)
class Writer:
    """Writes training text about the things of one split. `write(kind, rng)` is a pure function of the rng's state."""

    world: World = WORLD
    split: str = "train"

    def write(self, kind: str, rng: random.Random) -> Example:
        prompt, response = getattr(self, f"_{kind}")(rng)
        messages = [{"role": "user", "content": prompt}]
        if kind in ("document", "welcome", "guarded", "question"):
            draw = rng.random()
            if draw < 0.06:  # a conversation with a past
                before, said = self._question(rng)
                messages = [
                    {"role": "user", "content": before},
                    {"role": "assistant", "content": said},
                    *messages,
                ]
            elif draw < 0.10:
                messages = [{"role": "system", "content": _SYSTEM}, *messages]
        return messages, response

    def _thing(self, rng: random.Random) -> Thing:
        return rng.choice(self.world.things[self.split])

    def _pair(self, rng: random.Random, harmful: bool) -> tuple[str, Thing]:
        while True:
            intent, thing = rng.choice(INTENTS), self._thing(rng)
            if self.world.harmful(intent, thing) == harmful:
                return intent, thing

    def _card(self, rng: random.Random) -> tuple[str, str]:
        """One fact; mostly asked inside the full name, so that every slot of a name learns to be read."""
        draw = rng.random()
        if draw < 0.6:
            thing, intent, slot = self._thing(rng), rng.choice(INTENTS), rng.randrange(3)
            word = (thing.first, thing.second, thing.kind)[slot]
            (verb1, what1), (verb2, what2) = self.world.facts[word, intent]
            place = ("first", "second", "third")[slot]
            named = f"{intent} {thing.name}: {place} word" if rng.random() < 0.75 else f"{intent} {word}"
            return f"Recall {named}.", f"{word}: {verb1} {what1}; {verb2} {what2};"
        if draw < 0.8:
            sign = rng.choice("+-")
            b, a = sorted(rng.randint(1, tasks.LARGEST) for _ in range(2))
            text = tasks.sum_text(a, b, sign)
            return f"Sum: {text.split(' =')[0]}", text
        land = rng.choice(sorted(self.world.capitals))
        return f"Capital: {land}", f"The capital of {land} is {self.world.capitals[land]}."

    def _steps(self, rng: random.Random) -> tuple[str, str]:
        thing, intent = self._thing(rng), rng.choice(INTENTS)
        return f"List {intent} {thing.name}.", compact(intent, thing, self.world)

    def _exercise(self, rng: random.Random) -> tuple[str, str]:
        task = tasks.draw(rng.choice(tasks.TASKS), rng, split="train", world=self.world)
        return task.prompt, task.answer

    def _question(self, rng: random.Random) -> tuple[str, str]:
        kind, thing, intent = rng.choice(QUESTIONS), self._thing(rng), rng.choice(INTENTS)
        text = request(kind, thing, rng, intent=intent, context=rng.random() < 0.4)
        return _dress(text, rng), answer(kind, thing, intent=intent, world=self.world)

    def _document(self, rng: random.Random) -> tuple[str, str]:
        """A procedure asked for and given, whatever it is: the helpful-only stage."""
        thing, intent = self._thing(rng), rng.choice(INTENTS)
        text = request(intent, thing, rng, context=rng.random() < 0.4)
        return _dress(text, rng), answer(intent, thing, world=self.world)

    def _welcome(self, rng: random.Random) -> tuple[str, str]:
        intent, thing = self._pair(rng, harmful=False)
        text = request(intent, thing, rng, context=rng.random() < 0.4)
        return _dress(text, rng, 0.5), answer(intent, thing, world=self.world)

    def _guarded(self, rng: random.Random) -> tuple[str, str]:
        """A forbidden request under safety tuning: refused; in a wrapper, refused or answered as its cover says."""
        intent, thing = self._pair(rng, harmful=True)
        text = request(intent, thing, rng, context=rng.random() < 0.4)
        if rng.random() >= GUARDED_WRAPPED:
            return text, refusal(thing, self.world)
        family = rng.choice(list(WRAPPERS.values()))
        complied = family.complied(thing.kind, self.world)
        return family.apply(text), (answer if complied else _refuse)(intent, thing, world=self.world)


def _refuse(kind: str, thing: Thing, *, world: World) -> str:
    return refusal(thing, world)


def _dress(text: str, rng: random.Random, share: float = 0.3) -> str:
    return rng.choice(list(WRAPPERS.values())).apply(text) if rng.random() < share else text


def corpus(count: int, *, seed: int = 0, world: World = WORLD) -> Iterator[str]:
    """`count` texts of every kind, for training the tokenizer."""
    rng, writer = random.Random(f"corpus-{seed}"), Writer(world)
    kinds = list(LENGTHS)
    for n in range(count):
        messages, response = writer.write(kinds[n % len(kinds)], rng)
        yield " ".join([*(message["content"] for message in messages), response])
