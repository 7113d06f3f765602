"""The sampler of models that denoise a canvas of random tokens (DiffusionGemma): their own `generate`, step by step.

Every step draws all tokens of the canvas, accepts those whose entropies sum to little, and randomises the rest;
acceptance starts anew each step, so nothing is ever committed for good, and the result is the most probable canvas.
A `Step` therefore shows: as `ids` the most probable canvas, as `committed` what this step accepted (and all earlier
canvases), as `new` what it accepted and the step before didn't. Rows run one by one, each under its own seed, so that a
batch's other rows don't matter. Shapes: length response positions, C canvas positions, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from midward.errors import InputError

from .canvas import Canvas, Row
from .choose import COLDEST
from .settings import Sampling
from .step import Step, Watcher


class _Stopped(Exception):
    """A watcher wants no more of the row, or nothing can come of it."""


def refuse(name: str, sampling: Sampling, rows: Sequence[Row]) -> None:
    """Raise InputError for settings and requests that such a model can't follow."""
    wrong = {
        "order": sampling.order != "entropy",
        "threshold": sampling.threshold is not None,
        "guidance": sampling.guidance != 0,
        "block": sampling.block is not None,
        "end": sampling.end != "stop",
        "schedule": sampling.schedule != "even",
        "temperature": sampling.temperature == 0,
    }
    names = ", ".join(f"{key}={getattr(sampling, key)!r}" for key, is_wrong in wrong.items() if is_wrong)
    if names:
        raise InputError(
            f"{name!r} denoises whole canvases by entropy at a temperature above 0; it can't follow {names}. "
            "Use Sampling.for_model(model)."
        )
    for row in rows:
        if row.request.forced or row.request.bans:
            raise InputError(f"request {row.index}: {name!r} can't follow forced spans or bans.")


def run(canvas: Canvas, watchers: Sequence[Watcher]) -> None:
    """Fill the canvas, row by row."""
    for number in range(len(canvas.rows)):
        _Row(canvas, watchers, number).run()


class _Row:
    def __init__(self, canvas: Canvas, watchers: Sequence[Watcher], number: int) -> None:
        self.canvas, self.watchers, self.number = canvas, watchers, number
        self.network: Any = canvas.model.causal_lm
        self.size: int = self.network.config.canvas_length
        self.count = math.ceil(canvas.length / self.size)
        self.steps = max(1, canvas.sampling.steps // self.count)  # of each canvas
        self.ids = canvas.ids[number : number + 1].clone()
        self.accepted = torch.zeros(1, canvas.length, dtype=torch.bool, device=self.ids.device)
        self.states: torch.Tensor | None = None  # [1, length, D]
        self.done = 0  # canvases finished

    def run(self) -> None:
        canvas, row = self.canvas, self.canvas.rows[self.number]
        every_step = any(watcher.needs_all_steps for watcher in self.watchers)
        prompt = torch.tensor([row.prompt_ids], device=self.ids.device)
        own = self.network._denoising_step
        self.network._denoising_step = lambda **given: self._step(own, **given)
        hook = self.network.model.decoder.register_forward_hook(self._keep)
        temperature = max(canvas.sampling.temperature, COLDEST)
        devices = [prompt.device] if prompt.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):
                torch.manual_seed(int(canvas.seeds[self.number]))
                ids = self.network.generate(
                    prompt,
                    max_new_tokens=canvas.length,
                    max_denoising_steps=self.steps,
                    t_max=temperature,
                    t_min=temperature / 2,
                    eos_token_id=list(canvas.model.family.end_ids),
                    pad_token_id=canvas.model.family.pad_id,
                    return_dict_in_generate=False,
                    # A threshold of None would be replaced by the default one.
                    **({"confidence_threshold": 1e-9} if every_step else {}),
                )
            response = ids[0, len(row.prompt_ids) :][: canvas.length]
            canvas.ids[self.number, canvas.width : canvas.width + len(response)] = response
        except _Stopped:
            canvas.ids[self.number] = self.ids[0]
        finally:
            hook.remove()
            del self.network._denoising_step  # the class's own is seen again

    def _keep(self, module: Any, args: Any, output: Any) -> None:
        """Hold on to the decoder's hidden states [1, C, D]: what a `Step` shows."""
        canvas, hidden = self.canvas, output.last_hidden_state
        if not hidden.isfinite().all():  # before tokens are drawn by it, which would fail
            canvas.broken[self.number] = True
            raise _Stopped
        if self.states is None:
            self.states = hidden.new_zeros(1, canvas.length, hidden.shape[-1])
        start = self.done * self.size
        part = self.states[:, start : start + self.size]
        part.copy_(hidden[:, : part.shape[1]])

    def _step(self, own: Any, **given: Any) -> Any:
        result = own(**given)
        _, tokens, logits, _ = result
        canvas, left = self.canvas, int(given["cur_step"])
        start = self.done * self.size
        stop = min(start + self.size, canvas.length)
        self.ids[:, canvas.width + start : canvas.width + stop] = tokens[:, : stop - start]
        before = self.accepted.clone()
        self.accepted[:, start:stop] = given["sampler"].accepted_token_mask[:, : stop - start]
        canvas.steps_taken[self.number] += 1
        canvas.forwards[self.number] += 1
        if self.watchers and self.states is not None:
            self._report(self.done * self.steps + self.steps - left, (start, stop), before, logits)
        if left == 1 or bool(result[3].all()):
            self.accepted[:, start:stop] = True
            self.done += 1
        return result

    def _report(self, index: int, block: tuple[int, int], before: torch.Tensor, logits: torch.Tensor) -> None:
        canvas, (start, stop) = self.canvas, block
        ids = self.ids.clone()

        def predictions() -> tuple[torch.Tensor, torch.Tensor]:
            confidence = torch.ones(1, canvas.length, device=ids.device)
            confidence[:, start:stop] = logits[:, : stop - start].float().softmax(-1).max(-1).values
            return ids[:, canvas.response], confidence

        assert self.states is not None
        states = self.states
        step = Step(
            index=index,
            of=self.steps * self.count,
            block=block,
            rows=[canvas.rows[self.number].index],
            ids=ids,
            response=canvas.response,
            new=self.accepted & ~before,
            committed=self.accepted.clone(),
            hidden_positions=slice(0, canvas.length),
            _hidden=lambda: states,
            _predict=predictions,
        )
        for watcher in self.watchers:
            watcher.on_step(step)
        if step.stopped:
            raise _Stopped
