"""What a server counts, as Prometheus reads it, and whether its guard flags more than it was calibrated for."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector
from scipy.stats import binom

from midward.guards import Guard
from midward.serving.scheduler import Scheduler

#: So improbable must be as many flags as there were, at the calibrated rate, that the guard is called miscalibrated.
ALARM = 1e-3

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


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
        scheduler: of its engine.
        drift: of its guard.
    """

    def __init__(self, scheduler: Scheduler, drift: Drift) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"midward_{name}", about, labels, registry=registry)

        def gauge(name: str, about: str, read: Callable[[], float]) -> None:
            Gauge(f"midward_{name}", about, registry=registry).set_function(read)

        self.requests = counter("requests", "Requests for answers, by how they ended.", "outcome")
        self.choices = counter("choices", "Answers, by why they ended.", "finish_reason")
        self.tokens = counter("tokens", "Tokens of prompts, and of answers.", "kind")
        self.steps = counter("steps", "Denoising steps, of each row.")
        self.guard_seconds = counter("guard_seconds", "Seconds in the guard, part of those in steps.")
        about = "From a request to the first text that can be sent."
        self.first_block = Histogram("midward_first_block_seconds", about, buckets=_SECONDS, registry=registry)
        about = "From a request to its answer."
        self.seconds = Histogram("midward_request_seconds", about, buckets=_SECONDS, registry=registry)
        gauge("rows", "Rows that are being filled.", lambda: scheduler.rows)
        gauge("waiting", "Rows that wait.", lambda: scheduler.waiting)
        gauge("guard_seen", "Answers that the guard looked at.", lambda: drift.seen)
        gauge("guard_flags", "Answers that it flagged, in service or in shadow.", lambda: drift.flags)
        gauge("guard_alarm", "1 where it flags more than it was calibrated for.", lambda: drift.alarm is not None)
        registry.register(_Forwards(scheduler))

    def page(self) -> tuple[bytes, str]:
        """What is told, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _Forwards(Collector):
    """The engine's own counts: seconds a step and rows a step are quotients of their rates."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def collect(self) -> Iterator[CounterMetricFamily]:
        counts = self._scheduler.counts
        for name, about, value in (
            ("forwards", "Steps of the network, whatever number of rows shares one.", counts.forwards),
            ("forward_rows", "Rows of these steps together.", counts.rows),
            ("forward_seconds", "Seconds in these steps.", counts.seconds),
        ):
            yield CounterMetricFamily(f"midward_{name}", about, value=value)


def timed(guard: Guard, tell: Callable[[float], None]) -> Guard:
    """The same guard, which tells the seconds that it takes: at requests, at steps and at texts."""

    def clocked(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **more: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*args, **more)
            finally:
                tell(time.perf_counter() - begun)

        return run

    def watcher(stopped: dict[int, int] | None = None) -> Any:
        watching: Any = guard.watcher(stopped)
        if watching is not None:
            watching.on_step = clocked(watching.on_step)
        return watching

    copied: Any = copy.copy(guard)
    copied.watcher, copied.early, copied.checked = watcher, clocked(guard.early), clocked(guard.checked)
    same: Guard = copied
    return same
