"""A run of the sampler as a coroutine: it yields every forward that it waits for, and is sent the states.

So whoever drives it decides how forwards are computed: each by itself (`alone`, as `sample` does), or those of several
runs in one (`together`, as a server does between denoising steps).
Shapes: B rows, L columns of a canvas, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.nn.functional import pad

from midward.models import LanguageModel

Result = TypeVar("Result")
#: Padded cells that a forward of several runs may have, as a multiple of what each has by itself.
_MOST_PADDED = 1.25


@dataclass(frozen=True)
class Pass:
    """A forward that a run waits for.

    compute: does it, by itself. ids, mask [B, L]: of one that needs nothing but them, and so can be done together with
    those of other runs; None of one with a cache of its own, or whose attention goes by blocks.
    """

    compute: Callable[[], Any]
    model: LanguageModel | None = None
    ids: torch.Tensor | None = None
    mask: torch.Tensor | None = None


#: Yields passes, is sent what they computed (states [B, L, D]), and returns the result.
Passes = Generator[Pass, Any, Result]


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


def together(passes: Sequence[Pass]) -> list[Any]:
    """Compute passes of several runs, in as few forwards as they go together without much padding.

    Args:
        passes: of one model or several.

    Returns:
        What each computed, in their order. In float32 a row's states are those that it has alone, to rounding.
    """
    computed: list[Any] = [None] * len(passes)
    for group in _groups(passes):
        members = [passes[place] for place in group]
        for place, states in zip(group, _padded(members), strict=True):
            computed[place] = states
    return computed


def _groups(passes: Sequence[Pass]) -> list[list[int]]:
    """Which passes are computed together: those of one model, near enough in length."""
    groups: list[list[int]] = []
    order = sorted(range(len(passes)), key=lambda place: 0 if (ids := passes[place].ids) is None else ids.shape[1])
    for place in order:
        ids = passes[place].ids
        if groups and ids is not None:
            members = [passes[other] for other in groups[-1]]
            own = [member.ids for member in members if member.ids is not None]
            if len(own) == len(members) and members[0].model is passes[place].model:
                rows = sum(len(each) for each in own) + len(ids)
                if rows * ids.shape[1] <= _MOST_PADDED * (sum(each.numel() for each in own) + ids.numel()):
                    groups[-1].append(place)
                    continue
        groups.append([place])
    return groups


def _padded(passes: Sequence[Pass]) -> list[Any]:
    """The states of each, computed in one forward of rows that are padded on the left."""
    if len(passes) == 1:
        return [passes[0].compute()]
    model, ids = passes[0].model, [each.ids for each in passes if each.ids is not None]
    assert model is not None
    longest = max(each.shape[1] for each in ids)
    short = [longest - each.shape[1] for each in ids]
    mask = None
    if any(short) or any(each.mask is not None for each in passes):
        masks = [
            torch.ones_like(own) if each.mask is None else each.mask for each, own in zip(passes, ids, strict=True)
        ]
        mask = torch.cat([pad(each, (missing, 0)) for each, missing in zip(masks, short, strict=True)])
    rows = torch.cat(
        [pad(each, (missing, 0), value=model.family.pad_id) for each, missing in zip(ids, short, strict=True)]
    )
    parts = model.hidden(rows, mask).split([len(each) for each in ids])
    return [part[:, missing:] for part, missing in zip(parts, short, strict=True)]
