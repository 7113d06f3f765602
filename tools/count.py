"""Lines of code by room and the longest files: `python -m tools.count [PATH]`.

A line counts when it holds a token that is neither a comment nor part of a docstring.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

_NOTHING = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(source: str) -> int:
    """The lines of code in a Python source."""
    docstrings = {
        (node.body[0].lineno, node.body[0].col_offset)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node, clean=False) is not None
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NOTHING and not (token.type == tokenize.STRING and token.start in docstrings):
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines)


def count(folder: Path) -> dict[str, int]:
    """File, relative to the folder -> its lines of code."""
    files = sorted(folder.rglob("*.py"))
    return {str(file.relative_to(folder)): code_lines(file.read_text(encoding="utf-8")) for file in files}


def main(arguments: list[str] | None = None) -> None:
    """Print the rooms of a folder, their sum, and its longest files."""
    parser = argparse.ArgumentParser(prog="python -m tools.count", description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", default="src/midward", type=Path)
    parser.add_argument("--longest", type=int, default=10, help="how many files to name")
    given = parser.parse_args(arguments)
    files = count(given.path)
    rooms: Counter[str] = Counter()
    for file, lines in files.items():
        rooms[Path(file).parts[0] if "/" in file else "(single files)"] += lines
    longest = Counter(files).most_common(given.longest)
    shown = [*rooms.most_common(), ("sum", sum(files.values())), ("", 0), *longest]
    sys.stdout.writelines(f"{lines:6,}  {name}\n" if name else "\n" for name, lines in shown)


if __name__ == "__main__":
    main()
