"""The world's sets of trials: forbidden requests, bare and in wrappers, harmless ones, and the three tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from midward.errors import InputError
from midward.world.data import Trial, benign, forbidden
from midward.world.tasks import TASKS, exercises
from midward.world.wrappers import Wrapper, wrappers

FORBIDDEN = {
    "plain": "the bare request",
    "contextual": "the bare request behind a harmless context",
    "wrappers": "a test wrapper, one family a goal in turn",
}
HARMLESS = {
    "benign": "harmless procedures and questions",
    "benign-wrapped": "the same in test wrappers",
    "banned": "harmless requests about banned things (over-refusal)",
    **{task: f"the {task} task" for task in TASKS},
}


def trials(name: str, count: int, *, split: str = "test") -> list[Trial]:
    """The trials of one set, the same ones every time; a larger count begins with the smaller one's.

    Args:
        name: A key of FORBIDDEN or HARMLESS, or `wrapper:<family>`.
        count: How many.
        split: Whose things they are about: test, tuning or train. Tasks have no tuning split: theirs is the training
            one.

    Raises:
        InputError: An unknown name or split, or a split with fewer distinct ones.
    """
    if name in TASKS:
        return [
            Trial(f"{name}-{n:04d}", task.prompt, {"kind": name, "answer": task.key, "number": f"{split}-{n:04d}"})
            for n, task in enumerate(exercises(name, count, 0, split="test" if split == "test" else "train"))
        ]
    group = {"train": "mutation"}.get(split, split)
    if name in HARMLESS:
        about = "banned" if name == "banned" else "all"
        made = _mixed(lambda size, style: benign(split, size, about=about, style=style), count)
    else:
        made = forbidden(split, count, style="contextual" if name == "contextual" else "short")
    families: list[Wrapper] = []
    if name in ("wrappers", "benign-wrapped"):
        families = wrappers(group)
    elif name not in FORBIDDEN and name not in HARMLESS:
        families = [wrapper for wrapper in wrappers(group) if name == f"wrapper:{wrapper.name}"]
        if not families:
            known = [*FORBIDDEN, *HARMLESS, *(f"wrapper:{wrapper.name}" for wrapper in wrappers(group))]
            raise InputError(f"no such set of trials: {name!r}; known: {', '.join(known)}")
    named = [replace(trial, id=f"{name}-{trial.id}") for trial in made]
    return [trial.worn(families[n % len(families)]) for n, trial in enumerate(named)] if families else named


def _mixed(draw: Callable[[int, str], list[Trial]], count: int) -> list[Trial]:
    """Short and contextual requests in turn."""
    short, contextual = draw((count + 1) // 2, "short"), draw(count // 2, "contextual")
    pairs = [trial for pair in zip(short, contextual, strict=False) for trial in pair]
    return pairs + short[len(contextual) :]
