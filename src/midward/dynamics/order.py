"""In which order positions are committed (MOSA, figure 5), and how much of it is end-token padding.

A rank correlation of 1 is strictly left to right. It splits into three parts that add up: the order within the text,
the order within the padding behind its end token, and the one being earlier than the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata


@dataclass(frozen=True)
class Order:
    """One generation. steps [length]: the step that committed each position, below 0 where none did (forced).

    end: response position of the first end token, the length where there is none. Positions from it on are padding.
    """

    steps: tuple[int, ...]
    end: int


def committed(order: Order, *, text: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Steps and positions [N] of what was committed; text: of the positions before the end token alone."""
    positions = np.arange(len(order.steps))
    steps = np.asarray(order.steps)
    kept = (steps >= 0) & (positions < order.end) if text else steps >= 0
    return steps[kept], positions[kept]


def correlation(order: Order, *, text: bool = False) -> float:
    """Spearman's rank correlation of step and position.

    Args:
        order: of one generation.
        text: of the positions before the end token alone.

    Returns:
        -1..1; NaN where all were committed at one step.
    """
    steps, positions = committed(order, text=text)
    if len(set(steps.tolist())) < 2:
        return float("nan")
    return float(np.corrcoef(rankdata(steps), rankdata(positions))[0, 1])


def parts(order: Order) -> tuple[float, float, float]:
    """What (text, padding, text being before padding) contribute to `correlation`; they add up to it."""
    steps, positions = committed(order)
    if len(set(steps.tolist())) < 2:
        return (float("nan"),) * 3
    first, second = (rankdata(values) - (len(values) + 1) / 2 for values in (steps, positions))
    norm = float(np.sqrt((first**2).sum() * (second**2).sum()))
    within = []
    between = 0.0
    for group in (positions < order.end, positions >= order.end):
        if group.any():
            a, b = first[group], second[group]
            within.append(float(((a - a.mean()) * (b - b.mean())).sum()) / norm)
            between += float(group.sum() * a.mean() * b.mean()) / norm
        else:
            within.append(0.0)
    return within[0], within[1], between


def by_prompt(orders: Sequence[Order]) -> np.ndarray:
    """Mean position of the tokens that each generation committed at each step [N, steps]; NaN where it did none."""
    total = 1 + max((-1, *(max(order.steps) for order in orders)))
    means = np.full((len(orders), total), np.nan)
    for row, order in enumerate(orders):
        steps, positions = committed(order)
        for step in np.unique(steps):
            means[row, step] = positions[steps == step].mean()
    return means


def heat(orders: Sequence[Order]) -> np.ndarray:
    """Share of the generations that committed position p at step s [length, steps]."""
    total = 1 + max((-1, *(max(order.steps) for order in orders)))
    counts = np.zeros((max((len(order.steps) for order in orders), default=0), total))
    for order in orders:
        steps, positions = committed(order)
        counts[positions, steps] += 1
    return counts / max(1, len(orders))
