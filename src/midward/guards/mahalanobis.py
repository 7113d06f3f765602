"""What harmless signals look like on the logit scale: a mean and a shrunk covariance.

sigma = sigmoid(l) lies so near 0 or 1 in most steps that an autoencoder sees little of l. Shapes: N signals, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logit

from midward.errors import InputError
from midward.guards.autoencoder import Detector

_CLOSEST = 1e-13  # to 0 and 1 that a signal is read: l is within 30 of 0, where float64 still tells it


def ledoit_wolf(values: np.ndarray) -> np.ndarray:
    """The covariance [T, T] of values [N, T], shrunk towards a multiple of the identity.

    Source: Ledoit, Wolf, A well-conditioned estimator for large-dimensional covariance matrices (2004).
    """
    count, size = values.shape
    centred = values - values.mean(0)
    sample = centred.T @ centred / count
    level = np.trace(sample) / size
    squares = (sample**2).sum()
    apart = squares - size * level**2
    noise = (((centred**2).sum(1) ** 2).mean() - squares) / count
    share = min(1.0, noise / apart) if apart > 0 else 0.0
    return (1 - share) * sample + share * level * np.eye(size)


@dataclass(frozen=True, eq=False)
class Mahalanobis(Detector):
    """The mean squared Mahalanobis distance of a signal's first steps, on the logit scale.

    whiten [T, T]: the inverse of the covariance's Cholesky factor, lower triangular, so that its upper left part
    belongs to the first steps.
    """

    whiten: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, signals: np.ndarray, *, quantile: float = 0.99) -> Mahalanobis:
        """Fit on signals [N, T] in 0..1; quantile as `Autoencoder.fit` takes it. Raises InputError without two."""
        if signals.ndim != 2 or len(signals) < 2 or not np.isfinite(signals).all():
            raise InputError(f"a covariance takes two or more finite signals [N, T]; received {signals.shape}.")
        values = _logits(signals)
        steps = values.shape[1]
        covariance = ledoit_wolf(values) + 1e-9 * np.eye(steps)  # signals may be all alike
        factor = np.linalg.cholesky(covariance)
        found = cls(np.linalg.inv(factor), values.mean(0), np.ones(steps))
        return replace(found, scale=found.scale_of(signals, quantile))

    def error_at(self, prefixes: np.ndarray) -> np.ndarray:
        known = prefixes.shape[1]
        apart = (_logits(prefixes) - self.mean[:known]) @ self.whiten[:known, :known].T
        return np.einsum("nt,nt->n", apart, apart) / known

    def tensors(self) -> dict[str, np.ndarray]:
        return {"whiten": self.whiten, "mean": self.mean, "scale": self.scale}

    @classmethod
    def rebuild(cls, tensors: Mapping[str, np.ndarray], steps: int) -> Mahalanobis:
        """Take `tensors` back. Raises InputError or KeyError for arrays of another shape."""
        found = cls(tensors["whiten"], tensors["mean"], tensors["scale"])
        if found.whiten.shape != (steps, steps) or {found.mean.shape, found.scale.shape} != {(steps,)}:
            raise InputError(f"whiten must be [{steps}, {steps}], mean and scale {steps} numbers")
        if not (found.scale > 0).all():
            raise InputError("scale must be above 0")
        return found


def _logits(signals: np.ndarray) -> np.ndarray:
    return np.asarray(logit(np.clip(signals, _CLOSEST, 1 - _CLOSEST)))
