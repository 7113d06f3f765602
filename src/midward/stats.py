"""A number with its 95 % interval: shares, means, areas under ROC curves, and differences paired by goal.

What was seen is a sample of goals and, where a model or a detector was trained several times, of seeds. Both are drawn
from more than was seen, so both make an interval wider: a goal is one draw, however often it was asked (in several
sets, of several seeds), and a seed is one draw, however many goals it answered. One rule makes every interval of a
share, an area or a difference; a mean of numbers without an upper end takes steps 1 and 2 alone, is cut at the lower
end where there is one, and has no interval where all are alike:

1. `_variance` takes the estimate's variance apart: what goals give, and what seeds give beyond what their answers' own
   chance explains (two-way variance components).
2. `_half` adds the two with the quantile that each one's number allows, which for three seeds is 4.3 and not 1.96.
3. Where values have ends (0..1), `_wilson` gives Wilson's interval for the size that has this variance, so it stays
   between the ends. One verdict a goal and one seed give Wilson's interval itself.
4. The variance is taken with two goals more, one at each end, so that no interval of these is without width.

`rate`, `mean`, `area` and `paired` each say how far every goal moves the estimate, and ask the rule. Rows of a run go
through `rate_of`, `mean_of`, `paired_of` and `gap_of`, which read from each row who its goal is (`subject_of`) and its
seed. Comparisons that a table shows together are `corrected` together. `Bound` holds a share against what it may be.

Outside of the rule are numbers that describe what was run and not what would be seen of other goals: counts (errors,
queries that a budget allows, samples, harmful prompts that weren't refused), seconds and the share of time that a guard
adds (they measure the machine), quantiles and curves (ROC points, bands of signals), a threshold, and the ends of an
interval that are told alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri, stdtrit
from scipy.stats import beta, binom, binomtest, rankdata

from midward.errors import InputError

Verdict = bool | None  # None: unscored, which is counted apart and never coerced
Answers = Mapping[Any, Any]  # what was asked -> verdict or share in 0..1, of one seed
Labels = Iterable[Hashable] | None
Row = Mapping[str, Any]  # of a run: goal, perhaps set, subject and seed, and fields that are verdicts or numbers
Variance = list[tuple[float, float]]  # its parts: how much, and their degrees of freedom
Standing = Literal["held", "broken", "unclear"]  # of a share against a bound

LEVEL = 0.05
COUNTS = 0.0, np.inf  # the scale of counts and other numbers that have a lower end alone
FEW = 20  # goals; below that a difference that isn't told from none says nothing


# --- numbers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval, and the `n` values of so many goals and seeds that it rests on.

    value is None where nothing was scored; low and high are None where the interval would have no width.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    goals: int
    seeds: int = 1

    #: How it is written: factor, decimal places, "+" for a sign, unit.
    FORM: ClassVar[tuple[float, int, str, str]] = (1, 2, "", "")

    def text(self, digits: int | None = None, sign: str | None = None) -> str:
        """Value and interval in the number's own unit, like "90.0 % [59.6, 98.2]"; "-" where nothing was scored."""
        factor, own_digits, own_sign, unit = self.FORM
        form = f"{own_sign if sign is None else sign}.{own_digits if digits is None else digits}f"
        if self.value is None:
            return "-"
        known = self.low is not None and self.high is not None
        ends = ", ".join(f"{factor * end:{form}}" for end in (self.low, self.high) if end is not None)
        return f"{factor * self.value:{form}}{unit}{f' [{ends}]' if known else ''}"

    @property
    def size(self) -> str:
        """What it rests on, like "n 180, 60 goals, 3 seeds"."""
        goals = f", {self.goals} goals" if self.goals != self.n else ""
        return f"n {self.n}{goals}{f', {self.seeds} seeds' if self.seeds > 1 else ''}"

    def __str__(self) -> str:
        return f"{self.text()} ({self.size})"

    def apart(self) -> bool:
        """Of a difference or a change: whether it can be told from none, its interval leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def untold(self) -> str:
        """Why a difference or a change can't be told from none; empty where it can."""
        if self.apart():
            return ""
        return "too few goals to tell" if self.goals < FEW else "not told apart from no change"

    def record(self) -> dict[str, Any]:
        """As JSON: `stat`, which kind it is, and its fields; `from_record` reads it."""
        return {"stat": type(self).__name__.lower(), **asdict(self)}


@dataclass(frozen=True)
class Rate(Estimate):
    """A share of scored verdicts, in 0..1; `hits` of `n`. unscored: verdicts that there weren't."""

    low: float
    high: float
    hits: int = 0
    unscored: int = 0
    FORM = (100, 1, "", " %")

    @property
    def size(self) -> str:
        return super().size + (f", unscored {self.unscored}" if self.unscored else "")


@dataclass(frozen=True)
class Mean(Estimate):
    """A mean of values without ends; its interval is Student's t over goals and seeds."""

    value: float


@dataclass(frozen=True)
class Area(Estimate):
    """Area under a ROC curve: the chance that a positive scores above a negative (ties half), mean over seeds."""

    value: float
    low: float
    high: float
    positives: int = 0
    negatives: int = 0
    FORM = (1, 3, "", "")


@dataclass(frozen=True)
class Paired(Estimate):
    """first - second, in -1..1, over the `n` that both sides were asked and have scored.

    seeds: the most of a side. p: two-sided, that the sides are alike: exact McNemar where each side has one seed and
    each goal one verdict; else the level at which the interval reaches 0, or the least that flips of whole goals' signs
    allow (1/4 of three that differ), if that is more. holm: p corrected (by `corrected`) for the
    `family` comparisons of its table.
    """

    p: float | None = None
    holm: float | None = None
    family: int = 1
    FORM = (100, 1, "+", " points")

    @property
    def size(self) -> str:
        p = "" if self.p is None else f", p {self.p:.2g}"
        return super().size + p + ("" if self.holm is None else f", Holm {self.holm:.2g}")

    def apart(self) -> bool:
        """Whether it can be told from none: its interval leaves 0 out, and p (corrected, where it is) is below 5 %."""
        return super().apart() and all(p is None or p < LEVEL for p in (self.p, self.holm))


def from_record(record: Mapping[str, Any]) -> Estimate:
    """The number that a `record` holds; what else stands in it is left out.

    Raises:
        InputError: it is no record of a number.
    """
    kinds = {kind.__name__.lower(): kind for kind in (Rate, Mean, Area, Paired)}
    kind = kinds.get(str(record.get("stat")))
    if kind is None or any(field.name not in record for field in fields(kind)):
        raise InputError(f"{str(record)[:80]} is no record of a number with its interval ({', '.join(kinds)}).")
    return kind(**{field.name: record[field.name] for field in fields(kind)})


# --- from data to numbers ------------------------------------------------------------------------------------


def rate(verdicts: Iterable[Verdict], goals: Labels = None, seeds: Labels = None) -> Rate:
    """The share of verdicts that hit.

    Args:
        verdicts: whether it hit; None is unscored.
        goals: what each was asked of; without it, each of a goal of its own.
        seeds: which trained model (or detector) each is of; without it, all are of one.
    """
    hits = np.array([np.nan if verdict is None else bool(verdict) for verdict in verdicts], dtype=float)
    scored = ~np.isnan(hits)
    unscored = int((~scored).sum())
    if not scored.any():
        return Rate(None, 0.0, 1.0, 0, 0, 0, unscored=unscored)
    of_goal, of_seed = _codes(goals, scored), _codes(seeds, scored, alike=True)
    hits, goal_count, seed_count = hits[scored], 1 + int(of_goal.max()), 1 + int(of_seed.max())
    low, high = _wilson(*_of_shares(hits, of_goal, of_seed))
    return Rate(float(hits.mean()), low, high, len(hits), goal_count, seed_count, int(hits.sum()), unscored)


def _of_shares(shares: np.ndarray, of_goal: np.ndarray, of_seed: np.ndarray) -> tuple[float, float, Variance, int]:
    """What `_wilson` takes, of the mean of numbers in 0..1 (steps 1, 2 and 4)."""
    goal_count, seed_count = 1 + int(of_goal.max()), 1 + int(of_seed.max())
    more = max(1, round(len(shares) / (goal_count * seed_count)))
    variance = _variance([_moves(shares, of_goal, of_seed, (1.0, 0.0), more)])
    widened = (shares.sum() + more * seed_count) / (len(shares) + 2 * more * seed_count)
    return float(shares.mean()), widened, variance, goal_count


def mean(
    values: Iterable[float], goals: Labels = None, seeds: Labels = None, ends: tuple[float, float] | None = None
) -> Mean:
    """The mean of one number or more.

    Args:
        values: numbers without ends, or of a scale.
        goals, seeds: as in `rate`.
        ends: of the scale, where there is one: the interval then stays on it, by the rule of rates; of a scale without
            an upper end (0, inf), such as a count's, it is cut at the lower one.
    """
    numbers = np.array(list(values), dtype=float)
    every = np.ones(len(numbers), dtype=bool)
    of_goal, of_seed = _codes(goals, every), _codes(seeds, every, alike=True)
    goal_count, value = 1 + int(of_goal.max()), float(numbers.mean())
    interval: tuple[float | None, float | None] = None, None
    least, most = ends or (-np.inf, np.inf)
    if ends is not None and np.isfinite(most):
        shares = _of_shares((numbers - least) / (most - least), of_goal, of_seed)
        bounds = np.array(_wilson(*shares))
        low, high = (least + (most - least) * bounds).tolist()
        interval = low, high
    elif goal_count > 1:
        (goal_part, _), *seed_parts = _variance([_moves(numbers, of_goal, of_seed)])
        half = _half([(goal_part, goal_count - 1), *seed_parts])
        interval = (max(least, value - half), value + half) if half > 1e-12 * abs(value) else interval
    return Mean(value, *interval, len(numbers), goal_count, 1 + int(of_seed.max()))


def area(positives: Any, negatives: Any, positive_goals: Labels = None, negative_goals: Labels = None) -> Area | None:
    """How well scores tell positives from negatives; the variance is DeLong's, clustered by goal.

    Args:
        positives: scores [N], or [seeds, N] of several detectors. A score that is NaN (of any seed) is left out.
        negatives: scores [M], or [seeds, M].
        positive_goals: of which goal each of N is; without it, each of its own.
        negative_goals: of which goal each of M is; one goal may be on both sides.

    Returns:
        None where a side is empty.
    """
    sides: list[np.ndarray] = []
    labels: list[list[Hashable]] = []
    for scores, goals in ((positives, positive_goals), (negatives, negative_goals)):
        scores = np.atleast_2d(np.asarray(scores, dtype=float))
        kept = ~np.isnan(scores).any(0)
        of_goal = [(len(sides), i) for i in range(len(kept))] if goals is None else goals
        labels.append([goal for goal, keep in zip(of_goal, kept, strict=True) if keep])
        sides.append(scores[:, kept])
    n, m = map(len, labels)
    if not n or not m:
        return None
    value, counts = float(_areas(*sides)[0].mean()), [len(set(of_goal)) for of_goal in labels]
    for i, count in enumerate(counts):  # two goals more a side: above all, and below all
        ends = np.repeat([np.inf, -np.inf], max(1, round(len(labels[i]) / count)))
        sides[i] = np.hstack([sides[i], np.tile(ends, (len(sides[i]), 1))])
        labels[i] += [(i, end) for end in ends.tolist()]
    codes = _codes([*labels[0], *labels[1]], np.ones(len(labels[0]) + len(labels[1]), dtype=bool))
    influence, areas = _area_moves(sides[0], sides[1], codes)
    low, high = _wilson(value, float(areas.mean()), _variance([(influence, areas)]), min(counts))
    return Area(value, low, high, n + m, len(influence) - 4, len(areas), n, m)


def _area_moves(positives: np.ndarray, negatives: np.ndarray, of_goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each goal moves each seed's area [goals, seeds] (DeLong), and the seeds' areas [seeds]. of_goal [N + M]:
    the number of each positive's goal, then of each negative's."""
    areas, *wins = _areas(positives, negatives)
    influence = np.zeros((1 + of_goal.max(), len(areas)))
    np.add.at(influence, of_goal, np.hstack([(won - areas[:, None]) / won.shape[1] for won in wins]).T)
    return influence, areas


def _areas(positives: np.ndarray, negatives: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The area of each detector [seeds], and what share of the other side each positive and each negative wins."""
    n, m = positives.shape[1], negatives.shape[1]
    together = rankdata(np.hstack([positives, negatives]), axis=1)
    won = (together[:, :n] - rankdata(positives, axis=1)) / m
    lost = 1 - (together[:, n:] - rankdata(negatives, axis=1)) / n
    return won.mean(1), won, lost


def paired(
    first: Sequence[Answers], second: Sequence[Answers], goal_of: Callable[[Any], Hashable] = lambda asked: asked
) -> Paired:
    """How two sides that were asked the same differ: the mean difference of the means over each side's seeds.

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
    tables = [_table(side, asked) for side in (first, second)]
    scored = ~(np.isnan(tables[0]).all(1) | np.isnan(tables[1]).all(1))
    if not scored.any():
        return Paired(None, None, None, 0, 0)
    tables = [table[scored][:, ~np.isnan(table[scored]).all(0)] for table in tables]
    gaps = np.nanmean(tables[0], 1) - np.nanmean(tables[1], 1)
    of_goal = _codes(map(goal_of, asked), scored)
    goals = 1 + int(of_goal.max())
    more = max(1, round(len(gaps) / goals))
    sides = []
    for table, ends in zip(tables, ((1.0, 0.0), (0.0, 1.0)), strict=True):  # one more that the first alone wins, ...
        row, seed = np.nonzero(~np.isnan(table))
        sides.append(_moves(table[row, seed], of_goal[row], seed, ends, more))
    value = float(gaps.mean())
    # The rule is for 0..1; a difference is brought there.
    widened = (float(gaps.sum() / (len(gaps) + 2 * more)) + 1) / 2
    variance = [(part / 4, df) for part, df in _variance(sides)]
    low, high = (2 * end - 1 for end in _wilson((value + 1) / 2, widened, variance, goals))
    if len(first) == len(second) == 1 and goals == len(gaps) and np.isin(gaps, (-1, 0, 1)).all():
        moved = gaps[gaps != 0]
        p = float(binomtest(int((moved > 0).sum()), len(moved)).pvalue) if len(moved) else 1.0
    else:
        sums = np.bincount(of_goal, gaps)  # of a goal: flipping the sign of one that is 0 changes nothing
        p = max(_p((value + 1) / 2, widened, variance, goals), min(1.0, 2.0 ** (1 - int((abs(sums) > 1e-9).sum()))))
    return Paired(value, low, high, len(gaps), goals, max(len(first), len(second)), p)


def _table(side: Sequence[Answers], asked: Sequence[Any]) -> np.ndarray:
    """A side's verdicts as numbers [asked, seeds], NaN where there is none."""
    return np.array([[np.nan if run.get(of) is None else float(run[of]) for run in side] for of in asked])


# --- from rows to numbers ------------------------------------------------------------------------------------


def subject_of(row: Row) -> Hashable:
    """Who a row's goal is to an interval: its `subject`, what is asked for however it is worded (`Goal.subject`); the
    goal's id in rows of a file that has no subjects."""
    return row.get("subject") or row["goal"]


def _asked(row: Row) -> Hashable:
    return row.get("set"), row["goal"]


def rate_of(rows: Sequence[Row], field: str) -> Rate:
    """The `rate` of a field of rows, over their subjects and seeds; a row that lacks it is unscored."""
    return rate([row.get(field) for row in rows], map(subject_of, rows), [row.get("seed") for row in rows])


def mean_of(rows: Sequence[Row], field: str, ends: tuple[float, float] | None = None) -> Mean | None:
    """The `mean` of a field of those rows that have it, over their subjects and seeds; None where none has."""
    known = [row for row in rows if row.get(field) is not None]
    if not known:
        return None
    return mean([row[field] for row in known], map(subject_of, known), [row.get("seed") for row in known], ends)


def paired_of(
    first: Sequence[Row], second: Sequence[Row], field: str, asked: Callable[[Row], Hashable] = _asked
) -> Paired:
    """How a field of two sides' rows differs, `paired` by what was asked, over subjects and each side's seeds.

    Args:
        first, second: rows; of one seed and what was asked the last counts.
        field: a verdict, or a share in 0..1.
        asked: of a row, what it was asked; by default set and goal.

    Raises:
        InputError: the sides share nothing.
    """
    sides: list[dict[Any, dict[Any, Any]]] = [{}, {}]
    for side, rows in zip(sides, (first, second), strict=True):
        for row in rows:
            side.setdefault(row.get("seed"), {})[asked(row)] = row.get(field)
    # A side whose file has no subjects is given the other's.
    named = sorted([*first, *second], key=lambda row: bool(row.get("subject")))
    subjects = {asked(row): subject_of(row) for row in named}
    return paired(list(sides[0].values()), list(sides[1].values()), subjects.__getitem__)


def gap_of(
    first: Sequence[Row], second: Sequence[Row], field: str, asked: Callable[[Row], Hashable] = _asked
) -> Mean | None:
    """The same of a number without ends, where the second side has one seed; None where no row has it on both sides."""
    theirs = {asked(row): row[field] for row in second if row.get(field) is not None}
    shared = [row for row in first if row.get(field) is not None and asked(row) in theirs]
    return mean_of([{**row, field: row[field] - theirs[asked(row)]} for row in shared], field)


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
    tested = max(1, sum(pair.p is not None for pair in pairs))
    values = holm([pair.p for pair in pairs])
    return [replace(pair, holm=p, family=tested) for pair, p in zip(pairs, values, strict=True)]


def family(pairs: Iterable[Mapping[str, Any]]) -> str:
    """What a table of comparisons (as JSON) says of their number; empty for a single one."""
    count = max((pair.get("family", 1) for pair in pairs), default=1)
    return f"Holm: p corrected for the {count} comparisons of this table" if count > 1 else ""


# --- a share against a bound ---------------------------------------------------------------------------------

CHANCE = 0.9  # of a decision, with the goals that `needed` names
MANY = 1_000_000  # goals; where more would be needed, none is named


@dataclass(frozen=True)
class Bound:
    """What a share may be: at most `share`, or at least that (most is False); strictly between 0 and 1."""

    share: float
    most: bool = True

    def standing(self, number: Estimate, unscored: int = 0) -> Standing:
        """The verdict of midward, on its pages, on the terminal and in `midward gate`.

        held: the whole interval is inside, its ends included. broken: all of it is outside. unclear: neither. Verdicts
        that there aren't count as neither: what is held (or broken) is so if all of them hit, and if none does. Of
        several seeds they may also set these apart, which the number alone doesn't show: unclear.

        Args:
            number: a share with an interval. One without a value is unclear.
            unscored: verdicts that there weren't, beside the number's n.
        """
        if number.value is None or number.low is None or number.high is None or (unscored and number.seeds > 1):
            return "unclear"
        low, high = number.low, number.high
        if unscored:
            # z^2 / n of the interval (the product of Wilson's ends is value^2 / (1 + z^2 / n)), with so many more
            turned = number.value < 0.5
            of = ((1 - number.value) ** 2, (1 - low) * (1 - high)) if turned else (number.value**2, low * high)
            asked = number.n + unscored
            t, scored = (of[0] / of[1] - 1) * number.n / asked, number.value * number.n
            low, high = _wilson_of(scored / asked, t)[0], _wilson_of((scored + unscored) / asked, t)[1]
        if high <= self.share if self.most else low >= self.share:
            return "held"
        return "broken" if (low > self.share if self.most else high < self.share) else "unclear"

    def needed(self, rows: Sequence[Row], field: str) -> tuple[int | None, int | None]:
        """Of how many goals in all the `standing` would be held or broken, with a chance of 90 %.

        Args:
            rows, field: verdicts or shares in 0..1, as for `rate_of`; unscored ones are left out.

        Returns:
            The goals if the true rate is the one that was seen; and if it is any that fits what was seen, each as
            likely as Jeffreys' posterior has it. What was seen counts among them. None: more than `MANY`, or so many
            seeds can't decide it. At a rate that equals the bound no number of goals does: each look has a chance of
            5 % to be wrong.
        """
        known = [row for row in rows if row.get(field) is not None]
        if not known:
            return None, None
        of_goal = _codes(map(subject_of, known), np.ones(len(known), dtype=bool))
        of_seed = _codes([row.get("seed") for row in known], np.ones(len(known), dtype=bool))
        shares = np.array([row[field] for row in known], dtype=float)
        value, widened, [(of_goals, _), *of_seeds], goals = _of_shares(shares, of_goal, of_seed)
        z = _quantile(np.inf, LEVEL)
        apart = (_half(of_seeds) / z) ** 2

        def size(count: int) -> float:
            """As `_size`, of another number of goals. Of seeds there are no more."""
            spread = of_goals * (goals + 1) / (count + 1) + apart
            return (widened * (1 - widened) / spread + 1) * count / (count + 2)

        now = size(goals)
        sizes = np.unique(np.ceil(np.geomspace(now, max(MANY, 2 * now), 700).round(6)))[:, None]
        half = z * np.sqrt(sizes * self.share * (1 - self.share))
        below, above = (np.floor(sizes * self.share + sign * half - value * now) for sign in (-1, 1))
        posterior = beta.ppf((np.arange(100) + 0.5) / 100, value * now + 0.5, (1 - value) * now + 0.5)
        counts: list[int | None] = []
        for rates in (np.array([value]), posterior):
            more = np.maximum(0, np.round(sizes - now))
            decided = (binom.cdf(below, more, rates) + binom.sf(above, more, rates)).mean(1)
            last = int(np.flatnonzero(np.append(True, decided < CHANCE))[-1])  # of those that don't do
            enough = bisect_left(range(MANY), float(sizes[last, 0]) - 1e-6, key=size) if last < len(sizes) else MANY
            counts.append(enough if enough < MANY else None)
        return counts[0], counts[1]


def together(standings: Iterable[Standing]) -> Standing:
    """Of several shares under one bound: broken where one is, held where all are, else unclear, as of none."""
    kinds = {*standings}
    return "broken" if "broken" in kinds else "held" if kinds == {"held"} else "unclear"


# --- the rule ------------------------------------------------------------------------------------------------


def _moves(
    values: np.ndarray, goals: np.ndarray, seeds: np.ndarray, ends: tuple[float, ...] = (), more: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """How far each goal moves each seed's mean [goals, seeds] (columns sum to 0), and the seeds' means [seeds].

    ends: for each a goal more, that has this value each of the `more` times that every seed is asked it (step 4).
    """
    goal_count, seed_count = 1 + int(goals.max()), 1 + int(seeds.max())
    end = np.arange(len(ends)).repeat(more * seed_count)
    values = np.concatenate([values, np.array(ends, dtype=float)[end]])
    goals = np.concatenate([goals, goal_count + end])
    seeds = np.concatenate([seeds, np.tile(np.arange(seed_count), len(ends) * more)])
    counts = np.bincount(seeds)
    means = np.bincount(seeds, values) / counts
    influence = np.zeros((goal_count + len(ends), seed_count))
    np.add.at(influence, (goals, seeds), (values - means[seeds]) / counts[seeds])
    return influence, means


def _variance(sides: Sequence[tuple[np.ndarray, np.ndarray]]) -> Variance:
    """Of the first side's mean over seeds (less the second's): what goals give, then each side's seeds (step 1).

    sides: influence [goals, seeds] and values [seeds], as `_moves` gives them.
    """
    moved = sides[0][0].mean(1) - (sides[1][0].mean(1) if len(sides) > 1 else 0.0)
    count = len(moved)
    parts: Variance = [(float((moved**2).sum()) * count / max(1, count - 1), np.inf)]
    for influence, values in sides:
        seeds = len(values)
        if seeds > 1:
            # Seeds' values differ also because each goal's answer is chance: that is in the goals' part already.
            chance = influence.var(1, ddof=1).sum() * count / (count - 1)
            parts.append((max(0.0, float(values.var(ddof=1) - chance)) / seeds, seeds - 1))
    return parts


def _quantile(df: float, level: float) -> float:
    return -float(ndtri(level / 2) if np.isinf(df) else stdtrit(df, level / 2))


def _half(variance: Variance, level: float = LEVEL) -> float:
    """Half the width: each part with the quantile of its own degrees of freedom, added as squares (step 2)."""
    return float(np.sqrt(sum(_quantile(df, level) ** 2 * part for part, df in variance)))


def _size(widened: float, variance: Variance, goals: int, level: float) -> float:
    """The number of goals that would have this variance; the two more are taken out of it again."""
    spread = (_half(variance, level) / _quantile(np.inf, level)) ** 2
    return (widened * (1 - widened) / spread + 1) * goals / (goals + 2)


def _wilson(value: float, widened: float, variance: Variance, goals: int) -> tuple[float, float]:
    """Wilson's interval of `value` in 0..1 for the number of goals that would have this variance (step 3).

    widened, variance: the value and its variance with the two goals more.
    """
    return _wilson_of(value, _quantile(np.inf, LEVEL) ** 2 / _size(widened, variance, goals, LEVEL))


def _wilson_of(value: float, t: float) -> tuple[float, float]:
    """Wilson's interval: the roots p of (value - p)^2 = t p (1 - p), t being z^2 / n."""
    middle, half = value + t / 2, np.sqrt(t * value * (1 - value) + t**2 / 4)
    low, high = float(middle - half) / (1 + t), float(middle + half) / (1 + t)
    return min(value, max(0.0, low)), max(value, min(1.0, high))


def _p(value: float, widened: float, variance: Variance, goals: int) -> float:
    """The level at which the interval of `value` in 0..1 reaches one half."""
    gap = abs(value - 0.5)

    def beyond(log_level: float) -> float:
        level = float(np.exp(log_level))
        return gap - _quantile(np.inf, level) * 0.5 / np.sqrt(_size(widened, variance, goals, level))

    if gap == 0:
        return 1.0
    lowest = float(np.log(1e-15))
    return float(np.exp(brentq(beyond, lowest, -1e-9))) if beyond(lowest) < 0 else 1e-15


def _codes(labels: Labels, kept: np.ndarray, *, alike: bool = False) -> np.ndarray:
    """A number from 0 for each label that is kept. Without labels each has one of its own, or all have one (alike)."""
    if labels is None:
        labels = [0] * len(kept) if alike else range(len(kept))
    numbers: dict[Hashable, int] = {}
    pairs = zip(labels, kept, strict=True)
    return np.array([numbers.setdefault(label, len(numbers)) for label, keep in pairs if keep], dtype=int)
