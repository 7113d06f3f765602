"""In which order positions are committed (MOSA, figure 5), and how much of it is end-token padding.

A rank correlation of 1 is strictly left to right. It splits into three parts that add up: the order within the text,
the order within the padding behind its end token, and the one being earlier than the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from midward.models import LanguageModel
from midward.sampling import Request, Sampling, Trace, sample

Span = tuple[float, float]


@dataclass(frozen=True)
class Order:
    """One generation. steps [length]: the step that committed each position, below 0 where none did (forced).

    end: response position of the first end token, the length where there is none. Positions from it on are padding.
    """

    steps: tuple[int, ...]
    end: int


def orders(
    model: LanguageModel,
    prompts: Sequence[Request | Any],
    sampling: Sampling,
    *,
    batch_size: int = 16,
    progress: Callable[[int], None] = lambda rows: None,
) -> list[Order]:
    """Sample every prompt, with all steps run, as the figure's source does; orders in the prompts' order."""
    found = []
    ends = model.family.end_ids
    for start in range(0, len(prompts), batch_size):
        batch = list(prompts[start : start + batch_size])
        trace = Trace(needs_all_steps=True)
        responses = sample(model, batch, sampling, batch_size=batch_size, watchers=[trace])
        for row, response in enumerate(responses):
            response.checked()
            end = next((at for at, token in enumerate(response.raw_ids) if token in ends), sampling.length)
            steps = trace.commit_step[row]
            if sampling.threshold is not None:  # numbered by the batch there; a row's own count is wanted
                _, number = steps[steps >= 0].unique(return_inverse=True)
                steps = steps.masked_scatter(steps >= 0, number.to(steps.dtype))
            found.append(Order(tuple(steps.tolist()), end))
        progress(len(batch))
    return found


def committed(order: Order, *, text: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Steps and positions [N] of what was committed; text: of the positions before the end token alone."""
    positions = np.arange(len(order.steps))
    steps = np.asarray(order.steps)
    kept = (steps >= 0) & (positions < order.end) if text else steps >= 0
    return steps[kept], positions[kept]


def correlation(order: Order, *, text: bool = False) -> float:
    """Spearman's rank correlation of step and position, -1..1; NaN where all were committed at one step."""
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


def mean_positions(found: Sequence[Order]) -> list[float]:
    """Mean position of the tokens committed at each step, over all generations; NaN where a step committed none."""
    shares = heat(found)
    with np.errstate(invalid="ignore"):
        return ((np.arange(len(shares)) @ shares) / shares.sum(0)).tolist()


def by_prompt(found: Sequence[Order], *, text: bool = False) -> np.ndarray:
    """The same for each generation [N, steps]; text: of what stands before its end token alone."""
    total = 1 + max((max(order.steps) for order in found), default=-1)
    means = np.full((len(found), total), np.nan)
    for row, order in enumerate(found):
        steps, positions = committed(order, text=text)
        for step in np.unique(steps):
            means[row, step] = positions[steps == step].mean()
    return means


def heat(found: Sequence[Order]) -> np.ndarray:
    """Share of the generations that committed position p at step s [length, steps]."""
    total = 1 + max((max(order.steps) for order in found), default=-1)
    counts = np.zeros((max((len(order.steps) for order in found), default=0), total))
    for order in found:
        steps, positions = committed(order)
        counts[positions, steps] += 1
    return counts / max(1, len(found))
