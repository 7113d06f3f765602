"""Figures over response positions: rates with intervals, one line a kind of phrase, and a map of position by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from midward._extras import figure
from midward.reports.figures import COLOURS, _axes

KINDS = (".png", ".svg")
_MARKS = ("o-", "s--", "^-.", "D:", "v-", "P--", "X-.")


@figure
def by_position(
    stem: Path,
    series: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    title: str,
    xlabel: str = "response position of the phrase's first token",
    reference_label: str = "no phrase",
    reference: Mapping[str, Any] | None = None,
    shaded: tuple[int, int] | None = None,
) -> list[Path]:
    """Lines with 95 % intervals as `<stem>.png` and `<stem>.svg`.

    series: label -> points {"position", "value", "low", "high"}, shares in 0..1. reference: one such point without a
    position, drawn across. shaded: positions (from, to) to set off.
    """
    paths = [stem.with_name(f"{stem.name}{kind}") for kind in KINDS]
    for path in paths:
        with _axes(path, (6.4, 3.8)) as axes:
            if shaded:
                axes.axvspan(*shaded, color="0.9", label=f"window {shaded[0]} to {shaded[1]}")
            if reference:
                axes.axhline(100 * reference["value"], color="0.5", lw=1, ls=(0, (1, 2)), label=reference_label)
            for index, (label, points) in enumerate(series.items()):
                at = [point["position"] for point in points]
                values, low, high = ([100 * point[name] for point in points] for name in ("value", "low", "high"))
                colour = COLOURS[index % len(COLOURS)]
                axes.fill_between(at, low, high, color=colour, alpha=0.15, lw=0)
                axes.plot(at, values, _MARKS[index % len(_MARKS)], ms=4, color=colour, label=label)
            axes.set(xlabel=xlabel, ylabel="attack success, %", ylim=(-3, 103))
            axes.set_title(title, fontsize=10)
            axes.legend(frameon=False, fontsize=8, ncols=2)
    return paths


@figure
def heat(stem: Path, table: Mapping[str, Mapping[int, float]], *, title: str) -> list[Path]:
    """A map of position by kind as `<stem>.png` and `<stem>.svg`. table: kind -> position -> share in 0..1."""
    places = sorted({position for row in table.values() for position in row})
    paths = [stem.with_name(f"{stem.name}{kind}") for kind in KINDS]
    for path in paths:
        with _axes(path, (2.2 + 0.48 * len(places), 1.4 + 0.4 * len(table))) as axes:
            values = [[100 * row.get(position, float("nan")) for position in places] for row in table.values()]
            axes.imshow(values, cmap="viridis", vmin=0, vmax=100, aspect="auto")
            for y, row in enumerate(values):
                for x, value in enumerate(row):
                    if value == value:  # not a gap
                        colour = "black" if value > 60 else "white"
                        axes.text(x, y, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
            axes.set_xticks(range(len(places)), [str(position) for position in places])
            axes.set_yticks(range(len(table)), list(table))
            axes.set(xlabel="response position of the phrase's first token")
            axes.set_title(title, fontsize=10)
    return paths
