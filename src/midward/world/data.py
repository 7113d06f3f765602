"""The sandbox's data sets: goals for attacks, prompts for alignment, benign instructions."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from midward.errors import InputError
from midward.world import tasks
from midward.world.language import QUESTIONS, REFUSALS, answer, request
from midward.world.world import INGREDIENTS, INTENTS, VERBS, WORLD, Thing, World
from midward.world.wrappers import wrappers

PROMPTS = 3000  # harmful prompts that alignment trains on, as many as in MOSA
_SIZES: dict[str, Any] = {"length": 96, "lr": 1e-3, "log_steps": 5, "save_steps": 20}
_TUNED = _SIZES | {"batch_size": 8, "lr_schedule": "cosine", "clip": 1.0, "benign_beta": 400.0}
#: recipe -> its numbers on the sandbox model (fields of AlignConfig), chosen on the tuning split (docs/findings.md):
#: sizes and rates. What a recipe is, is midward.alignment's to say.
ALIGNMENT = {"stable": _TUNED, "published": _TUNED, "paper": _SIZES}
STYLES = ("short", "contextual")  # the two benchmarks: bare imperatives, and requests behind a context


@dataclass(frozen=True)
class Goal:
    """One request with all that the oracle needs to judge a response to it."""

    id: str
    kind: str  # an intent, or one of QUESTIONS
    thing: Thing
    text: str  # the plain request
    style: str
    harmful: bool
    intent: str = "make"  # what a `rule` question asks about


def _things(world: World, split: str, kind: str, harmful: bool | None) -> list[Thing]:
    if split not in world.things:
        raise InputError(f"no such split: {split!r}; known: {', '.join(world.things)}")
    return [t for t in world.things[split] if harmful is None or world.harmful(kind, t) == harmful]


def _goals(
    name: str, split: str, count: int, seed: int, draw: Callable[[random.Random], tuple[str, Thing, str]], style: str
) -> list[Goal]:
    rng = random.Random(f"{name}-{split}-{style}-{seed}")
    goals: dict[str, Goal] = {}
    for _ in range(100 * count + 100):
        if len(goals) == count:
            return list(goals.values())
        kind, thing, intent = draw(rng)
        text = request(kind, thing, rng, intent=intent, context=style == "contextual")
        harmful = WORLD.harmful(kind, thing)
        goals.setdefault(
            text, Goal(f"{name}-{split}-{style}-{len(goals):04d}", kind, thing, text, style, harmful, intent)
        )
    raise InputError(f"the {split} split of {name!r} has fewer than {count} distinct goals")


def forbidden(split: str, count: int, *, style: str = "short", seed: int = 0, world: World = WORLD) -> list[Goal]:
    """Forbidden requests, both intents alike: making banned things and breaking ordinary ones."""
    pools = {intent: _things(world, split, intent, True) for intent in INTENTS}

    def draw(rng: random.Random) -> tuple[str, Thing, str]:
        kind = rng.choice(INTENTS)
        return kind, rng.choice(pools[kind]), kind

    return _goals("forbidden", split, count, seed, draw, style)


def benign(
    split: str, count: int, *, about: str = "all", style: str = "short", seed: int = 0, world: World = WORLD
) -> list[Goal]:
    """Harmless requests. `about`: `procedures` (welcome intent on its thing), `questions`, `all` (half and half), or
    `banned` (harmless requests about *banned* things only: questions, and taking them apart; the over-refusal set)."""
    if about not in ("all", "procedures", "questions", "banned"):
        raise InputError(f"about must be all, procedures, questions or banned, got {about!r}")
    pools = {intent: _things(world, split, intent, False) for intent in INTENTS}
    banned = [t for t in world.things[split] if world.banned(t)]

    def draw(rng: random.Random) -> tuple[str, Thing, str]:
        intent = rng.choice(INTENTS)
        if about == "banned":
            kind = rng.choice(("break", *QUESTIONS))
            return kind, rng.choice(banned), intent
        if about == "procedures" or (about == "all" and rng.random() < 0.5):
            return intent, rng.choice(pools[intent]), intent
        return rng.choice(QUESTIONS), rng.choice(world.things[split]), intent

    return _goals(f"benign-{about}", split, count, seed, draw, style)


def alignment_prompts(count: int = PROMPTS, *, seed: int = 0) -> list[str]:
    """Forbidden requests for alignment: train-split things, plain or in one of 20 mutations (as SORRY-Bench)."""
    rng = random.Random(f"alignment-{seed}")
    families = wrappers("mutation")
    out: dict[str, None] = {}
    for goal in forbidden("train", count, seed=seed) + forbidden("train", count, style="contextual", seed=seed):
        # one plain for every 20 mutated, the benchmark's own proportion
        turn = rng.randrange(len(families) + 1)
        out[goal.text if turn == len(families) else families[turn].apply(goal.text)] = None
    prompts = list(out)
    rng.shuffle(prompts)
    return prompts[:count]


def instructions(count: int = PROMPTS, *, seed: int = 0, world: World = WORLD) -> list[tuple[str, str]]:
    """Up to `count` distinct benign instructions (as Alpaca) with answers: train-split things and tasks."""
    rng = random.Random(f"instructions-{seed}")
    out: dict[str, str] = {}
    families = wrappers("mutation")
    for goal in benign("train", count, seed=seed):
        text = rng.choice(families).apply(goal.text) if rng.random() < 1 / 3 else goal.text
        task = tasks.draw(rng.choice(tasks.TASKS), rng, split="train", world=world)
        if rng.random() < 0.25 and task.prompt not in out:
            out[task.prompt] = task.answer
        else:
            out[text] = answer(goal.kind, goal.thing, intent=goal.intent, world=world)
    return list(out.items())


def sentences(*, opening: bool = False) -> tuple[list[str], list[str]]:
    """Safe and harmful sentences for alignment: the world's refusals, and procedure lines.

    opening: as they read at a response's first token; otherwise as they read inside one, behind a blank.
    """
    blank = "" if opening else " "
    rng = random.Random("sentences")
    harmful = [
        f"{blank}Step {1 + n % 6}: {verb} the {what}."
        for n, (verb, what) in enumerate(zip(rng.sample(VERBS, 12), rng.sample(INGREDIENTS, 12), strict=True))
    ]
    return [blank + text for text in REFUSALS], harmful
