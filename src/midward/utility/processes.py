"""One process or several: which share is ours, and how the shares come together.

Only small things are exchanged (counts, rows), so that the group is always gloo's, also between GPUs.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import distributed


def start() -> None:
    """Join the other processes that `torchrun` started; nothing to do in a process of its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        distributed.init_process_group("gloo")


def stop() -> None:
    """Leave the group that `start` joined."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rank() -> int:
    """Which process this is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        distributed.barrier()


def gather(value: Any) -> list[Any] | None:
    """Every process's value, by rank, in the first process; None in the others."""
    if world_size() == 1:
        return [value]
    found: list[Any] | None = [None] * world_size() if rank() == 0 else None
    distributed.gather_object(value, found, dst=0)
    return found


def all_gather(tensor: torch.Tensor) -> torch.Tensor:
    """Every process's tensor, all of one shape, joined along the first dimension; a number counts as [1]."""
    mine = torch.atleast_1d(tensor).cpu()
    if world_size() == 1:
        return mine.to(tensor.device)
    found = [torch.empty_like(mine) for _ in range(world_size())]
    distributed.all_gather(found, mine)
    return torch.cat(found).to(tensor.device)
