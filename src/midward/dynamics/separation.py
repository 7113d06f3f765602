"""How well kinds of generation part: AUROC with its interval, a linear map of signals. Shapes: N signals, T steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 1000


@dataclass(frozen=True)
class Auroc:
    """The chance that a positive scores above a negative (ties half), with a 95 % interval by bootstrap over both."""

    value: float
    low: float
    high: float
    positives: int
    negatives: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def auroc(positives: np.ndarray, negatives: np.ndarray) -> Auroc | None:
    """Compare scores [N] and [M]; None where one side is empty."""
    if not len(positives) or not len(negatives):
        return None
    gap = positives[:, None] - negatives[None]
    wins = (gap > 0) + 0.5 * (gap == 0)
    rng = np.random.default_rng(0)
    n, m = wins.shape
    rows, columns = (rng.multinomial(size, np.full(size, 1 / size), RESAMPLES) / size for size in (n, m))
    values = ((rows @ wins) * columns).sum(1)  # rows, columns: weights in each resample
    value = float(wins.mean())
    return Auroc(value, *ends(value, values, min(n, m)), n, m)


def ends(value: float, drawn: np.ndarray, n: int) -> tuple[float, float]:
    """95 % interval of an area by its bootstrap draws; where they are all alike, as where all positives score above all
    negatives, Wilson's for a share of `n`, the smaller side's size."""
    if np.ptp(drawn) > 0:
        low, high = np.quantile(drawn, (0.025, 0.975))
    else:
        low, high = binomtest(round(value * n), n).proportion_ci(method="wilson")
    return float(low), float(high)


@dataclass(frozen=True, eq=False)
class Map:
    """points [N, 2] in the order of the signals. right: of `n` signals, told by a map fitted on the other four fifths;
    majority: what the commonest kind alone would give, in 0..1."""

    points: np.ndarray
    right: int
    n: int
    majority: float


def lda(signals: np.ndarray, kinds: list[str]) -> Map | None:
    """Linear discriminant map of signals [N, T] of three kinds or more; None where a kind has fewer than five.

    Shrinkage is Ledoit and Wolf's: neighbouring steps are nearly collinear.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    counts = np.unique(kinds, return_counts=True)[1]
    if len(counts) < 3 or counts.min() < 5:
        return None
    model = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto", n_components=2)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    told = cross_val_predict(model, signals, kinds, cv=folds)
    points = model.fit(signals, kinds).transform(signals)
    return Map(points, int((told == np.asarray(kinds)).sum()), len(kinds), float(counts.max() / counts.sum()))
