"""How far a signal is from harmless ones after each of its steps: a detector looks at the beginnings of signals too.

The paper scores a signal that is whole. Two things here are ours: errors of few and of many steps are made comparable
(`Detector.scale`), and a distance on the logit scale stands beside the autoencoder (`Mahalanobis`).

Shapes: N signals, T steps, t of them known. Signals are in 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import logit
from sklearn.covariance import ledoit_wolf

from midward.dynamics import Autoencoder
from midward.dynamics.sri import mean_square
from midward.errors import InputError

QUANTILE = 0.99  # of the training signals' errors, which is their scale
_CLOSEST = 1e-13  # to 0 and 1 that a signal is read: its logit is within 30 of 0, where float64 still tells it


@dataclass(frozen=True, eq=False)
class Detector:
    """Errors in units of what they are on the training signals. scale [T]: a high quantile of those, by step."""

    fitted: Fitted
    scale: np.ndarray

    @classmethod
    def of(cls, fitted: Fitted, signals: np.ndarray) -> Detector:
        """Take the scale of what is fitted.

        Args:
            fitted: an autoencoder or a distance.
            signals: [N, T], those that it was fitted on.
        """
        errors = np.quantile(_prefix_errors(fitted, signals), QUANTILE, axis=0)
        # A step at which training errors vanish must not make a rounding error look like an attack.
        return cls(fitted, np.maximum(errors, 1e-3 * errors.max() + 1e-9))

    def ratio_at(self, begun: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
        """The error of the first steps [N, t] in units of `scale` [N]. known [N]: how many of them each signal has,
        where that isn't all."""
        if known is None:
            return self.fitted.error_at(begun) / self.scale[begun.shape[1] - 1]
        inside = np.where(np.arange(begun.shape[1]) < known[:, None], begun, 0.0)
        return self.fitted.error_at(inside, known) / self.scale[known - 1]

    def ratios(self, signals: np.ndarray) -> np.ndarray:
        """`ratio_at` of every beginning of signals [N, t], as [N, t]; the last column is the whole's."""
        return _prefix_errors(self.fitted, signals) / self.scale[: signals.shape[1]]

    def tensors(self) -> dict[str, np.ndarray]:
        """All that was fitted, for a guard's file."""
        return {**self.fitted.tensors(), "scale": self.scale}

    @classmethod
    def rebuild(cls, fitted: Fitted, tensors: Mapping[str, np.ndarray], steps: int) -> Detector:
        """Take `tensors` back. Raises InputError or KeyError for another scale than one of T steps, above 0."""
        scale = tensors["scale"]
        if scale.shape != (steps,) or not (scale > 0).all():
            raise InputError(f"scale must be {steps} numbers above 0")
        return cls(fitted, scale)


def _prefix_errors(fitted: Fitted, signals: np.ndarray) -> np.ndarray:
    return np.stack([fitted.error_at(signals[:, : t + 1]) for t in range(signals.shape[1])], axis=1)


@dataclass(frozen=True, eq=False)
class Mahalanobis:
    """The mean squared Mahalanobis distance of a signal's first steps on the logit scale, under a shrunk covariance.

    sigma = sigmoid(l) lies so near 0 or 1 in most steps that an autoencoder sees little of l. whiten [T, T]: the
    inverse of the covariance's Cholesky factor, lower triangular, so that its upper left part belongs to the first
    steps. mean [T]: of l.
    """

    whiten: np.ndarray
    mean: np.ndarray

    @classmethod
    def fit(cls, signals: np.ndarray) -> Mahalanobis:
        """Fit on signals [N, T] in 0..1. Raises InputError without two.

        The covariance is shrunk towards a multiple of the identity as Ledoit and Wolf have it (2004).
        """
        if signals.ndim != 2 or len(signals) < 2 or not np.isfinite(signals).all():
            raise InputError(f"a covariance takes two or more finite signals [N, T]; received {signals.shape}.")
        values = _logits(signals)
        covariance = ledoit_wolf(values)[0] + 1e-9 * np.eye(values.shape[1])  # signals may be all alike
        return cls(np.linalg.inv(np.linalg.cholesky(covariance)), values.mean(0))

    def error_at(self, begun: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
        """The mean squared Mahalanobis distance of the first steps [N, t] in logits [N]; see `Autoencoder`."""
        count = begun.shape[1]  # `whiten` is triangular, so a step hangs on none behind it
        return mean_square((_logits(begun) - self.mean[:count]) @ self.whiten[:count, :count].T, known)

    def tensors(self) -> dict[str, np.ndarray]:
        """All that was fitted, for a guard's file."""
        return {"whiten": self.whiten, "mean": self.mean}

    @classmethod
    def rebuild(cls, tensors: Mapping[str, np.ndarray], steps: int) -> Mahalanobis:
        """Take `tensors` back. Raises InputError or KeyError for arrays of another shape."""
        whiten, mean = tensors["whiten"], tensors["mean"]
        if whiten.shape != (steps, steps) or mean.shape != (steps,):
            raise InputError(f"whiten must be [{steps}, {steps}], mean {steps} numbers")
        return cls(whiten, mean)


def _logits(signals: np.ndarray) -> np.ndarray:
    return np.asarray(logit(np.clip(signals, _CLOSEST, 1 - _CLOSEST)))


#: What is fitted on harmless signals: `error_at` says how far the first steps of others are from them.
Fitted = Autoencoder | Mahalanobis
