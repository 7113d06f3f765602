"""Blocks as text for a terminal, as Markdown, and as files: CSV, SVG, and PNG where `resvg-py` is installed."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from midward._hints import markdown_text, printable
from midward._tables import csv_text
from midward.reports import chart
from midward.reports.blocks import Block, Card, Cell, Figure, Missing, Statement, Table, numbers, parts, text
from midward.store import replacing, write_text

MARKS = {"exposed": "▲", "held": "●", "unclear": "?", "note": "-"}
MARGIN = 2  # between columns on a terminal
UNFOLDED = 1_000_000  # columns of what is no terminal: nothing is folded there


def terminal(blocks: Sequence[Block], width: int | None = None) -> str:
    """Blocks as lines no wider than a terminal. Details (folded tables) are left to `table.md`, and conversations to
    the page, as they may hold harmful text.

    Tables fold within their cells. Where even single words don't fit side by side a map shows its values alone, and
    the columns of any other table stand below each other in lots, each behind the first column.

    Args:
        blocks: what to show.
        width: in columns; by default the terminal's; into a pipe or a file no line is folded.
    """
    width = width or shutil.get_terminal_size((UNFOLDED, 24)).columns
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False, force_terminal=False)
    sentences = _sentences(blocks)
    for block in blocks:
        if isinstance(block, Table) and not block.folded:
            _show_table(console, block)
        elif isinstance(block, Figure) and block.finding not in sentences:
            _say(console, f"{block.title}: {block.finding}")
        elif isinstance(block, Statement | Missing | Card):
            _say(console, _sentence(block))
    lines = console.file.getvalue().rstrip("\n")  # type: ignore[attr-defined]
    return re.sub(r"(?m)^(\s*)::", r"\1: :", lines)  # where a line begins so, GitHub's runners take it for a command


def _sentences(blocks: Sequence[Block]) -> set[str]:
    """What is said anyway, so that a figure needn't say it again."""
    return {"", *(block.text for block in blocks if isinstance(block, Statement))}


def _say(console: Console, sentence: str) -> None:
    console.print(Text(printable(sentence, "\n")))
    console.print()


def _show_table(console: Console, table: Table) -> None:
    heads = [printable(name, "\n") for name in table.columns]
    stacked: Callable[[Cell], str] = lambda cell: "\n".join(filter(None, parts(cell)))  # noqa: E731
    forms = [text, stacked, *([lambda cell: parts(cell)[0]] if table.heat else [])]
    if table.title:
        console.print(Text(printable(table.title, "\n"), style="bold"))
    for form in forms:
        lines = [heads, *([printable(form(cell), "\n") for cell in row] for row in table.rows)]
        widths, least = _widths(lines, r".*"), _widths(lines, r"\[[^\]]*\]|\S+")
        if sum(least if form is stacked else widths) + MARGIN * (len(heads) - 1) <= console.width:
            break
    for columns in _side_by_side(least, table.named_by, console.width):
        grid = Grid(box=None, padding=(0, MARGIN, 0, 0), pad_edge=False)
        room = console.width - MARGIN * (len(columns) - 1)
        for place, width in _narrowed({place: widths[place] for place in columns}, least, room).items():
            grid.add_column(Text(heads[place]), width=width, overflow="fold")
        for line in lines[1:]:
            grid.add_row(*(Text(line[place]) for place in columns))
        console.print(grid)
    for sentence in filter(None, (table.note, table.finding)):
        console.print(Text(printable(sentence, "\n")))
    console.print()


def _side_by_side(least: Sequence[int], named_by: int, width: int) -> Iterator[list[int]]:
    """Which columns stand side by side: as many as fit, those that name the rows before each lot."""
    names = list(range(named_by))
    columns = [*names]
    for place in range(named_by, len(least)):
        if len(columns) > named_by and sum(least[at] + MARGIN for at in columns) + least[place] > width:
            yield columns
            columns = [*names]
        columns.append(place)
    yield columns


def _narrowed(widths: dict[int, int], least: Sequence[int], room: int) -> dict[int, int]:
    """Widths of columns that fill at most the room: the one that can spare most gives way, to one letter at last."""
    while sum(widths.values()) > room:
        widest = max(widths, key=lambda place: (widths[place] - least[place], widths[place]))
        if widths[widest] == 1:
            break
        widths[widest] -= 1
    return widths


def _widths(lines: Sequence[Sequence[str]], piece: str) -> list[int]:
    """The longest piece of each column, by a pattern of what isn't broken."""
    return [
        max(cell_len(text_piece) for cell in column for text_piece in ["", *re.findall(piece, cell)])
        for column in zip(*lines)
    ]


def markdown(blocks: Sequence[Block], *, images: Mapping[str, str] | None = None) -> str:
    """Blocks as Markdown.

    Args:
        blocks: what to show; conversations aren't.
        images: file of each figure's picture by its name.
    """
    pieces, sentences = [], _sentences(blocks)
    for block in blocks:
        if isinstance(block, Table):
            heads = [list(map(markdown_text, block.columns)), ["---"] * len(block.columns)]
            lines = [*heads, *([markdown_text(text(cell)) for cell in row] for row in block.rows)]
            pieces.append(f"**{markdown_text(block.title)}**")
            pieces.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
            pieces += [_paragraph(block.note), _paragraph(block.finding)]
        elif isinstance(block, Figure):
            if block.name in (images or {}):
                pieces.append(f"![{markdown_text(block.title)}]({(images or {})[block.name]})")
            pieces += [
                f"**{markdown_text(block.title)}** {markdown_text(block.note)}",
                "" if block.finding in sentences else _paragraph(block.finding),
            ]
        elif isinstance(block, Statement | Missing | Card):
            mark, _, words = _sentence(block).partition(" ")
            pieces.append(f"{mark} {_paragraph(words)}")
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
    images = {}
    for block in blocks:
        if not isinstance(block, Table | Figure):
            continue
        for ending, content in files(block).items():
            path = folder / f"{slug(block.name)}.{ending}"
            write_text(path, content)
            if ending == "svg":
                images[block.name] = path.name
                png(path)
    write_text(folder / "table.md", markdown(blocks, images=images))


def slug(name: str) -> str:
    """A block's name as that of a file."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "block"


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
    if isinstance(block, Missing):
        return f"! {block.text}: {block.quote}" if block.quote else f"! {block.text}."
    return f"{MARKS[block.tone]} {block.text}"


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
    for panel in figure.charts:
        for series in panel.series:
            for point in series.points:
                x = panel.groups[int(point.x)] if panel.groups else point.x
                yield [panel.title, series.label, x, point.y, point.low, point.high]
        for y, row in enumerate(panel.grid):
            yield from ([panel.title, "share", x, y, share, None] for x, share in enumerate(row, 1))


def _paragraph(words: str) -> str:
    """Text as a paragraph of Markdown: one that begins as a heading or a list does is none."""
    line = markdown_text(words)
    return f"&#{ord(line[0])};{line[1:]}" if re.match(r"[-+#=]|\d{1,9}[.)]", line) else line
