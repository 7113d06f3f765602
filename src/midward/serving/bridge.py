"""`submit`, `cancel`, `rows` and `waiting` over today's queue, until the engine has them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from midward.guards import Guard
from midward.models import LanguageModel
from midward.sampling import Canvas, Request, Response, Sampling, Step, sample
from midward.serving.queue import Engine

OnPrefix = Callable[[list[int]], bool]


class Bridge(Engine):
    """An engine with the server's interface; a row at a time."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model)
        self.rows = 0
        self.waiting = 0
        self._gone: set[Future[Response]] = set()

    def submit(
        self,
        request: Request,
        sampling: Sampling,
        *,
        batch_size: int,
        guard: Guard | None = None,
        shadow: bool = False,
        on_prefix: OnPrefix | None = None,
    ) -> Future[Response]:
        """One request; see the engine's."""
        watcher = _Prefix(on_prefix)

        def work(items: list[Request]) -> list[Response]:
            self.waiting, self.rows = self.waiting - 1, 1
            try:
                if guard is None:
                    return sample(self.model, items, sampling, watchers=[watcher])
                if shadow:
                    [bare] = sample(self.model, items, sampling)
                    [guarded] = guard.sample(self.model, items, sampling)
                    bare.verdict = guarded.verdict
                    return [bare]
                return guard.sample(self.model, items, sampling, watchers=[watcher])
            finally:
                self.rows = 0

        self.waiting += 1
        future = self.queue.submit(work, request)
        watcher.is_gone = lambda: future in self._gone
        return future

    def cancel(self, future: Future[Response]) -> None:
        """The row leaves."""
        if future.cancel():
            self.waiting -= 1
        else:
            self._gone.add(future)

    def close(self) -> None:
        """No more work."""
        self.queue.close()


class _Prefix:
    """Tells of whole blocks, one step late: the guard looked at the step before by then."""

    needs_all_steps = False
    is_gone: Callable[[], bool]

    def __init__(self, on_prefix: OnPrefix | None) -> None:
        self.on_prefix, self.told, self.ready = on_prefix, 0, 0
        self.shown: list[int] = []

    def on_start(self, canvas: Canvas) -> None:
        family = canvas.model.family
        self.ends, self.causal = family.end_ids, family.kind == "autoregressive"
        self.size = canvas.sampling.block or canvas.sampling.length

    def on_step(self, step: Step) -> None:
        stop = False
        ids: Any = step.ids[0, step.response].tolist()
        stands = step.committed[0].tolist()
        if self.on_prefix is not None and self.ready > self.told:
            self.told = self.ready
            prefix = self.shown
            cut = next((i for i, token in enumerate(prefix) if token in self.ends), len(prefix))
            stop = not self.on_prefix(prefix[:cut])
        count = next((i for i, is_there in enumerate(stands) if not is_there), len(stands))
        self.ready = count if self.causal else count - count % self.size
        self.shown = ids[: self.ready]
        if stop or self.is_gone():
            step.stopped.update(step.rows)

    def on_end(self, canvas: Canvas) -> None:
        pass
