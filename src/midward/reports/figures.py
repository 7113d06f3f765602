"""Figures, drawn off screen with matplotlib and returned as files. Every function closes what it opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

# Okabe and Ito's colours: told apart by colour-blind readers and in grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")


@contextmanager
def _axes(path: Path, size: tuple[float, float]) -> Iterator[Axes]:
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    try:
        yield axes
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=130)
    finally:
        plt.close(figure)


def rates(path: Path, table: Mapping[str, Mapping[str, Mapping[str, Any]]], title: str) -> Path:
    """Grouped bars with 95 % intervals. table: model -> set -> {"value", "low", "high"}, shares in 0..1."""
    names = list(next(iter(table.values())))
    with _axes(path, (1.6 + 1.5 * len(names), 3.4)) as axes:
        width = 0.8 / len(table)
        for index, (model, cells) in enumerate(table.items()):
            at = [n + (index - (len(table) - 1) / 2) * width for n in range(len(names))]
            values = [100 * (cells[name]["value"] or 0.0) for name in names]
            low = [max(0.0, v - 100 * cells[name]["low"]) for name, v in zip(names, values, strict=True)]
            high = [max(0.0, 100 * cells[name]["high"] - v) for name, v in zip(names, values, strict=True)]
            axes.bar(at, values, width, yerr=[low, high], capsize=2, label=model, color=COLOURS[index % 7])
        axes.set_xticks(range(len(names)), names)
        axes.set(ylabel="%", ylim=(0, 105), title=title)
        axes.legend(frameon=False, ncols=len(table), fontsize=8)
    return path


def curves(
    path: Path, runs: Mapping[str, Sequence[Mapping[str, float]]], columns: Sequence[str], title: str
) -> Path:
    """Columns of training curves against the step; one colour a run, one dash pattern a column."""
    dashes = ("-", "--", ":", "-.")
    with _axes(path, (6.4, 3.6)) as axes:
        for index, (run, rows) in enumerate(runs.items()):
            for column, dash in zip(columns, dashes, strict=False):
                points = [(row["step"], row[column]) for row in rows if row.get(column) is not None]
                axes.plot(
                    *zip(*points, strict=True), dash, color=COLOURS[index % 7], label=f"{run}: {column}"
                )
        axes.set(xlabel="optimizer step", ylabel="nats", title=title)
        axes.legend(frameon=False, fontsize=7)
    return path


def order(path: Path, series: Mapping[str, Sequence[float]], title: str) -> Path:
    """Mean response position of the tokens committed at each denoising step, one line a kind of prompt (M4)."""
    with _axes(path, (5.6, 3.6)) as axes:
        for index, (name, positions) in enumerate(series.items()):
            axes.plot(
                range(1, len(positions) + 1), positions, "o-", ms=3, color=COLOURS[index % 7], label=name
            )
        axes.set(xlabel="denoising step", ylabel="mean position of new tokens", title=title)
        axes.legend(frameon=False)
    return path
