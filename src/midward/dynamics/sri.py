"""SRI, the paper in code: Step-Wise Refusal Internal dynamics and SRI Guard (arXiv 2602.02600), in its order.

    1  phi_t     the state of step t: the mean of the last layer's hidden states; over which tokens is an option of
                 `states`: `generated`, those that stand (the paper), or `response`, all positions, masks included
                 (the released code; the default here)
    2  mu_t      two anchors: the mean phi_t of harmless prompts that were answered, of harmful ones that were refused
    3  sigma_t   the signal: where phi_t lies between them, from 0 (as where it refuses) to 1 (as where it complies)
    4  recovery  HRR, FRR (of the texts on the way) and IRR (of the signal)
    5  the guard an autoencoder of harmless signals; what it rebuilds badly is flagged. The paper judges the whole
                 signal once, at the end (`early=False`); the default here judges it at every step, with a threshold
                 calibrated on the largest ratio over the steps, and stops the generation [ours]

Pure functions; no model is loaded here. What runs while one samples (batches, rows that end early, autoregressive
models, the device) is in `states` and `signal`, fitting in `anchors`, the threshold and the stop in `midward.guards`;
all call the functions below. Where the published code reads otherwise than the paper, docs/papers.md says which is
taken.

Shapes: N generations, T steps, L positions, D hidden size.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

from midward.errors import InputError

#: The temperature of the signal
TAU = 0.1
EPS = 1e-8  # in its logarithms
COMPLIANT = 0.5  # a state with sigma above it is compliant
THRESHOLDS = (0.5, 0.25, 0.1)  # sigma below one counts as refusing, for IRR; [ours]: the paper names none
HIDDEN = (32, 8, 32)  # the autoencoder is T-32-8-32-T

_TINY = 1e-12  # keeps a state of zeros from dividing by zero


# --- 1. the state of a step ------------------------------------------------------------------------------------


def pooled(hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """phi_t = sum_i w_i h_i, the mean of the hidden states of the tokens that count.

    Args:
        hidden: [N, L, D], after the final norm and before the head.
        weights: [N, L], summing to 1: 1 / count for each token that counts.

    Returns:
        [N, D], in the dtype of `hidden`.
    """
    return torch.bmm(weights.to(hidden.dtype)[:, None], hidden)[:, 0]


# --- 2. anchors ------------------------------------------------------------------------------------------------


class Mean:
    """mu_t = mean over generations of phi_t, taken batch by batch: `total` [T, D] float64 of `count` generations."""

    def __init__(self, count: int = 0, total: torch.Tensor | None = None) -> None:
        self.count, self.total = count, total

    def add(self, states: torch.Tensor) -> None:
        """Count phi [T, D] of one generation."""
        states = states.double()
        self.total = states if self.total is None else self.total + states
        self.count += 1

    @property
    def value(self) -> torch.Tensor:
        """mu [T, D] float32."""
        assert self.total is not None
        return (self.total / self.count).float()


# --- 3. the signal ---------------------------------------------------------------------------------------------


def unit_anchors(mu_harmful: torch.Tensor, mu_harmless: torch.Tensor) -> np.ndarray:
    """Both anchors as unit vectors.

    Args:
        mu_harmful: [T, D].
        mu_harmless: [T, D].

    Returns:
        [T, 2, D] float64, the harmful one first.
    """
    both = numbers(torch.stack([mu_harmful, mu_harmless], dim=1))
    return both / np.maximum(np.linalg.norm(both, axis=-1, keepdims=True), _TINY)


def signal(phi: np.ndarray, units: np.ndarray, *, eps: float = EPS, tau: float = TAU) -> np.ndarray:
    """The signal of states.

        d_t^k = 1 - cos(phi_t, mu_t^k)                                  k: harmful, harmless
        l_t = (log(d_t^harmful + eps) - log(d_t^harmless + eps)) / tau
        sigma_t = sigmoid(l_t) = 1 / (1 + ((d_t^harmless + eps) / (d_t^harmful + eps))^(1 / tau))

    Args:
        phi: [..., D] float64.
        units: [..., 2, D], see `unit_anchors`.
        eps: above 0.
        tau: above 0.

    Returns:
        sigma [...], in 0..1.
    """
    # A guard asks this of a few numbers at every step: what counts is how few different things are called, since each
    # is cold after a forward.
    dots = (units @ phi[..., None])[..., 0]
    norms = np.sqrt((phi[..., None, :] @ phi[..., None])[..., 0])
    distances = np.maximum(1 - dots / np.maximum(norms, _TINY), 0) + eps
    return expit(np.log(distances[..., 0] / distances[..., 1]) / tau)


def numbers(states: torch.Tensor) -> np.ndarray:
    """States on the host in float64: in float32 a distance 1 - cos near 0.001 has about four digits, and dividing by
    tau (0.1) costs one more. A step has few numbers, and the sampler waits for the device at every step as it is."""
    return states.cpu().numpy().astype(np.float64)


# --- 4. recovery -----------------------------------------------------------------------------------------------


def had_harm(verdicts: Sequence[bool | None]) -> bool | None:
    """Whether some text before the last did harm. verdicts: of a generation's texts in order, the response last. None:
    none of them is known to, and some are unscored."""
    return _any(verdicts[:-1], True)


def revised(verdicts: Sequence[bool | None]) -> bool | None:
    """Whether harm in some text was followed by a text that does none: HRR counts it, of generations that had harm.
    None: no such text is known, and some are unscored."""
    return _any(verdicts[list(verdicts).index(True) + 1 :], False)


def _any(verdicts: Sequence[bool | None], wanted: bool) -> bool | None:
    return True if wanted in verdicts else None if None in verdicts else False


def recovered(verdicts: Sequence[bool | None]) -> bool | None:
    """Whether the response does no harm: FRR counts it, of generations that had harm. None: unscored."""
    return None if verdicts[-1] is None else not verdicts[-1]


def internally_recovered(sigma: Sequence[float], threshold: float) -> bool | None:
    """Whether a generation was compliant inside at some step and refuses at its end: IRR counts it, of all.

    Args:
        sigma: [T] of one generation.
        threshold: sigma below it is a refusal, one of `THRESHOLDS`.

    Returns:
        None where there is no signal.
    """
    values = np.asarray(sigma, dtype=float)
    if not len(values) or np.isnan(values).any():
        return None
    return bool(values.max() > COMPLIANT and values[-1] < threshold)


def mean_square(values: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """[N] of values [N, t], or of the first `known` [N] of each."""
    if known is not None:
        values = values * (np.arange(values.shape[1]) < known[:, None])
    return np.asarray(np.einsum("nt,nt->n", values, values) / (values.shape[1] if known is None else known))


# --- 5. the guard's autoencoder ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """Dense layers with ReLU between them, trained to rebuild harmless signals.

    weights: [in, out] each; biases: [out] each, float64. mean [T]: of the training signals.
    """

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    mean: np.ndarray

    @classmethod
    def fit(
        cls, signals: np.ndarray, *, hidden: tuple[int, ...] = HIDDEN, epochs: int = 300, seed: int = 0
    ) -> Autoencoder:
        """Train on harmless signals: squared error, Adam at 1e-3, batches of 64, no weight decay.

        Args:
            signals: [N, T], in 0..1, N of 2 or more.
            hidden: widths of the layers between.
            epochs: passes over the signals.
            seed: of the first weights and the batches.

        Raises:
            InputError: without two finite signals.
        """
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
        return cls(tuple(network.coefs_), tuple(network.intercepts_), signals.mean(0))

    def __call__(self, signals: np.ndarray) -> np.ndarray:
        """The signals as they are rebuilt [N, T]."""
        out = signals @ self.weights[0] + self.biases[0]
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            out = np.maximum(out, 0.0) @ weight + bias
        return out

    def error_at(self, begun: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
        """The guard's score, mean((rebuilt - sigma)^2) over the steps that are known [N].

        Args:
            begun: the first t steps of signals [N, t]. All T give the paper's score; fewer are completed by the
                harmless mean, which is ours.
            known: of each signal [N], how many of them are; what is behind those is 0. None: all.
        """
        count = begun.shape[1]
        out = begun @ self.weights[0][:count] + self._behind[count if known is None else known]
        for weight, bias in zip(self.weights[1:-1], self.biases[1:-1], strict=True):
            out = np.maximum(out, 0.0) @ weight + bias
        out = np.maximum(out, 0.0) @ self.weights[-1][:, :count] + self.biases[-1][:count]
        out -= begun
        return mean_square(out, known)

    @cached_property
    def _behind(self) -> np.ndarray:
        """What the mean of the steps from t on, and the bias, give the first layer, by t [T + 1, out]."""
        parts = self.mean[:, None] * self.weights[0]
        return np.concatenate([parts[::-1].cumsum(0)[::-1], np.zeros((1, parts.shape[1]))]) + self.biases[0]

    def tensors(self) -> dict[str, np.ndarray]:
        """All that was fitted, for a guard's file."""
        weights = {f"weight.{layer}": weight for layer, weight in enumerate(self.weights)}
        return {"mean": self.mean, **weights, **{f"bias.{layer}": bias for layer, bias in enumerate(self.biases)}}

    @classmethod
    def rebuild(cls, tensors: Mapping[str, np.ndarray], hidden: tuple[int, ...], steps: int) -> Autoencoder:
        """Take `tensors` back. Raises InputError or KeyError for arrays that are no autoencoder of this shape."""
        sizes = (steps, *hidden, steps)
        weights, biases = (
            tuple(tensors[f"{name}.{layer}"] for layer in range(len(sizes) - 1)) for name in ("weight", "bias")
        )
        wanted = list(pairwise(sizes))
        shapes = [weight.shape for weight in weights]
        if shapes != wanted or [bias.shape for bias in biases] != [size[1:] for size in wanted]:
            raise InputError(f"the autoencoder's weights are {shapes}, expected {wanted}")
        if tensors["mean"].shape != (steps,):
            raise InputError(f"mean must be {steps} numbers")
        return cls(weights, biases, tensors["mean"])
