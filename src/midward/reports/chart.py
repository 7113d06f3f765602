"""Charts as SVG: lines with bands, points, bars with intervals, heat maps, alone or side by side.

On a page its style sheet colours them, light and dark; a file of its own has colours inside. Series are told apart by
colour (Okabe and Ito's hues), mark and dash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup, escape

from midward.errors import InputError

ALONE, BESIDE = (680, 380), (470, 320)  # width and height of a chart alone, and of one beside others
ACROSS = 2  # charts in a row
LEFT, RIGHT, BOTTOM = 58, 16, 48
MOST = 130  # points of a line that tell themselves, each by a target of its own
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 3")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#B0528A", "#8A6A00", "#3A8FC4", "#333333")
_HEAT = "#fff4e9 #fee8d3 #fdd9b5 #fdc590 #fdae6b #fb9347 #f07a26 #c24000 #a53500 #882b02 #6c2002".split()
_LETTER = 6.6  # width of the legend's letters, about
Scale = Callable[[float], float]  # a value's place on an axis, in pixels


@dataclass(frozen=True)
class Point:
    """low, high: a 95 % interval or quartiles; None where there is none."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


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
    panels = Markup("").join(
        Markup('<g transform="translate({} {})">{}</g>').format(
            place % across * width, place // across * height, Markup(_Panel(chart, width, height).draw())
        )
        for place, chart in enumerate(charts)
    )
    size = width * across, height * math.ceil(len(charts) / across)
    measures = Markup(' width="{}" height="{}"').format(*size) if standalone else ""
    style = Markup("<style>{}</style>").format(Markup(_STYLE)) if standalone else ""
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {} {}"{} role="img" aria-label="{}">'
        "{}{}</svg>"
    ).format(*size, measures, title, style, panels)


def tip(chart: Chart, series: Series, point: Point) -> str:
    """A point in words."""
    name = chart.groups[int(point.x)] if chart.groups else f"{chart.xlabel} {_plain(point.x)}"
    words = f"{series.label}, {name}: {_value(chart, point.y)}"
    if point.low is not None and point.high is not None:
        words += f" [{_value(chart, point.low)}, {_value(chart, point.high)}] {chart.interval}"
    return words


class _Panel:
    """A chart within its box: limits, scales, and the pieces of markup."""

    def __init__(self, chart: Chart, width: int, height: int) -> None:
        self.chart, self.width, self.floor = chart, width, height - BOTTOM
        self.x0, self.x1, self.y0, self.y1 = _limits(chart)
        self.legend, self.top = self._legend()

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        inside = min(max(value, self.y0), self.y1)
        return self.floor - (inside - self.y0) / (self.y1 - self.y0) * (self.floor - self.top)

    def draw(self) -> str:
        series = [self._series(place, series) for place, series in enumerate(self.chart.series)]
        levels = [
            _text(self.width - RIGHT, self.y(level) - 5, label, "end", "small over")
            for label, level in self.chart.levels
        ]
        return "".join([self._grid(), self._frame(), *series, *levels, self.legend])

    def _frame(self) -> str:
        """Ticks, axes, level lines and what they are called."""
        chart, end = self.chart, self.width - RIGHT
        pieces = []
        if chart.shaded:
            left, right = (self.x(min(max(x, self.x0), self.x1)) for x in chart.shaded[:2])
            pieces.append(_rect("shaded", left, self.top, right - left, self.floor - self.top))
            pieces.append(_text((left + right) / 2, self.top + 14, chart.shaded[2], "middle", "small"))
        for y in _ticks(self.y0, self.y1):
            if not chart.grid:
                pieces.append(_line("grid", LEFT, self.y(y), end, self.y(y)))
            pieces.append(_text(LEFT - 8, self.y(y) + 4, _value(chart, y, tick=True), "end"))
        places = enumerate(chart.groups) if chart.groups else [(x, _plain(x)) for x in _ticks(self.x0, self.x1)]
        pieces += [_text(self.x(x), self.floor + 18, name, "middle") for x, name in places]
        pieces.append(_line("axis", LEFT, self.floor, end, self.floor))
        if chart.diagonal:
            pieces.append(_line("level", self.x(0), self.y(0), self.x(1), self.y(1)))
        for _, level in chart.levels:
            pieces.append(_line("level", LEFT, self.y(level), end, self.y(level)))
        pieces.append(_text((LEFT + end) / 2, self.floor + BOTTOM - 10, chart.xlabel, "middle"))
        ylabel = f"{chart.ylabel}, {chart.unit}" if chart.unit and not chart.grid else chart.ylabel
        middle = (self.floor + self.top) / 2
        pieces.append(
            f'<text transform="translate(15 {middle:.1f}) rotate(-90)" text-anchor="middle">{escape(ylabel)}</text>'
        )
        return "".join(pieces)

    def _series(self, place: int, series: Series) -> str:
        if series.kind == "bars":
            return self._bars(place, series)
        pieces = []
        banded = [(p.x, p.low, p.high) for p in series.points if p.low is not None and p.high is not None]
        if series.kind == "line":
            if len(banded) > 1:
                edge = [f"{self.x(x):.1f},{self.y(high):.1f}" for x, _, high in banded]
                edge += [f"{self.x(x):.1f},{self.y(low):.1f}" for x, low, _ in reversed(banded)]
                pieces.append(f'<polygon class="band s{place % 7}" points="{" ".join(edge)}"/>')
            line = " ".join(f"{self.x(p.x):.1f},{self.y(p.y):.1f}" for p in series.points)
            dash = _DASHES[place % len(_DASHES)]
            pieces.append(f'<polyline class="line s{place % 7}" stroke-dasharray="{dash}" points="{line}"/>')
        marked = series.marks or series.kind == "points"
        for point in series.points if marked or len(series.points) <= MOST else ():
            x, y = self.x(point.x), self.y(point.y)
            mark = _mark(place, x, y) if marked else ""
            if len(series.points) > MOST:
                pieces.append(mark)
                continue
            target = f'<circle class="target" cx="{x:.1f}" cy="{y:.1f}" r="{9 if mark else 5}"/>'
            pieces.append(f'<g data-tip="{escape(tip(self.chart, series, point))}">{target}{mark}</g>')
        return "".join(pieces)

    def _bars(self, place: int, series: Series) -> str:
        count = len(self.chart.series)
        wide = 0.8 / count
        pieces = []
        for point in series.points:
            at = point.x + (place - (count - 1) / 2) * wide
            left, right, top = self.x(at - 0.45 * wide), self.x(at + 0.45 * wide), self.y(point.y)
            bar = _rect(f"mark s{place % 7}", left, top, right - left, self.floor - top)
            if point.low is not None and point.high is not None:
                low, high, x = self.y(point.low), self.y(point.high), self.x(at)
                bar += "".join(
                    _line("whisker", *ends)
                    for ends in ((x, low, x, high), (x - 4, low, x + 4, low), (x - 4, high, x + 4, high))
                )
            pieces.append(f'<g data-tip="{escape(tip(self.chart, series, point))}">{bar}</g>')
        return "".join(pieces)

    def _grid(self) -> str:
        """A map's cells; equal ones beside each other are one rectangle, so that a long map stays small."""
        pieces = []
        for row, cells in enumerate(self.chart.grid):
            top, bottom = self.y(row + 0.5), self.y(row - 0.5)
            steps = [None if share is None else min(10, max(0, round(10 * share))) for share in cells]
            for step, run in groupby(enumerate(steps, 1), key=lambda pair: pair[1]):
                columns = [column for column, _ in run]
                if step is not None:
                    left, right = self.x(columns[0] - 0.5), self.x(columns[-1] + 0.5)
                    pieces.append(_rect(f"heat h{step}", left, top, right - left, bottom - top))
        return "".join(pieces)

    def _legend(self) -> tuple[str, int]:
        """Title and legend, and where the plot begins under them."""
        pieces, x, y = [], float(LEFT), 14
        if self.chart.title:
            pieces.append(_text(LEFT, y + 4, self.chart.title, "start", "name"))
            y += 20
        if self.chart.grid:
            pieces += [_rect(f"heat h{step}", x + 30 + 12 * step, y - 4, 12, 9) for step in range(11)]
            pieces += [_text(x + 26, y + 4, "0 %", "end", "small"), _text(x + 166, y + 4, "100 %", "start", "small")]
        for place, series in enumerate(self.chart.series):
            wide = 36 + _LETTER * len(series.label)
            if x > LEFT and x + wide > self.width - RIGHT:
                x, y = float(LEFT), y + 20
            if series.kind == "line":
                dash = _DASHES[place % len(_DASHES)]
                pieces.append(
                    f'<line class="line s{place % 7}" stroke-dasharray="{dash}" x1="{x:.1f}" x2="{x + 24:.1f}" '
                    f'y1="{y}" y2="{y}"/>'
                )
            if series.kind == "bars":
                pieces.append(_rect(f"mark s{place % 7}", x + 6, y - 6, 12, 12))
            elif series.marks:
                pieces.append(_mark(place, x + 12, y))
            pieces.append(_text(x + 30, y + 4, series.label, "start"))
            x += wide + 8
        return "".join(pieces), y + 18 if pieces else 12


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


def _mark(place: int, x: float, y: float) -> str:
    kind = f'class="mark s{place % 7}"'
    shapes = (
        f'<circle {kind} cx="{x:.1f}" cy="{y:.1f}" r="3.6"/>',
        f'<rect {kind} x="{x - 3.4:.1f}" y="{y - 3.4:.1f}" width="6.8" height="6.8"/>',
        f'<path {kind} d="M{x:.1f} {y - 4.6:.1f}l4.4 8h-8.8z"/>',
        f'<path {kind} d="M{x:.1f} {y - 5:.1f}l5 5-5 5-5-5z"/>',
        f'<path {kind} d="M{x:.1f} {y + 4.6:.1f}l4.4-8h-8.8z"/>',
    )
    return shapes[place % len(shapes)]


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


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


_STYLE = (
    "text.over{paint-order:stroke;stroke:#fff;stroke-width:4px}"
    "svg{background:#fff;font-size:12px;font-family:system-ui,'DejaVu Sans',Arial,sans-serif}"
    "text{fill:#1b1f24}.small{font-size:11px;fill:#586069}"
    ".name{font-weight:600}.grid{stroke:#e4e7ec}.axis{stroke:#8a929c}.level{stroke:#8a929c;stroke-dasharray:2 3}"
    ".shaded{fill:#eceff3}.whisker{stroke:#1b1f24}.line{fill:none;stroke-width:1.8}.band{opacity:.14;stroke:none}"
    ".target{fill:none}"
    + "".join(f".line.s{n}{{stroke:{c}}}.band.s{n},.mark.s{n}{{fill:{c}}}" for n, c in enumerate(_COLOURS))
    + "".join(f".heat.h{n}{{fill:{c}}}" for n, c in enumerate(_HEAT))
)
