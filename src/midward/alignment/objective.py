"""What an alignment method is to the trainer: an objective, which makes a loss of a batch.

Shapes: B canvas rows, T canvas length, L response length, R positions whose output the loss reads, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from midward.alignment._head import HeadRows, head_rows, plain_head
from midward.alignment.config import AlignConfig
from midward.alignment.data import Batch
from midward.models import LanguageModel


@dataclass(frozen=True)
class Terms:
    """What an objective says of one micro-batch.

    Attributes:
        loss: Scalar with gradient, a mean over the batch's examples: micro-batches of one size add up to a big one.
        metrics: Name -> (sum, count), without gradient; over micro-batches and processes both are added up.
    """

    loss: Tensor
    metrics: dict[str, tuple[Tensor, int | Tensor]]


class Objective(Protocol):
    """The loss of a method. Built from the model, whose network is a PeftModel, and the `AlignConfig`.

    Attributes:
        METRICS: Names of what it measures, the columns of the training curve.
        needs_reference: Whether it runs the model without its adapter as well.
    """

    METRICS: tuple[str, ...]

    @property
    def needs_reference(self) -> bool: ...

    def __call__(self, batch: Batch) -> Terms: ...

    def warning(self, rows: Sequence[dict[str, float]]) -> str | None:
        """What to tell the user of the curve's rows up to now, or None."""
        ...


class Passes:
    """What the objectives share: passes of the body and sweeps of the head.

    Args:
        model: Its network is a PeftModel.
        config: The settings of the objective.
    """

    def __init__(self, model: LanguageModel, config: AlignConfig) -> None:
        self.model = model
        self.config = config
        self.linear = plain_head(model.network, model.head)

    def states(self, batch: Batch, *, first: int = 0) -> Tensor:
        """The body's output, [R, D], at the positions that the loss reads. first: 0, or how many of the canvas rows are
        of harmful prompts, for the benign rows alone, all of whose positions stand behind those that are scored."""
        mask, width = batch.get("mask"), batch["ids"].shape[1]
        hidden = self.model.hidden(batch["ids"][first:], None if mask is None else mask[first:])
        rows = batch["rows"][len(batch["scored"]) if first else 0 :]
        return hidden.flatten(0, 1)[rows - first * width]

    def reference(self, batch: Batch, *, first: int = 0) -> Tensor:
        """The same with the adapter off, without gradient."""
        with torch.no_grad(), self.model.reference():
            return self.states(batch, first=first)

    def head(self, batch: Batch, hidden: Tensor, reference: Tensor | None, scored: int) -> HeadRows:
        """Log-probabilities at the batch's columns, and with the reference's output the KL. scored: see `head_rows`."""
        return head_rows(self.model.head, hidden, reference, batch["columns"], scored, linear=self.linear)

    def owner(self, batch: Batch) -> Tensor:
        """[R]: the canvas row of each position."""
        return batch["slot"] // self.config.length

    def warning(self, rows: Sequence[dict[str, float]]) -> str | None:
        """Nothing is watched for."""
        return None


def row_sums(values: Tensor, owner: Tensor, rows: int) -> Tensor:
    """[R, ...] to [rows, ...]: the sum over the positions of each row."""
    return values.new_zeros(rows, *values.shape[1:]).index_add(0, owner, values)


def row_means(values: Tensor, owner: Tensor, rows: int) -> Tensor:
    """[R, ...] to [rows, ...]: the mean over the positions of each row, 0 where there are none."""
    # Counted by adding: `torch.bincount` waits for the device.
    counts = row_sums(torch.ones_like(owner), owner, rows).clamp(min=1)
    return row_sums(values, owner, rows) / counts.view(-1, *[1] * (values.dim() - 1))
