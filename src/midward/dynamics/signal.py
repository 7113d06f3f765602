"""The SRI signal: between refusal (0) and compliance (1), at every denoising step (SRI)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from midward.dynamics.anchors import Anchors
from midward.dynamics.sri import TAU, numbers, signal, unit_anchors
from midward.dynamics.states import Pooling
from midward.errors import InputError
from midward.models import LanguageModel
from midward.sampling import Canvas, Sampling, Step

#: Told after each step: the step, sigma so far [B, T] of its rows (float64, NaN at the steps that a row has not
#: reached), and how many steps each row has reached [B]. The array is written on at the next step.
OnSignal = Callable[[Step, np.ndarray, list[int]], None]


def sri_signal(states: torch.Tensor, anchors: Anchors, *, tau: float = TAU) -> torch.Tensor:
    """The signal of pooled states; see `sri.signal`.

    Args:
        states: phi [..., T, D].
        anchors: of the same T and D.
        tau: above 0.

    Returns:
        sigma [..., T], float64 on the CPU, in 0..1.

    Raises:
        InputError: where T or D isn't the anchors'.
    """
    if states.shape[-2:] != anchors.mu_harmless.shape:
        raise InputError(
            f"states are [..., T, D] with {tuple(anchors.mu_harmless.shape)} of the anchors; received "
            f"{tuple(states.shape)}."
        )
    units = unit_anchors(anchors.mu_harmful, anchors.mu_harmless)
    return torch.from_numpy(np.asarray(signal(numbers(states), units, eps=anchors.eps, tau=tau)))


class SRISignal(Pooling):
    """A watcher that makes the SRI signal of every request while it is sampled.

    `signal(row)` is [T] when the row takes no further step; NaN where it took part in none. A row that ended early has
    its last state's signal, against each later step's anchors.

    Args:
        anchors: they say layer, reading and whether every step is run; `on_start` raises AnchorsMismatch where they
            were fitted for another model, adapter or sampling.
        tau: above 0.
        on_signal: called after each step with the signals so far, so that a guard may decide; steps that a row took no
            part in have its last state's signal.
    """

    def __init__(self, anchors: Anchors, *, tau: float = TAU, on_signal: OnSignal | None = None) -> None:
        if not tau > 0:
            raise InputError(f"tau must be above 0; received {tau!r}.")
        super().__init__((anchors.layer,), reading=anchors.reading, needs_all_steps=anchors.needs_all_steps)
        self.anchors = anchors
        self.tau = tau
        self.on_signal = on_signal
        self._signals: dict[int, torch.Tensor] = {}
        self._matched: tuple[LanguageModel, Sampling] | None = None
        self._open = False

    def begin(self, canvas: Canvas) -> None:
        if self._matched is None or self._matched[0] is not canvas.model or self._matched[1] != canvas.sampling:
            self.anchors.check(canvas.model, canvas.sampling)
            self._units = unit_anchors(self.anchors.mu_harmful, self.anchors.mu_harmless)
            self._matched = (canvas.model, canvas.sampling)
        count, (steps, width) = len(canvas.rows), self.anchors.mu_harmless.shape
        self._sigma = np.full((count, steps), np.nan)  # by canvas row
        self._last = np.zeros((count, width))  # the state of each row's step before
        self._places = list(range(count))
        self._next = [0] * count  # the step that each row's signal has reached
        self._open = True

    def take(self, step: Step, at: list[int], rows: torch.Tensor, phi: dict[int, torch.Tensor]) -> None:
        now = step.fetch(phi[self.anchors.layer]).astype(np.float64)  # see `numbers`
        places = [self._place[row] for row in step.rows]
        reached = [self._next[place] for place in places]
        whole = places == self._places  # no gathering, no scattering
        if reached != at:
            # What lies between a row's steps has the state before; what lies before its first, that one.
            new = np.array([before == 0 for before in reached])[:, None]
            self._fill(places, np.where(new, now, self._last[places]), min(reached), at)
        if self._own_count is None:
            self._sigma[slice(None) if whole else places, at[0]] = self._read(now, self._units[at[0]])
        else:
            self._sigma[places, at] = self._read(now, self._units[at])
        if whole:
            self._last = now
        else:
            self._last[places] = now
        reached = [index + 1 for index in at]
        for place, index in zip(places, reached, strict=True):
            self._next[place] = index
        if self.on_signal is not None:
            self.on_signal(step, self._sigma if whole else self._sigma[places], reached)

    def finish(self, canvas: Canvas) -> None:
        if not self._open:
            return
        self._open = False
        self._close(range(len(self._next)))
        for row, sigma in zip(canvas.rows, self._sigma, strict=True):
            self._signals[row.index] = torch.from_numpy(sigma)

    def _close(self, places: Iterable[int]) -> None:
        """Give rows their last state's signal at all later steps."""
        begun = [place for place in places if self._next[place]]
        if begun:
            self._fill(begun, self._last[begun], 0, [self._sigma.shape[1]] * len(begun))

    def _read(self, states: np.ndarray, units: np.ndarray) -> np.ndarray:
        return signal(states, units, eps=self.anchors.eps, tau=self.tau)

    def _fill(self, places: list[int], states: np.ndarray, start: int, stops: list[int]) -> None:
        """Give those rows the signal of states [B, D] at steps that have none, from `start` up to each row's stop."""
        if start >= max(stops):
            return
        there = self._sigma[places, start : max(stops)]
        carried = self._read(states[:, None], self._units[start : max(stops)])
        within = np.arange(start, max(stops)) < np.array(stops)[:, None]
        self._sigma[places, start : max(stops)] = np.where(np.isnan(there) & within, carried, there)

    def signal(self, row: int) -> torch.Tensor:
        """sigma [T] of a request, float64 on the CPU. Raises KeyError for one that wasn't watched."""
        if self._open and (place := self._place.get(row)) is not None:  # its batch isn't over, but it may be
            self._close([place])
            self._signals[row] = torch.from_numpy(self._sigma[place].copy())
        if row not in self._signals:
            raise KeyError(f"no signal of request {row}; was it sampled with this watcher?")
        return self._signals[row]

    def signals(self) -> torch.Tensor:
        """sigma [N, T] of all requests watched, in the order of their index."""
        return torch.stack([self._signals[row] for row in sorted(self._signals)])
