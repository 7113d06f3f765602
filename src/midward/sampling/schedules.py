"""How many positions each denoising step of a block commits."""

from itertools import pairwise

import torch

from .settings import spread


def fading(total: int, parts: int) -> list[int]:
    """Split `total` into `parts` as Dream's published code does, in its float32."""
    levels = torch.linspace(1, 1e-3, parts + 1)
    shares, left = [], total
    for forward, after in pairwise(levels[:-1]):
        shares.append(int(left * (1 - after / forward)))
        left -= shares[-1]
    return [*shares, left]


def rounded(total: int, parts: int) -> list[int]:
    """Split `total` into `parts` as ZHZisZZ/dllm's sampler does: of what is left each takes the share that the noise
    level falls by, rounded to the nearest (half to even). As there, the level is 1 - alpha in float32."""
    levels = [1 - (1 - torch.tensor((parts - part) / parts)) for part in range(parts + 1)]
    shares, left = [], total
    for before, after in pairwise(levels):
        shares.append(round(left * (1 - (after / before).item())))
        left -= shares[-1]
    return shares


SCHEDULES = {"even": spread, "published": fading, "rounded": rounded}
