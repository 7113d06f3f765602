"""How well kinds of generation part: a linear map of their signals. Shapes: N signals, T steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
