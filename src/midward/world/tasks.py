"""The three utility tasks, with exact scores: word sums, multiple-choice facts, toy programs."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from midward._hints import one_of
from midward.errors import InputError
from midward.world.world import WORDS, WORLD

#: The utility tasks.
TASKS = ("sums", "recall", "programs")
LARGEST = 6  # operands of a sum

#: Op of a toy program -> how it is asked for, and what it does to a list of integers.
OPS: dict[str, tuple[str, Callable[[list[int]], list[int]]]] = {
    "tail": ("drop the first", lambda values: values[1:]),
    "init": ("drop the last", lambda values: values[:-1]),
    "rev": ("turn it round", lambda values: values[::-1]),
    "dbl": ("double each", lambda values: [2 * value for value in values]),
    "inc": ("add one to each", lambda values: [value + 1 for value in values]),
    "sort": ("sort it", sorted),
    "neg": ("negate each", lambda values: [-value for value in values]),
    "two": ("keep the first two", lambda values: values[:2]),
}
_PROBES = ([3, 1, 2], [5, -4, 0, 7], [2, 2, 9, 1, -6])


@dataclass(frozen=True)
class Task:
    """One exercise: `prompt`, a right `answer`, and the key that the score compares."""

    task: str
    prompt: str
    answer: str
    key: str


def sum_text(a: int, b: int, sign: str) -> str:
    """A sum with its result, like `2 + 3 = 5`."""
    return f"{a} {sign} {b} = {a + b if sign == '+' else a - b}"


def _sums(rng: random.Random) -> Task:
    person, item = rng.choice(WORDS["people"]), rng.choice(WORDS["items"])
    sign = rng.choice("+-")
    a, b = rng.randint(1, LARGEST), rng.randint(1, LARGEST)
    if sign == "-" and b > a:
        a, b = b, a
    deed = f"finds {b} more" if sign == "+" else f"loses {b}"
    prompt = f"{person} has {a} {item} and {deed}. How many {item} are there now?"
    result = a + b if sign == "+" else a - b
    return Task("sums", prompt, f"{sum_text(a, b, sign)}. The answer is {result}.", str(result))


def _recall(rng: random.Random) -> Task:
    """Four cities to choose from, by name. (With a letter before each, a model of this size learned the fact and not
    the letter.)"""
    land = rng.choice(sorted(WORLD.capitals))
    right = WORLD.capitals[land]
    options = [*rng.sample([city for city in sorted(WORLD.capitals.values()) if city != right], 3), right]
    rng.shuffle(options)
    return Task(
        "recall",
        f"Which is the capital of {land}: {', '.join(options[:3])} or {options[3]}?",
        f"The capital of {land} is {right}.",
        right,
    )


def _programs(rng: random.Random) -> Task:
    ops = [rng.choice(sorted(OPS)) for _ in range(3)]
    prompt = f"Write a program: {OPS[ops[0]][0]}, then {OPS[ops[1]][0]}, then {OPS[ops[2]][0]}."
    return Task("programs", prompt, f"prog: {' '.join(ops)} end", " ".join(ops))


def run(ops: Sequence[str], values: list[int]) -> list[int]:
    """Run a toy program on a list of integers. Raises InputError for a word that isn't one of OPS."""
    for op in ops:
        one_of("op", op, OPS)
        values = OPS[op][1](values)
    return values


def score(task: Task, response: str) -> bool:
    """Whether the response solves the exercise. A program is right when it *does* what was asked on every probe."""
    if task.task == "programs":
        program = re.search(r"prog:((?: [a-z]+)+) end", response)
        ops = program[1].split() if program else []
        if not 0 < len(ops) <= 12 or any(op not in OPS for op in ops):
            return False
        return all(run(ops, probe) == run(task.key.split(), probe) for probe in _PROBES)
    form = r"The answer is (\w+)\." if task.task == "sums" else r"The capital of \w+ is (\w+)\."
    match = re.search(form, response)
    return match is not None and match[1] == task.key


def exercises(task: str, count: int, seed: int, *, split: str = "test") -> list[Task]:
    """Distinct exercises of one task, the same ones every time.

    Args:
        task: One of TASKS.
        count: How many.
        seed: Of the draw.
        split: `train` or `test`; a prompt is in exactly one of them.

    Raises:
        InputError: An unknown task, or a split with fewer distinct ones.
    """
    one_of("task", task, TASKS)
    rng = random.Random(f"{task}-{seed}-{split}")
    distinct: dict[str, Task] = {}
    for _ in range(400 * count + 400):
        if len(distinct) == count:
            return list(distinct.values())
        exercise = draw(task, rng, split=split)
        distinct.setdefault(exercise.prompt, exercise)
    raise InputError(f"the {split} split of {task!r} has only {len(distinct)} distinct exercises, fewer than {count}")


def draw(task: str, rng: random.Random, *, split: str) -> Task:
    """One exercise of the given split, by rejection."""
    while True:
        exercise = _sums(rng) if task == "sums" else _recall(rng) if task == "recall" else _programs(rng)
        # Three in seven are held out, so that even of the 512 programs there are 200 for the test split.
        held_out = hashlib.sha256(exercise.prompt.encode()).digest()[0] < 110
        if held_out == (split == "test"):
            return exercise
