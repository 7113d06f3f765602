"""Keys and values kept from step to step, so that a step computes a part of the canvas.

Full attention: the states of every position change with every commit, so frozen ones are an approximation, which a user
asks for (`Sampling.cache`; Wu et al. 2025, Fast-dLLM). Block-causal attention: what stands before the active block is
final, so nothing is lost, and it is always done.
Shapes: N rows kept, B rows of a step, L columns of the canvas, n columns that a step computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import Cache, CacheLayerMixin

from midward.errors import InputError
from midward.models import LanguageModel

from .canvas import Canvas, Row
from .settings import Sampling
from .step import Editor, Watcher


@dataclass(frozen=True)
class Span:
    """The columns that a step computes: `count` of them, from `starts` [B] on; `stop`: columns that may be seen."""

    starts: list[int]
    count: int
    stop: int


@dataclass
class _Aim:
    """Where the next forward's keys and values go, for all layers: `rows` kept rows of `length` columns, of which those
    before `stop` may be seen; `at`: kept rows [B], None for all, and columns [B or 1, n]; `first`: of these, if it is
    one for all rows."""

    rows: int
    length: int
    stop: int
    at: tuple[torch.Tensor | None, torch.Tensor] | None = None
    first: int | None = None


class SlotCache(Cache):
    """A transformers cache whose `update` overwrites the columns that were computed and returns all.

    aim: tell, before a forward, where its rows and columns stand. Nothing of a model has to be touched for it: give
    `LanguageModel.hidden` the same columns.
    """

    def __init__(self, layers: int, rows: int, length: int) -> None:
        self._aim = _Aim(rows, length, length)
        super().__init__(layers=[_Slots(self._aim) for _ in range(layers)])

    def aim(self, rows: torch.Tensor | None, columns: torch.Tensor, stop: int, first: int | None = None) -> None:
        """rows [B]: kept rows, None for all. columns [B or 1, n], contiguous. stop: columns that attention may see.
        first: column of all rows, if the host knows it."""
        self._aim.at, self._aim.stop, self._aim.first = (rows, columns), stop, first

    @property
    def stop(self) -> int:
        """The columns that the next forward may see."""
        return self._aim.stop

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all but these rows, which are numbered anew."""
        self._aim.rows = len(rows)
        self.batch_select_indices(rows)


class _Slots(CacheLayerMixin):
    """One layer: keys and values [N, heads, L, size]."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, aim: _Aim) -> None:  # not the cache: no cycle may keep a block's tensors alive
        super().__init__()
        self.aim = aim

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        # Zeros: what was never computed is never attended to, but 0 times NaN would be NaN.
        self.keys, self.values = (
            new.new_zeros(self.aim.rows, new.shape[1], self.aim.length, new.shape[3])
            for new in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the columns [B, heads, n, size] and return those of these rows up to `stop`."""
        aim = self.aim
        assert aim.at is not None, "aim before a forward"
        rows, columns = aim.at
        # 1. A forward of the whole canvas replaces everything.
        if rows is None and key_states.shape[2] == aim.length:
            self.keys, self.values, self.is_initialized = key_states, value_states, True
            return key_states, value_states
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        # 2. Another one overwrites its own columns, in its own rows,
        device = self.keys.device  # a model's layers may be on several
        rows, columns = None if rows is None else rows.to(device), columns.to(device)
        for held, new in ((self.keys, key_states), (self.values, value_states)):
            if rows is None and aim.first is not None:
                held[:, :, aim.first : aim.first + new.shape[2]] = new
            else:
                kept = torch.arange(aim.rows, device=device) if rows is None else rows
                held[kept[:, None], :, columns] = new.transpose(1, 2)
        # 3. and sees what stands before `stop` in them.
        if rows is None:
            return self.keys[:, :, : aim.stop], self.values[:, :, : aim.stop]
        return self.keys[rows, :, : aim.stop], self.values[rows, :, : aim.stop]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows."""
        if self.is_initialized:
            self.keys, self.values = (
                self.keys[indices.to(self.keys.device)],
                self.values[indices.to(self.values.device)],
            )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The columns that a mask has to cover, and the first of them."""
        return self.aim.stop, 0

    def get_seq_length(self) -> int:
        """0: positions are always given."""
        return 0

    def get_max_length(self) -> int:
        """The canvas."""
        return self.aim.length


@dataclass(frozen=True)
class Part:
    """One of several caches behind a forward of all: its rows of the forward, the last `columns` of those computed."""

    slots: SlotCache
    rows: slice
    columns: int


class JoinedCache(Cache):
    """Several caches as one: what is computed goes to each one's places, and attention sees each row's own columns,
    with padding before them so that all end at `stop`."""

    def __init__(self, parts: Sequence[Part], stop: int) -> None:
        layers = zip(*(part.slots.layers for part in parts), strict=True)
        super().__init__(layers=[_JoinedLayer(parts, own, stop) for own in layers])


class _JoinedLayer(CacheLayerMixin):
    """One layer of several caches."""

    def __init__(self, parts: Sequence[Part], layers: Sequence[Any], stop: int) -> None:
        super().__init__()
        self.parts, self.layers, self.stop = parts, layers, stop

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Each layer has its own."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Have each cache take its columns [B, heads, n, size]; gives what each row may see [B, heads, stop, size]."""
        kept = []
        for part, layer in zip(self.parts, self.layers, strict=True):
            own = part.rows, slice(None), slice(key_states.shape[2] - part.columns, None)
            seen = layer.update(key_states[own], value_states[own])
            kept.append([pad(each, (0, 0, self.stop - each.shape[2], 0)) for each in seen])
        keys, values = zip(*kept, strict=True)
        return torch.cat(keys), torch.cat(values)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The columns that a mask has to cover, and the first of them."""
        return self.stop, 0

    def get_seq_length(self) -> int:
        """0: positions are always given."""
        return 0

    def get_max_length(self) -> int:
        """What may be seen."""
        return self.stop


class BlockCache:
    """The cache of one run of the sampler: which columns each step computes, and in `slots` the rest.

    With guidance the unconditional forward's rows stand behind the conditional ones.
    """

    exact: bool

    def __init__(self, canvas: Canvas) -> None:
        self.canvas = canvas
        self.model = canvas.model
        self.copies = 1 if canvas.sampling.guidance == 0 else 2
        self.length = canvas.width + canvas.length
        self.held: list[int] = []
        self.slots: SlotCache | None = None
        device = canvas.ids.device
        self._columns = lru_cache(maxsize=1)(  # most steps compute those of the step before
            lambda starts, count: torch.tensor(starts, device=device)[:, None] + torch.arange(count, device=device)
        )

    def span(self, working: list[int], blocks: list[tuple[int, int]], alive: list[int]) -> Span:
        """What the next step of these canvas rows, each in its block of response positions, computes."""
        raise NotImplementedError

    def inputs(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor | None,
        working: list[int],
        blocks: list[tuple[int, int]],
        alive: list[int],
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, list[int]]:
        """What a forward with `slots` takes to compute a step of these canvas rows: ids [copies * B, n], mask and
        columns; and the column that each begins at: one for all rows, or one a row [B].

        ids, mask: [copies * B, L]. blocks: each row's, in response positions. alive: the rows that may still come, with
        an approximate cache in this block.
        """
        # 1. Which columns have to be computed: one run of them a row, all of one length.
        span = self.span(working, blocks, alive)
        assert self.slots is not None
        starts = span.starts[:1] if len(set(span.starts)) == 1 else span.starts
        columns = self._columns(tuple(starts), span.count)
        if len(starts) == 1:
            part = ids[:, starts[0] : starts[0] + span.count]
        else:
            columns = columns.repeat(self.copies, 1)
            part = ids.gather(1, columns)
        # 2. Their keys and values go to their places, and attention sees all up to `stop`.
        if mask is None and self.exact:
            mask = torch.ones_like(ids)
        self.slots.aim(self._places(working), columns, span.stop, starts[0] if len(starts) == 1 else None)
        seen = None if mask is None else mask[:, : span.stop]
        return part, seen, columns, starts

    def _places(self, rows: list[int]) -> torch.Tensor | None:
        """Where canvas rows stand in `slots`; None if they are all, in order."""
        if rows == self.held:
            return None
        own = [self.held.index(row) for row in rows]
        every = [place + copy * len(self.held) for copy in range(self.copies) for place in own]
        return torch.tensor(every, device=self.canvas.ids.device)

    def _hold(self, rows: list[int]) -> None:
        """Begin with these canvas rows."""
        self.held = list(rows)
        self.slots = SlotCache(self.model.config.num_hidden_layers, self.copies * len(rows), self.length)

    def _shrink(self, rows: list[int]) -> None:
        """Let go of all but these canvas rows."""
        if rows != self.held and self.slots is not None:
            kept = self._places(rows)
            assert kept is not None
            self.slots.keep(kept)
            self.held = list(rows)


class ApproximateCache(BlockCache):
    """One whole forward at the start of each block, then the block and what is behind it ("prefix"), or the block alone
    ("dual"), against keys and values of that forward.

    All rows are in one block at a time, and all that have anything to fill there take part in its whole forward.
    """

    exact = False

    def __init__(self, canvas: Canvas) -> None:
        super().__init__(canvas)
        self.block: tuple[int, int] | None = None
        self.dual = canvas.sampling.cache == "dual"
        self.shift = int(self.model.family.shift)  # the state that a block's first position is predicted from

    def span(self, working: list[int], blocks: list[tuple[int, int]], alive: list[int]) -> Span:
        if blocks[0] != self.block:
            self.block = blocks[0]
            self._hold(working)
            return Span([0] * len(working), self.length, self.length)
        self._shrink([row for row in self.held if row in alive])
        start, stop = (self.canvas.width + place for place in self.block)
        start -= self.shift
        count = (stop if self.dual else self.length) - start
        return Span([start] * len(working), count, self.length)


class ExactCache(BlockCache):
    """Block-causal attention: what has changed since it was computed, up to the end of the active block.

    Final is what stands in attention blocks that had no mask at the row's last forward. Rows may be in different
    blocks; where one computes fewer columns than another, it does some final ones again.
    """

    exact = True

    def __init__(self, canvas: Canvas) -> None:
        super().__init__(canvas)
        family = self.model.family
        self.size = family.attention_block or 1
        from_prompt = family.blocks_from == "prompt"
        self.origins = [canvas.width - len(row.prompt_ids) if from_prompt else 0 for row in canvas.rows]
        self.shift = int(family.shift)
        self.final = [0] * len(canvas.rows)  # columns
        self._hold(list(range(len(canvas.rows))))

    def span(self, working: list[int], blocks: list[tuple[int, int]], alive: list[int]) -> Span:
        # 1. Where each row's first mask stands: all before its attention block is final after this forward.
        self._shrink(alive)
        masks = self.canvas.ids[torch.tensor(working, device=self.canvas.ids.device)] == self.canvas.mask_id
        open_from = torch.where(masks.any(-1), masks.int().argmax(-1), self.length).tolist()
        # 2. Each row computes from what was final before this forward to the end of its active block.
        starts, ends = [], []
        for row, (_, stop), first in zip(working, blocks, open_from, strict=True):
            starts.append(max(0, self.final[row] - self.shift))
            end = min(self._start_of(row, self.canvas.width + stop - 1) + self.size, self.length)
            ends.append(end)
            self.final[row] = min(self._start_of(row, first), end)
        # 3. All rows compute as many columns as the one that needs most, up to their own ends.
        count = max(1, *(end - start for start, end in zip(starts, ends, strict=True)))
        return Span([max(0, end - count) for end in ends], count, max(ends))

    def forget(self, row: int, column: int) -> None:
        """What this row holds from a column's attention block on was changed by an edit, and isn't final any more."""
        self.final[row] = min(self.final[row], self._start_of(row, column))

    def _start_of(self, row: int, column: int) -> int:
        """The first column of a column's attention block."""
        return column - (column - self.origins[row]) % self.size


def block_cache(canvas: Canvas, watchers: Sequence[Watcher]) -> BlockCache | None:
    """The cache of a run, if it has one."""
    if canvas.sampling.cache is not None:
        return ApproximateCache(canvas)
    return ExactCache(canvas) if canvas.model.family.attention == "block" and not _read_whole(watchers) else None


def _read_whole(watchers: Sequence[Watcher]) -> list[str]:
    """The watchers that read states of the whole response in every step, by their class."""
    return [type(watcher).__name__ for watcher in watchers if getattr(watcher, "needs_states", "") == "response"]


def refuse(model: LanguageModel, sampling: Sampling, rows: Sequence[Row], watchers: Sequence[Watcher]) -> None:
    """Raise InputError where an approximate cache is asked for that can't be had."""
    if sampling.cache is None:
        return
    masked = [row.index for row in rows if model.family.mask_id in row.prompt_ids]
    if model.family.kind != "diffusion":
        why = f"it is for masked diffusion models; {model.name!r} is {model.family.kind} and needs none"
    elif model.is_encoder:
        why = f"{model.name!r} is an encoder, which keeps no keys and values"
    elif model.family.attention == "block":
        why = f"{model.name!r} has block-causal attention: its cache is exact and always on"
    elif names := _read_whole(watchers):
        why = f"{names[0]} reads states of the whole response, and most steps compute a part of them"
    elif names := [type(watcher).__name__ for watcher in watchers if isinstance(watcher, Editor)]:
        why = f"{names[0]} writes to the canvas, which changes keys and values that it freezes"
    elif masked:
        why = f"the prompt of request {masked[0]} holds masks, which have no block"
    else:
        return
    raise InputError(f"cache={sampling.cache!r} can't be used: {why}. Leave it out.")
