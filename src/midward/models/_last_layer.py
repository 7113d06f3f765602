"""The last layer on the columns that are read: behind its attention no position's state needs another's.

Its keys and values are of every column, so a cache gets what it would; its output projection and its feed-forward run
on the columns that are read, and what they give the others is 0. Of LLaDA-8B's 32 layers that saves up to 2 % of a
step, of a small model's four a tenth.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from midward._peft import BaseTunerLayer

# Of the forward that this thread is in: the columns that are read, and how many there are.
_READ: ContextVar[tuple[slice, int] | None] = ContextVar("_READ", default=None)


@contextmanager
def reading(network: Any, columns: slice, length: int) -> Iterator[None]:
    """Have forwards of `length` columns leave out what isn't read, where the network's layers are built as Llama's are.

    network: transformers' causal LM. columns: with start and stop; states of the others are none of the model's.
    """
    last = getattr(network.base_model, "layers", [None])[-1]
    for module in (getattr(getattr(last, "self_attn", None), "o_proj", None), getattr(last, "mlp", None)):
        if isinstance(module, BaseTunerLayer):
            module = module.get_base_layer()  # an adapter is small
        if module is not None and _cut not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_cut)
            module.register_forward_hook(_fill)
    before = _READ.set((columns, length))
    try:
        yield
    finally:
        _READ.reset(before)


def _cut(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
    """The states [B, n, D] of the columns that are read."""
    read = _READ.get()
    return None if read is None else (given[0][:, read[0]].contiguous(), *given[1:])


def _fill(module: torch.nn.Module, given: Any, computed: torch.Tensor) -> torch.Tensor | None:
    """What was computed [B, n, D], among zeros [B, L, D]."""
    read = _READ.get()
    if read is None:
        return None
    columns, length = read
    return torch.nn.functional.pad(computed, (0, 0, columns.start, length - columns.stop))
