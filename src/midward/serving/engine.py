"""`Engine`: a loaded model behind a `Scheduler`, one for all who ask for the same."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from midward.models import LanguageModel, load
from midward.sampling import Canvas, Forced, Request, Response, Sampling, Step, Trace, Watcher, fill
from midward.sampling.likelihood import Span, SpanScore, span_gradient, span_log_probs
from midward.sampling.passes import Passes
from midward.serving.scheduler import Scheduler, Ticket, results

if TYPE_CHECKING:
    import torch

    from midward.guards import Guard

#: Told of the ids of a response whose blocks up to there stand for good; says whether more is wanted.
OnPrefix = Callable[[list[int]], bool]


class Engine:
    """A loaded model whose network one thread runs, whoever asks.

    Requests come in and leave between denoising steps. fingerprint: the model's. What comes out doesn't depend on what
    else is asked at the same time.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.fingerprint = model.fingerprint
        self.scheduler = Scheduler()
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

    def submit(
        self,
        request: Request,
        sampling: Sampling,
        *,
        batch_size: int,
        guard: Guard | None = None,
        shadow: bool = False,
        on_prefix: OnPrefix | None = None,
        trace: bool = False,
    ) -> Ticket:
        """Have one response sampled.

        Args:
            request: What is asked, with a seed.
            sampling: The settings.
            batch_size: Rows that may be filled at the same time with it, 1 or more.
            guard: Stands in front.
            shadow: It looks on: the response is what it is without, with its verdict.
            on_prefix: Called on the network's thread after steps at which more whole blocks of the response stand, with
                its ids up to there and up to its end token, once the guard has seen the step and stopped nothing. Says
                whether more is wanted: without, the response ends there. It isn't called where blocks may still change
                (edits, canvases), or where the guard may flag the whole when it is done.
            trace: The response gets its `commit_step`.

        Returns:
            The future `Response`; `leave` lets go of it, and its row goes after the next step.

        Raises:
            SchedulerClosed: The process is ending.
        """
        work = _Fill(self.model, sampling, guard, shadow)
        asked = _Asked(request, on_prefix if _streams(self.model, request, guard, shadow) else None, trace)
        return self.scheduler.submit(work, asked, size=len(request.prompt), limit=batch_size)

    async def sample(self, requests: Sequence[Request], sampling: Sampling, **how: Any) -> list[Response]:
        """Sample one response a request, each with a seed. how: as of `submit`, which says what is raised; what
        sampling raises comes too."""
        return await results([self.submit(request, sampling, **how) for request in requests])

    async def score(self, spans: Sequence[Span], **how: Any) -> list[SpanScore]:
        """Score spans, as `span_log_probs` does. The forwards are of these alone: a search goes another way where
        rounding turns two candidates round, so not even that may hang on who else asks."""
        spans = [replace(span, prompt=self.encode(span.prompt)) for span in spans]
        [scores] = await results([self.scheduler.call(lambda: span_log_probs(self.model, spans, **how))])
        return scores

    async def gradient(self, span: Span, slots: Sequence[int], **how: Any) -> torch.Tensor:
        """The span's gradient [slots, V], as `span_gradient` gives it."""
        span = replace(span, prompt=self.encode(span.prompt))
        [gradient] = await results([self.scheduler.call(lambda: span_gradient(self.model, span, slots, **how).cpu())])
        return gradient


@dataclass(frozen=True)
class _Asked:
    """One request, who is told of its blocks, and whether it is traced."""

    request: Request
    on_prefix: OnPrefix | None
    trace: bool


@dataclass(frozen=True)
class _Fill:
    """The run that samples requests of equal settings."""

    model: LanguageModel
    sampling: Sampling
    guard: Guard | None
    shadow: bool

    def start(self, tickets: Sequence[Ticket], leaves: Callable[[dict[int, Response]], None]) -> Passes[list[Response]]:
        requests = [ticket.item.request for ticket in tickets]
        watchers: list[Watcher] = [_Listener(tickets)]
        if any(ticket.item.trace for ticket in tickets):
            trace = Trace()
            watchers.append(trace)

            def leave(results: dict[int, Response]) -> None:
                asked = {place for place in results if tickets[place].item.trace}
                steps = {place: trace.commit_step[place].tolist() for place in asked & trace.commit_step.keys()}
                leaves({place: replace(each, commit_step=steps.get(place)) for place, each in results.items()})

        how: dict[str, Any] = {"batch_size": len(tickets), "watchers": watchers}
        how["leaves"] = leave if len(watchers) > 1 else leaves
        if self.guard is None:
            return fill(self.model, requests, self.sampling, **how)
        return self.guard.fill(self.model, requests, self.sampling, shadow=self.shadow, **how)


def _streams(model: LanguageModel, request: Request, guard: Guard | None, shadow: bool) -> bool:
    """Whether what stands in a whole block is sure to stand in the response."""
    sure = guard is None or shadow or guard.decides_at_steps or (guard.looks == "before" and not guard.repairs)
    return sure and not request.edits and model.family.kind != "canvas"


class _Listener:
    """The watcher that lets go of rows that nobody waits for, and tells of blocks that stand. It sees a step last."""

    needs_all_steps = False
    needs_states = "none"

    def __init__(self, tickets: Sequence[Ticket]) -> None:
        self.tickets = tickets
        self.told = [0] * len(tickets)  # positions

    def on_start(self, canvas: Canvas) -> None:
        self.canvas = canvas

    def on_step(self, step: Step) -> None:
        step.stopped.update(row for row in step.rows if self.tickets[row].left)
        told = [
            place
            for place, row in enumerate(step.rows)
            if self.tickets[row].item.on_prefix is not None and row not in step.stopped | step.unseen
        ]
        if not told:
            return
        # 1. How far each row stands without a gap: one small reading of the device.
        standing = step.committed[told].int().cumprod(-1).sum(-1).tolist()
        for place, stands in zip(told, standing, strict=True):
            row, (start, stop) = step.rows[place], step.blocks[place]
            # 2. To the end of its block, or of the one before.
            whole = stop if stands >= stop else min(start, stands)
            if whole <= self.told[row]:
                continue
            self.told[row] = whole
            ids = step.ids[place, step.response][:whole].tolist()
            end = None if self.canvas.sampling.end == "keep" else self.canvas.model.end_of(ids)
            if not self.tickets[row].item.on_prefix(ids[:end]):
                step.stopped.add(row)

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
