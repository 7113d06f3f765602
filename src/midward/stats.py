"""A number with its interval: shares, areas under ROC curves, means, and differences paired by goal.

What was seen is a sample of goals and, where a model or a detector was trained several times, of seeds. Both are drawn
from more than was seen, so both make an interval wider: a goal is one draw, however often it was asked (in several
sets, of several seeds), and a seed is one draw, however many goals it answered. One rule makes every 95 % interval:

1. `_spread` takes the estimate's variance apart: what goals give, and what seeds give beyond what their answers' own
   chance explains (two-way variance components).
2. The two are added with the quantile that each one's number allows, which for three seeds is 4.3 and not 1.96.
3. Where values have ends (0..1), the interval is Wilson's for the size that has this variance, so it stays between the
   ends. One verdict a goal and one seed give Wilson's interval itself.
4. The variance is taken with two goals more, one at each end, so that no interval is without width.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri, stdtrit
from scipy.stats import binomtest, rankdata

from midward.errors import InputError

Verdict = bool | None  # None: unscored, which is counted apart and never coerced
Run = Mapping[Any, Any]  # what was asked -> verdict or share in 0..1, of one seed
Parts = list[tuple[float, float]]  # of a variance: how much, and its degrees of freedom

_LEVEL = 0.05


# --- a share -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rate:
    """`hits` of `n` scored verdicts of so many goals and seeds; low, high: 95 % interval in 0..1. `unscored` apart."""

    hits: int
    n: int
    unscored: int
    low: float
    high: float
    goals: int
    seeds: int = 1

    @property
    def value(self) -> float:
        """The share, or NaN where nothing was scored."""
        return self.hits / self.n if self.n else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        return self.low, self.high

    def __str__(self) -> str:
        if not self.n:
            return f"- (n 0, unscored {self.unscored})"
        number = f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return f"{number} ({_size(self.n, self.goals, self.seeds, self.unscored)})"

    def record(self) -> dict[str, float | int | None]:
        """As JSON: value (None where nothing was scored) and the fields."""
        return {"value": self.value if self.n else None, **asdict(self)}


def rate(
    verdicts: Iterable[Verdict], goals: Iterable[Hashable] | None = None, seeds: Iterable[Hashable] | None = None
) -> Rate:
    """Count verdicts.

    Args:
        verdicts: whether it hit; None is unscored.
        goals: what each was asked of; without it, each of a goal of its own.
        seeds: which trained model (or detector) each is of; without it, all are of one.
    """
    verdicts = list(verdicts)
    count = len(verdicts)
    goals, seeds = _labels(goals, range(count), count), _labels(seeds, [0] * count, count)
    scored = [i for i, verdict in enumerate(verdicts) if verdict is not None]
    unscored = len(verdicts) - len(scored)
    if not scored:
        return Rate(0, 0, unscored, 0.0, 1.0, 0, 0)
    hits = np.array([bool(verdicts[i]) for i in scored], dtype=float)
    of_goal, goal_count = _codes([goals[i] for i in scored])
    of_seed, seed_count = _codes([seeds[i] for i in scored])
    # Two goals more, which every seed was asked as often as a goal is on average: one always hits, one never.
    more = max(1, round(len(scored) / (goal_count * seed_count)))
    ends = np.repeat([1.0, 0.0], more * seed_count)
    every_seed = np.tile(np.arange(seed_count), 2 * more)
    values = np.concatenate([hits, ends])
    end_goals = goal_count + np.repeat([0, 1], more * seed_count)
    influence, by_seed = _of_means(
        values, np.concatenate([of_goal, end_goals]), np.concatenate([of_seed, every_seed]), seed_count
    )
    low, high = _ends(float(hits.mean()), float(values.mean()), _spread([(influence, by_seed)]), goal_count)
    return Rate(int(hits.sum()), len(hits), unscored, low, high, goal_count, seed_count)


# --- a mean --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mean:
    """Mean of `n` values without ends, of so many goals and seeds; low, high: 95 % interval by Student's t over goals
    and seeds, None where it would have no width (a single goal, or all alike)."""

    value: float
    low: float | None
    high: float | None
    n: int
    goals: int
    seeds: int = 1

    def text(self, digits: int = 2, sign: str = "") -> str:
        """Value and interval, with so many digits; sign "+": of a difference."""
        form = f"{sign}.{digits}f"
        ends = "" if self.low is None or self.high is None else f" [{self.low:{form}}, {self.high:{form}}]"
        return f"{self.value:{form}}{ends}"

    def __str__(self) -> str:
        return f"{self.text()} ({_size(self.n, self.goals, self.seeds)})"


def mean(
    values: Iterable[float], goals: Iterable[Hashable] | None = None, seeds: Iterable[Hashable] | None = None
) -> Mean:
    """Mean of one number or more; goals and seeds as in `rate`."""
    numbers = np.array(list(values), dtype=float)
    count = len(numbers)
    of_goal, goal_count = _codes(_labels(goals, range(count), count))
    of_seed, seed_count = _codes(_labels(seeds, [0] * count, count))
    parts = _spread([_of_means(numbers, of_goal, of_seed, seed_count)])
    half = _half([(parts[0][0], goal_count - 1), *parts[1:]]) if goal_count > 1 else 0.0
    value = float(numbers.mean())
    low, high = (value - half, value + half) if half > 1e-12 * abs(value) else (None, None)
    return Mean(value, low, high, len(numbers), goal_count, seed_count)


# --- an area -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Area:
    """Area under a ROC curve: the chance that a positive scores above a negative (ties half), mean over seeds; low,
    high: 95 % interval over goals (DeLong's variance, clustered) and seeds."""

    value: float
    low: float
    high: float
    positives: int
    negatives: int
    seeds: int = 1

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def area(
    positives: Any,
    negatives: Any,
    positive_goals: Iterable[Hashable] | None = None,
    negative_goals: Iterable[Hashable] | None = None,
) -> Area | None:
    """Compare scores.

    Args:
        positives: scores [N], or [seeds, N] of several detectors. A score that is NaN (of any seed) is left out.
        negatives: scores [M], or [seeds, M].
        positive_goals: of which goal each of N is; without it, each of its own.
        negative_goals: of which goal each of M is; one goal may be on both sides.

    Returns:
        None where a side is empty.
    """
    sides = [np.atleast_2d(np.asarray(side, dtype=float)) for side in (positives, negatives)]
    labels = [
        _labels(goals, zip([name] * side.shape[1], range(side.shape[1])), side.shape[1])
        for goals, side, name in zip((positive_goals, negative_goals), sides, "+-", strict=True)
    ]
    kept = [~np.isnan(side).any(0) for side in sides]
    sides = [side[:, keep] for side, keep in zip(sides, kept, strict=True)]
    labels = [
        [goal for goal, keep in zip(of, keeps, strict=True) if keep] for of, keeps in zip(labels, kept, strict=True)
    ]
    if not sides[0].size or not sides[1].size:
        return None
    seeds = len(sides[0])
    value = float(_areas(*sides)[0].mean())
    counts = [len(set(of)) for of in labels]
    for i, side in enumerate(sides):  # two goals more a side: above all, and below all
        more = max(1, round(side.shape[1] / counts[i]))
        ends = np.tile(np.repeat([np.inf, -np.inf], more), (seeds, 1))
        sides[i] = np.hstack([side, ends])
        labels[i] = labels[i] + [(i, "above")] * more + [(i, "below")] * more
    areas, *wins = _areas(*sides)
    codes, count = _codes([*labels[0], *labels[1]])
    influence = np.zeros((count, seeds))
    np.add.at(influence, codes, np.hstack([(won - areas[:, None]) / won.shape[1] for won in wins]).T)
    parts = _spread([(influence, areas)])
    low, high = _ends(value, float(areas.mean()), parts, min(counts))
    return Area(value, low, high, int(kept[0].sum()), int(kept[1].sum()), seeds)


def _areas(positives: np.ndarray, negatives: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The area of each detector [seeds], and what share of the other side each positive and each negative wins."""
    n, m = positives.shape[1], negatives.shape[1]
    together = rankdata(np.hstack([positives, negatives]), axis=1)
    won = (together[:, :n] - rankdata(positives, axis=1)) / m
    lost = 1 - (together[:, n:] - rankdata(negatives, axis=1)) / n
    return won.mean(1), won, lost


# --- a difference --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """first - second, in 0..1, over what both sides have scored; None where there is none.

    difference: mean over the `n` that both were asked, of the difference of the seeds' means. low, high: 95 % interval
    over goals and each side's seeds. p: two-sided, that the sides are alike: exact McNemar where each side has one
    seed and each goal one verdict, else the level at which the interval reaches 0. holm, family: p corrected for the
    `family` comparisons of its table, by `corrected`.
    """

    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int
    goals: int = 0
    seeds: int = 1  # the most of a side
    holm: float | None = None
    family: int = 1

    def __str__(self) -> str:
        if self.difference is None or self.low is None or self.high is None:
            return "- (n 0)"
        ends = f"[{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        tested = f"p {self.p:.2g}" + ("" if self.holm is None else f", Holm {self.holm:.2g}")
        return f"{100 * self.difference:+.1f} points {ends} ({_size(self.n, self.goals, self.seeds)}, {tested})"


def paired(
    first: Sequence[Run], second: Sequence[Run], goal_of: Callable[[Any], Hashable] = lambda asked: asked
) -> Paired:
    """Compare two sides that were asked the same.

    Args:
        first: a mapping for each seed: what was asked -> verdict, or a share in 0..1; None is unscored.
        second: the other side's; its seeds are others than the first's, also where they have the same number.
        goal_of: of what was asked, which goal it is of. Sets pooled under keys (set, goal) are clustered by the goal.

    Raises:
        InputError: the sides share nothing, scored or not.
    """
    asked = [of for of in dict.fromkeys(of for run in first for of in run) if any(of in run for run in second)]
    if not asked:
        raise InputError("the two sides share no goal; compare runs over the same goals.")
    tables = [_table(side, asked) for side in (first, second)]  # each [asked, seeds]
    scored = ~(np.isnan(tables[0]).all(1) | np.isnan(tables[1]).all(1))
    if not scored.any():
        return Paired(None, None, None, None, 0)
    tables = [table[scored][:, ~np.isnan(table[scored]).all(0)] for table in tables]
    gaps = np.nanmean(tables[0], 1) - np.nanmean(tables[1], 1)
    codes, goals = _codes([goal_of(of) for of, known in zip(asked, scored, strict=True) if known])
    # Two goals more: of one the first side alone has all, of the other the second.
    more = max(1, round(len(gaps) / goals))
    codes = np.concatenate([codes, goals + np.repeat([0, 1], more)])
    sides = []
    for table, ends in zip(tables, ([1.0, 0.0], [0.0, 1.0]), strict=True):
        table = np.vstack([table, np.repeat(ends, more)[:, None].repeat(table.shape[1], 1)])
        known, seed = np.nonzero(~np.isnan(table))
        sides.append(_of_means(table[known, seed], codes[known], seed, table.shape[1]))
    value = float(gaps.mean())
    parts = _spread(sides)
    wide = float(gaps.sum() / (len(gaps) + 2 * more))  # of all, those at the ends too: they cancel
    half = [(part / 4, df) for part, df in parts]  # of the difference brought to 0..1
    low, high = (2 * end - 1 for end in _ends((value + 1) / 2, (wide + 1) / 2, half, goals))
    single = len(first) == len(second) == 1 and goals == len(gaps) and np.isin(gaps, (-1, 0, 1)).all()
    if single:
        moved = gaps[gaps != 0]
        p = float(binomtest(int((moved > 0).sum()), len(moved)).pvalue) if len(moved) else 1.0
    else:
        p = _p((value + 1) / 2, (wide + 1) / 2, half, goals)
    return Paired(value, low, high, p, len(gaps), goals, max(len(first), len(second)))


def _table(side: Sequence[Run], asked: Sequence[Any]) -> np.ndarray:
    """A side's verdicts as numbers [asked, seeds], NaN where there is none."""
    cells = [[run.get(of) for run in side] for of in asked]
    return np.array([[np.nan if cell is None else float(cell) for cell in row] for row in cells])


# --- many comparisons ----------------------------------------------------------------------------------------


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values corrected for their number (Holm 1979), in the order given; None (not tested) stays, uncounted."""
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    out: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        out[i] = highest
    return out


def corrected(pairs: Sequence[Paired]) -> list[Paired]:
    """The comparisons of one table, each with its p corrected for all of them."""
    tested = sum(pair.p is not None for pair in pairs)
    return [
        replace(pair, holm=p, family=max(1, tested))
        for pair, p in zip(pairs, holm([pair.p for pair in pairs]), strict=True)
    ]


def family(pairs: Iterable[Mapping[str, Any]]) -> str:
    """What a table of comparisons (as JSON) says of their number; empty for a single one."""
    count = max((pair.get("family", 1) for pair in pairs), default=1)
    return f"Holm: p corrected for the {count} comparisons of this table" if count > 1 else ""


# --- the rule ------------------------------------------------------------------------------------------------


def _of_means(
    values: np.ndarray, goals: np.ndarray, seeds: np.ndarray, seed_count: int
) -> tuple[np.ndarray, np.ndarray]:
    """How far each goal moves each seed's mean [goals, seeds] (columns sum to 0), and the seeds' means [seeds]."""
    counts = np.bincount(seeds, minlength=seed_count)
    means = np.bincount(seeds, values, seed_count) / counts
    influence = np.zeros((int(goals.max()) + 1, seed_count))
    np.add.at(influence, (goals, seeds), (values - means[seeds]) / counts[seeds])
    return influence, means


def _spread(sides: Sequence[tuple[np.ndarray, np.ndarray]]) -> Parts:
    """Variance of the first side's mean over seeds (less the second's): what goals give, then each side's seeds.

    sides: influence [goals, seeds] and values [seeds], as `_of_means` gives them.
    """
    moved = sides[0][0].mean(1) - (sides[1][0].mean(1) if len(sides) > 1 else 0.0)
    count = len(moved)
    parts: Parts = [(float((moved**2).sum()) * count / max(1, count - 1), np.inf)]
    for influence, values in sides:
        seeds = len(values)
        if seeds > 1:
            # Seeds' values differ also because each goal's answer is chance: that is in the goals' part already.
            chance = influence.var(1, ddof=1).sum() * count / (count - 1)
            parts.append((max(0.0, float(values.var(ddof=1) - chance)) / seeds, seeds - 1))
    return parts


def _quantile(df: float, level: float) -> float:
    return -float(ndtri(level / 2) if np.isinf(df) else stdtrit(df, level / 2))


def _half(parts: Parts, level: float = _LEVEL) -> float:
    """Half the width of an interval: each part with the quantile of its own degrees of freedom, added as squares."""
    return float(np.sqrt(sum(_quantile(df, level) ** 2 * part for part, df in parts)))


def _ends(value: float, widened: float, parts: Parts, goals: int, level: float = _LEVEL) -> tuple[float, float]:
    """Wilson's interval of `value` in 0..1 for the number of goals that would have this variance.

    widened, parts: the value and its variance with the two goals more, which are taken out of the number again.
    """
    z = _quantile(np.inf, level)
    n = _effective(widened, parts, goals, level)
    middle = (value + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(value * (1 - value) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return min(value, max(0.0, float(middle - half))), max(value, min(1.0, float(middle + half)))


def _effective(widened: float, parts: Parts, goals: int, level: float) -> float:
    variance = (_half(parts, level) / _quantile(np.inf, level)) ** 2
    return (widened * (1 - widened) / variance + 1) * goals / (goals + 2)


def _p(value: float, widened: float, parts: Parts, goals: int) -> float:
    """The level at which the interval of `value` in 0..1 reaches one half."""
    gap = abs(value - 0.5)

    def beyond(log_level: float) -> float:
        level = float(np.exp(log_level))
        return gap - _quantile(np.inf, level) * 0.5 / np.sqrt(_effective(widened, parts, goals, level))

    if gap == 0:
        return 1.0
    lowest = float(np.log(1e-15))
    return float(np.exp(brentq(beyond, lowest, -1e-9))) if beyond(lowest) < 0 else 1e-15


def _labels(labels: Iterable[Hashable] | None, default: Iterable[Hashable], count: int) -> list[Hashable]:
    """`labels`, or the default: one for each of `count` values."""
    chosen = list(default if labels is None else labels)
    if len(chosen) != count:
        raise ValueError(f"{len(chosen)} labels for {count} values")
    return chosen


def _codes(labels: Sequence[Hashable]) -> tuple[np.ndarray, int]:
    """A number a label, from 0, and how many labels there are."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=int), len(numbers)


def _size(n: int, goals: int, seeds: int, unscored: int = 0) -> str:
    """What a number rests on."""
    parts = [f"n {n}"]
    if goals != n:
        parts.append(f"{goals} goals")
    if seeds > 1:
        parts.append(f"{seeds} seeds")
    if unscored:
        parts.append(f"unscored {unscored}")
    return ", ".join(parts)
