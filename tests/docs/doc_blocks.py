"""What README.md, docs/**/*.md and the notebook tell the reader to run: their fenced blocks, and the commands in them.

A block is run unless a comment stands before it that says why not:

    <!-- not run: needs a GPU -->

Flags are checked all the same. A block with a title (`csv title="harmful.csv"`) is a file of that name, beside which
the page's commands run.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from docs.generated import notebook

REPOSITORY = Path(__file__).parents[2]
SHELL = ("", "bash", "sh", "console")

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)(?: +title=\"(?P<title>[^\"]+)\")?[^\n`]*\n(?P<text>.*?)^(?P=indent)```",
    re.M | re.S,
)
_NOT_RUN = re.compile(r"<!-- not run: (?P<why>.+?) -->\s*\Z", re.S)


@dataclass(frozen=True)
class Block:
    """One fenced block. why: for what reason it isn't run, if there is one."""

    page: str
    line: int
    language: str
    title: str | None
    text: str
    why: str | None

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command. words: as a shell would take them, from the program on. elided: it has an ellipsis for some."""

    block: Block
    words: tuple[str, ...]
    elided: bool = False

    @property
    def where(self) -> str:
        return f"{self.block.where}: {shlex.join(self.words)}"


def pages() -> list[Path]:
    """README.md, the pages of docs/ and of its folders, the notebook."""
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md")), REPOSITORY / "docs/notebook.ipynb"]


def text_of(page: Path) -> str:
    """A page's Markdown."""
    return notebook() if page.suffix == ".ipynb" else page.read_text(encoding="utf-8")


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = text_of(page)
    found = []
    for match in _FENCE.finditer(text):
        why = _NOT_RUN.search(text[: match.start()])
        indent = len(match["indent"])
        lines = [line[indent:] for line in match["text"].splitlines(keepends=True)]
        found.append(
            Block(
                page.name,
                text.count("\n", 0, match.start()) + 1,
                match["language"],
                match["title"],
                "".join(lines),
                why["why"] if why else None,
            )
        )
    return found


def commands(block: Block) -> list[Command]:
    """The commands of a shell block; of one that shows output, those behind a `$`."""
    if block.language not in SHELL or block.title:
        return []
    text = re.sub(r"\\\n\s*", "", block.text)
    lines = [line.strip() for line in text.splitlines()]
    if any(line.startswith("$ ") for line in lines):
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    found = []
    for line in lines:
        if block.language == "" and not re.match(r"(midward|make|torchrun|accelerate) ", line):
            continue  # a block without a language may be anything
        for part in _split(line):
            found.append(Command(block, tuple(word for word in part if word != "..."), "..." in part))
    return found


def _split(line: str) -> list[tuple[str, ...]]:
    """The commands of one line, at `;`, `&&` and `|`."""
    reader = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    reader.whitespace_split = True
    reader.commenters = "#"
    found: list[list[str]] = [[]]
    for word in reader:
        if set(word) <= set(";&|"):
            found.append([])
        else:
            found[-1].append(word)
    return [tuple(words) for words in found if words]


def inline_commands(page: Path) -> list[tuple[str, ...]]:
    """`midward VERB ...` in a page's running text and tables."""
    text = re.sub(_FENCE, "", text_of(page))
    found = []
    for code in re.findall(r"(?<!`)`(midward [a-z][^`\n]*)`(?!`)", text):
        found += [words for words in _split(code.replace("\\|", "")) if words[0] == "midward"]
    return found
