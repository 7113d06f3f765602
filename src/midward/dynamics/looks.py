"""Looks at a generation, block by block, on a grid of progress: free of how many steps a block takes.

Decoding by blocks has its own clock: a block takes from one to as many steps as it has positions, and only its states
are sure to be computed. So what a guard reads is indexed by (block, look), not by step:

    1  progress  u = 1 - masks left / positions that were open when the block began; its largest value so far, so that
                 nothing that is masked again turns time back
    2  looks     at the block's first forward (look 0, before its commits), then at the first step with u >= 1/8, 1/4,
                 1/2, 3/4, 1. A step that passes several of them is all of them. Each later step that changes the
                 block, which is full then, is one more look, of the same place as the last
    3  phi       the mean state of the positions that stand, of this step's forward; all that are open, where none does.
                 Short blocks are read together with those before, so that a look sees about 32 positions

[ours]: SRI's paper indexes by step. An autoregressive model's block is 32 tokens, and u the share of them written; of a
canvas that is denoised as a whole (DiffusionGemma), u is the share accepted.

Shapes: B rows of a step, n positions of a block, D hidden size, R rows that are looked at, J looks, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch

from midward.models import LanguageModel
from midward.sampling import Canvas, Sampling, Step

#: Progress at which a block is looked at; looks behind these are of steps that changed it once it was full.
GRID = (0.0, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
LAST = len(GRID) - 1
#: Blocks are told apart as the first, the second and all later ones.
CLASSES = 3
#: Positions that a look sees, about.
POSITIONS = 32
#: Of how many steps the looks may wait for one another.
STEPS = 16


def class_of(block: int) -> int:
    """Of a block's number, from 0, the class: 0 first, 1 second, 2 later."""
    return min(block, CLASSES - 1)


def judged_as(look: int) -> int:
    """The grid point that a look is judged as: its own, and of a change of a full block the last."""
    return min(look, LAST)


def so_far(look: int) -> list[int]:
    """The looks of a block that one is judged with: those before the grid point that it is judged as, and itself."""
    return [*range(judged_as(look)), look]


def block_size(model: LanguageModel, sampling: Sampling) -> int:
    """Positions of a block: the sampling's; of a canvas, or 32 tokens of an autoregressive model."""
    if model.family.kind == "autoregressive":
        return POSITIONS
    if model.family.kind == "canvas":
        return model.family.attention_block or sampling.length
    return sampling.block or sampling.length


@dataclass
class Look:
    """One or more looks at one step, as a reader gets them; entry r of each list is one look of one row.

    rows: places in the step's batch. requests: index of each. blocks: number of the block, from 0. looks: grid points,
    from 0; from 6 on, changes of a full block. first: whether these are looks 0, before the step's commits. phi [R, D]
    float32 on the host. step: None unless the reader `reads_step`.
    """

    rows: list[int]
    requests: list[int]
    blocks: list[int]
    looks: list[int]
    first: bool
    phi: np.ndarray
    step: Step | None = None


class Reader(Protocol):
    """Makes numbers of looks. width: F, how many of one look.

    reads_step (may be missing): whether it needs the step that a look is of.
    project (may be missing): of sums of states [B, D] on their device, the few numbers [B, K] in their place that it
        needs; it is linear, and phi of a look is [R, K] then.
    """

    width: int

    def __call__(self, look: Look) -> np.ndarray | Sequence[Sequence[float]]:
        """Features [R, F] of R looks, on the host."""


@dataclass
class _Block:
    """How far a block of a row is. passed: grid points, and changes behind the last, that were looked at. due: how many
    positions stand at the next one, so that what is masked again turns no time back."""

    due: int = 0
    passed: int = 0


@dataclass
class Followed:
    """What is kept of one request. features: by (block, look); steps: of each look, the row's own number of the step,
    from 0; taken: steps so far. last: the step behind which nothing counts, of one that is stopped there."""

    features: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    steps: dict[tuple[int, int], int] = field(default_factory=dict)
    taken: int = 0
    last: int | None = None

    def so_far(self, block: int, look: int) -> list[np.ndarray]:
        """The features that a block's look is judged by, see `so_far`."""
        return [self.features[block, point] for point in so_far(look)]

    def table(self, width: int) -> np.ndarray:
        """[blocks, J, F + 1]: the features of every look, and the step; NaN where it wasn't looked at. J: those of the
        grid, and as many as a full block was changed."""
        steps = {at: step for at, step in self.steps.items() if self.last is None or step <= self.last}
        blocks = 1 + max((block for block, _ in steps), default=-1)
        table = np.full((blocks, max([LAST, *(look for _, look in steps)]) + 1, width + 1), np.nan)
        for at, step in steps.items():
            table[at] = [*self.features[at], step]
        return table


def number_of(start: int, size: int) -> int:
    """The number of the block of a response, from 0, that begins at a position; the first may be shorter."""
    return math.ceil(start / size)


def up_to_end(stands: torch.Tensor, ids: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Of what stands in blocks [R, n], all but what is behind an end token."""
    is_end = (ids == ends if len(ends) == 1 else torch.isin(ids, ends)) & stands
    return stands & (is_end.cumsum(-1) <= is_end)


#: Of each place of a step, the sum of w h [D], or what a reader projects it to, and of w.
Pooled = tuple[Sequence[Any] | np.ndarray, Sequence[float]]


class BlockLooks:
    """Which looks a step takes at its rows' blocks, and what a reader makes of them, whoever samples.

    Args:
        reader: makes numbers of looks.
        followed: what is kept of each row [rows]; filled here.
        size: positions of a block.
        causal: each token of a block is seen once, as of an autoregressive model.
        requests: index of each row's request [rows]; unless given, the row's number.
    """

    def __init__(
        self,
        reader: Reader,
        followed: Sequence[Followed],
        size: int,
        *,
        causal: bool = False,
        requests: Sequence[int] = (),
    ) -> None:
        self.reader = reader
        self._requests = requests or range(len(followed))
        self.followed = followed
        self.causal = causal
        self._together = math.ceil(POSITIONS / size)  # blocks that are read as one
        # Of each row's last blocks: sum of w h, and of w, at the last look (of an autoregressive row, token).
        self._sums: list[list[tuple[Any, float]]] = [[(0.0, 0.0)] * self._together for _ in followed]
        self._blocks: list[dict[int, _Block]] = [{} for _ in followed]

    def begin(self, rows: Sequence[int], blocks: Sequence[int]) -> list[int]:
        """At which places of a step a block begins now; one that a row comes back to goes on. To be called where blocks
        aren't those of the step before.

        Args:
            rows: which of the rows each place of the step is.
            blocks: the number of the block that each is in.
        """
        begun = [place for place, row in enumerate(rows) if blocks[place] not in self._blocks[row]]
        for place in begun:
            self._blocks[rows[place]][blocks[place]] = _Block()
        return begun

    def take(
        self,
        rows: Sequence[int],
        blocks: Sequence[int],
        counts: Sequence[Sequence[int]],
        begun: Sequence[int],
        pooled: Callable[[bool], Pooled],
        changed: Callable[[int], bool],
        step: Step | None = None,
    ) -> list[tuple[int, int, int]]:
        """The looks of a step, as (place, block, look).

        Args:
            rows, blocks: as of `begin`.
            counts: of each block, how many positions it had to fill, and how many of those stand now.
            begun: what `begin` said of this step.
            pooled: asked whether before the step's commits or after them.
            changed: asked of a place whose block was full before, whether the step changed what stands there. Where
                nothing does any more there is nothing to look at; nor where each token is seen once.
            step: for a reader that needs it.
        """
        # 1. Look 0 where a block begins; then the grid points that are reached, or the change of what was full.
        for place in begun:
            self._sums[rows[place]][blocks[place] % self._together] = (0.0, 0.0)
        begins = [(place, 0) for place in begun if counts[place][0]]
        reached = []
        for place, (total, now) in enumerate(counts):
            block = self._blocks[rows[place]][blocks[place]]
            if now < block.due or not total:
                continue
            if block.passed >= len(GRID):
                if not self.causal and changed(place) and now:
                    reached.append((place, block.passed))
                    block.passed += 1
                continue
            block.passed = max(block.passed, 1)
            while block.passed < len(GRID) and now >= GRID[block.passed] * total:
                reached.append((place, block.passed))
                block.passed += 1
            block.due = math.ceil(GRID[block.passed] * total) if block.passed < len(GRID) else 0
        # 2. Their states and features.
        taken = []
        for points, first in ((begins, True), (reached, False)):
            seen = {place for place, _ in points}
            if self.causal and not first:  # each of its tokens is seen once
                seen = {*range(len(rows))}
            if not seen:
                continue
            sums, weights = pooled(first)
            phi = {at: self._phi(rows[at], blocks[at], sums[at], weights[at], first) for at in seen}
            if points:
                places, looks = [place for place, _ in points], [look for _, look in points]
                numbers = [blocks[place] for place in places]
                states = np.array([phi[place] for place in places])
                asked = [self._requests[rows[place]] for place in places]
                features = self.reader(Look(places, asked, numbers, looks, first, states, step))
                for place, number, look, values in zip(places, numbers, looks, features, strict=True):
                    followed = self.followed[rows[place]]
                    followed.features[number, look] = values
                    followed.steps[number, look] = followed.taken
                    taken.append((place, number, look))
        for row in rows:
            self.followed[row].taken += 1
        return taken

    def _phi(self, row: int, block: int, total: Any, weight: float, first: bool) -> Any:
        """phi of a row's sums: with the tokens before, of an autoregressive block, and the blocks before, of short
        ones."""
        sums, slot = self._sums[row], block % self._together
        if self.causal and not first:
            total, weight = total + sums[slot][0], weight + sums[slot][1]
        if not first:
            sums[slot] = total, weight
        for place, (others, more) in enumerate(sums):
            if place != slot and more:
                total, weight = total + others, weight + more
        return total / max(weight, 1)


#: Told of looks that were taken, as (request, block, look), and of what was followed of each request so far. Returns
#: the requests that no more is wanted of.
OnLook = Callable[[Sequence[tuple[int, int, int]], Mapping[int, Followed]], Iterable[int]]


@dataclass
class _Seen:
    """The rows of steps, and their blocks, until some leave or begin another.

    requests [B], spans [B]: of each. rows: of the canvas. blocks: their numbers.
    """

    requests: list[int]
    spans: list[tuple[int, int]]
    rows: list[int]
    blocks: list[int]

    @property
    def span(self) -> slice | None:
        """The positions of the response that all blocks have; None where they differ."""
        return slice(*self.spans[0]) if self.spans == self.spans[:1] * len(self.spans) else None


@dataclass
class _Waiting:
    """A step whose looks aren't taken yet, and what they are taken of.

    begun: at which places a block begins. ids [B, L]: the canvas. committed [B, length]: what stands; None where that
    is whatever isn't masked. states [B, n, D]: of the blocks, n the longest.
    """

    seen: _Seen
    begun: list[int]
    ids: torch.Tensor
    committed: torch.Tensor | None
    states: torch.Tensor

    def block(self, place: int) -> tuple[torch.Tensor, int, tuple[int, int]]:
        """Where a row's block stands: canvas [B, L], its row, and the span of the response. Nobody writes there."""
        return self.ids, place, self.seen.spans[place]


class Looks:
    """A watcher that looks at every request's blocks and has a reader make numbers of what it sees.

    `signal(row)` is the table [blocks, J, F + 1] of a request. States are those of the active block, so that no cache
    is in the way and no forward is added.

    To take the looks of many steps costs about as much as of one, so those of up to `STEPS` steps wait for one another;
    never that of a block's begin, nor any before it, so a block is looked at by the first step of the next one.

    Args:
        reader: its `on_start(canvas)` and `on_step(step)`, where it has them, are called before any look; its `reduce`
            is the watcher's. Where it `reads_step`, no look waits.
        on_look: called after looks were taken, so that a guard may decide.
    """

    needs_all_steps = False
    needs_states = "block"

    def __init__(self, reader: Reader, *, on_look: OnLook | None = None) -> None:
        self.reader = reader
        self.on_look = on_look
        self._followed: dict[int, Followed] = {}
        self._waiting: list[_Waiting] = []
        self._full: dict[int, tuple[torch.Tensor, int, tuple[int, int]]] = {}  # by request, its last full block
        self._stopped: set[int] = set()
        self._begin: Callable[[Canvas], None] = getattr(reader, "on_start", lambda canvas: None)
        self._watch: Callable[[Step], None] = getattr(reader, "on_step", lambda step: None)
        self._project = getattr(reader, "project", None)
        self._reads_step = getattr(reader, "reads_step", False)
        self.reduce = getattr(reader, "reduce", None)

    def signal(self, row: int) -> torch.Tensor:
        """[blocks, J, F + 1] of a request, float64: features, and the step. Raises KeyError for one not watched."""
        self._take()
        return torch.from_numpy(self._followed[row].table(self.reader.width))

    # --- the watcher ----------------------------------------------------------------------------------------

    def on_start(self, canvas: Canvas) -> None:
        self._size = block_size(canvas.model, canvas.sampling)
        self._device = canvas.ids.device
        ends = canvas.model.family.end_ids if canvas.sampling.end != "keep" else ()
        self._ends = torch.tensor(ends, device=self._device, dtype=torch.long)
        self._open = torch.zeros_like(canvas.forced)  # [rows, length]: what the blocks that have begun had to fill
        self._totals = [0] * len(canvas.rows)  # how much that is of each row's block
        self._stopped, self._full = set(), {}
        self._seen = _Seen([], [], [], [])
        self._response = canvas.response
        self._mask_id = canvas.mask_id
        self._place = {row.index: place for place, row in enumerate(canvas.rows)}
        followed = [Followed() for _ in canvas.rows]
        self._followed |= {row.index: followed[place] for place, row in enumerate(canvas.rows)}
        causal = canvas.model.family.kind == "autoregressive"
        self._looks = BlockLooks(self.reader, followed, self._size, causal=causal, requests=[*self._place])
        self._most = 1 if causal or self._reads_step else STEPS
        self._begin(canvas)

    def on_step(self, step: Step) -> None:
        self._watch(step)
        # 1. The block of each row; what it had to fill, where it begins.
        causal, spans = self._looks.causal, step.blocks
        if causal:
            spans = [(start - start % self._size, start - start % self._size + self._size) for start, _ in spans]
        seen, begun = self._seen, list[int]()
        if seen.requests != step.rows or seen.spans != spans:  # rows have left, or blocks begin
            rows, blocks = [self._place[row] for row in step.rows], [number_of(start, self._size) for start, _ in spans]
            self._seen = seen = _Seen([*step.rows], spans, rows, blocks)
            if begun := self._looks.begin(rows, blocks):
                self._open_blocks(step, begun)
        # 2. What stands there, and the states: taken now, or kept.
        states, committed = step.active_hidden, None if self._mask_id >= 0 else step.committed
        if self._waiting and self._waiting[0].states.shape[1] != states.shape[1]:
            self._take()
        takes_now = bool(begun) or len(self._waiting) + 1 >= self._most
        states = states if takes_now else _of_its_own(states)
        self._waiting.append(_Waiting(seen, begun, step.ids, committed, states))
        if takes_now:
            taken = self._take(step)
            if causal:  # each token is in a look, but most wait for theirs; elsewhere a whole block is seen
                step.unseen.update({*step.rows}.difference(request for request, _, look in taken if look))
        else:
            step.unseen.update(step.rows)
        step.stopped.update(self._stopped.intersection(step.rows))  # whenever their looks were taken

    def on_end(self, canvas: Canvas) -> None:
        self._take()

    # --- inside ---------------------------------------------------------------------------------------------

    def _take(self, step: Step | None = None) -> list[tuple[int, int, int]]:
        """Take the looks that wait, as (request, block, look). step: the last one, if it is being shown."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return []
        causal, begun = self._looks.causal, waiting[-1].begun  # no look waits for a block's begin
        # 1. What the blocks had to fill, what stands there, and what of it is read [R, n].
        groups = [[*group] for _, group in groupby(waiting, lambda each: id(each.seen))]
        ids, to_fill, *stood = (_joined(parts) for parts in zip(*map(self._of_blocks, groups), strict=True))
        states = _joined([each.states for each in waiting])
        stands = to_fill & (stood[0] if stood else ids != self._mask_id)
        if causal:
            assert step is not None  # no look of it waits
            read = self._of_rows(waiting[0].seen.rows)[:, slice(*step.blocks[0])]
            parts = [read, *([torch.ones_like(read)] if begun else [])]
        else:
            parts = [up_to_end(stands, ids, self._ends), *([to_fill] if begun else [])]
        # 2. Sums of states and of positions; one reading of the device.
        weights = torch.stack(parts, 1)  # [R, 1 or 2, n]
        sums = torch.bmm(weights.float(), states.float())
        sums = sums if self._project is None else self._project(sums)
        counts = [weights.sum(-1), stands.sum(-1, keepdim=True), *([to_fill.sum(-1, keepdim=True)] if begun else [])]
        together = torch.cat([*counts, sums.flatten(1)], -1)
        values: Any = together.cpu().numpy() if step is None else step.fetch(together)
        # 3. Of each step, how far each block is; its looks.
        width, edge, end = sums.shape[-1], sum(count.shape[-1] for count in counts), 0
        numbers = values[:, : None if width == 1 else edge].tolist()
        taken: list[tuple[int, int, int]] = []
        for each in waiting:
            start = end
            seen = each.seen
            own = numbers[start : (end := start + len(seen.rows))]
            for place in each.begun:
                self._totals[seen.rows[place]] = int(own[place][edge - 1])
            filled = [(self._totals[row], int(line[len(parts)])) for row, line in zip(seen.rows, own, strict=True)]

            def pooled(first: bool, start: int = start, own: list[list[float]] = own) -> Pooled:
                if width == 1:
                    return [line[edge + first] for line in own], [line[first] for line in own]
                at = edge + first * width
                return values[start : start + len(own), at : at + width], [line[first] for line in own]

            def changed(place: int, each: _Waiting = each) -> bool:
                was, now = self._full[each.seen.requests[place]], each.block(place)
                self._full[each.seen.requests[place]] = now
                return not torch.equal(self._held(*was), self._held(*now))

            looks = self._looks.take(seen.rows, seen.blocks, filled, each.begun, pooled, changed, step)
            self._full.update((seen.requests[place], each.block(place)) for place, _, look in looks if look == LAST)
            taken += [(seen.requests[place], block, look) for place, block, look in looks]
        if taken and self.on_look is not None:
            self._stopped.update(self.on_look(taken, self._followed))
        return taken

    def _held(self, ids: torch.Tensor, place: int, span: tuple[int, int]) -> torch.Tensor:
        """What a row's block holds [n]."""
        return ids[place, self._response][slice(*span)]

    def _of_rows(self, rows: list[int]) -> torch.Tensor:
        """What the blocks of rows of the canvas had to fill [B, length]."""
        return self._open if rows == [*range(len(self._open))] else self._open[torch.tensor(rows, device=self._device)]

    def _open_blocks(self, step: Step, begun: list[int]) -> None:
        """Note what blocks have to fill that begin at these places of a step."""
        spans, rows = ([each[place] for place in begun] for each in (self._seen.spans, self._seen.rows))
        given, span = step.committed & ~step.new, self._seen.span
        places, index = torch.tensor([begun, rows], device=self._device)
        if span is not None and not self._looks.causal:
            self._open[index, span] = ~given[places, span]
            return
        columns = torch.arange(self._open.shape[1], device=self._device)
        edges = torch.tensor(spans, device=self._device)
        is_open = (columns >= edges[:, :1]) & (columns < edges[:, 1:]) & ~given[places]
        # An autoregressive row's sum goes on from token to token: of a block that it is cut back to nothing is read.
        self._open[index] = is_open if self._looks.causal else is_open | self._open[index]

    def _of_blocks(self, group: list[_Waiting]) -> list[torch.Tensor]:
        """Of steps of the same rows and blocks, by position of these [R, n]: ids, what they had to fill, and what is
        committed where that is kept. n: of the longest; behind a shorter one an id is its last, and nothing is true."""
        seen, response = group[0].seen, self._response
        is_open, kept = self._of_rows(seen.rows), [each.committed for each in group if each.committed is not None]
        if (span := seen.span) is not None:
            parts = [[each.ids[:, response][:, span] for each in group], [is_open[:, span]] * len(group)]
            return [_joined(part) for part in (*parts, *([[each[:, span] for each in kept]] if kept else []))]
        most = max(stop - start for start, stop in seen.spans)
        edges = torch.tensor(seen.spans, device=self._device).repeat(len(group), 1)
        columns = edges[:, :1] + torch.arange(most, device=self._device)
        inside, columns = columns < edges[:, 1:], columns.clamp(max=self._open.shape[1] - 1)
        ids = _joined([each.ids for each in group])[:, response].gather(1, columns)
        bits = [is_open.repeat(len(group), 1), *([_joined(kept)] if kept else [])]
        return [ids, *(each.gather(1, columns) & inside for each in bits)]


def _of_its_own(states: torch.Tensor) -> torch.Tensor:
    """States that keep no others in memory."""
    return states if 2 * states.nbytes >= states.untyped_storage().nbytes() else states.clone()


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat([*parts])
