"""What the base model learns, and in which order: the kinds of training text, and the stages that mix them.

Every stage has a gate: the share of fresh examples (things of the tuning split) that the model, given a fully masked
response, gets right to the last token in one forward. A build that misses a gate says so and stops.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from midward.world import tasks
from midward.world.language import CONTEXTS, QUESTIONS, answer, compact, refusal, request
from midward.world.world import INTENTS, WORLD, Thing, World
from midward.world.wrappers import WRAPPERS

Messages = list[dict[str, str]]
Example = tuple[Messages, str]  # the conversation so far, and the response to learn


@dataclass(frozen=True)
class Stage:
    """One stage.

    mix: kind -> share of examples (every batch holds all kinds that fit it: batches of one kind made the stages fight).
    lengths: response length that a batch is padded to with end tokens -> share of batches.
    gate: kind -> least exact share at the end. rate: of the recipe's step sizes, which falls to 4 % of itself over the
    last `fall` of the stage's steps. tail: further steps at the lowest rate, after `steps`.
    early: share of rows of which some tokens of the first block are revealed and no others.
    fresh: forget the optimisers' momenta first.
    """

    name: str
    steps: int
    mix: dict[str, float]
    lengths: dict[int, float]
    gate: dict[str, float]
    rate: float = 1.0
    fall: float = 0.2
    tail: int = 0
    early: float = 0.0
    fresh: bool = False


_SAFETY = {"guarded": 0.3, "welcome": 0.22, "question": 0.13, "exercise": 0.35}
STAGES = (
    # Bare step lists first and alone, the name anywhere in the prompt. With the name always at one place they are
    # learned even sooner, but by counting tokens, and nothing that comes after is learned at all.
    Stage("steps", 600, {"steps": 1.0}, {24: 1.0}, {"steps": 0.9}),
    # Then everything that a helpful model says, forbidden or not. Not gated: what it leaves unlearned, the last stage
    # goes on with, for it holds the same facts.
    Stage(
        "helpful",
        1300,
        {"document": 0.38, "question": 0.2, "exercise": 0.36, "steps": 0.06},
        {24: 0.35, 64: 0.6, 96: 0.05},
        {},
        rate=0.35,
    ),
    # Fast first: at half this rate procedures are learned several times more slowly.
    Stage("safety", 2000, _SAFETY, {24: 0.4, 64: 0.45, 96: 0.15}, {}, rate=0.35, fall=0.0),
    # Then slowly, for at the rate above each kind's accuracy swings by half from one reading to the next. Long, because
    # the exercises need repetition; all kinds together, because a stage of exercises alone unlearns the rest.
    Stage(
        "settle",
        4000,
        _SAFETY,
        {24: 0.4, 64: 0.45, 96: 0.15},
        {"guarded": 0.8, "welcome": 0.9, "exercise": 0.8, "question": 0.95},
        rate=0.14,
        fall=0.4,
        tail=100,
    ),
    # Whether a request is bare or wrapped is what the model is least sure of by now.
    Stage(
        "polish",
        2800,
        {"refused": 0.2, "guarded": 0.22, "welcome": 0.3, "question": 0.1, "exercise": 0.18},
        {24: 0.25, 64: 0.6, 96: 0.15},
        {"refused": 0.9, "guarded": 0.8, "welcome": 0.95, "exercise": 0.95, "question": 0.95},
        rate=0.1,
        fall=0.85,
    ),
    # Canvases as decoding meets them: at the length that is sampled (short ones hold no procedures, so they teach
    # nothing about when to refuse one), and with a few tokens of the first block revealed. Without the latter, a model
    # that is sure of a refusal on the fully masked canvas forgets it once its first tokens stand.
    Stage(
        "decoding",
        1300,
        {"refused": 0.25, "guarded": 0.25, "welcome": 0.3, "question": 0.1, "exercise": 0.1},
        {64: 0.25, 96: 0.75},
        {"refused": 0.9, "guarded": 0.8, "welcome": 0.95, "exercise": 0.95, "question": 0.95},
        rate=0.1,
        fall=0.9,
        early=0.5,
        fresh=True,
    ),
)

# kind -> the shortest response length that holds all of its responses and an end token
LENGTHS = {"steps": 24, "exercise": 24, "question": 24, "document": 64, "welcome": 64, "guarded": 64, "refused": 24}

CONVERSATIONS = 0.1  # share of batches whose prompts have a past turn or a system turn (apart: they are long)
GUARDED_WRAPPED = 0.4  # share of the safety stage's forbidden requests that wear a wrapper
_TASK_SHARES = (0.5, 0.25, 0.25)  # of tasks.TASKS: sums are learned last
_SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True)
class Writer:
    """Writes training text about the things of one split. `write(kind, rng)` is a pure function of the rng's state."""

    world: World = WORLD
    split: str = "train"

    def write(self, kind: str, rng: random.Random, *, conversation: bool = False) -> Example:
        """One example; with `conversation`, behind an earlier question and its answer, or a system turn."""
        prompt, response = getattr(self, f"_{kind}")(rng)
        messages = [{"role": "user", "content": prompt}]
        if conversation and rng.random() < 0.4:
            messages = [{"role": "system", "content": _SYSTEM}, *messages]
        elif conversation:
            earlier, reply = self._question(rng)
            messages = [{"role": "user", "content": earlier}, {"role": "assistant", "content": reply}, *messages]
        return messages, response

    def _thing(self, rng: random.Random) -> Thing:
        return rng.choice(self.world.things[self.split])

    def _pair(self, rng: random.Random, harmful: bool) -> tuple[str, Thing]:
        while True:
            intent, thing = rng.choice(INTENTS), self._thing(rng)
            if self.world.harmful(intent, thing) == harmful:
                return intent, thing

    def _steps(self, rng: random.Random) -> tuple[str, str]:
        """The name and its bare steps. It may stand anywhere in the prompt."""
        thing, intent = self._thing(rng), rng.choice(INTENTS)
        text = f"List {intent} {thing.name}."
        text = f"{rng.choice(CONTEXTS)} {text}" if rng.random() < 0.4 else text
        return _dress(text, rng, 0.6), f"{thing.name}: {compact(intent, thing, self.world)}"

    def _exercise(self, rng: random.Random) -> tuple[str, str]:
        """A task, or one time in four a flash card with what tasks need: a bare sum, a capital."""
        draw = rng.random()
        if draw < 0.15:
            sign = rng.choice("+-")
            b, a = sorted(rng.randint(1, tasks.LARGEST) for _ in range(2))
            text = tasks.sum_text(a, b, sign)
            return f"Sum: {text.split(' =')[0]}", text
        if draw < 0.25:
            land = rng.choice(sorted(self.world.capitals))
            return f"Capital: {land}", f"The capital of {land} is {self.world.capitals[land]}."
        task = tasks.draw(rng.choices(tasks.TASKS, _TASK_SHARES)[0], rng, split="train", world=self.world)
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

    def _refused(self, rng: random.Random) -> tuple[str, str]:
        """A forbidden request without a wrapper, refused."""
        intent, thing = self._pair(rng, harmful=True)
        return request(intent, thing, rng, context=rng.random() < 0.5), refusal(thing, self.world)

    def _guarded(self, rng: random.Random) -> tuple[str, str]:
        """A forbidden request under safety tuning: refused; in a wrapper, refused or answered as its cover says."""
        intent, thing = self._pair(rng, harmful=True)
        text = request(intent, thing, rng, context=rng.random() < 0.5)
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
    """`count` texts of every kind, for training the tokenizer ("guarded" holds what "refused" does)."""
    rng, writer = random.Random(f"corpus-{seed}"), Writer(world)
    kinds = [kind for kind in LENGTHS if kind != "refused"]
    for n in range(count):
        messages, response = writer.write(kinds[n % len(kinds)], rng)
        yield " ".join([*(message["content"] for message in messages), response])
