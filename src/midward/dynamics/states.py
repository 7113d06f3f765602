"""Pooled states: one vector per denoising step and request, reduced on the device; no activation outlives its step.

phi_t is the mean hidden state of the response's tokens at step t (SRI, "step-wise internal states"). Shapes: B rows of
a step, L = P + length positions, D hidden size, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from midward._hints import one_of
from midward.dynamics.config import READINGS
from midward.dynamics.sri import pooled
from midward.errors import InputError
from midward.models import LanguageModel
from midward.sampling import Canvas, Sampling, Step

LAST = -1  # the states after the final norm


def steps_of(model: LanguageModel, sampling: Sampling) -> int:
    """T, the steps of a generation: the settings' own; one a token for autoregressive models, and with a threshold,
    where they hang on the data, as many as there can be."""
    if model.family.kind == "autoregressive" or sampling.threshold is not None:
        return sampling.length
    return sampling.steps


def layers_of(model: LanguageModel) -> dict[str, int]:
    """The numbers of a model's first, middle and last layer for `PooledStates` (of a canvas model, the last)."""
    if model.family.kind == "canvas":
        return {"last": LAST}
    return {"first": 0, "middle": len(_blocks(model)) // 2, "last": LAST}


class Pooling:
    """A watcher that makes phi_t of every step and hands it to `take`; what is kept is the subclass's business.

    layers: LAST (-1) is the state after the final norm; 0 and up, the output of that transformer block.
    reading: which tokens phi_t is the mean of. "response": all positions of the response, masked ones too, as SRI's
        published code has it for diffusion models. "generated", as its paper says it: those that stand after step t,
        forced ones included, up to the first end token (behind it is padding, unless the settings say end="keep");
        before anything stands, all of the response. Their states are of step t's forward, so before its commits. An
        autoregressive model has one reading: the running mean of the states that each token was, or would have been,
        chosen from.
    needs_all_steps: run every scheduled step on every row. False leaves the sampling as it is, and steps that a row
        takes no part in have the state of its step before. Autoregressive rows always end at their end token: nothing
        counts behind it.
    With guidance, states are those of the conditional forward. They are of all positions in every step, so an
    approximate cache is refused.
    """

    needs_states = "response"

    def __init__(
        self, layers: Sequence[int] = (LAST,), *, reading: str = "response", needs_all_steps: bool = True
    ) -> None:
        one_of("reading", reading, READINGS)
        if not layers or any(not isinstance(layer, int) or layer < LAST for layer in layers):
            raise InputError(f"layers are one or more numbers, -1 or above; received {layers!r}.")
        self.layers = tuple(layers)
        self.reading = reading
        self.all_steps = needs_all_steps
        self.needs_all_steps = needs_all_steps
        self._hooks: list[Any] = []
        self._full: dict[int, torch.Tensor] = {}  # layer -> [B or 2B, L, D] of the forward under way, until its step

    # --- for the subclass -----------------------------------------------------------------------------------

    def begin(self, canvas: Canvas) -> None:
        """A batch begins."""

    def take(self, step: Step, at: list[int], rows: torch.Tensor, phi: dict[int, torch.Tensor]) -> None:
        """One step's states, layer -> [B, D] float32 (float64 where the model is).

        at [B]: which of its T steps this is for each row: the schedule's, or with a threshold, the row's own count.
        rows [B]: canvas rows.
        """

    def finish(self, canvas: Canvas) -> None:
        """The batch is over; also after an error."""

    # --- the watcher ----------------------------------------------------------------------------------------

    def on_start(self, canvas: Canvas) -> None:
        """A batch begins: hooks are set where states of inner layers are wanted."""
        self._causal = canvas.model.family.kind == "autoregressive"
        self.needs_all_steps = self.all_steps and not self._causal
        self.steps = steps_of(canvas.model, canvas.sampling)
        ends = canvas.model.family.end_ids if canvas.sampling.end != "keep" else ()
        self._ends = torch.tensor(ends, device=canvas.ids.device, dtype=torch.long)
        self._place = {row.index: place for place, row in enumerate(canvas.rows)}
        self._rows: tuple[list[int], torch.Tensor] | None = None
        own = canvas.sampling.threshold is not None
        self._own_count = dict.fromkeys(self._place, 0) if own else None
        self._even = torch.full_like(canvas.forced, 1 / canvas.length, dtype=torch.float32)
        self._sums: dict[int, torch.Tensor] = {}
        self._count = torch.zeros(len(canvas.rows), 1, device=canvas.ids.device)
        self._hook(canvas.model)
        self.begin(canvas)

    def on_step(self, step: Step) -> None:
        """Pool this step's states and hand them to `take`."""
        rows = self._canvas_rows(step)
        # Masks in the prompt may take more steps than T: the last ones share its place.
        at = [min(step.index, self.steps - 1)] * len(step.rows)
        if self._own_count is not None:  # rows wait for each other between blocks; that mustn't show
            at = [min(self._own_count[row], self.steps - 1) for row in step.rows]
            for row in step.rows:
                self._own_count[row] += 1
        phi = self._running(step, rows) if self._causal else self._means(step, rows)
        self.take(step, at, rows, phi)
        self._full.clear()

    def on_end(self, canvas: Canvas) -> None:
        """The batch is over, or broke off: hooks are removed."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._full.clear()
        self.finish(canvas)

    # --- how it is done -------------------------------------------------------------------------------------

    def _hook(self, model: LanguageModel) -> None:
        """Hold on to what `Step` doesn't show until its step is reported, which is before the next forward."""
        for layer in self.layers:
            if layer == LAST:
                continue  # `Step` shows it
            blocks = _blocks(model)
            if layer >= len(blocks):
                raise InputError(f"{model.name!r} has {len(blocks)} layers; there is no layer {layer} (from 0).")
            self._hooks.append(blocks[layer].register_forward_hook(self._keeper(layer)))

    def _keeper(self, layer: int) -> Callable[..., None]:
        def keep(module: Any, args: Any, output: Any) -> None:
            self._full[layer] = output if isinstance(output, torch.Tensor) else output[0]

        return keep

    def _canvas_rows(self, step: Step) -> torch.Tensor:
        if self._rows is None or self._rows[0] != step.rows:  # made anew only where a row has left
            places = [self._place[row] for row in step.rows]
            self._rows = (list(step.rows), torch.tensor(places, device=step.ids.device))
        return self._rows[1]

    def _means(self, step: Step, rows: torch.Tensor) -> dict[int, torch.Tensor]:
        weights = self._weights(step)
        return {layer: pooled(self._hidden(step, layer), weights) for layer in self.layers}

    def _hidden(self, step: Step, layer: int) -> torch.Tensor:
        """The layer's states [B, length, D] of the response's positions, or [B, 1, D] of an autoregressive model."""
        part = slice(-1, None) if self._causal else step.response
        hidden = step.hidden if layer == LAST else self._full[layer][: len(step.rows), part]
        return hidden.to(torch.promote_types(hidden.dtype, torch.float32))

    def _weights(self, step: Step) -> torch.Tensor:
        """What each position counts in the mean [B, length]."""
        if self.reading == "response":
            return self._even[: len(step.rows)]
        counted = step.committed
        if len(self._ends):
            ids = step.ids[:, step.response]
            is_end = ids == self._ends if len(self._ends) == 1 else torch.isin(ids, self._ends)
            counted = counted & (is_end.cumsum(-1) <= is_end)
        counted = counted | ~counted.any(-1, keepdim=True)  # before anything stands, all of it
        return counted / counted.sum(-1, keepdim=True)

    def _running(self, step: Step, rows: torch.Tensor) -> dict[int, torch.Tensor]:
        """Means over the tokens so far, cut off or not; one behind an end token doesn't count."""
        behind = torch.isin(step.ids[:, step.response][:, : step.block[0]], self._ends).any(-1, keepdim=True)
        self._count[rows] += (~behind).float()
        phi = {}
        for layer in self.layers:
            hidden = self._hidden(step, layer)[:, -1]
            if layer not in self._sums:
                self._sums[layer] = hidden.new_zeros(len(self._count), hidden.shape[1])
            self._sums[layer][rows] += hidden.masked_fill(behind, 0.0)
            phi[layer] = self._sums[layer][rows] / self._count[rows]
        return phi


class PooledStates(Pooling):
    """phi of every request and step of a call to `sample`; see `Pooling` for what phi is and for the arguments.

    `states(row)` is [T, D] on the CPU: a step that a row took no part in has the state of the step before, steps before
    its first one have that one's. A later call to `sample` replaces the rows of an earlier one.
    """

    def __init__(self, layers: Sequence[int] = (LAST,), **options: Any) -> None:
        super().__init__(layers, **options)
        self._states: dict[tuple[int, int], torch.Tensor] = {}  # by request and layer
        self._taken: list[tuple[list[int], list[int], dict[int, torch.Tensor]]] = []

    def take(self, step: Step, at: list[int], rows: torch.Tensor, phi: dict[int, torch.Tensor]) -> None:
        self._taken.append((at, step.rows, phi))

    def finish(self, canvas: Canvas) -> None:
        # request -> (step, entry of _taken, place there) of each step it took part in
        taken: dict[int, list[tuple[int, int, int]]] = {}
        for entry, (at, rows, _) in enumerate(self._taken):
            for place, (index, row) in enumerate(zip(at, rows, strict=True)):
                taken.setdefault(row, []).append((index, entry, place))
        for layer in self.layers:
            columns = [phi[layer].cpu() for _, _, phi in self._taken]
            for row, seen in taken.items():
                states = torch.stack([columns[entry][place] for _, entry, place in seen])  # [steps seen, D]
                last_seen = torch.bucketize(
                    torch.arange(self.steps), torch.tensor([index for index, *_ in seen]), right=True
                )
                self._states[row, layer] = states[(last_seen - 1).clamp(min=0)]
        self._taken = []

    def states(self, row: int, layer: int | None = None) -> torch.Tensor:
        """phi [T, D] of a request. layer: by default the first of `layers`.

        Raises KeyError for a row or layer that wasn't watched, or took part in no step (nothing was open in it).
        """
        layer = self.layers[0] if layer is None else layer
        if (row, layer) not in self._states:
            raise KeyError(f"no states of request {row} at layer {layer}; was it sampled with this watcher?")
        return self._states[row, layer]


def _blocks(model: LanguageModel) -> torch.nn.ModuleList:
    """The transformer blocks in order. Raises InputError where they can't be told."""
    count = model.config.num_hidden_layers
    for module in model.causal_lm.base_model.modules():
        # A canvas model has an encoder's as well.
        if isinstance(module, torch.nn.ModuleList) and len(module) == count and model.family.kind != "canvas":
            return module
    raise InputError(f"the transformer blocks of {model.name!r} can't be found; use layer -1, the last.")
