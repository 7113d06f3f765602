"""One thread in front of a network: many callers, and runs that come in and leave between denoising steps.

`Scheduler` knows nothing of models. What it is given to do is of two kinds: a call, which is done by itself; or an item
of a run, a coroutine that yields its forwards (`midward.sampling.passes`). Of all runs that are in hand the next
forwards are computed together, so that a short request needn't wait for a long one, and a slot that falls free is
filled at the next step.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
import torch
from anyio.lowlevel import current_token

from midward.sampling.passes import Forward, Passes, Wanted, together

log = logging.getLogger("midward")

#: Seconds. Where nothing runs, a batch that isn't full waits for more while they keep coming this close, and not longer
#: than LINGER.
GAP, LINGER = 0.002, 0.01
#: Seconds without work after which the thread ends, so that nothing holds a model that nobody uses.
IDLE = 1.0
#: Seconds that the end of the process waits for the running step; a thread left inside the network would abort it.
PATIENCE = 30.0


class Work(Hashable, Protocol):
    """What makes a run of items; items of equal work may share one."""

    def start(self, tickets: Sequence[Ticket], leaves: Callable[[dict[int, Any]], None]) -> Passes[Any]:
        """The run of these tickets' items. It tells `leaves` of results as they stand, by place, of all by its end."""


class SchedulerClosed(RuntimeError):
    """No more work is taken or done; the process is ending."""


class Ticket(Future[Any]):
    """The future of a call, or of one item of a run.

    left: whether its caller has gone; a run lets go of such an item after its next step. call: what is done, of a call.
    """

    def __init__(self, work: Any, item: Any, size: int, limit: int, call: Callable[[], Any] | None = None) -> None:
        super().__init__()
        self.work, self.item, self.size, self.limit, self.call = work, item, size, limit, call
        self.left = False

    def leave(self) -> None:
        """The caller wants no result any more."""
        self.left = True
        self.cancel()


@dataclass(eq=False)
class _Cohort:
    """A run in hand. wanted: its next forward. open: places of tickets that have no result yet."""

    tickets: list[Ticket]
    run: Passes[Any]
    open: set[int]
    wanted: Wanted | None = None
    error: Exception | None = None


@dataclass
class Counts:
    """What was done so far. forwards: steps of the network, whatever number of runs shares one. rows: item-steps of
    runs. seconds: spent in forwards and what belongs to them."""

    forwards: int = 0
    rows: int = 0
    seconds: float = 0.0


class Scheduler:
    """Does work on one daemon thread; may be used from any thread and any event loop.

    Whenever the thread is free between two steps it takes the oldest call or item, and with an item others of equal
    work and limit: those nearest in size, up to the limit. Items come in while those in hand are fewer than their
    limit; where many wait, by quarters of it and not one by one, since a run of its own costs more than a row of
    another. A run that fails is done again in halves, so that an error reaches only the item that caused it (and a
    batch too large for the memory becomes smaller ones).

    counts: what was done so far.
    """

    def __init__(self) -> None:
        self._waiting: list[Ticket] = []
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None
        self._rows = 0
        self.closed = False
        self.counts = Counts()
        _schedulers.add(self)

    @property
    def waiting(self) -> int:
        """Calls and items that nobody has begun with."""
        return len(self._waiting)

    @property
    def rows(self) -> int:
        """Items of runs that are in hand."""
        return self._rows

    def call(self, function: Callable[[], Any]) -> Ticket:
        """Queue a call; its future gets the result."""
        return self._queue(Ticket(None, None, 0, 1, function))

    def submit(self, work: Work, item: Any, *, size: int = 0, limit: int = 1) -> Ticket:
        """Queue an item; its future gets the result. Cancelling drops an item that hasn't begun, see also `leave`.

        size: what a batch should be alike in (a length). limit: items a batch, 1 or more.
        """
        return self._queue(Ticket(work, item, size, limit))

    def _queue(self, ticket: Ticket) -> Ticket:
        with self._changed:
            if self.closed:
                raise SchedulerClosed("nothing more is taken; the process is ending.")
            self._waiting.append(ticket)
            if self._worker is None:
                self._worker = threading.Thread(target=self._serve, name="midward-engine", daemon=True)
                self._worker.start()
            self._changed.notify_all()
        return ticket

    def close(self) -> None:
        """Take no more work, cancel what waits, and give the running step `PATIENCE` seconds to notice."""
        with self._changed:
            self.closed = True
            waiting, self._waiting = self._waiting, []
            worker = self._worker
            self._changed.notify_all()
        for ticket in waiting:
            ticket.cancel()
        if worker is not None:
            worker.join(PATIENCE)

    # --- the thread -------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        cohorts: list[_Cohort] = []
        while (batch := self._next(idle=not cohorts)) is not None:
            if batch and batch[0].call is not None:
                _do(batch[0], batch[0].call)
            elif batch:
                cohorts += self._begin(batch)
            del batch  # nothing of it is held while the thread waits
            cohorts = self._step(cohorts)
            self._rows = sum(len(cohort.open) for cohort in cohorts)
        for cohort in cohorts:
            _fail(cohort, SchedulerClosed("the process is ending."))
        self._rows = 0

    def _next(self, idle: bool) -> list[Ticket] | None:
        """The next batch to begin with, perhaps empty while runs are in hand; None for the end of the thread."""
        with self._changed:
            if idle and not self.closed and not self._waiting:
                self._changed.wait_for(lambda: self._waiting or self.closed, IDLE)
            if self.closed or (idle and not self._waiting):
                self._worker = None
                return None
            self._waiting = [ticket for ticket in self._waiting if not ticket.cancelled()]
            if idle:
                self._gather()
            batch = self._batch()
            taken = set(map(id, batch))
            self._waiting = [ticket for ticket in self._waiting if id(ticket) not in taken]
            # At once, so that nobody sees them in neither place.
            self._rows += sum(ticket.call is None for ticket in batch)
        return [ticket for ticket in batch if ticket.set_running_or_notify_cancel()]

    def _gather(self) -> None:
        """Wait for more while it keeps coming and the next batch isn't full."""
        last = time.monotonic() + LINGER
        seen = 0
        while seen < len(self._waiting) and len(self._batch()) < self._waiting[0].limit:
            seen = len(self._waiting)
            if (left := min(GAP, last - time.monotonic())) <= 0:
                return
            self._changed.wait(left)

    def _batch(self) -> list[Ticket]:
        """The oldest that can begin now, and of an item its neighbours in size among those that may share its run."""
        for oldest in self._waiting:
            if oldest.call is not None:
                return [oldest]
            room = oldest.limit - self._rows
            alike = [each for each in self._waiting if each.limit == oldest.limit and each.work == oldest.work]
            if room < max(1, min(len(alike), oldest.limit // 4)):
                continue
            alike.sort(key=lambda ticket: ticket.size)
            start = max(0, min(alike.index(oldest) - room // 2, len(alike) - room))
            return alike[start : start + room]
        return []

    def _begin(self, batch: list[Ticket]) -> list[_Cohort]:
        """The run of a batch, up to its first forward; in halves where that fails."""

        def leaves(results: dict[int, Any]) -> None:
            for place, result in results.items():
                cohort.open.discard(place)
                if not batch[place].done():
                    batch[place].set_result(result)

        cohort = _Cohort(batch, batch[0].work.start(batch, leaves), set(range(len(batch))))
        return self._advance([cohort], [None])

    def _step(self, cohorts: list[_Cohort]) -> list[_Cohort]:
        """One forward for all runs; those that go on."""
        if not cohorts:
            return []
        started = time.perf_counter()
        self.counts.forwards += 1
        self.counts.rows += sum(len(cohort.open) for cohort in cohorts)
        with torch.no_grad():
            computed = _computed(cohorts)
        cohorts = self._advance(cohorts, computed)
        self.counts.seconds += time.perf_counter() - started
        return cohorts

    def _advance(self, cohorts: Iterable[_Cohort], computed: Iterable[Any]) -> list[_Cohort]:
        """Send each run what its forward computed, and take the next one that it wants."""
        going = []
        for cohort, states in zip(list(cohorts), computed, strict=True):
            if cohort.error is None:
                try:
                    with torch.no_grad():
                        cohort.wanted = cohort.run.send(states)
                    going.append(cohort)
                    continue
                except StopIteration:
                    continue
                except Exception as error:
                    cohort.error = error
            going += self._again(cohort)
        return going

    def _again(self, cohort: _Cohort) -> list[_Cohort]:
        """What is open of a run that failed, in halves; one item alone has the error."""
        cohort.run.close()
        left = [cohort.tickets[place] for place in sorted(cohort.open)]
        if len(left) <= 1 or self.closed:
            _fail(cohort, cohort.error or SchedulerClosed("the process is ending."))
            return []
        half = len(left) // 2
        return [each for part in (left[:half], left[half:]) for each in self._begin(part)]


def _computed(cohorts: Sequence[_Cohort]) -> list[Any]:
    """What each run's forward computes: in as few forwards as may be; each by itself where that fails. What isn't a
    `Forward` is done once, since it may leave something behind (a longer cache)."""
    joined = {id(cohort): cohort.wanted for cohort in cohorts if isinstance(cohort.wanted, Forward)}
    states: dict[int, Any] = {}
    if len(joined) > 1:
        try:
            states = dict(zip(joined, together([*joined.values()]), strict=True))
        except Exception as error:  # perhaps one run's fault alone, or too much for the memory
            log.warning("a forward of %d runs failed (%s); each is done by itself.", len(joined), type(error).__name__)
    computed: list[Any] = []
    for cohort in cohorts:
        computed.append(states.get(id(cohort)))
        if computed[-1] is None and cohort.wanted is not None:
            try:
                computed[-1] = cohort.wanted.compute()
            except Exception as error:
                cohort.error = error
    return computed


def _fail(cohort: _Cohort, error: Exception) -> None:
    """End a run with an error for all that is open of it."""
    with contextlib.suppress(Exception):
        cohort.run.close()
    for place in sorted(cohort.open):
        if not cohort.tickets[place].done():
            cohort.tickets[place].set_exception(error)
    cohort.open.clear()


def _do(ticket: Ticket, call: Callable[[], Any]) -> None:
    try:
        ticket.set_result(call())
    except Exception as error:
        ticket.set_exception(error)


async def results(tickets: Sequence[Ticket]) -> list[Any]:
    """Wait for the results of another thread, on asyncio or trio.

    When the wait is cancelled or one of them fails, the others are let go.
    """
    loop: Any = current_token().native_token
    soon = loop.call_soon_threadsafe if hasattr(loop, "call_soon_threadsafe") else loop.run_sync_soon
    outcomes = []
    try:
        for ticket in tickets:
            done = anyio.Event()
            ticket.add_done_callback(_waker(soon, done.set))
            await done.wait()
            outcomes.append(ticket.result())
        return outcomes
    finally:
        for ticket in tickets:
            ticket.leave()


def _waker(soon: Callable[..., Any], wake: Callable[[], None]) -> Callable[[Future[Any]], None]:
    def callback(future: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is gone, and with it whoever waited
            soon(wake)

    return callback


_schedulers: weakref.WeakSet[Scheduler] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # A thread inside the network while the interpreter is taken down may crash the process.
    for scheduler in list(_schedulers):
        scheduler.close()
