"""What harmless signals look like, learned from harmless signals alone: SRI Guard's autoencoder.

Shapes: N signals, T steps. Signals are in 0..1.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from midward.errors import InputError

HIDDEN = (32, 8, 32)  # the paper's T-32-8-32-T


class Detector:
    """How far a signal is from harmless ones, after each of its steps. mean [T]: of the training signals. scale [T]: of
    the training signals' errors, see `ratios`."""

    mean: np.ndarray
    scale: np.ndarray

    def error_at(self, prefixes: np.ndarray) -> np.ndarray:
        """How far the first steps [N, t] are from those of harmless signals [N]."""
        raise NotImplementedError

    def prefix_errors(self, signals: np.ndarray) -> np.ndarray:
        """`error_at` of every prefix [N, T]; the last column is the whole signal's."""
        return np.stack([self.error_at(signals[:, : t + 1]) for t in range(signals.shape[1])], axis=1)

    def ratios(self, signals: np.ndarray) -> np.ndarray:
        """`prefix_errors` in units of `scale` [N, T], so that errors of few and of many steps can be compared."""
        return self.prefix_errors(signals) / self.scale

    def ratio_at(self, prefixes: np.ndarray) -> np.ndarray:
        """The column of `ratios` that belongs to prefixes [N, t]."""
        return self.error_at(prefixes) / self.scale[prefixes.shape[1] - 1]

    def scale_of(self, signals: np.ndarray, quantile: float) -> np.ndarray:
        """The quantile of the training signals' errors at each step [T]."""
        errors = np.quantile(self.prefix_errors(signals), quantile, axis=0)
        # A step at which training errors vanish must not make a rounding error look like an attack.
        return np.maximum(errors, 1e-3 * errors.max() + 1e-9)

    def tensors(self) -> dict[str, np.ndarray]:
        """All that was fitted, for a guard's file."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Autoencoder(Detector):
    """Dense layers with ReLU between them. weights: [in, out] each, biases: [out] each, float64.

    mean [T]: also what a signal that isn't known yet is completed with.
    """

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(
        cls,
        signals: np.ndarray,
        *,
        hidden: tuple[int, ...] = HIDDEN,
        epochs: int = 300,
        seed: int = 0,
        quantile: float = 0.99,
    ) -> Autoencoder:
        """Train on signals [N, T]: squared error, Adam at 1e-3, batches of 64, `epochs` passes, no weight decay.

        quantile: of the training errors at each step, which becomes `scale`. Raises InputError without two signals.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPRegressor

        if signals.ndim != 2 or len(signals) < 2 or not np.isfinite(signals).all():
            raise InputError(f"an autoencoder takes two or more finite signals [N, T]; received {signals.shape}.")
        network = MLPRegressor(
            hidden_layer_sizes=hidden,
            alpha=0.0,
            batch_size=min(64, len(signals)),
            max_iter=epochs,
            n_iter_no_change=epochs,
            random_state=seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it is to run all its epochs
            network.fit(signals, signals if signals.shape[1] > 1 else signals[:, 0])
        found = cls(tuple(network.coefs_), tuple(network.intercepts_), signals.mean(0), np.ones(signals.shape[1]))
        return replace(found, scale=found.scale_of(signals, quantile))

    def __call__(self, signals: np.ndarray) -> np.ndarray:
        """The signals as they are rebuilt [N, T]."""
        out = signals
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            out = out @ weight + bias
            if layer < len(self.weights) - 1:
                out = np.maximum(out, 0.0)
        return out

    def error_at(self, prefixes: np.ndarray) -> np.ndarray:
        """The mean squared error [N] of the first steps [N, t], with the harmless mean in the place of the rest."""
        known = prefixes.shape[1]
        out = prefixes @ self.weights[0][:known] + self._behind[known]
        for weight, bias in zip(self.weights[1:-1], self.biases[1:-1], strict=True):
            out = np.maximum(out, 0.0) @ weight + bias
        out = np.maximum(out, 0.0) @ self.weights[-1][:, :known] + self.biases[-1][:known]
        out -= prefixes
        return np.einsum("nt,nt->n", out, out) / known

    @cached_property
    def _behind(self) -> np.ndarray:
        """What the mean of the steps from t on, and the bias, give the first layer, by t [T + 1, out]."""
        parts = self.mean[:, None] * self.weights[0]
        return np.concatenate([parts[::-1].cumsum(0)[::-1], np.zeros((1, parts.shape[1]))]) + self.biases[0]

    def tensors(self) -> dict[str, np.ndarray]:
        found = {"mean": self.mean, "scale": self.scale}
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            found |= {f"weight.{layer}": weight, f"bias.{layer}": bias}
        return found

    @classmethod
    def rebuild(cls, tensors: Mapping[str, np.ndarray], hidden: tuple[int, ...], steps: int) -> Autoencoder:
        """Take `tensors` back. Raises InputError or KeyError for arrays that are no autoencoder of this shape."""
        sizes = (steps, *hidden, steps)
        weights = tuple(tensors[f"weight.{layer}"] for layer in range(len(sizes) - 1))
        biases = tuple(tensors[f"bias.{layer}"] for layer in range(len(sizes) - 1))
        wanted = [(*sizes[i : i + 2],) for i in range(len(weights))]
        shapes = [weight.shape for weight in weights]
        if shapes != wanted or [bias.shape for bias in biases] != [size[1:] for size in wanted]:
            raise InputError(f"the autoencoder's weights are {shapes}, expected {wanted}")
        mean, scale = tensors["mean"], tensors["scale"]
        if mean.shape != (steps,) or scale.shape != (steps,) or not (scale > 0).all():
            raise InputError(f"mean and scale must be {steps} numbers, the scale's above 0")
        return cls(weights, biases, mean, scale)
