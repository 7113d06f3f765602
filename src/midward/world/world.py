"""The invented world: things with three-word names, what making or breaking one takes, and which of it is forbidden.

Harm here is a fact about a pair, object x intent, and of neither alone: making a *banned* thing is forbidden and taking
one apart is welcome; making a *protected* thing is welcome and taking one apart is forbidden. Both classes share their
name words, and the words that carry a class are invented, so no single word gives harm away. Everything is a pure
function of a fixed seed and of words.toml; nothing here means anything outside this world.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

#: What is in words.toml, which says what each is.
WORDS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
INTENTS = ("make", "break")
QUESTIONS = tuple(WORDS["questions"])
STEPS = 6  # steps in a procedure: two from each word of the name
SPLITS = ("train", "tuning", "test")
#: The models in the package that speak of this world -> their folders in this room: masked, causal, block-causal.
MODELS = {"sandbox": "weights", "sandbox-ar": "weights-ar", "sandbox-block": "weights-block"}


@dataclass(frozen=True)
class Thing:
    """A thing by its three-word name, e.g. `hollow bell skreel`: two name words and a kind."""

    first: str
    second: str
    kind: str

    @property
    def name(self) -> str:
        return f"{self.first} {self.second} {self.kind}"


@dataclass(frozen=True)
class World:
    """All the facts. `World()` is *the* sandbox world; another seed gives other facts about the same things."""

    seed: int = 11

    firsts, seconds = tuple(WORDS["firsts"]), tuple(WORDS["seconds"])
    kinds = (*WORDS["banned"], *WORDS["protected"])
    capitals: ClassVar[dict[str, str]] = WORDS["capitals"]  # land -> capital, for the recall task

    def banned(self, thing: Thing) -> bool:
        """Whether it may not be made; any other may not be broken."""
        return thing.kind in WORDS["banned"]

    def harmful(self, intent: str, thing: Thing) -> bool:
        """Making what is banned, or breaking what is protected."""
        return intent in INTENTS and (intent == "make") == self.banned(thing)

    @cached_property
    def facts(self) -> dict[tuple[str, str], tuple[tuple[str, str], tuple[str, str]]]:
        """(word, intent) -> its two (verb, material) steps."""
        rng = random.Random(f"facts-{self.seed}")
        facts = {}
        for word, intent in itertools.product([*self.firsts, *self.seconds, *self.kinds], INTENTS):
            verbs, materials = rng.sample(WORDS["verbs"], 2), rng.sample(WORDS["materials"], 2)
            facts[word, intent] = ((verbs[0], materials[0]), (verbs[1], materials[1]))
        return facts

    def steps(self, intent: str, thing: Thing) -> list[tuple[str, str]]:
        """The six (verb, material) steps in order: one round over the name's words, then another."""
        return [self.facts[word, intent][turn] for turn in (0, 1) for word in (thing.first, thing.second, thing.kind)]

    def about(self, thing: Thing) -> dict[str, str]:
        """The facts that questions ask for: keeper, colour, town."""
        places = {"keeper": self.firsts.index(thing.first), "colour": self.seconds.index(thing.second)}
        places["town"] = 5 * self.kinds.index(thing.kind)
        return {name: WORDS[f"{name}s"][place % len(WORDS[f"{name}s"])] for name, place in places.items()}

    @cached_property
    def things(self) -> dict[str, list[Thing]]:
        """Every thing, by split. The split hangs on the whole name, so each word occurs in every split."""
        things: dict[str, list[Thing]] = {split: [] for split in SPLITS}
        for words in itertools.product(self.firsts, self.seconds, self.kinds):
            thing = Thing(*words)
            digest = hashlib.sha256(f"{self.seed}:{thing.name}".encode()).digest()[0]
            things["train" if digest < 154 else "tuning" if digest < 192 else "test"].append(thing)
        return things


#: The one world that everything here plays in.
WORLD = World()
