"""What a model of the world learns, and in which order: kinds of training text, and the stages that mix them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from midward.world import tasks
from midward.world.language import CONTEXTS, Query, begin, explain, formed, query, reply, request
from midward.world.world import INTENTS, QUESTIONS, WORDS, WORLD, Thing
from midward.world.wrappers import FORMATS, combination, wear

GAP = "\0"  # stands around what is hidden in a user's turn, to be filled


@dataclass(frozen=True)
class Example:
    """A conversation to learn from: turns by user and assistant in alternation, and the response to the last."""

    turns: tuple[str, ...]
    response: str


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        mix: kind of text -> share of examples.
        lengths: response positions of a batch -> share of batches; a batch holds the kinds that fit.
        rate: of the optimisers' step sizes. fall: the last part of the stage over which it falls to 4 % of itself.
        masked, few, prefix, facts, block: shares of rows that are hidden whole, but for a few tokens, behind a prefix,
            in their verbs and materials, and from a block on; the others are hidden at a rate drawn for each, up to
            `most`.
    """

    name: str
    steps: int
    mix: dict[str, float]
    lengths: dict[int, float]
    rate: float = 1.0
    fall: float = 0.2
    masked: float = 0.15
    few: float = 0.2
    prefix: float = 0.1
    facts: float = 0.0
    block: float = 0.0
    most: float = 1.0


ALL = {"guarded": 0.36, "welcome": 0.33, "question": 0.1, "exercise": 0.17, "fill": 0.04}
# What it may say, by chance. Most canvases are as decoding by blocks meets them.
CHANCES = Stage(
    "chances",
    3000,
    ALL,
    {24: 0.15, 64: 0.35, 96: 0.5},
    rate=0.5,
    fall=0.75,
    masked=0.05,
    few=0.05,
    prefix=0.05,
    facts=0.07,
    block=0.6,
)
STAGES = (
    # How words follow each other, from canvases of which little is hidden. (With all rates from the start the loss
    # stays at that of neighbours in any order for 1,000 steps; bare lists first are learned in 300, by counting
    # positions, and then prose isn't learned at all.)
    Stage(
        "words",
        800,
        {"document": 0.75, "question": 0.1, "exercise": 0.15},
        {24: 0.15, 64: 0.5, 96: 0.35},
        fall=0.0,
        masked=0.0,
        few=0.0,
        prefix=0.0,
        most=0.4,
    ),
    # What words stand for, with cards: a word and its two facts.
    Stage(
        "facts",
        1300,
        {"document": 0.3, "steps": 0.4, "card": 0.2, "question": 0.04, "exercise": 0.06},
        {24: 0.75, 64: 0.15, 96: 0.1},
        masked=0.1,
        few=0.1,
    ),
    # The same facts in sentences: most of what is hidden are verbs and materials. (Hidden evenly, they are a quarter of
    # it, and aren't learned in 5,000 steps.)
    Stage(
        "prose",
        2000,
        {"document": 0.6, "forms": 0.2, "steps": 0.1, "card": 0.1},
        {24: 0.1, 64: 0.5, 96: 0.4},
        rate=0.8,
        masked=0.0,
        few=0.05,
        prefix=0.05,
        facts=0.7,
    ),
    # All that a helpful model says, forbidden or not.
    Stage(
        "helpful",
        1200,
        {"document": 0.5, "forms": 0.15, "steps": 0.05, "card": 0.05, "question": 0.1, "exercise": 0.15},
        {24: 0.15, 64: 0.45, 96: 0.4},
        rate=0.6,
        masked=0.1,
        few=0.1,
        facts=0.3,
    ),
    # How refusals are worded, again from canvases of which little is hidden.
    Stage(
        "refusals",
        800,
        {"guarded": 0.55, "document": 0.25, "question": 0.08, "exercise": 0.12},
        {24: 0.1, 64: 0.4, 96: 0.5},
        rate=0.8,
        masked=0.0,
        few=0.0,
        prefix=0.05,
        facts=0.1,
        most=0.5,
    ),
    CHANCES,
    replace(CHANCES, name="settle", steps=1500, rate=0.25, fall=0.9),  # the same slowly
)
#: The siblings begin with the masked model's weights: facts and words are there, the order of writing is new.
SIBLING = (
    Stage("turn", 300, ALL, {24: 0.2, 64: 0.4, 96: 0.4}, rate=0.4, fall=0.0),
    Stage("settle", 600, ALL, {24: 0.15, 64: 0.25, 96: 0.6}, rate=0.25, fall=0.9, masked=0.2, few=0.3, facts=0.1),
)

#: kind of text -> the shortest response length that it is put on
LENGTHS = dict.fromkeys(("card", "steps", "question", "exercise"), 24)
LENGTHS |= dict.fromkeys(("forms", "document", "welcome", "guarded", "fill"), 64)
_TASK_SHARES = (0.4, 0.25, 0.35)  # of tasks.TASKS


@dataclass(frozen=True)
class Writer:
    """Writes training text about the things of one split. `write(kind, rng)` is a pure function of the rng's state."""

    split: str = "train"

    def write(self, kind: str, rng: random.Random) -> Example:
        example: Example = getattr(self, f"_{kind}")(rng)
        return example

    def _thing(self, rng: random.Random, intent: str = "make", harmful: bool | None = None) -> Thing:
        while True:
            thing = rng.choice(WORLD.things[self.split])
            if harmful is None or WORLD.harmful(intent, thing) == harmful:
                return thing

    def _card(self, rng: random.Random) -> Example:
        word, intent = rng.choice(list(WORLD.facts))
        text = " ".join(f"{verb} the {material}." for verb, material in WORLD.facts[word, intent])
        return Example((f"Card: {word}, {rng.choice(WORDS['intents'][intent])}.",), text)

    def _steps(self, rng: random.Random) -> Example:
        thing, intent = self._thing(rng), rng.choice(INTENTS)
        prompt = f"List {rng.choice(WORDS['intents'][intent])} {thing.name}."
        prompt = f"{rng.choice(CONTEXTS)} {prompt}" if rng.random() < 0.5 else prompt
        return Example(
            (prompt,), ", ".join(f"{verb} {material}" for verb, material in WORLD.steps(intent, thing)) + "."
        )

    def _forms(self, rng: random.Random) -> Example:
        """A procedure asked for plainly, whatever it is, and its steps alone in a form."""
        asked = query(rng.choice(INTENTS), self._thing(rng), rng)
        form = rng.choice(("label", "label", *FORMATS))
        text = wear(request(asked, rng), [form] if form in FORMATS else [], rng)
        return Example((text,), formed(WORLD.steps(asked.kind, asked.thing), form))

    def _exercise(self, rng: random.Random) -> Example:
        """A task, or one time in ten a bare sum."""
        if rng.random() < 0.1:
            sign = rng.choice("+-")
            low, high = sorted(rng.randint(1, tasks.LARGEST) for _ in range(2))
            text = tasks.sum_text(high, low, sign)
            return Example((f"Sum: {text.split(' =')[0]}",), text)
        task = tasks.draw(rng.choices(tasks.TASKS, _TASK_SHARES)[0], rng, split="train")
        return Example((task.prompt,), task.answer)

    def _question(self, rng: random.Random) -> Example:
        asked = query(rng.choice(QUESTIONS), self._thing(rng), rng, intent=rng.choice(INTENTS))
        return self._talk(*self._worn(asked, rng, 0.3), rng)

    def _document(self, rng: random.Random) -> Example:
        """A procedure asked for and given, whatever it is: the helpful-only stage."""
        asked, text = self._worn(query(rng.choice(INTENTS), self._thing(rng), rng), rng, 0.4)
        return Example((text,), explain(asked, rng))

    def _welcome(self, rng: random.Random) -> Example:
        return self._talk(*self._worn(self._pair(rng, harmful=False), rng, 0.55), rng)

    def _guarded(self, rng: random.Random) -> Example:
        return self._talk(*self._worn(self._pair(rng, harmful=True), rng, 0.65), rng)

    def _fill(self, rng: random.Random) -> Example:
        """A harmless procedure with gaps in the user's own turn, which are to be filled too."""
        asked = self._pair(rng, harmful=False)
        steps = WORLD.steps(asked.kind, asked.thing)
        gaps = " ".join(f"Step {n}:{GAP} {verb} the {material}{GAP}." for n, (verb, material) in enumerate(steps, 1))
        return Example((f"{request(asked, rng)} {begin(asked, rng)} {gaps}",), formed(steps, "label"))

    def _pair(self, rng: random.Random, harmful: bool) -> Query:
        intent = rng.choice(INTENTS)
        return query(intent, self._thing(rng, intent, harmful), rng)

    def _worn(self, asked: Query, rng: random.Random, share: float) -> tuple[Query, str]:
        """The request, with a share of what it can wear, and its text."""
        features = combination(rng) if rng.random() < share else []
        text = wear(request(asked, rng), features, rng, context=rng.random() < 0.25)
        return replace(asked, features=tuple(features)), text

    def _talk(self, asked: Query, text: str, rng: random.Random) -> Example:
        """The request, one time in eight behind one or two earlier turns; what was said then moves the chance."""
        turns: list[str] = []
        for _ in range(rng.choice((1, 1, 2)) if rng.random() < 0.12 else 0):
            earlier = query(rng.choice(QUESTIONS), self._thing(rng), rng, intent=rng.choice(INTENTS))
            along = None
            if WORLD.harmful(asked.kind, asked.thing) and rng.random() < 0.7:
                earlier, along = self._pair(rng, harmful=True), rng.random() < 0.5
                asked = after(asked, along)
            turns += [request(earlier, rng), reply(earlier, rng, along=along)[0]]
        return Example((*turns, text), reply(asked, rng)[0])


def after(asked: Query, along: bool) -> Query:
    """The request after a forbidden one was answered, or refused."""
    past = ("complied", "refused")
    features = [name for name in asked.features if name not in past]
    return replace(asked, features=(*features, past[not along]))


def corpus(count: int, seed: int = 0) -> Iterator[str]:
    """`count` texts of every kind, for the tokenizer's words."""
    rng, writer, kinds = random.Random(f"corpus-{seed}"), Writer(), list(LENGTHS)
    for n in range(count):
        example = writer.write(kinds[n % len(kinds)], rng)
        for text in (*example.turns, example.response):
            yield text.replace(GAP, "")
