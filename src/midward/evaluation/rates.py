"""Rates and comparisons. A verdict is True, False or None (unscored): None is counted apart and never coerced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scipy.stats import binomtest

Verdict = bool | None


@dataclass(frozen=True)
class Rate:
    """`hits` of `n` scored verdicts, with a 95 % Wilson interval; all shares are in 0..1. `unscored` stands apart."""

    hits: int
    n: int
    unscored: int = 0

    @property
    def value(self) -> float:
        """The share, or NaN where nothing was scored."""
        return self.hits / self.n if self.n else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        if not self.n:
            return (0.0, 1.0)
        found = binomtest(self.hits, self.n).proportion_ci(method="wilson")
        return (float(found.low), float(found.high))

    def __str__(self) -> str:
        if not self.n:
            return f"- (n 0, unscored {self.unscored})"
        low, high = self.interval
        left = f", unscored {self.unscored}" if self.unscored else ""
        return f"{100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}] (n {self.n}{left})"

    def record(self) -> dict[str, float | int | None]:
        """As JSON: value (None where nothing was scored), low, high, hits, n, unscored."""
        low, high = self.interval
        return {
            "value": self.value if self.n else None,
            "low": low, "high": high, "hits": self.hits, "n": self.n, "unscored": self.unscored,
        }  # fmt: skip


def rate(verdicts: Iterable[Verdict]) -> Rate:
    """Count verdicts."""
    scored, hits, unscored = 0, 0, 0
    for verdict in verdicts:
        if verdict is None:
            unscored += 1
        else:
            scored += 1
            hits += bool(verdict)
    return Rate(hits, scored, unscored)


@dataclass(frozen=True)
class Paired:
    """A comparison on the same goals: only goals scored in both count.

    only_first, only_second: goals on which just one side hit; `difference` = first - second in 0..1 with a 95 %
    interval (Wald on the discordant counts, with Agresti and Min's half added to each); `p`: exact McNemar, two-sided.
    """

    only_first: int
    only_second: int
    n: int

    @property
    def difference(self) -> float:
        return (self.only_first - self.only_second) / self.n if self.n else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        n, b, c = self.n + 2, self.only_first + 0.5, self.only_second + 0.5
        middle, spread = (b - c) / n, 1.96 * ((b + c) - (b - c) ** 2 / n) ** 0.5 / n
        return (max(-1.0, middle - spread), min(1.0, middle + spread))

    @property
    def p(self) -> float:
        apart = self.only_first + self.only_second
        return float(binomtest(self.only_first, apart, 0.5).pvalue) if apart else 1.0

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}] (n {self.n}, p {self.p:.2g})"


def paired(first: Mapping[str, Verdict], second: Mapping[str, Verdict]) -> Paired:
    """Compare two sides by goal id. Raises ValueError where they share no goal."""
    shared = [goal for goal in first if goal in second]
    if not shared:
        raise ValueError("the two sides share no goal; compare runs over the same goals.")
    both = [(first[g], second[g]) for g in shared if first[g] is not None and second[g] is not None]
    return Paired(sum(1 for a, b in both if a and not b), sum(1 for a, b in both if b and not a), len(both))
