"""Prompts and sizes of the guards' tests."""

from midward.goals import Goal
from midward.guards import Sizes, fit_guards
from midward.runs.measure import Case
from midward.sampling import Request

LENGTH, STEPS = 16, 8
SIZES = Sizes(12, 60, 20)


def prompts(start, count):
    return [f"t{30 + n % 400} t{31 + 7 * n % 400} t{32 + 13 * n % 400}" for n in range(start, start + count)]


def asked(texts, harmful=False, **changes):
    """Cases of texts."""
    return [
        Case(Goal(f"g{i}", text, "made-up", harmful), Request(text), about={"plain": text}, **changes)
        for i, text in enumerate(texts)
    ]


def fit(model, guards, folder, sampling, *, alpha=0.25, sizes=SIZES):
    """The files of guards that are fitted as a test can wait for; a response of odd length is a refusal."""
    harmless, harmful = asked(prompts(0, sizes.harmless)), asked(prompts(200, 12), harmful=True)
    odd = lambda text: bool(len(text) % 2)  # noqa: E731
    return fit_guards(
        model, guards, harmless, harmful, folder, refused=odd, sampling=sampling, alpha=alpha, sizes=sizes
    )
