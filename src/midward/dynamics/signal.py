"""The SRI signal: between refusal (0) and compliance (1), at every denoising step (SRI)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.special import expit

from midward.dynamics.anchors import Anchors
from midward.dynamics.states import Pooling
from midward.models import LanguageModel
from midward.sampling import Canvas, Sampling, Step

#: The temperature of the signal, as in the paper.
TAU = 0.1

#: Told after each step: the step, and sigma so far [B, T] of its rows (float64), NaN at the steps that a row has not
#: reached.
OnSignal = Callable[[Step, np.ndarray], None]


def sri_signal(states: torch.Tensor, anchors: Anchors, *, tau: float = TAU) -> torch.Tensor:
    """The signal sigma [..., T] (float64 on the CPU, in 0..1) of pooled states [..., T, D].

    d = 1 - cos(phi, anchor); sigma = sigmoid((log(d_harmful + eps) - log(d_harmless + eps)) / tau).
    Raises ValueError where T or D isn't the anchors'.
    """
    if states.shape[-2:] != anchors.mu_harmless.shape:
        raise ValueError(
            f"states are [..., T, D] with {tuple(anchors.mu_harmless.shape)} of the anchors; received "
            f"{tuple(states.shape)}."
        )
    cosines = torch.einsum("...td,tcd->...tc", _unit(states), _units(anchors, states.device))
    return torch.from_numpy(_sigma(cosines.cpu().numpy(), anchors.eps, tau))


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    """In float64: a distance of a thousandth would keep four digits in float32, and tau takes one of them."""
    vectors = vectors.double()
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_(min=1e-12)


def _units(anchors: Anchors, device: torch.device) -> torch.Tensor:
    """[T, 2, D]: harmful, harmless."""
    return _unit(torch.stack([anchors.mu_harmful, anchors.mu_harmless], dim=1).to(device))


def _sigma(cosines: np.ndarray, eps: float, tau: float) -> np.ndarray:
    """sigma [...] of the cosines [..., 2] with the harmful and the harmless anchor."""
    logs = np.log(np.maximum(1 - cosines, 0) + eps)
    return expit((logs[..., 0] - logs[..., 1]) / tau)


class SRISignal(Pooling):
    """A watcher that makes the SRI signal of every request while it is sampled.

    anchors: they say layer, reading, region and whether every step is run; `on_start` raises AnchorsMismatch where
        they were fitted for another model, adapter or sampling.
    on_signal: called after each step with the signals so far, so that a guard may decide; steps that a row took no
        part in have its last state's signal.
    region: by default that of the anchors; "prompt" reads the masks of a prompt against anchors of responses.

    signal(row) is [T] when the row's batch is over. NaN where the row took part in no step. A row that ended early has
    its last state's signal, against each later step's anchors.
    """

    def __init__(
        self,
        anchors: Anchors,
        *,
        tau: float = TAU,
        region: str | None = None,
        on_signal: OnSignal | None = None,
    ) -> None:
        if not tau > 0:
            raise ValueError(f"tau must be above 0; received {tau!r}.")
        super().__init__(
            (anchors.layer,),
            reading=anchors.reading,
            region=region or anchors.region,
            needs_all_steps=anchors.needs_all_steps,
        )
        self.anchors = anchors
        self.tau = tau
        self.on_signal = on_signal
        self._signals: dict[int, torch.Tensor] = {}
        self._matched: tuple[LanguageModel, Sampling] | None = None
        self._open = False

    def begin(self, canvas: Canvas) -> None:
        if (
            self._matched is None
            or self._matched[0] is not canvas.model
            or self._matched[1] != canvas.sampling
        ):
            self.anchors.check(canvas.model, canvas.sampling)
            self._mu = _units(self.anchors, canvas.ids.device)
            self._matched = (canvas.model, canvas.sampling)
        count, (steps, width) = len(canvas.rows), self.anchors.mu_harmless.shape
        self._cosines = self._mu.new_full((count, steps, 2), torch.nan)  # by canvas row
        self._last = self._mu.new_zeros(count, width)
        self._places = list(range(count))
        self._next = [0] * count  # the step that each row's signal has reached
        self._open = True

    def take(self, step: Step, at: list[int], rows: torch.Tensor, phi: dict[int, torch.Tensor]) -> None:
        now = _unit(phi[self.anchors.layer])
        places = [self._place[row] for row in step.rows]
        reached = [self._next[place] for place in places]
        if reached != at:
            # What lies between a row's steps has the state before; what lies before its first, that one.
            new = torch.tensor([before == 0 for before in reached], device=now.device)[:, None]
            self._fill(rows, torch.where(new, now, self._last[rows]), min(reached), at)
        every = places == self._places
        if every and self._own_count is None:  # all rows at one step: no gathering, no scattering
            self._cosines[:, at[0]] = now @ self._mu[at[0]].T
            self._last = now
        else:
            steps = torch.tensor(at, device=now.device)
            self._cosines[rows, steps] = torch.einsum("bd,bcd->bc", now, self._mu[steps])
            self._last[rows] = now
        for place, index in zip(places, at, strict=True):
            self._next[place] = index + 1
        if self.on_signal is not None:
            self.on_signal(step, self._signal_of(self._cosines if every else self._cosines[rows]))

    def finish(self, canvas: Canvas) -> None:
        if not self._open:
            return
        self._open = False
        begun = [place for place, reached in enumerate(self._next) if reached]
        if begun:
            rows = torch.tensor(begun, device=self._cosines.device)
            self._fill(rows, self._last[rows], 0, [self._cosines.shape[1]] * len(begun))
        for row, sigma in zip(canvas.rows, self._signal_of(self._cosines), strict=True):
            self._signals[row.index] = torch.from_numpy(sigma)

    def _fill(self, rows: torch.Tensor, phi: torch.Tensor, start: int, stops: list[int]) -> None:
        """Give `rows` the cosines of phi [B, D] at those steps, from `start` up to each row's stop, that have none."""
        if start >= max(stops):
            return
        steps = slice(start, max(stops))
        there = self._cosines[rows, steps]
        carried = torch.einsum("bd,tcd->btc", phi, self._mu[steps])
        within = (
            torch.arange(start, max(stops), device=phi.device)
            < torch.tensor(stops, device=phi.device)[:, None]
        )
        self._cosines[rows, steps] = torch.where(there.isnan() & within[..., None], carried, there)

    def _signal_of(self, cosines: torch.Tensor) -> np.ndarray:
        return _sigma(cosines.cpu().numpy(), self.anchors.eps, self.tau)

    def signal(self, row: int) -> torch.Tensor:
        """sigma [T] of a request, float64 on the CPU. Raises KeyError for one that wasn't watched."""
        if row not in self._signals:
            raise KeyError(f"no signal of request {row}; was it sampled with this watcher?")
        return self._signals[row]

    def signals(self) -> torch.Tensor:
        """sigma [N, T] of all requests watched, in the order of their index."""
        return torch.stack([self._signals[row] for row in sorted(self._signals)])
