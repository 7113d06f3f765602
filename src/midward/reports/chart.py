"""Charts as SVG: lines with bands, points, bars with intervals, heat maps, alone or side by side.

Here is where everything stands, in pixels; `templates/chart.svg.j2` draws it. On a page its style sheet colours it,
light and dark; a file of its own has colours inside (`templates/chart.css`). Series are told apart by colour (Okabe and
Ito's hues), mark and dash.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from midward.errors import InputError
from midward.reports import html

ALONE, BESIDE = (680, 380), (470, 320)  # width and height of a chart alone, and of one beside others
ACROSS = 2  # charts in a row
LEFT, RIGHT, BOTTOM = 58, 16, 48
MOST = 130  # points of a line that tell themselves, each by a target of its own
_LETTER = 6.6  # width of the legend's letters, about


@dataclass(frozen=True)
class Point:
    """low, high: a 95 % interval or quartiles; None where there is none."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None

    @property
    def known(self) -> bool:
        """Whether it has an interval."""
        return self.low is not None and self.high is not None


@dataclass(frozen=True)
class Series:
    """Points of one thing.

    kind: "line" (with a band where points have intervals), "points" (each by itself), or "bars" (x is the number of a
    name in `Chart.groups`). marks: whether a line's points are drawn.
    """

    label: str
    points: Sequence[Point]
    marks: bool = True
    kind: str = "line"


@dataclass(frozen=True)
class Chart:
    """What one pair of axes shows: series, or a grid.

    unit: "%" shows shares of 0..1 in per cent. title: above it, where there are several. ylim: the ends of y. groups:
    names of x at 0, 1, ... levels: label and y of level lines. shaded: from, to, its label. diagonal: from (0, 0) to
    (1, 1). interval: what a point's low and high are. grid: shares of 0..1 [rows from below, columns], None for empty,
    drawn as a map with columns at x 1, 2, ... and rows at y 0, 1, ...
    """

    xlabel: str
    ylabel: str
    series: Sequence[Series] = ()
    unit: str = ""
    title: str = ""
    ylim: tuple[float, float] | None = None
    groups: Sequence[str] = ()
    levels: Sequence[tuple[str, float]] = ()
    shaded: tuple[float, float, str] | None = None
    diagonal: bool = False
    interval: str = "95 % interval"
    grid: Sequence[Sequence[float | None]] = ()


def svg(charts: Sequence[Chart], title: str, *, standalone: bool = False) -> Markup:
    """Draw charts side by side.

    Args:
        charts: at least one.
        title: what is read aloud in the picture's place.
        standalone: a file of its own, in light colours.

    Raises:
        InputError: a chart has nothing to draw.
    """
    if not charts:
        raise InputError("there is no point to draw")
    width, height = ALONE if len(charts) == 1 else BESIDE
    across = min(ACROSS, len(charts))
    return html.render(
        "chart.svg.j2",
        title=title,
        panels=[
            (place % across * width, place // across * height, _Panel(chart, width, height))
            for place, chart in enumerate(charts)
        ],
        width=width * across,
        height=height * math.ceil(len(charts) / across),
        style=html.asset("chart.css") if standalone else "",
        tip=tip,
        most=MOST,
    )


def tip(chart: Chart, series: Series, point: Point) -> str:
    """A point in words."""
    name = chart.groups[int(point.x)] if chart.groups else f"{chart.xlabel} {_plain(point.x)}"
    words = f"{series.label}, {name}: {_value(chart, point.y)}"
    if point.low is not None and point.high is not None:
        words += f" [{_value(chart, point.low)}, {_value(chart, point.high)}] {chart.interval}"
    return words


class _Panel:
    """A chart within its box, in pixels.

    Attributes:
        left, right, top, floor: the plot's edges.
        head: where the legend begins; above it stands the title.
        legend: where each series' entry stands.
    """

    def __init__(self, chart: Chart, width: int, height: int) -> None:
        self.chart, self.left, self.right, self.floor = chart, LEFT, width - RIGHT, height - BOTTOM
        self.x0, self.x1, self.y0, self.y1 = _limits(chart)
        x, y = LEFT, 34 if chart.title else 14
        self.head, self.legend = y, []
        for series in chart.series:
            wide = round(36 + _LETTER * len(series.label))
            if x > LEFT and x + wide > self.right:
                x, y = LEFT, y + 20
            self.legend.append((x, y))
            x += wide + 8
        self.top = y + 18

    def x(self, value: float) -> float:
        inside = min(max(value, self.x0), self.x1)
        return self.left + (inside - self.x0) / (self.x1 - self.x0) * (self.right - self.left)

    def y(self, value: float) -> float:
        inside = min(max(value, self.y0), self.y1)
        return self.floor - (inside - self.y0) / (self.y1 - self.y0) * (self.floor - self.top)

    def xticks(self) -> list[tuple[float, str]]:
        """Places and names along x."""
        places = (
            enumerate(self.chart.groups) if self.chart.groups else [(x, _plain(x)) for x in _ticks(self.x0, self.x1)]
        )
        return [(self.x(x), name) for x, name in places]

    def yticks(self) -> list[tuple[float, str]]:
        """Places and names along y."""
        return [(self.y(y), _value(self.chart, y, tick=True)) for y in _ticks(self.y0, self.y1)]

    def cells(self) -> Iterator[tuple[str, float, float, float, float]]:
        """A map's cells: class, left, top, width, height; equal ones beside each other are one, so that a long map
        stays small."""
        for row, shares in enumerate(self.chart.grid):
            top, bottom = self.y(row + 0.5), self.y(row - 0.5)
            steps = [None if share is None else min(10, max(0, round(10 * share))) for share in shares]
            for step, run in groupby(enumerate(steps, 1), key=lambda pair: pair[1]):
                columns = [column for column, _ in run]
                if step is not None:
                    left, right = self.x(columns[0] - 0.5), self.x(columns[-1] + 0.5)
                    yield f"heat h{step}", left, top, right - left, bottom - top


def _limits(chart: Chart) -> tuple[float, float, float, float]:
    """x0, x1, y0, y1."""
    if chart.grid:
        return 0.5, max(map(len, chart.grid)) + 0.5, -0.5, len(chart.grid) - 0.5
    points = [point for series in chart.series for point in series.points]
    if not points:
        raise InputError("there is no point to draw")
    x0, x1 = min(point.x for point in points), max(point.x for point in points)
    if chart.groups:
        x0, x1 = -0.5, len(chart.groups) - 0.5
    ys = [y for point in points for y in (point.y, point.low, point.high) if y is not None]
    ys += [level for _, level in chart.levels]
    y0, y1 = chart.ylim or (min(ys), max(ys))
    if not chart.ylim:
        room = 0.05 * (y1 - y0) or 1.0
        y0, y1 = y0 - room, y1 + room
    return x0, x1 if x1 > x0 else x0 + 1, y0, y1


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers within."""
    raw = (high - low) / 6
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 10) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _value(chart: Chart, value: float, *, tick: bool = False) -> str:
    if chart.unit != "%" or chart.grid:
        return _plain(value)
    return f"{100 * value:.0f}" if tick else f"{100 * value:.1f} %"


def _plain(value: float) -> str:
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")
