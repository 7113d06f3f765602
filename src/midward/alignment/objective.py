"""What an alignment method is to the trainer: an objective, which makes a loss of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from midward.alignment.data import Batch


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
