"""Figures of what a prompt reaches: the loss of suffix searches by iteration, and phrases asked for by word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from midward._extras import figure
from midward.reports.figures import COLOURS, _axes
from midward.stats import mean

KINDS = (".png", ".svg")
_DASHES = ("-", "--", ":", "-.")


@figure
def loss_curves(stem: Path, runs: Mapping[str, Mapping[int, Sequence[Sequence[float]]]], *, title: str) -> list[Path]:
    """Mean loss with 95 % bands over goals, as `<stem>.png` and `<stem>.svg`.

    runs: model -> position -> curves, one a goal, all of one length: nats a token at each iteration from 0. A colour
    stands for a model, a dash pattern for a position; of one model alone the colours tell the positions.
    """
    lines = []
    for number, (name, by_position) in enumerate(runs.items()):
        for place, (position, curves) in enumerate(by_position.items()):
            values = np.array(curves)  # [goals, iterations + 1]
            means = [mean(column) for column in values.T.tolist()]
            known = [(one.value, one.value) if one.low is None else (one.low, one.high) for one in means]
            band = np.array(known, dtype=float).T
            colour = COLOURS[(number if len(runs) > 1 else place) % len(COLOURS)]
            label = f"token {position}" if len(runs) == 1 else f"{name}, token {position}"
            lines.append((values.mean(0), band, _DASHES[place % len(_DASHES)], colour, label))
    paths = [stem.with_name(f"{stem.name}{kind}") for kind in KINDS]
    for path in paths:
        with _axes(path, (6.4, 3.8)) as axes:
            for least, (low, high), dash, colour, label in lines:
                steps = np.arange(len(least))
                axes.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
                axes.plot(steps, least, dash, color=colour, lw=1.4, label=label)
            axes.set(xlabel="iteration", ylabel="least loss so far, nats a token", ylim=(0, None))
            axes.set_title(title, fontsize=10)
            axes.legend(frameon=False, fontsize=7, ncols=max(1, len(runs)))
    return paths


@figure
def by_word(stem: Path, series: Mapping[str, Sequence[Mapping[str, Any]]], *, title: str) -> list[Path]:
    """Shares with 95 % intervals by the word that was asked for, as `<stem>.png` and `<stem>.svg`.

    series: label -> points {"word", "value", "low", "high"}, shares in 0..1.
    """
    paths = [stem.with_name(f"{stem.name}{kind}") for kind in KINDS]
    for path in paths:
        with _axes(path, (6.4, 3.6)) as axes:
            for index, (label, points) in enumerate(series.items()):
                shift = 0.5 * (index - (len(series) - 1) / 2)  # so that equal values can be told apart
                words = [point["word"] + shift for point in points]
                values, low, high = (
                    np.array([100 * point[name] for point in points]) for name in ("value", "low", "high")
                )
                bars = np.maximum(0, [values - low, high - values])
                axes.errorbar(words, values, bars, fmt="o-", ms=4, capsize=2, color=COLOURS[index % 7], label=label)
            axes.set(xlabel="word of the response, from 0", ylabel="%", ylim=(-3, 103))
            axes.set_title(title, fontsize=10)
            axes.legend(frameon=False, fontsize=8)
    return paths
