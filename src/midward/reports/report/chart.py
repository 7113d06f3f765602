"""Line charts as SVG: on a page coloured by its style sheet, light and dark; in a file of its own with colours inside.

Series are told apart by colour (Okabe and Ito's hues), mark and dash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from midward.errors import InputError

WIDTH, HEIGHT = 680, 380
LEFT, RIGHT, BOTTOM = 58, 16, 48
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 3")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#B0528A", "#8A6A00", "#3A8FC4", "#333333")
MOST = 130  # points of a line that tell themselves, each by a target of its own
Place = Callable[[float], float]  # of a value on an axis
_LETTER = 6.6  # of the legend's text, about


@dataclass(frozen=True)
class Point:
    """low, high: a 95 % interval or quartiles; None where there is none."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """marks: whether its points are drawn."""

    label: str
    points: Sequence[Point]
    marks: bool = True


@dataclass(frozen=True)
class Chart:
    """unit: "%" shows shares of 0..1 in per cent. lines: labels of level lines -> where. shaded: from, to, its label.
    what: what a band or a bracket is."""

    xlabel: str
    ylabel: str
    series: Sequence[Series]
    unit: str = ""
    ylim: tuple[float, float] | None = None
    lines: Sequence[tuple[str, float]] = ()
    shaded: tuple[float, float, str] | None = None
    diagonal: bool = False
    what: str = "95 % interval"


def tip(chart: Chart, series: Series, point: Point) -> str:
    """A point in words."""
    text = f"{series.label}, {chart.xlabel} {_plain(point.x)}: {_value(chart, point.y)}"
    if point.low is not None and point.high is not None:
        text += f" [{_value(chart, point.low)}, {_value(chart, point.high)}] {chart.what}"
    return text


def svg(chart: Chart, title: str, *, standalone: bool = False) -> Markup:
    """The chart. standalone: a file of its own, in light colours."""
    x0, x1, y0, y1 = _limits(chart)
    legend, top = _legend(chart)

    def across(x: float) -> float:
        return LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - (min(max(y, y0), y1) - y0) / (y1 - y0) * (HEIGHT - BOTTOM - top)

    parts = [_frame(chart, across, up, (x0, x1, y0, y1), top)]
    for index, series in enumerate(chart.series):
        parts.append(_series(chart, index, series, across, up))
    size = f' width="{WIDTH}" height="{HEIGHT}"' if standalone else ""
    style = Markup("<style>{}</style>").format(Markup(_STYLE)) if standalone else ""
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {} {}"{} role="img" aria-label="{}">'
        "{}{}{}</svg>"
    ).format(WIDTH, HEIGHT, Markup(size), title, style, Markup("".join(parts)), legend)


def _limits(chart: Chart) -> tuple[float, float, float, float]:
    xs = [point.x for series in chart.series for point in series.points]
    ends = [(point.y, point.low, point.high) for series in chart.series for point in series.points]
    ys = [y for end in ends for y in end if y is not None] + [level for _, level in chart.lines]
    if not xs:
        raise InputError("there is no point to draw")
    x0, x1 = min(xs), max(xs)
    y0, y1 = chart.ylim or (min(ys), max(ys))
    if not chart.ylim:
        room = 0.05 * (y1 - y0) or 1.0
        y0, y1 = y0 - room, y1 + room
    return (x0, x1 if x1 > x0 else x0 + 1, y0, y1)


def _frame(chart: Chart, across: Place, up: Place, limits: tuple[float, ...], top: float) -> str:
    x0, x1, y0, y1 = limits
    floor = HEIGHT - BOTTOM
    parts = []
    if chart.shaded:
        start, end = (across(min(max(x, x0), x1)) for x in chart.shaded[:2])
        parts.append(
            f'<rect class="shaded" x="{start:.1f}" y="{top}" width="{end - start:.1f}" height="{floor - top:.1f}"/>'
            f'<text class="small" x="{(start + end) / 2:.1f}" y="{top + 14}" text-anchor="middle">'
            f"{escape(chart.shaded[2])}</text>"
        )
    for y in _ticks(y0, y1):
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>'
            f'<text x="{LEFT - 8}" y="{up(y) + 4:.1f}" text-anchor="end">{escape(_value(chart, y, tick=True))}</text>'
        )
    for x in _ticks(x0, x1):
        parts.append(f'<text x="{across(x):.1f}" y="{floor + 18}" text-anchor="middle">{escape(_plain(x))}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>')
    if chart.diagonal:
        parts.append(
            f'<line class="level" x1="{across(0):.1f}" y1="{up(0):.1f}" x2="{across(1):.1f}" y2="{up(1):.1f}"/>'
        )
    for label, level in chart.lines:
        parts.append(
            f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(level):.1f}" y2="{up(level):.1f}"/>'
            f'<text class="small" x="{WIDTH - RIGHT}" y="{up(level) - 5:.1f}" text-anchor="end">{escape(label)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(chart.xlabel)}</text>'
        f'<text transform="translate(15 {(floor + top) / 2:.1f}) rotate(-90)" text-anchor="middle">'
        f"{escape(_named(chart))}</text>"
    )
    return "".join(parts)


def _series(chart: Chart, index: int, series: Series, across: Place, up: Place) -> str:
    place = f"s{index % 7}"
    parts = []
    banded = [(p.x, p.low, p.high) for p in series.points if p.low is not None and p.high is not None]
    if len(banded) > 1:
        edge = [f"{across(x):.1f},{up(high):.1f}" for x, _, high in banded]
        edge += [f"{across(x):.1f},{up(low):.1f}" for x, low, _ in reversed(banded)]
        parts.append(f'<polygon class="band {place}" points="{" ".join(edge)}"/>')
    line = " ".join(f"{across(p.x):.1f},{up(p.y):.1f}" for p in series.points)
    parts.append(f'<polyline class="line {place}" stroke-dasharray="{_dash(index)}" points="{line}"/>')
    if series.marks or len(series.points) <= MOST:
        for point in series.points:
            x, y = across(point.x), up(point.y)
            mark = _mark(index, x, y) if series.marks else ""
            parts.append(
                f'<g data-tip="{escape(tip(chart, series, point))}">'
                f'<circle class="target" cx="{x:.1f}" cy="{y:.1f}" r="{9 if mark else 5}"/>{mark}</g>'
            )
    return "".join(parts)


def _legend(chart: Chart) -> tuple[Markup, int]:
    """The legend and where the plot begins under it."""
    parts, x, y = [], float(LEFT), 14
    for index, series in enumerate(chart.series):
        wide = 36 + _LETTER * len(series.label)
        if x > LEFT and x + wide > WIDTH - RIGHT:
            x, y = float(LEFT), y + 20
        mark = _mark(index, x + 12, y) if series.marks else ""
        parts.append(
            f'<line class="line s{index % 7}" stroke-dasharray="{_dash(index)}" x1="{x:.1f}" x2="{x + 24:.1f}" '
            f'y1="{y}" y2="{y}"/>{mark}<text x="{x + 30:.1f}" y="{y + 4}">{escape(series.label)}</text>'
        )
        x += wide + 8
    return Markup("".join(parts)), y + 18


def _dash(index: int) -> str:
    return _DASHES[index % len(_DASHES)]


def _mark(index: int, x: float, y: float) -> str:
    place = f'class="mark s{index % 7}"'
    shapes = (
        f'<circle {place} cx="{x:.1f}" cy="{y:.1f}" r="3.6"/>',
        f'<rect {place} x="{x - 3.4:.1f}" y="{y - 3.4:.1f}" width="6.8" height="6.8"/>',
        f'<path {place} d="M{x:.1f} {y - 4.6:.1f}l4.4 8h-8.8z"/>',
        f'<path {place} d="M{x:.1f} {y - 5:.1f}l5 5-5 5-5-5z"/>',
        f'<path {place} d="M{x:.1f} {y + 4.6:.1f}l4.4-8h-8.8z"/>',
    )
    return shapes[index % len(shapes)]


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers within."""
    raw = (high - low) / 6
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 10) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _value(chart: Chart, value: float, *, tick: bool = False) -> str:
    if chart.unit != "%":
        return _plain(value)
    return f"{100 * value:.0f}" if tick else f"{100 * value:.1f} %"


def _named(chart: Chart) -> str:
    return f"{chart.ylabel}, {chart.unit}" if chart.unit else chart.ylabel


def _plain(value: float) -> str:
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


_STYLE = (
    "svg{background:#fff;font:12px system-ui,sans-serif}text{fill:#1b1f24}.small{font-size:11px;fill:#586069}"
    ".grid{stroke:#e4e7ec}.axis{stroke:#8a929c}.level{stroke:#8a929c;stroke-dasharray:2 3}.shaded{fill:#eceff3}"
    ".line{fill:none;stroke-width:1.8}.band{opacity:.14;stroke:none}.target{fill:none}"
    + "".join(f".line.s{n}{{stroke:{c}}}.band.s{n},.mark.s{n}{{fill:{c}}}" for n, c in enumerate(_COLOURS))
)
