"""SRI signals of what is measured: a reader for `midward.runs.measure`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from midward.dynamics import Anchors, SRISignal
from midward.runs.measure import Case, Reader, Row
from midward.sampling import Response


class Signals(Reader):
    """Gives each row its `signals`: name -> sigma [T]; steps that aren't known (it took part in none) are None.

    Args:
        anchors: name -> what a signal is read against; all are read from one generation.
        digits: decimal places that are kept; all of them unless given.
    """

    def __init__(self, anchors: Mapping[str, Anchors], digits: int | None = None) -> None:
        self.digits = digits
        self._signals = {name: SRISignal(each) for name, each in anchors.items()}
        self.watchers = tuple(self._signals.values())

    def fields(self, place: int, case: Case, response: Response, readings: Sequence[Row]) -> Row:
        signals = {name: watcher.signal(place).tolist() for name, watcher in self._signals.items()}
        failed = response.error is not None
        return {
            "signals": {
                name: [None if failed or math.isnan(value) else self._kept(value) for value in sigma]
                for name, sigma in signals.items()
            }
        }

    def _kept(self, value: float) -> float:
        return value if self.digits is None else round(value, self.digits)


def signals_of(rows: Sequence[Row], name: str) -> np.ndarray:
    """The signals [N, T] of rows by the name of their anchors; NaN where they aren't known."""
    return np.array([row["signals"][name] for row in rows], dtype=float)
