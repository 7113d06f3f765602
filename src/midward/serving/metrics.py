"""What a server counts, as Prometheus reads it, and whether its guard flags more than it was calibrated for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from scipy.stats import binom

#: So improbable must be as many flags as there were, at the calibrated rate, that the guard is called miscalibrated.
ALARM = 1e-3

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_STEPS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


@dataclass
class Drift:
    """How many of the answers that a guard looked at it flagged, in service or in shadow.

    alpha: the rate that it was calibrated for on harmless requests; None where it isn't known.
    """

    alpha: float | None
    seen: int = 0
    flags: int = 0

    def count(self, flagged: bool, score: float | None) -> None:
        """One more answer; of one that couldn't be scored nothing is known."""
        if score is not None or flagged:
            self.seen += 1
            self.flags += flagged

    @property
    def p(self) -> float | None:
        """How probable so many flags or more are among harmless requests like those that it was calibrated on."""
        return None if self.alpha is None else float(binom.sf(self.flags - 1, self.seen, self.alpha))

    @property
    def alarm(self) -> str | None:
        """The word "recalibrate" where that is less than `ALARM`: the requests are others than those of the
        calibration, or they aren't harmless. Nothing is changed by itself."""
        return "recalibrate" if self.p is not None and self.p < ALARM else None

    def record(self) -> dict[str, Any]:
        """As /health tells it."""
        return {"seen": self.seen, "flags": self.flags, "alpha": self.alpha, "p": self.p, "alarm": self.alarm}


class Metrics:
    """The numbers of one server.

    Args:
        rows, waiting: how many rows are being filled, and how many wait.
        drift: of the guard.
    """

    def __init__(self, rows: Callable[[], int], waiting: Callable[[], int], drift: Drift) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"midward_{name}", about, labels, registry=registry)

        def histogram(name: str, about: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"midward_{name}", about, buckets=buckets, registry=registry)

        def gauge(name: str, about: str, read: Callable[[], float]) -> None:
            Gauge(f"midward_{name}", about, registry=registry).set_function(read)

        self.requests = counter("requests", "Requests for answers, by how they ended.", "outcome")
        self.choices = counter("choices", "Answers, by why they ended.", "finish_reason")
        self.tokens = counter("tokens", "Tokens of prompts, and of answers.", "kind")
        self.steps = counter("steps", "Denoising steps, of each row.")
        self.first_block = histogram("first_block_seconds", "From a request to the first text that can be sent.")
        self.seconds = histogram("request_seconds", "From a request to its answer.")
        self.batch = histogram("batch_rows", "Rows that are being filled when a request comes in.", _ROWS)
        self.step_seconds = histogram("step_seconds", "Seconds of a step: a row's time over its steps.", _STEPS)
        gauge("rows", "Rows that are being filled.", rows)
        gauge("waiting", "Rows that wait.", waiting)
        gauge("guard_seen", "Answers that the guard looked at.", lambda: drift.seen)
        gauge("guard_flags", "Answers that it flagged, in service or in shadow.", lambda: drift.flags)
        gauge("guard_alarm", "1 where it flags more than it was calibrated for.", lambda: drift.alarm is not None)

    def page(self) -> tuple[bytes, str]:
        """What is told, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
