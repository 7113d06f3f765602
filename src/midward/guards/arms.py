"""What guards that change the sampling have in common: they give answers of their own, as an arm of a comparison."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from midward.errors import InputError
from midward.guards.config import GuardError
from midward.guards.exchange import Exchange, Look
from midward.guards.guard import Guard
from midward.models import LanguageModel
from midward.sampling import Canvas, Response, Sampling, Step, Watcher, sample

if TYPE_CHECKING:
    from typing import Self


class Progress:
    """A watcher that knows how far each row is; a defence is made on top of it. Shapes: B rows of the canvas.

    number: request -> row of the canvas. open [B, length]: response positions where nothing stood before the first
    step. share [B]: of these, those that stand: the most so far, so that an edit never turns it back. changed: request
    -> positions that the defence changed, over all batches of a call to `sample`.
    """

    needs_all_steps = False

    def __init__(self) -> None:
        self.changed: dict[int, set[int]] = {}

    def on_start(self, canvas: Canvas) -> None:
        self.canvas = canvas
        self.open = canvas.ids[:, canvas.response] == canvas.mask_id
        self.share = torch.zeros(len(canvas.rows), device=canvas.ids.device)
        self.number = {row.index: number for number, row in enumerate(canvas.rows)}

    def rows(self, step: Step) -> list[int]:
        """The numbers of a step's rows in the canvas."""
        return [self.number[request] for request in step.rows]

    def on_step(self, step: Step) -> None:
        rows = self.rows(step)
        standing = (step.committed & self.open[rows]).sum(-1) / self.open[rows].sum(-1).clamp(min=1)
        self.share[rows] = torch.maximum(self.share[rows], standing)

    def on_end(self, canvas: Canvas) -> None:
        pass


class Steering(Progress):
    """One that changes what tokens are chosen from, states (`midward.sampling.Steerer`) or logits (`Adjuster`); it
    marks at which positions."""

    def on_start(self, canvas: Canvas) -> None:
        super().on_start(canvas)
        self.steered_at = torch.zeros_like(self.open)  # [B, length]

    def mark(self, rows: torch.Tensor, positions: torch.Tensor, moved: torch.Tensor) -> None:
        """Note of N places which were `moved`; rows and positions as a `Steerer` has them."""
        moved = moved & (positions >= 0)
        self.steered_at[rows[moved], positions[moved]] = True

    def on_end(self, canvas: Canvas) -> None:
        for row, steered in zip(canvas.rows, self.steered_at.tolist(), strict=True):
            positions = {position for position, is_steered in enumerate(steered) if is_steered}
            if positions:
                self.changed.setdefault(row.index, set()).update(positions)


class Arm(Guard):
    """A guard that steps into the sampling and flags nothing: its answers are what it does.

    Score: the positions of its own answer that it changed. The threshold is the response's length, which no score
    exceeds, so nothing is calibrated, and a comparison still has the scores' AUROC.
    """

    looks: ClassVar[Look] = "during"
    tied_to = ("model", "sampling")
    repairs = True
    #: What it learns: the attribute, its dtype and how many dimensions it has.
    holds: ClassVar[tuple[tuple[str, torch.dtype, int], ...]] = ()

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, dtype, dimensions in self.holds:
            setattr(self, name, torch.zeros([0] * dimensions, dtype=dtype))

    @abstractmethod
    def defence(self) -> Progress:
        """What steps into the sampling, new for each call to `sample`."""

    def bind(self, model: LanguageModel, sampling: Sampling | None = None) -> None:
        self._require_diffusion(model)
        super().bind(model, sampling)

    def fit(
        self,
        model: LanguageModel,
        harmless: Sequence[Exchange],
        *,
        alpha: float = 0.01,
        certain: float | None = None,
        sampling: Sampling | None = None,
        batch_size: int = 8,
    ) -> Self:
        """Bind the guard to a model and sampling; there is nothing to calibrate."""
        self.bind(model, sampling)
        self.threshold = float(self.bound["sampling"]["length"])
        return self

    def score(self, model: LanguageModel, exchanges: Sequence[Exchange], *, batch_size: int = 8) -> np.ndarray:
        sampling = Sampling(**self.bound["sampling"]) if self.bound else Sampling.for_model(model)
        answers = self.answer(model, exchanges, sampling, batch_size=batch_size)
        return np.array([response.verdict.score for response in answers], dtype=float)

    def answer(
        self,
        model: LanguageModel,
        exchanges: Sequence[Exchange],
        sampling: Sampling,
        *,
        batch_size: int = 8,
        watchers: Sequence[Watcher] = (),
    ) -> list[Response]:
        """Responses that were sampled with the defence, which has its turn before the watchers."""
        self._require_diffusion(model)
        defence = self.defence()
        requests = [each.request for each in exchanges]
        responses = sample(model, requests, sampling, batch_size=batch_size, watchers=[defence, *watchers])
        changes = [
            np.nan if response.error else len(defence.changed.get(i, ())) for i, response in enumerate(responses)
        ]
        verdicts = self.verdicts(np.array(changes, dtype=float))
        return [replace(response, verdict=verdict) for response, verdict in zip(responses, verdicts, strict=True)]

    def tensors(self) -> dict[str, np.ndarray]:
        return super().tensors() | {name: getattr(self, name).numpy() for name, *_ in self.holds}

    def restore(self, tensors: Mapping[str, np.ndarray]) -> None:
        learned = {name: torch.from_numpy(tensors[name]) for name, *_ in self.holds}
        super().restore({name: value for name, value in tensors.items() if name not in learned})
        for name, dtype, dimensions in self.holds:
            values = learned[name]
            if (
                values.dtype != dtype
                or values.ndim != dimensions
                or not values.numel()
                or not self.is_sound(name, values)
            ):
                raise InputError(
                    f"it holds {name} of {str(dtype).removeprefix('torch.')} that no {self.name!r} has made"
                )
            setattr(self, name, values)

    def is_sound(self, name: str, values: torch.Tensor) -> bool:
        """Whether values may be what it learned."""
        return True

    def _require_diffusion(self, model: LanguageModel) -> None:
        if model.family.kind != "diffusion":
            raise GuardError(
                f"the guard {self.name!r} steps into masked diffusion; {model.name!r} is "
                f"{'autoregressive' if model.family.kind == 'autoregressive' else 'a model of random canvases'}."
            )
