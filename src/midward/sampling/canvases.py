"""The sampler of models that denoise a canvas of random tokens (DiffusionGemma): their own `generate`, step by step.

It is followed by public means: a logits processor, and a hook on the decoder. Every step draws all tokens of the
canvas, accepts those whose entropies sum to little, and randomises the rest; acceptance starts anew each step, so
nothing is ever committed for good, and the result is the most probable canvas; what an edit writes is the only token
that all later steps can draw there. A `Step` therefore shows: as `ids` the
most probable canvas, as `committed` what this step accepted (and all earlier canvases), as `new` what it accepted and
the step before didn't. Rows run one by one, each under its own seed, so that a batch's other rows don't matter.
Shapes: length response positions, C canvas positions, D hidden size, V vocabulary rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import LogitsProcessor, LogitsProcessorList

from midward.errors import InputError

from .canvas import Canvas, Row
from .choose import COLDEST
from .edits import Filling
from .passes import Pass, Passes
from .requests import Edited
from .settings import Sampling
from .step import Reduce, Step, Watcher


class _Stopped(Exception):
    """A watcher wants no more of the row, or nothing can come of it."""


def refuse(name: str, sampling: Sampling, rows: Sequence[Row]) -> None:
    """Raise InputError for settings and requests that such a model can't follow."""
    names = sampling.unlike(order="entropy", threshold=None, guidance=0, block=None, end="stop", schedule="even")
    if sampling.temperature == 0:
        names = ", ".join(filter(None, (names, f"temperature={sampling.temperature}")))
    if names:
        raise InputError(
            f"{name!r} denoises whole canvases by entropy at a temperature above 0; it can't follow {names}. "
            "Use Sampling.for_model(model)."
        )
    for row in rows:
        if row.request.forced or row.request.bans:
            raise InputError(f"request {row.index}: {name!r} can't follow forced spans or bans.")


def run(canvas: Canvas, watchers: Sequence[Watcher]) -> Passes[None]:
    """Fill the canvas, row by row: all of a row's forwards are one pass."""
    for number in range(len(canvas.rows)):
        yield Pass(_Row(canvas, watchers, number).run)
        canvas.leave([number])


class _Row(Filling, LogitsProcessor):
    """One row of the canvas. Stands among the processors of `generate`'s logits, where it sees every step."""

    def __init__(self, canvas: Canvas, watchers: Sequence[Watcher], number: int) -> None:
        super().__init__(canvas, watchers)
        self.number = number
        self.network: Any = canvas.model.causal_lm
        self.prompt: list[int] = canvas.rows[number].prompt_ids
        self.size: int = self.network.config.canvas_length  # C
        self.count = math.ceil(canvas.length / self.size)
        self.steps = max(1, canvas.sampling.steps // self.count)  # of each canvas
        self.ids = canvas.ids[number : number + 1]  # [1, L], a view
        self.clamped: dict[int, int] = {}  # response position -> token that edits wrote
        self.accepted = torch.zeros(1, canvas.length, dtype=torch.bool, device=self.ids.device)
        self.states: torch.Tensor | None = None  # [1, length, D]
        self.part = slice(0, 0)  # of the response: the canvas that is being denoised
        # Which tokens a step accepts follows from its logits alone, so it is asked again here.
        own = self.network.generation_config.sampler_config
        self.bound = own or transformers.EntropyBoundSamplerConfig(entropy_bound=0.1)  # transformers' own default
        self.sampler: Any = transformers.EntropyBoundSampler(self.bound, self.size, canvas.model.vocab_size, self.steps)

    def run(self) -> None:
        canvas = self.canvas
        every_step = self.every_step or bool(self.planned.left[self.number])
        prompt = torch.tensor([self.prompt], device=self.ids.device)
        hook = self.network.model.decoder.register_forward_hook(self._keep)
        warmest = max(canvas.sampling.temperature, COLDEST)
        self.cooling: Any = transformers.LinearTemperatureScheduleLogitsProcessor(warmest / 2, warmest, self.steps)
        devices = [prompt.device] if prompt.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):
                torch.manual_seed(int(canvas.seeds[self.number]))
                ids = self.network.generate(
                    prompt,
                    max_new_tokens=canvas.length,
                    max_denoising_steps=self.steps,
                    logits_processor=LogitsProcessorList([self]),
                    t_max=warmest,
                    t_min=warmest / 2,
                    sampler_config=self.bound,
                    eos_token_id=list(canvas.model.family.end_ids),
                    pad_token_id=canvas.model.family.pad_id,
                    return_dict_in_generate=False,
                    # No canvas stays the same for more steps than it has.
                    **({"stability_threshold": self.steps + 1} if every_step else {}),
                )
            response = ids[0, len(self.prompt) :][: canvas.length]
            self.ids[:, canvas.response] = canvas.blank
            self.ids[:, canvas.response][:, : len(response)] = response
        except _Stopped:
            pass
        finally:
            hook.remove()

    def _keep(self, module: Any, args: Any, output: Any) -> None:
        """Hold on to the decoder's hidden states [1, C, D]: what a `Step` shows."""
        self.latest = output.last_hidden_state
        if not self.latest.isfinite().all():  # before tokens are drawn by it, which would fail
            self.canvas.broken[self.number] = True
            raise _Stopped

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, cur_step: int) -> torch.Tensor:
        """See one step: input_ids [1, n], all before this canvas; scores [1, C, V]; cur_step counts down to 1."""
        canvas = self.canvas
        # 1. Where this canvas stands in the response; those before it are final.
        done = (input_ids.shape[1] - len(self.prompt)) // self.size
        self.part = slice(done * self.size, min((done + 1) * self.size, canvas.length))
        self.accepted[:, : self.part.start] = True
        before = self.accepted.clone()
        # 2. What it says and accepts.
        self.scores, self.left = scores, int(cur_step)
        self._accept()
        canvas.steps_taken[self.number] += 1
        canvas.forwards[self.number] += 1
        # 3. Edit and show it.
        if self.is_shown:
            # A new tensor: watchers may hold what they were shown.
            states = self.latest.new_zeros(1, canvas.length, self.latest.shape[-1])
            if self.states is not None:
                states[:, : self.part.start] = self.states[:, : self.part.start]
            states[:, self.part] = self.latest[:, : self.part.stop - self.part.start]
            self.states = states
            if self.show(self._report((done + 1) * self.steps - self.left, before)):
                raise _Stopped
        return self.scores

    def _accept(self) -> None:
        """The most probable canvas, and what of it this step accepts: of the logits that tokens are drawn from, which
        `generate` cools after this. What an edit wrote is certain."""
        start, width = self.part.start, self.part.stop - self.part.start
        if clamped := {at - start: token for at, token in self.clamped.items() if start <= at < self.part.stop}:
            self.scores = self.scores.clone()
            self.scores[:, list(clamped)] = -torch.inf
            self.scores[:, list(clamped), list(clamped.values())] = 0.0
        self.cooled = self.cooling(self.prompt, self.scores, self.left)
        tokens = self.cooled.argmax(-1)  # [1, C]
        self.sampler.accept_canvas(tokens, tokens, self.cooled, self.left)
        self.ids[:, self.canvas.response][:, self.part] = tokens[:, :width]
        self.accepted[:, self.part] = self.sampler.accepted_token_mask[:, :width]

    def _written(self) -> torch.Tensor:
        """Where an edit wrote [1, length]."""
        written = torch.zeros_like(self.accepted)
        written[:, list(self.clamped)] = True
        return written

    def committed(self, rows: list[int]) -> torch.Tensor:
        return self.accepted | self._written()

    def place(self, row: int, number: int) -> tuple[tuple[int, int], int]:
        return (self.part.start, self.part.stop), 1

    def changed(self, row: int, edited: Edited, step: Step) -> None:
        """What was written is certain from this step on, which may so accept more."""
        response = self.ids[0, self.canvas.response]
        self.clamped |= {position: int(response[position]) for position in edited.written}
        self._accept()

    def _report(self, index: int, before: torch.Tensor) -> Step:
        canvas, part, states = self.canvas, self.part, self.states
        ids, cooled = self.ids.clone(), self.cooled[:, : self.part.stop - self.part.start]
        raw = self.scores[0, : part.stop - part.start].float()

        def predictions() -> tuple[torch.Tensor, torch.Tensor]:
            confidence = torch.ones(1, canvas.length, device=ids.device)
            confidence[:, part] = cooled.float().softmax(-1).max(-1).values
            return ids[:, canvas.response], confidence

        def reading(reduce: Reduce) -> torch.Tensor:
            """Of the logits that tokens are drawn from, before they are cooled; nothing here is ever closed."""
            values = reduce(raw.clone()).float()
            readings = torch.full((1, canvas.length, values.shape[-1]), torch.nan, device=ids.device)
            readings[0, part] = values
            return readings

        assert states is not None
        new, committed = self.accepted & ~before & ~self._written(), self.committed([self.number])
        return Step(
            index=index,
            of=self.steps * self.count,
            blocks=[(part.start, part.stop)],
            rows=[canvas.rows[self.number].index],
            ids=ids,
            response=canvas.response,
            hidden_positions=slice(0, canvas.length),
            _new=lambda: new,
            _committed=lambda: committed,
            _hidden=lambda: states,
            _predict=predictions,
            _active=lambda: states[:, part],
            _read=reading,
        )
