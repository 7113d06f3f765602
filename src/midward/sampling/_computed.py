"""What a denoising step computed: the states of its forward.

Shapes: B rows in a step, L positions of the canvas, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from midward.models.language_model import Read

from .step import Reduce

#: Row of a step and column of the canvas of N positions.
Places = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Computed:
    """One forward: step, each row's block, canvas rows [B], also as `numbers`, their ids before it [B, L].

    draws: of each row, the step number that random draws are made under.
    count: how many columns were computed of each row, from `starts` on: [B or 1]; all, or with a cache some.
    read: what is kept of their states: all columns [B, n, D], a run of them, or those that the tokens at `places` are
        chosen from [N, D].
    hidden, unguided: these.
    places: the eligible positions.
    whole: the same of all columns, once somebody asked for them.
    """

    index: int
    blocks: list[tuple[int, int]]
    rows: torch.Tensor
    numbers: list[int]
    draws: list[int]
    ids: torch.Tensor
    starts: list[int]
    count: int
    read: Read | None
    hidden: torch.Tensor
    unguided: torch.Tensor | None
    places: Places
    readings: dict[Reduce, torch.Tensor] = field(default_factory=dict)  # of the eligible positions [N, K]
    whole: Computed | None = None

    def states(self, row: torch.Tensor, column: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Conditional and unconditional states [N, D] at N rows of the pass and columns of the canvas."""
        column = within(self.starts, row, column)
        return self.hidden[row, column], None if self.unguided is None else self.unguided[row, column]


def within(starts: list[int], row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """Columns [N] of the canvas, counted from where their rows' computed ones begin."""
    if len(starts) > 1:
        return column - torch.tensor(starts, device=column.device)[row]
    return column - starts[0] if starts[0] else column
