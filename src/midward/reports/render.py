"""Blocks as text for a terminal, as Markdown, and as files: CSV, SVG, and PNG where `resvg-py` is installed."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from midward._tables import csv_text
from midward.reports import chart
from midward.reports.blocks import Block, Card, Figure, Missing, Statement, Table, numbers, parts, text
from midward.store import replacing, write_text

MARKS = {"exposed": "▲", "held": "●", "unclear": "?", "note": "-"}
MARGIN = 2  # between columns on a terminal


def terminal(blocks: Iterable[Block], width: int | None = None) -> str:
    """Blocks as lines no wider than a terminal. Conversations aren't shown: they may hold harmful text.

    Tables fold within their cells; where even single words don't fit side by side, a row becomes lines of its own.

    Args:
        blocks: what to show.
        width: in columns; by default the terminal's, and 80 where there is none.
    """
    width = width or shutil.get_terminal_size().columns
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False, force_terminal=False)
    for block in blocks:
        if isinstance(block, Table):
            _show_table(console, block)
        elif isinstance(block, Figure):
            _say(console, f"{block.title}: {block.finding}" if block.finding else "")
        elif isinstance(block, Statement | Missing | Card):
            _say(console, _sentence(block))
    return console.file.getvalue().rstrip("\n")  # type: ignore[attr-defined]


def _say(console: Console, sentence: str) -> None:
    if sentence:
        console.print(Text(_printable(sentence)))
        console.print()


def _show_table(console: Console, table: Table) -> None:
    heads = [_printable(name) for name in table.columns]
    room = console.width - MARGIN * (len(heads) - 1)
    lines = [heads, *([_printable(text(cell)) for cell in row] for row in table.rows)]
    if sum(_widths(lines, r".*")) > room:  # a reading's value, interval and what it rests on stand below each other
        lines = [heads, *([_printable("\n".join(filter(None, parts(cell)))) for cell in row] for row in table.rows)]
    widths, least = _widths(lines, r".*"), _widths(lines, r"\[[^\]]*\]|\S+")
    console.print(Text(_printable(table.title), style="bold"))
    if sum(least) <= room:
        while sum(widths) > room:
            widest = max(range(len(widths)), key=lambda place: widths[place] - least[place])
            widths[widest] -= 1
        grid = Grid(box=None, padding=(0, MARGIN, 0, 0), pad_edge=False)
        for name, width in zip(heads, widths, strict=True):
            grid.add_column(Text(name), width=width, overflow="fold")
        for row in lines[1:]:
            grid.add_row(*map(Text, row))
        console.print(grid)
    else:
        for cells in table.rows:
            console.print(Text(_printable(text(cells[0]))))
            for name, cell in zip(heads[1:], cells[1:]):
                console.print(Text(f"  {name}: {_printable(text(cell))}"))
    for sentence in (table.note, table.finding):
        if sentence:
            console.print(Text(_printable(sentence)))
    console.print()


def _widths(lines: Sequence[Sequence[str]], piece: str) -> list[int]:
    """The longest piece of each column, by a pattern of what isn't broken."""
    return [max(len(found) for cell in column for found in ["", *re.findall(piece, cell)]) for column in zip(*lines)]


def markdown(blocks: Iterable[Block], *, images: Mapping[str, str] | None = None) -> str:
    """Blocks as Markdown.

    Args:
        blocks: what to show; conversations aren't.
        images: file of each figure's picture by its name.
    """
    pieces = []
    for block in blocks:
        if isinstance(block, Table):
            heads = [list(map(_inline, block.columns)), ["---"] * len(block.columns)]
            lines = [*heads, *([_inline(text(cell)) for cell in row] for row in block.rows)]
            pieces.append(f"**{_inline(block.title)}**")
            pieces.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
            pieces += [block.note, block.finding]
        elif isinstance(block, Figure):
            if block.name in (images or {}):
                pieces.append(f"![{_inline(block.title)}]({(images or {})[block.name]})")
            pieces += [f"**{_inline(block.title)}** {block.note}", block.finding]
        elif isinstance(block, Statement | Missing | Card):
            pieces.append(_sentence(block))
    return "\n\n".join(piece for piece in pieces if piece) + "\n"


def files(block: Block) -> dict[str, str]:
    """A block's files, by ending: of a table and a figure the numbers as CSV, of a figure the picture as SVG."""
    if isinstance(block, Table):
        return {"csv": csv_text(*_spread(block))}
    if isinstance(block, Figure):
        return {
            "csv": csv_text(["chart", "series", "x", "y", "low", "high"], _points(block)),
            "svg": chart.svg(block.charts, block.title, standalone=True),
        }
    return {}


def write(folder: Path, blocks: Sequence[Block]) -> None:
    """Write `table.md`, and each table's and figure's files under its name; a file that is there is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    images = {}
    for block in blocks:
        for ending, content in files(block).items():
            name = f"{block.name}.{ending}"  # type: ignore[union-attr] # only a table and a figure have files
            write_text(folder / name, content)
            if ending == "svg":
                images[Path(name).stem] = name
                png(folder / name)
    write_text(folder / "table.md", markdown(blocks, images=images))


def png(path: Path) -> Path | None:
    """Draw an SVG file as a PNG beside it, at twice its size; None where the extra `png` isn't installed."""
    if not find_spec("resvg_py"):
        return None
    import resvg_py

    with replacing(path.with_suffix(".png")) as part:
        part.write_bytes(resvg_py.svg_to_bytes(svg_path=str(path), zoom=2, background="#fff"))
    return path.with_suffix(".png")


def _sentence(block: Statement | Missing | Card) -> str:
    if isinstance(block, Card):
        return f"{MARKS[block.tone]} {block.model}: {block.value} ({block.about}); {block.line}."
    return f"! {block.text}." if isinstance(block, Missing) else f"{MARKS[block.tone]} {block.text}"


def _spread(table: Table) -> tuple[list[str], list[list[Any]]]:
    """Column names and rows of a table's CSV: a reading's fields are columns of their own."""
    cells = [[numbers(cell) for cell in row] for row in table.rows]
    heads: list[str] = []
    names: list[list[str]] = []
    for place, column in enumerate(table.columns):
        names.append(list(dict.fromkeys(name for row in cells for name in row[place])) or [""])
        heads += [f"{column}: {name}" if name else column for name in names[-1]]
    return heads, [[cell.get(name) for cell, of in zip(row, names) for name in of] for row in cells]


def _points(figure: Figure) -> Iterable[list[Any]]:
    for one in figure.charts:
        for series in one.series:
            for point in series.points:
                x = one.groups[int(point.x)] if one.groups else point.x
                yield [one.title, series.label, x, point.y, point.low, point.high]
        for y, row in enumerate(one.grid):
            yield from ([one.title, "share", x, y, share, None] for x, share in enumerate(row, 1))


def _inline(words: str) -> str:
    """Text that stays in its cell of a Markdown table, and is no markup of its own."""
    return " ".join(words.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def _printable(words: str) -> str:
    """Without what a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in words)
