"""Looks at a generation, block by block, on a grid of progress: free of how many steps a block takes.

Decoding by blocks has its own clock: a block takes from one to as many steps as it has positions, and only its states
are sure to be computed. So what a guard reads is indexed by (block, look), not by step:

    1  progress  u = 1 - masks left / positions that were open when the block began; its largest value so far, so that
                 nothing that is masked again turns time back
    2  looks     at the block's first forward (look 0, before its commits), then at the first step with u >= 1/8, 1/4,
                 1/2, 3/4, 1. A step that passes several of them is all of them
    3  phi       the mean state of the positions that stand, of this step's forward; all that are open, where none does.
                 Short blocks are read together with those before, so that a look sees about 32 positions

[ours]: SRI's paper indexes by step. An autoregressive model's block is 32 tokens, and u the share of them written; of a
canvas that is denoised as a whole (DiffusionGemma), u is the share accepted.

Shapes: B rows of a step, n positions of a block, D hidden size, R rows that are looked at, J looks, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from midward.models import LanguageModel
from midward.sampling import Canvas, Sampling, Step

#: Progress at which a block is looked at.
GRID = (0.0, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
#: Blocks are told apart as the first, the second and all later ones.
CLASSES = 3
#: Positions that a look sees, about.
POSITIONS = 32


def class_of(block: int) -> int:
    """Of a block's number, from 0, the class: 0 first, 1 second, 2 later."""
    return min(block, CLASSES - 1)


def block_size(model: LanguageModel, sampling: Sampling) -> int:
    """Positions of a block: the sampling's; of a canvas, or 32 tokens of an autoregressive model."""
    if model.family.kind == "autoregressive":
        return POSITIONS
    if model.family.kind == "canvas":
        return int(model.config.canvas_length)
    return sampling.block or sampling.length


@dataclass
class Look:
    """One or more looks at one step, as a reader gets them; entry r of each list is one look of one row.

    rows: places in the step's batch. blocks: number of the block, from 0. looks: grid points, from 0. first: whether
    these are looks 0, before the step's commits. phi [R, D] float32 on the device.
    """

    step: Step
    rows: list[int]
    blocks: list[int]
    looks: list[int]
    first: bool
    phi: torch.Tensor


class Reader(Protocol):
    """Makes numbers of looks. width: F, how many of one look."""

    width: int

    def __call__(self, look: Look) -> np.ndarray:
        """Features [R, F] of R looks, on the host."""


@dataclass
class _Block:
    """A block of a row. passed: grid points that were looked at."""

    number: int
    start: int
    stop: int
    progress: float = 0.0
    passed: int = 0


@dataclass
class Followed:
    """What is kept of one request. features: by (block, look); steps: of each look, the row's own number of the step,
    from 0; taken: steps so far."""

    features: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    steps: dict[tuple[int, int], int] = field(default_factory=dict)
    taken: int = 0

    def table(self, width: int) -> np.ndarray:
        """[blocks, J, F + 1]: the features of every look, and the step; NaN where it wasn't looked at."""
        count = 1 + max((block for block, _ in self.features), default=-1)
        table = np.full((count, len(GRID), width + 1), np.nan)
        for at, values in self.features.items():
            table[at] = [*values, self.steps[at]]
        return table


#: Told after each step at which something was looked at: the step, what was followed of its rows [B], and the looks
#: taken now, as (place in the step's batch, block, look).
OnLook = Callable[[Step, Sequence[Followed], Sequence[tuple[int, int, int]]], None]


class Looks:
    """A watcher that looks at every request's blocks and has a reader make numbers of what it sees.

    `signal(row)` is the table [blocks, J, F + 1] of a request. States are those of the active block, so that no cache
    is in the way and no forward is added.

    Args:
        reader: its `on_start(canvas)` and `on_step(step)`, where it has them, are called before any look.
        on_look: called after each step with looks, so that a guard may decide.
    """

    needs_all_steps = False

    def __init__(self, reader: Reader, *, on_look: OnLook | None = None) -> None:
        self.reader = reader
        self.on_look = on_look
        self._followed: dict[int, Followed] = {}
        self._begin = getattr(reader, "on_start", None)
        self._watch = getattr(reader, "on_step", None)

    def signal(self, row: int) -> torch.Tensor:
        """[blocks, J, F + 1] of a request, float64: features, and the step. Raises KeyError for one not watched."""
        return torch.from_numpy(self._followed[row].table(self.reader.width))

    # --- the watcher ----------------------------------------------------------------------------------------

    def on_start(self, canvas: Canvas) -> None:
        self._causal = canvas.model.family.kind == "autoregressive"
        self._size = block_size(canvas.model, canvas.sampling)
        together = math.ceil(POSITIONS / self._size)  # blocks that are read as one
        # Of each row's last blocks: sum of w h [D], and of w, at the last look (of an autoregressive row, token).
        sums = len(canvas.rows), together, canvas.model.hidden_size + 1
        self._sums = torch.zeros(sums, device=canvas.ids.device)
        ends = canvas.model.family.end_ids if canvas.sampling.end != "keep" else ()
        self._ends = torch.tensor(ends, device=canvas.ids.device, dtype=torch.long)
        self._open = torch.zeros_like(canvas.forced)  # [rows, length]: what each row's block had to fill
        self._place = {row.index: place for place, row in enumerate(canvas.rows)}
        self._blocks: dict[int, dict[int, _Block]] = {row.index: {} for row in canvas.rows}
        self._followed |= {row.index: Followed() for row in canvas.rows}
        if self._begin is not None:
            self._begin(canvas)

    def on_step(self, step: Step) -> None:
        if self._watch is not None:
            self._watch(step)
        # 1. The block of each row, and what it has to fill where that begins now.
        blocks, begun = [], []
        for place, row in enumerate(step.rows):
            block, is_new = self._enter(row, step.blocks[place])
            blocks.append(block)
            begun += [place] if is_new else []
        places = [self._place[row] for row in step.rows]
        if begun:
            stood = (step.committed & ~step.new)[begun]
            columns = torch.arange(stood.shape[1], device=stood.device)
            spans = torch.tensor([(blocks[place].start, blocks[place].stop) for place in begun], device=stood.device)
            within = (columns >= spans[:, :1]) & (columns < spans[:, 1:])
            rows = [places[place] for place in begun]
            self._open[rows] = within & ~stood
            self._sums[rows, [blocks[place].number % self._sums.shape[1] for place in begun]] = 0
        is_open = self._open[places]
        # 2. How far each is: one small reading of the device.
        counts = torch.stack([is_open.sum(-1), (is_open & step.committed).sum(-1)], -1).tolist()
        # 3. Look 0 where a block begins; then the grid points that are reached.
        begins = [(place, 0) for place in begun if counts[place][0]]
        reached = []
        for place, (block, (total, standing)) in enumerate(zip(blocks, counts, strict=True)):
            if total:
                block.passed = max(block.passed, 1)
                block.progress = max(block.progress, standing / total)
                while block.passed < len(GRID) and block.progress >= GRID[block.passed]:
                    reached.append((place, block.passed))
                    block.passed += 1
        # 4. Their states and features.
        taken = []
        for points, first in ((begins, True), (reached, False)):
            always = self._causal and not first  # each of its tokens is seen once
            seen = list(range(len(blocks))) if always else sorted({place for place, _ in points})
            if not seen:
                continue
            at = [places[place] for place in seen], [blocks[place].number % self._sums.shape[1] for place in seen]
            phi = self._states(step, seen, at, is_open[seen], first)
            if points:
                rows = [place for place, _ in points]
                looks = [look for _, look in points]
                numbers = [blocks[place].number for place in rows]
                features = self.reader(Look(step, rows, numbers, looks, first, phi[[seen.index(row) for row in rows]]))
                for place, number, look, values in zip(rows, numbers, looks, features, strict=True):
                    followed = self._followed[step.rows[place]]
                    followed.features[number, look] = values
                    followed.steps[number, look] = followed.taken
                    taken.append((place, number, look))
        followed_rows = [self._followed[row] for row in step.rows]
        for followed in followed_rows:
            followed.taken += 1
        if taken and self.on_look is not None:
            self.on_look(step, followed_rows, taken)

    def on_end(self, canvas: Canvas) -> None:
        self._blocks = {}

    # --- inside ---------------------------------------------------------------------------------------------

    def _enter(self, row: int, active: tuple[int, int]) -> tuple[_Block, bool]:
        """The block that a row is in, and whether it begins now. One that it comes back to goes on."""
        start, stop = active
        number = start // self._size if self._causal else math.ceil(start / self._size)
        if self._causal:
            start, stop = number * self._size, (number + 1) * self._size
        blocks = self._blocks[row]
        is_new = number not in blocks
        return blocks.setdefault(number, _Block(number, start, stop)), is_new

    def _states(
        self, step: Step, seen: list[int], at: tuple[list[int], list[int]], is_open: torch.Tensor, first: bool
    ) -> torch.Tensor:
        """phi [R, D] of R rows. at: the canvas row and the place in `_sums` of each. is_open [R, length]."""
        # 1. What each position of the active block counts.
        whole = len(seen) == len(step.rows)
        hidden = (step.active_hidden if whole else step.active_hidden[seen]).float()  # [R, n, D]
        spans = torch.tensor([step.blocks[place] for place in seen], device=hidden.device)
        columns = spans[:, :1] + torch.arange(hidden.shape[1], device=hidden.device)
        inside = columns < spans[:, 1:]
        columns = columns.clamp(max=is_open.shape[1] - 1)
        counted = is_open.gather(1, columns) & inside
        if self._causal:
            counted = inside if first else counted
        elif not first:
            stands = counted & step.committed[seen].gather(1, columns)
            is_end = torch.isin(step.ids[:, step.response][seen].gather(1, columns), self._ends) & stands
            stands &= is_end.cumsum(-1) <= is_end
            counted = torch.where(stands.any(-1, keepdim=True), stands, counted)
        weights = counted.float()
        sums = torch.cat([torch.bmm(weights[:, None], hidden)[:, 0], weights.sum(-1, keepdim=True)], -1)  # [R, D + 1]
        # 2. With the tokens before, of an autoregressive block, and the blocks before, of short ones.
        if first:
            sums = sums + self._sums[at[0]].sum(1)
        else:
            self._sums[at] = sums + self._sums[at] if self._causal else sums
            sums = self._sums[at[0]].sum(1)
        return sums[:, :-1] / sums[:, -1:].clamp(min=1)
