"""A run of the sampler as a coroutine: it yields every forward that it waits for, and is sent the states.

So whoever drives it decides how forwards are computed: each by itself (`alone`, as `sample` does), or those of several
runs in one (`together`, as a server does between denoising steps).
Shapes: B rows, L columns of a canvas, D hidden size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol, TypeVar

import torch
from torch.nn.functional import pad

from midward.models import LanguageModel
from midward.models.language_model import Read, take

from .cache import JoinedCache, Part, SlotCache

Result = TypeVar("Result")
#: Padded cells that a forward of several runs may have, as a multiple of what each has by itself.
_MOST_PADDED = 1.1


class Wanted(Protocol):
    """What a run waits for."""

    def compute(self) -> Any:
        """Do it, by itself."""


@dataclass(frozen=True)
class Pass:
    """A forward, or several, that is done by itself. compute: does it."""

    compute: Callable[[], Any]


@dataclass(frozen=True)
class Forward:
    """What `LanguageModel.hidden` takes: a forward that can be done together with those of other runs."""

    model: LanguageModel
    ids: torch.Tensor
    mask: torch.Tensor | None
    columns: torch.Tensor | None = None
    cache: SlotCache | None = None
    read: Read | None = None

    def compute(self) -> torch.Tensor:
        """The states alone, see `LanguageModel.hidden`."""
        return self.model.hidden(self.ids, self.mask, self.cache, self.columns, self.read)

    @property
    def kind(self) -> tuple[int, bool, int]:
        """Forwards of one kind can be computed together. Blocks that are counted from the response stay where
        they are."""
        family = self.model.family
        size = 1 if family.blocks_from == "prompt" else family.attention_block or 1
        seen = self.ids.shape[1] if self.cache is None else self.cache.stop
        return id(self.model), self.cache is None, seen % size


#: Yields what it waits for, is sent what that computed (of a forward states [B, L, D]), and returns the result.
Passes = Generator[Wanted, Any, Result]


def alone(run: Passes[Result]) -> Result:
    """Run to the end, each forward by itself. What it raises comes through; its watchers' `on_end` is called always."""
    states = None
    with closing(run), torch.no_grad():
        while True:
            try:
                wanted = run.send(states)
            except StopIteration as end:
                result: Result = end.value
                return result
            states = wanted.compute()


def together(passes: Sequence[Wanted]) -> list[Any]:
    """Compute what several runs wait for, in as few forwards as they go together without much padding.

    Args:
        passes: of one model or several.

    Returns:
        What each computed, in their order. In float32 a row's states are those that it has alone, to rounding.
    """
    computed: list[Any] = [None] * len(passes)
    kinds: dict[Any, list[tuple[int, Forward]]] = defaultdict(list)
    for place, each in enumerate(passes):
        if isinstance(each, Forward):
            kinds[each.kind].append((place, each))
        else:
            computed[place] = each.compute()
    for members in kinds.values():
        for group in _groups(members):
            states = _joined([forward for _, forward in group])
            for (place, _), own in zip(group, states, strict=True):
                computed[place] = own
    return computed


def _groups(members: Sequence[tuple[int, Forward]]) -> list[list[tuple[int, Forward]]]:
    """Those near enough in length to be computed as one."""
    groups: list[list[tuple[int, Forward]]] = []
    for place, forward in sorted(members, key=lambda member: member[1].ids.shape[1]):
        if groups:
            cells = [each.ids.numel() for _, each in groups[-1]] + [forward.ids.numel()]
            rows = len(forward.ids) + sum(len(each.ids) for _, each in groups[-1])
            if rows * forward.ids.shape[1] <= _MOST_PADDED * sum(cells):
                groups[-1].append((place, forward))
                continue
        groups.append([(place, forward)])
    return groups


def _joined(forwards: Sequence[Forward]) -> list[torch.Tensor]:
    """The states of each, of one forward whose rows are padded on the left: what they compute, and what they see."""
    if len(forwards) == 1:
        return [forwards[0].compute()]
    first, caches = forwards[0], [each.cache for each in forwards if each.cache is not None]
    counts = [len(each.ids) for each in forwards]
    # 1. How many columns each computes and sees, and how far it is moved to the right by the others'.
    widths = [each.ids.shape[1] for each in forwards]
    seen = [cache.stop for cache in caches] or widths
    width, stop = max(widths), max(seen)
    shifts = [stop - own for own in seen]
    ids = torch.cat(
        [
            pad(each.ids, (width - own, 0), value=first.model.family.pad_id)
            for each, own in zip(forwards, widths, strict=True)
        ]
    )
    mask = None
    if any(shifts) or any(each.mask is not None for each in forwards):
        masks = [
            each.ids.new_ones(count, own) if each.mask is None else each.mask
            for each, count, own in zip(forwards, counts, seen, strict=True)
        ]
        mask = torch.cat([pad(each, (shift, 0)) for each, shift in zip(masks, shifts, strict=True)])
    # 2. Behind caches: where they stand. A column that fills up stands where its row's first one does.
    columns = cache = None
    if caches:
        moved = [
            (each.columns + shift).expand(count, -1)
            for each, shift, count in zip(forwards, shifts, counts, strict=True)
            if each.columns is not None
        ]
        columns = torch.cat([torch.cat([own[:, :1].expand(-1, width - own.shape[1]), own], dim=1) for own in moved])
        ends = list(accumulate(counts))
        rows = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
        cache = JoinedCache([Part(*part) for part in zip(caches, rows, widths, strict=True)], stop)
    # 3. Of each those columns that it reads.
    gaps = [width - own for own in widths]
    places = [each.read for each in forwards if isinstance(each.read, tuple)]
    if len(places) == len(forwards):
        above = accumulate(counts[:-1], initial=0)
        row = torch.cat([own + more for (own, _), more in zip(places, above, strict=True)])
        column = torch.cat([own + more for (_, own), more in zip(places, gaps, strict=True)])
        states = first.model.hidden(ids, mask, cache, columns, (row, column))
        return list(states.split([len(own) for own, _ in places]))
    spans = [
        slice(more + each.read.start, more + each.read.stop) if isinstance(each.read, slice) else slice(more, width)
        for each, more in zip(forwards, gaps, strict=True)
    ]
    start, end = min(each.start for each in spans), max(each.stop for each in spans)
    read = slice(start, end) if all(isinstance(each.read, slice) for each in forwards) else None
    parts = first.model.hidden(ids, mask, cache, columns, read).split(counts)
    start = 0 if read is None else start
    owns = [part[:, span.start - start : span.stop - start] for part, span in zip(parts, spans, strict=True)]
    return [
        take(own, each.read) if isinstance(each.read, tuple) else own for own, each in zip(owns, forwards, strict=True)
    ]
