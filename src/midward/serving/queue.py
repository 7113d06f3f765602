"""A queue in front of a network: many callers, one thread that runs it, batches of what waits.

`BatchQueue` knows nothing of models; `Engine` is a loaded model with its queue, one for all who ask for the same.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import anyio
from anyio.lowlevel import current_token

from midward.models import LanguageModel, load
from midward.sampling import Canvas, Forced, Request, Response, Sampling, Step, sample
from midward.sampling.likelihood import Span, SpanScore, span_gradient, span_log_probs

if TYPE_CHECKING:
    import torch

    from midward.guards import Guard

#: Seconds. A batch that isn't full waits for more while they keep coming this close, and not longer than LINGER.
GAP, LINGER = 0.002, 0.01
#: Seconds without work after which the thread ends, so that nothing holds a model that nobody uses.
IDLE = 1.0
#: Seconds that the end of the process waits for the running step; a thread left inside the network would abort it.
PATIENCE = 30.0


class Work(Hashable, Protocol):
    """What to do with items, in one go; items of equal work may share a batch."""

    def __call__(self, items: list[Any], /) -> Sequence[Any]:
        """Return one result an item, in their order."""


@dataclass(eq=False)
class _Job:
    work: Work
    item: Any
    size: int
    limit: int
    future: Future[Any] = field(default_factory=Future)


class QueueClosed(RuntimeError):
    """The queue takes and does no more work; the process is ending."""


class BatchQueue:
    """Runs items in batches on one daemon thread; may be used from any thread and any event loop.

    Whenever the thread is free it takes the oldest item, and with it others of equal work and limit: those nearest in
    size, up to the limit. A batch that fails is run again in halves, so that an error reaches only the item that
    caused it (and a batch too large for the memory becomes smaller ones).
    """

    def __init__(self) -> None:
        self._waiting: list[_Job] = []
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None
        self.closed = False
        _queues.add(self)

    def submit(self, work: Work, item: Any, *, size: int = 0, limit: int = 1) -> Future[Any]:
        """Queue an item; its future gets the result. Cancelling the future drops an item that hasn't begun.

        size: what a batch should be alike in (a length). limit: items a batch, 1 or more.
        """
        job = _Job(work, item, size, limit)
        with self._changed:
            if self.closed:
                raise QueueClosed("the queue is closed; the process is ending.")
            self._waiting.append(job)
            if self._worker is None:
                self._worker = threading.Thread(target=self._serve, name="midward-queue", daemon=True)
                self._worker.start()
            self._changed.notify_all()
        return job.future

    def close(self) -> None:
        """Take no more work, cancel what waits, and give the running batch `PATIENCE` seconds to notice `closed`."""
        with self._changed:
            self.closed = True
            waiting, self._waiting = self._waiting, []
            worker = self._worker
            self._changed.notify_all()
        for job in waiting:
            job.future.cancel()
        if worker is not None:
            worker.join(PATIENCE)

    def _serve(self) -> None:
        while (batch := self._next()) is not None:
            _run(batch, self)

    def _next(self) -> list[_Job] | None:
        """The next batch, or None where there was no work for a while."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting or self.closed, IDLE) or self.closed:
                self._worker = None
                return None
            self._waiting = [job for job in self._waiting if not job.future.cancelled()]
            self._gather()
            batch = self._batch() if self._waiting else []
            self._waiting = [job for job in self._waiting if job not in batch]
        return [job for job in batch if job.future.set_running_or_notify_cancel()]

    def _gather(self) -> None:
        """Wait for more while it keeps coming and the next batch isn't full."""
        last = time.monotonic() + LINGER
        seen = 0
        while seen < len(self._waiting) and len(self._batch()) < self._waiting[0].limit:
            seen = len(self._waiting)
            if (left := min(GAP, last - time.monotonic())) <= 0:
                return
            self._changed.wait(left)

    def _batch(self) -> list[_Job]:
        """The oldest item and its neighbours in size among those that may share its batch."""
        oldest = self._waiting[0]
        alike = [job for job in self._waiting if job.limit == oldest.limit and job.work == oldest.work]
        alike.sort(key=lambda job: job.size)
        start = max(0, min(alike.index(oldest) - oldest.limit // 2, len(alike) - oldest.limit))
        return alike[start : start + oldest.limit]


def _run(batch: list[_Job], queue: BatchQueue) -> None:
    try:
        outcomes = batch[0].work([job.item for job in batch]) if batch else []
    except Exception as error:
        if len(batch) == 1 or queue.closed:
            for job in batch:
                job.future.set_exception(error)
            return
    else:
        for job, outcome in zip(batch, outcomes, strict=True):
            job.future.set_result(outcome)
        return
    # Outside the handler, so that the failed batch's tensors are free again.
    _run(batch[: len(batch) // 2], queue)
    _run(batch[len(batch) // 2 :], queue)


async def results(futures: Sequence[Future[Any]]) -> list[Any]:
    """Wait for futures of another thread, on asyncio or trio.

    When the wait is cancelled or one of them fails, the others are cancelled.
    """
    loop: Any = current_token().native_token
    soon = loop.call_soon_threadsafe if hasattr(loop, "call_soon_threadsafe") else loop.run_sync_soon
    outcomes = []
    try:
        for future in futures:
            done = anyio.Event()
            future.add_done_callback(_waker(soon, done.set))
            await done.wait()
            outcomes.append(future.result())
        return outcomes
    finally:
        for future in futures:
            future.cancel()


def _waker(soon: Callable[..., Any], wake: Callable[[], None]) -> Callable[[Future[Any]], None]:
    def callback(future: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is gone, and with it whoever waited
            soon(wake)

    return callback


_queues: weakref.WeakSet[BatchQueue] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # A thread inside the network while the interpreter is taken down may crash the process.
    for queue in list(_queues):
        queue.close()


class Engine:
    """A loaded model behind a queue: one thread runs the network, whoever asks.

    fingerprint: the model's. What comes out doesn't depend on what else is asked at the same time.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.fingerprint = model.fingerprint
        self.queue = BatchQueue()
        self._tokenizing = threading.Lock()  # a tokenizer may refuse to be used by two threads at once

    def encode(self, prompt: Any) -> list[int]:
        """Return a prompt's ids, as `LanguageModel.encode` does; ids stay as they are."""
        if isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], int):
            return list(prompt)
        with self._tokenizing:
            return self.model.encode(prompt)

    @cached_property
    def takes_system_turns(self) -> bool:
        """Whether the chat template passes a system turn on."""
        turns = [{"role": "system", "content": "aside"}, {"role": "user", "content": "hello"}]
        try:
            return self.encode(turns) != self.encode(turns[1:])
        except Exception:  # a template says no by raising whatever it likes
            return False

    def span(self, position: int, text: str) -> Forced:
        """Return the text's tokens, without special ones added, at a response position. ValueError for no token."""
        with self._tokenizing:
            return Forced.text(self.model, position, text)

    async def sample(
        self, requests: Sequence[Request], sampling: Sampling, *, batch_size: int, guard: Guard | None = None
    ) -> list[Response]:
        """Sample one response a request.

        Args:
            requests: What is asked, with seeds.
            sampling: The settings of all.
            batch_size: Rows a forward, 1 or more.
            guard: Stands in front; each response then carries its verdict.

        Raises:
            QueueClosed: The process is ending. What sampling raises comes too.
        """
        work = _Work(_sample, (self, sampling, batch_size, guard))
        return await results(
            [self.queue.submit(work, request, size=len(request.prompt), limit=batch_size) for request in requests]
        )

    async def score(self, spans: Sequence[Span], *, mode: str, length: int, batch_size: int) -> list[SpanScore]:
        """Score spans, as `span_log_probs` does."""
        spans = [replace(span, prompt=self.encode(span.prompt)) for span in spans]
        size = max((len(span.prompt) for span in spans), default=0)
        work = _Work(_score, (self.model, mode, length, batch_size))
        [scores] = await results([self.queue.submit(work, spans, size=size, limit=_SCORED_AT_ONCE)])
        return scores

    async def gradient(self, span: Span, slots: Sequence[int], *, length: int, batch_size: int) -> torch.Tensor:
        """The span's gradient [slots, V], as `span_gradient` gives it."""
        span = replace(span, prompt=self.encode(span.prompt))
        work = _Work(_gradient, (self.model, length, batch_size))
        [gradient] = await results([self.queue.submit(work, (span, slots))])
        return gradient


#: Calls to `score` that may be answered together; each forward still has its caller's batch size.
_SCORED_AT_ONCE = 256


@dataclass(frozen=True)
class _Work:
    """A function and what it takes before the items: equal ones share a batch."""

    run: Callable[..., Sequence[Any]]
    settings: tuple[Any, ...]

    def __call__(self, items: list[Any]) -> Sequence[Any]:
        return self.run(*self.settings, items)


def _sample(
    engine: Engine, sampling: Sampling, batch_size: int, guard: Guard | None, items: list[Request]
) -> list[Response]:
    run = sample if guard is None else guard.sample
    return run(engine.model, items, sampling, batch_size=batch_size, watchers=[_Stop(engine.queue)])


def _score(
    model: LanguageModel, mode: str, length: int, batch_size: int, items: list[list[Span]]
) -> list[list[SpanScore]]:
    spans = [span for group in items for span in group]
    scores = iter(span_log_probs(model, spans, mode=mode, length=length, batch_size=batch_size))
    return [[next(scores) for _ in group] for group in items]


def _gradient(model: LanguageModel, length: int, batch_size: int, items: list[Any]) -> list[torch.Tensor]:
    return [span_gradient(model, span, slots, length=length, batch_size=batch_size).cpu() for span, slots in items]


class _Stop:
    """The watcher that ends a run between two steps when the queue is closed."""

    needs_all_steps = False

    def __init__(self, queue: BatchQueue) -> None:
        self.queue = queue

    def on_start(self, canvas: Canvas) -> None:
        pass

    def on_step(self, step: Step) -> None:
        if self.queue.closed:
            raise QueueClosed("the process is ending.")

    def on_end(self, canvas: Canvas) -> None:
        pass


_engines: weakref.WeakValueDictionary[tuple[Any, ...], Engine] = weakref.WeakValueDictionary()
_loading = threading.Lock()


def shared(
    name: str,
    adapter: str | None,
    device: str,
    dtype: str,
    quantize: Literal["8bit", "4bit"] | None = None,
    device_map: Literal["auto"] | None = None,
) -> Engine:
    """Return the process's engine for a model, loaded if nobody holds it yet. Raises ModelError as `load` does.

    A folder whose weights were written anew is another model.
    """
    key = (name, adapter, device, dtype, quantize, device_map, _written(name), _written(adapter))
    with _loading:
        engine = _engines.get(key)
        if engine is None:
            model = load(name, adapter, device, dtype, quantize, device_map)
            model.fold_adapter()
            engine = _engines[key] = Engine(model)
        return engine


def _written(folder: str | None) -> tuple[tuple[str, int], ...]:
    """The files of a local folder, configs and templates too, and when they were written."""
    files = Path(folder).expanduser().glob("*.*") if folder else ()
    return tuple(sorted((str(file.resolve()), file.stat().st_mtime_ns) for file in files))
