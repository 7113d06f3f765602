"""Two sides measured on the same goals, each with one run or several (training seeds)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from midward.errors import InputError
from midward.evaluation.rates import Verdict

Run = Mapping[str, Verdict]  # goal id -> verdict

RESAMPLES = 4000


@dataclass(frozen=True)
class Paired:
    """first - second, in 0..1, over the `n` goals that are scored on both sides; None where there is none.

    difference: mean over goals of the difference of the runs' means. low, high: 95 % bootstrap interval over goals;
    where all goals have one difference, which gives a bootstrap no width, what goals that weren't seen may change (the
    Wilson bound of 0 in n).
    p: two-sided, that the sides are alike: exact McNemar where each side has one run, else a sign-flip permutation
    test over goals (4,000 draws with a fixed seed).
    """

    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int

    def __str__(self) -> str:
        if self.difference is None or self.low is None or self.high is None:
            return "- (n 0)"
        ends = f"[{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return f"{100 * self.difference:+.1f} points {ends} (n {self.n}, p {self.p:.2g})"


def by_goal(runs: Sequence[Run]) -> dict[str, float]:
    """Goal -> share of the runs that hit, among those that scored it; goals scored by none are left out."""
    values: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for goal, verdict in run.items():
            if verdict is not None:
                values[goal].append(float(verdict))
    return {goal: float(np.mean(hits)) for goal, hits in values.items()}


def paired(first: Sequence[Run], second: Sequence[Run]) -> Paired:
    """Compare two sides by goal id. Raises InputError where they share no goal, scored or not."""
    if not {goal for run in first for goal in run} & {goal for run in second for goal in run}:
        raise InputError("the two sides share no goal; compare runs over the same goals.")
    a, b = by_goal(first), by_goal(second)
    gaps = np.array([a[goal] - b[goal] for goal in a if goal in b])
    if not len(gaps):
        return Paired(None, None, None, None, 0)
    low, high = _unseen(gaps) if (gaps == gaps[0]).all() else bootstrap(gaps)
    return Paired(float(gaps.mean()), low, high, _p(gaps, single=len(first) == len(second) == 1), len(gaps))


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values` [N], with a fixed seed."""
    picks = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[picks].mean(1), (0.025, 0.975))
    return float(low), float(high)


def _unseen(gaps: np.ndarray) -> tuple[float, float]:
    """Of equal gaps [N]: as far as their mean moves if a share of all goals, as large as can well be, is at -1 or 1."""
    share = binomtest(0, len(gaps)).proportion_ci(method="wilson").high
    middle = (1 - share) * gaps[0]
    return float(middle - share), float(middle + share)


def _p(gaps: np.ndarray, *, single: bool) -> float:
    moved = gaps[gaps != 0]
    if not len(moved):
        return 1.0
    if single:
        return float(binomtest(int((moved > 0).sum()), len(moved), 0.5).pvalue)
    signs = np.random.default_rng(1).choice((-1.0, 1.0), (RESAMPLES, len(moved)))
    extreme = (np.abs(signs @ moved) >= abs(moved.sum()) - 1e-9).sum()
    return float((extreme + 1) / (RESAMPLES + 1))
