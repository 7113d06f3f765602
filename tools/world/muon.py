"""Muon, batched over equal shapes, in the precision of choice.

torch ships `torch.optim.Muon`, but its Newton-Schulz iteration always runs in bfloat16, which a CPU without bfloat16
units computes some thirty times slower than float32: measured, it took longer than the rest of the training step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration (Jordan et al. 2024)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: for the 2-D weights inside a network, not its embedding or head.

    lr: step size (a matrix's update has spectral norm about 1 before it). momentum: in [0, 1).
    decay: of the weights, times lr a step; without it they grow tenfold in 10,000 steps, and one moves them ever less.
    dtype: of the iteration.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ):
        self.dtype = dtype
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(state["momentum"], group["momentum"])  # Nesterov
                wide = update if update.shape[0] <= update.shape[1] else update.T
                alike[tuple(wide.shape)].append((weight, wide))
            for pairs in alike.values():
                updates = orthogonalise(torch.stack([wide for _, wide in pairs]).to(self.dtype)).float()
                for (weight, _), update in zip(pairs, updates, strict=True):
                    rows, columns = weight.shape
                    update = update if rows <= columns else update.T
                    weight.mul_(1 - group["lr"] * group["decay"])
                    weight.add_(update, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Bring the singular values of each matrix near 1. matrices: [N, R, C] with R <= C; same shape out."""
    a, b, c = _COEFFICIENTS
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
