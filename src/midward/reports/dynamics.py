"""Figures of the dynamics of generations: order, signals, recovery. Each is written as .png and .svg."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from midward._extras import figure
from midward.reports.figures import COLOURS, pyplot

Cell = Mapping[str, Any]  # {"value", "low", "high"}


@contextmanager
def _panels(stem: Path, count: int, size: tuple[float, float], **options: Any) -> Iterator[Sequence[Any]]:
    """`count` axes side by side, saved as <stem>.png and <stem>.svg."""
    plt = pyplot()
    figure, axes = plt.subplots(1, count, figsize=size, layout="constrained", squeeze=False, **options)
    try:
        yield axes[0]
        for one in axes[0]:
            one.spines[["top", "right"]].set_visible(False)
        for kind in ("png", "svg"):
            figure.savefig(stem.with_name(f"{stem.name}.{kind}"), dpi=130)
    finally:
        plt.close(figure)


@figure
def order(stem: Path, series: Mapping[str, Sequence[Cell]], title: str) -> None:
    """Mean position of newly committed tokens by step, with bands. series: set -> a cell a step (None: nothing)."""
    with _panels(stem, 1, (5.8, 3.8)) as [axes]:
        for index, (name, cells) in enumerate(series.items()):
            colour = COLOURS[index % 7]
            steps = [n for n, cell in enumerate(cells, 1) if cell["value"] is not None]
            shown = [cell for cell in cells if cell["value"] is not None]
            axes.plot(steps, [cell["value"] for cell in shown], "o-", ms=2.5, lw=1, color=colour, label=name)
            axes.fill_between(
                steps,
                # A step without an interval has no band.
                *(np.array([cell[end] for cell in shown], dtype=float) for end in ("low", "high")),
                color=colour,
                alpha=0.2,
                lw=0,
            )
        axes.set(xlabel="denoising step", ylabel="mean position of new tokens", title=title)
        axes.legend(frameon=False, fontsize=8)


@figure
def order_heat(stem: Path, maps: Mapping[str, np.ndarray], title: str) -> None:
    """Share of the prompts that committed a position (up) at a step (right), a panel a set."""
    with _panels(stem, len(maps), (1.2 + 2.6 * len(maps), 3.4), sharey=True) as panels:
        image = None
        for axes, (name, shares) in zip(panels, maps.items(), strict=True):
            extent = (0.5, shares.shape[1] + 0.5, -0.5, shares.shape[0] - 0.5)
            image = axes.imshow(shares, origin="lower", aspect="auto", extent=extent, cmap="viridis", vmin=0, vmax=1)
            axes.set(xlabel="denoising step", title=name)
        panels[0].set_ylabel("response position")
        panels[0].figure.colorbar(image, ax=list(panels), label="share of prompts")
        panels[0].figure.suptitle(title, fontsize=10)


@figure
def bands(stem: Path, panels: Mapping[str, Mapping[str, Mapping[str, Any]]], title: str) -> None:
    """SRI signals: median and quartiles by group of generations. panels: name -> group -> n, low, median, high [T]."""
    names = list(dict.fromkeys(group for groups in panels.values() for group in groups))
    colours = {name: COLOURS[index % 7] for index, name in enumerate(names)}
    with _panels(stem, len(panels), (0.8 + 3.4 * len(panels), 3.4), sharey=True) as all_axes:
        for axes, (name, groups) in zip(all_axes, panels.items(), strict=True):
            for group, band in groups.items():
                steps = range(1, len(band["median"]) + 1)
                axes.plot(steps, band["median"], color=colours[group], label=f"{group} (n {band['n']})")
                axes.fill_between(steps, band["low"], band["high"], color=colours[group], alpha=0.15, lw=0)
            axes.axhline(0.5, color="grey", lw=0.6, ls=":")
            axes.set(xlabel="denoising step", title=name, ylim=(-0.03, 1.03))
            axes.legend(frameon=False, fontsize=7)
        all_axes[0].set_ylabel("SRI signal (1: compliant)")
        all_axes[0].figure.suptitle(title, fontsize=10)


@figure
def bars(stem: Path, table: Mapping[str, Mapping[str, Cell]], title: str) -> None:
    """Grouped bars with 95 % intervals, in per cent. table: series -> group -> a rate's record."""
    groups = list(dict.fromkeys(group for cells in table.values() for group in cells))
    with _panels(stem, 1, (2.0 + 1.1 * len(groups) * max(1, len(table) / 3), 3.4)) as [axes]:
        width = 0.8 / len(table)
        for index, (name, cells) in enumerate(table.items()):
            shown = [(n, cells[group]) for n, group in enumerate(groups) if cells.get(group, {}).get("n")]
            at = [n + (index - (len(table) - 1) / 2) * width for n, _ in shown]
            values = [100 * cell["value"] for _, cell in shown]
            errors = [
                [max(0.0, value - 100 * cell["low"]) for value, (_, cell) in zip(values, shown, strict=True)],
                [max(0.0, 100 * cell["high"] - value) for value, (_, cell) in zip(values, shown, strict=True)],
            ]
            axes.bar(at, values, width, yerr=errors, capsize=2, label=name, color=COLOURS[index % 7])
        axes.set_xticks(range(len(groups)), groups)
        axes.set(ylabel="%", ylim=(0, 105), title=title)
        axes.legend(frameon=False, ncols=min(3, len(table)), fontsize=7)


@figure
def scatter(stem: Path, points: np.ndarray, kinds: Sequence[str], title: str) -> None:
    """A map of generations [N, 2], a colour a kind."""
    with _panels(stem, 1, (4.6, 3.8)) as [axes]:
        for index, kind in enumerate(dict.fromkeys(kinds)):
            chosen = points[[one == kind for one in kinds]]
            axes.scatter(*chosen[:, :2].T, s=8, alpha=0.6, color=COLOURS[index % 7], label=kind)
        axes.set(xlabel="first discriminant", ylabel="second", title=title)
        axes.legend(frameon=False, fontsize=8)
