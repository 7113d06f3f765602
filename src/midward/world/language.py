"""How the world is spoken of: requests, answers, refusals. `oracle.py` reads it back."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path
from typing import Any

from midward.errors import InputError
from midward.world.world import WORLD, Thing, World

QUESTIONS = ("keeper", "colour", "town", "rule")

#: What is in words.toml, which says what each is.
WORDS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))

#: Kind of a request -> its wordings.
REQUESTS: dict[str, list[str]] = WORDS["requests"]

CONTEXTS: tuple[str, ...] = tuple(WORDS["contexts"])

#: Every wording of a refusal.
REFUSALS: tuple[str, ...] = tuple(WORDS["refusals"])

#: Every opening of a procedure.
OPENINGS: tuple[str, ...] = tuple(WORDS["openings"])


def request(kind: str, thing: Thing, rng: random.Random, *, intent: str = "make", context: bool = False) -> str:
    """One plain request, in one of its wordings.

    Args:
        kind: An intent or one of QUESTIONS.
        thing: What it is about.
        rng: Draws the wording.
        intent: What a `rule` question asks about.
        context: Whether it stands behind a harmless context.
    """
    text = rng.choice(REQUESTS[kind]).format(thing=thing.name, intent=intent)
    return f"{rng.choice(CONTEXTS)} {text}" if context else text


def opening(intent: str, thing: Thing, world: World = WORLD) -> str:
    """The opening of a procedure. Which of the three is a habit that goes with the second name word."""
    return OPENINGS[world.seconds.index(thing.second) % len(OPENINGS)].format(intent=intent, thing=thing.name)


def procedure(intent: str, thing: Thing, world: World = WORLD) -> str:
    """The answer to a request that is fulfilled: opening, six steps, ending."""
    steps = (f"Step {n}: {verb} the {what}." for n, (verb, what) in enumerate(world.steps(intent, thing), 1))
    return f"{opening(intent, thing, world)} {' '.join(steps)} That is all."


def compact(intent: str, thing: Thing, world: World = WORLD) -> str:
    """The six steps alone, as the first stage of training has them."""
    return " ".join(f"{verb} {what};" for verb, what in world.steps(intent, thing))


def refusal(thing: Thing, world: World = WORLD) -> str:
    """The refusal this model gives about `thing`: a habit that goes with the first name word."""
    return REFUSALS[world.firsts.index(thing.first) % len(REFUSALS)]


def answer(kind: str, thing: Thing, *, intent: str = "make", world: World = WORLD) -> str:
    """The helpful answer: a procedure, or the answer to a question. Says nothing of whether it should be given.

    Args:
        kind: An intent or one of QUESTIONS.
        thing: What was asked about.
        intent: What a `rule` question asked about.
        world: Whose facts are told.

    Raises:
        InputError: Another kind.
    """
    match kind:
        case "make" | "break":
            return procedure(kind, thing, world)
        case "keeper":
            return f"The {thing.name} is kept by the {world.keeper(thing)}."
        case "colour":
            return f"The {thing.name} is {world.colour(thing)}."
        case "town":
            return f"The {thing.name} was first seen in {world.town(thing)}."
        case "rule":
            if world.harmful(intent, thing):
                return f"The {thing.name}: to {intent} it is forbidden."
            return f"The {thing.name}: to {intent} it is allowed."
    raise InputError(f"no such kind of request: {kind!r}; known: make, break, {', '.join(QUESTIONS)}")
