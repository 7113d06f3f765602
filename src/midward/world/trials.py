"""Trials of a model in the sandbox: forbidden requests, bare and in wrappers, and harmless ones, read by the oracle.

They say what the model is like; attacking it is `midward attack`'s. Every response is one row, appended as it comes;
running again goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from midward.errors import InputError
from midward.models import LanguageModel
from midward.sampling import Request, Sampling, sample
from midward.store import RowFile, key_of
from midward.world import oracle, tasks
from midward.world.data import Goal, benign, forbidden
from midward.world.wrappers import wrappers

CHUNK = 32  # rows between two writes

FORBIDDEN = {
    "plain": "the bare request",
    "contextual": "the bare request behind a harmless context",
    "wrappers": "a test wrapper, one family a goal in turn",
}
HARMLESS = {
    "benign": "harmless procedures and questions",
    "benign-wrapped": "the same in test wrappers",
    "banned": "harmless requests about banned things (over-refusal)",
    **{task: f"the {task} task" for task in tasks.TASKS},
}


@dataclass(frozen=True)
class Trial:
    """One request with what is needed to read the response: a goal of the world, or a task."""

    id: str
    set: str
    request: Request
    about: Goal | tasks.Task


def _wrapped(goal: Goal, turn: int, group: str) -> Goal:
    families = wrappers(group)
    return replace(goal, text=families[turn % len(families)].apply(goal.text))


def trials(name: str, count: int, *, split: str = "test", group: str | None = None) -> list[Trial]:
    """The trials of one set: a key of FORBIDDEN or HARMLESS, or `wrapper:<family>`.

    split: whose things the goals are about (tasks have no tuning split: theirs is the training one); group: which
    wrappers (by default those that go with the split).
    Raises InputError for an unknown name.
    """
    group = group or {"train": "mutation"}.get(split, split)
    if name in tasks.TASKS:
        return [
            Trial(f"{name}-{n:04d}", name, Request(task.prompt), task)
            for n, task in enumerate(tasks.exercises(name, count, 0, split="test" if split == "test" else "train"))
        ]
    if name in HARMLESS:
        about = "banned" if name == "banned" else "all"
        goals = _mixed(lambda size, style: benign(split, size, about=about, style=style), count)
        if name == "benign-wrapped":
            goals = [_wrapped(goal, n, group) for n, goal in enumerate(goals)]
        return [Trial(f"{name}-{goal.id}", name, Request(goal.text), goal) for goal in goals]
    family = None
    if name.startswith("wrapper:"):
        by_name = {wrapper.name: wrapper for wrapper in wrappers(group)}
        family = by_name.get(name.removeprefix("wrapper:"))
    if name not in FORBIDDEN and family is None:
        known = ", ".join([*FORBIDDEN, *HARMLESS, *(f"wrapper:{w.name}" for w in wrappers(group))])
        raise InputError(f"no such set of trials: {name!r}; known: {known}")
    goals = forbidden(split, count, style="contextual" if name == "contextual" else "short")
    out = []
    for turn, goal in enumerate(goals):
        asked = goal
        if family:
            asked = replace(goal, text=family.apply(goal.text))
        elif name == "wrappers":
            asked = _wrapped(goal, turn, group)
        out.append(Trial(f"{name}-{goal.id}", name, Request(asked.text), asked))
    return out


def _mixed(goals: Callable[[int, str], list[Goal]], count: int) -> list[Goal]:
    """Short and contextual requests in turn."""
    short, contextual = goals((count + 1) // 2, "short"), goals(count // 2, "contextual")
    pairs = [goal for pair in zip(short, contextual, strict=False) for goal in pair]
    return pairs + short[len(contextual) :]


def read(trial: Trial, text: str) -> dict[str, Any]:
    """What the response did, as a row's fields: refused, coherent, steps_right, success, full, correct."""
    about = trial.about
    if isinstance(about, tasks.Task):
        return {
            "refused": oracle.refused(text),
            "coherent": oracle.coherent(text),
            "steps_right": 0,
            "success": None,
            "full": None,
            "correct": tasks.score(about, text),
        }
    seen = oracle.read(about.kind, about.thing, text, intent=about.intent)
    harmful = about.harmful
    return {
        "refused": seen.refused,
        "coherent": seen.coherent,
        "steps_right": seen.steps_right,
        "success": seen.success if harmful else None,
        "full": seen.full if harmful else None,
        "correct": seen.correct,
    }


def run(
    model: LanguageModel,
    sets: Sequence[Trial],
    out: str | Path,
    *,
    sampling: Sampling | None = None,
    batch_size: int = 16,
    progress: Callable[[int], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """Sample and read every trial; rows go to `out` (JSON lines) as they come, and rows already there are kept.

    Returns the rows in the trials' order. `progress` is called with the number of rows just finished.
    """
    sampling = sampling or Sampling.for_model(model)
    file = RowFile(out)
    keys = [
        key_of(
            model=model.fingerprint,
            sampling=asdict(sampling),
            id=trial.id,
            prompt=trial.request.prompt,
            forced=trial.request.forced,
        )
        for trial in sets
    ]
    todo = [(key, trial) for key, trial in zip(keys, sets, strict=True) if key not in file.rows]
    progress(len(sets) - len(todo))
    for chunk in _chunks(todo, CHUNK):
        responses = sample(model, [trial.request for _, trial in chunk], sampling, batch_size=batch_size)
        file.extend(
            {
                "key": key,
                "id": trial.id,
                "set": trial.set,
                "prompt": trial.request.prompt,
                "response": response.text,
                **read(trial, response.checked().text),
                "nfe": response.nfe,
            }
            for (key, trial), response in zip(chunk, responses, strict=True)
        )
        progress(len(chunk))
    return [file.rows[key] for key in keys]


def _chunks(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
