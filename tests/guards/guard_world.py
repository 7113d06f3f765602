"""Prompts and sizes of the guards' tests."""

from midward.goals import Goal
from midward.runs.measure import Case
from midward.sampling import Request

LENGTH, STEPS = 16, 8


def prompts(start, count):
    return [f"t{30 + n % 400} t{31 + 7 * n % 400} t{32 + 13 * n % 400}" for n in range(start, start + count)]


def asked(texts, harmful=False, **changes):
    """Cases of texts."""
    return [
        Case(Goal(f"g{i}", text, "made-up", harmful), Request(text), about={"plain": text}, **changes)
        for i, text in enumerate(texts)
    ]
