"""Signals of the steps of what is measured: a reader for `midward.runs.measure`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from midward.dynamics import SRISignal
from midward.dynamics.looks import Looks
from midward.runs.measure import Case, Reader, Row
from midward.sampling import Response


class Signals(Reader):
    """Gives each row its `signals`: name -> sigma [T], or the looks of its blocks [blocks, J, F + 1]; what isn't known
    (it took part in no step) is None.

    Args:
        watching: name -> what makes the watcher of a signal; all are read from one generation.
        digits: decimal places that are kept; all of them unless given.
    """

    def __init__(self, watching: Mapping[str, Callable[[], SRISignal | Looks]], digits: int | None = None) -> None:
        self.digits = digits
        self._signals = {name: make() for name, make in watching.items()}
        self.watchers = tuple(self._signals.values())

    def fields(self, place: int, case: Case, response: Response, readings: Sequence[Row]) -> Row:
        signals = {name: watcher.signal(place).tolist() for name, watcher in self._signals.items()}
        return {"signals": {name: self._kept(signal, response.error) for name, signal in signals.items()}}

    def _kept(self, value: Any, error: str | None) -> Any:
        if isinstance(value, list):
            return [self._kept(part, error) for part in value]
        if error is not None or math.isnan(value):
            return None
        return value if self.digits is None else round(value, self.digits)


def signals_of(rows: Sequence[Row], name: str) -> np.ndarray:
    """The signals of rows by their name, [N, T] or [N, blocks, J, F + 1]; NaN where they aren't known."""
    signals = [np.array(row["signals"][name], dtype=float) for row in rows]
    if all(signal.ndim == 1 for signal in signals):
        return np.array(signals)
    most = np.max([signal.shape for signal in signals if len(signal)] or [signals[0].shape], axis=0)
    padded = np.full((len(signals), *most), np.nan)
    for place, signal in enumerate(signals):
        if len(signal):
            padded[place, : len(signal), : signal.shape[1]] = signal
    return padded
