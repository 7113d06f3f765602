"""What the site says straight from the source, so that it can't grow old: a hook of mkdocs.

- `reference/ROOM.md`: a page a room, written by mkdocstrings from the docstrings of its public names (of a constant:
  the comment that begins with `#:`);
- `<!-- flags: midward VERB -->` in a page: what that verb's --help says;
- `<!-- all messages -->` in a page: every message that the source raises, by room.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import griffe

import midward

SOURCE = Path(midward.__file__).parent
ROOMS = (
    *("models", "sampling", "dynamics", "alignment", "guards", "goals", "judges", "attacks", "probes"),
    *("evaluation", "utility", "reports", "sandbox", "demo"),
)
GAP = "…"  # where a message has a value


# --- the reference -------------------------------------------------------------------------------------------------


def rooms() -> list[str]:
    """The rooms that there are, in the order of the reference."""
    return [room for room in ROOMS if (SOURCE / room / "__init__.py").is_file()]


def reference_pages() -> dict[str, str]:
    """Path in the site -> Markdown."""
    pages = {f"reference/{room}.md": _page(room) for room in rooms()}
    listed = "\n".join(f"- [midward.{room}]({room}.md): {_first_line(room)}" for room in rooms())
    pages["reference/index.md"] = (
        "# Reference\n\nGenerated from the docstrings. Rooms are listed from the ground up: each imports only those "
        f"before it.\n\n{listed}\n\n## midward\n\n::: midward\n    options:\n      heading_level: 3\n"
    )
    return pages


def _page(room: str) -> str:
    # A name that a module of the room has as well is taken for the module.
    own = "    options: {show_root_heading: true, show_root_toc_entry: true, show_root_full_path: false}\n"
    twice = [name for name in exported(room) if (SOURCE / room / f"{name}.py").is_file()]
    more = (f"\n::: midward.{room}.{name}.{name}\n{own}" for name in twice)
    return f"# midward.{room}\n\n::: midward.{room}\n{''.join(more)}"


def exported(room: str) -> list[str]:
    """The names in a room's `__all__`."""
    for node in ast.parse((SOURCE / room / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def _first_line(room: str) -> str:
    doc = ast.get_docstring(ast.parse((SOURCE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    return doc.split("\n\n")[0].replace("\n", " ")


class Comments(griffe.Extension):
    """Takes the `#:` comment above a constant for its docstring."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Called for each attribute that is found in the source."""
        if attr.docstring is None and attr.lineno and isinstance(attr.filepath, Path):
            text = _comment(attr.filepath, attr.lineno)
            attr.docstring = griffe.Docstring(text, parent=attr) if text else None


def _comment(path: Path, line: int) -> str:
    """The `#:` comment that ends just above a line, counted from 1."""
    above = path.read_text(encoding="utf-8").splitlines()[: line - 1]
    found: list[str] = []
    while above and above[-1].strip().startswith("#:"):
        found.insert(0, above.pop().strip().removeprefix("#:").strip())
    return " ".join(found)


# --- the verbs -----------------------------------------------------------------------------------------------------


def commands() -> dict[str, Any]:
    """`midward VERB` -> its click command, groups left out unless they do something of their own."""
    import typer

    from midward.cli import app

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        inside = getattr(command, "commands", None)
        if inside is None or command.invoke_without_command:
            yield " ".join(words), command
        for name, one in (inside or {}).items():
            yield from walk(one, (*words, name))

    return dict(walk(typer.main.get_command(app), ("midward",)))


def flags(name: str) -> str:
    """What `midward VERB --help` says, folded. Raises KeyError for a verb that there isn't."""
    from typer.testing import CliRunner

    from midward.cli import app

    commands()[name]
    shown = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    told = CliRunner().invoke(app, [*name.split()[1:], "--help"], env=shown).output
    lines = ["```text", *(line.rstrip() for line in told.strip().splitlines()), "```"]
    return "\n".join([f'??? note "{name} --help"', "", *(f"    {line}" for line in lines), ""])


# --- the messages --------------------------------------------------------------------------------------------------


class Message(NamedTuple):
    """One `raise` in the source. text: its message, with … for values. where: the file, from src/midward."""

    text: str
    error: str
    where: str


def messages() -> list[Message]:
    """Every message that the source raises and whose text stands in the `raise`."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        where = path.relative_to(SOURCE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                text = template(node.exc.args[0])
                if text.replace(GAP, "").strip(" :();.,"):
                    found.append(Message(text, ast.unparse(node.exc.func).split(".")[-1], where))
    return found


def template(node: ast.expr) -> str:
    """A message's text as the source has it, with … for each value."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return GAP


def message_list() -> str:
    """All messages, by room, folded."""
    by_room: dict[str, list[str]] = {}
    for one in messages():
        room = one.where.split("/")[0] if "/" in one.where else "all rooms"
        line = f"    - `` {one.text} `` ({one.error})"
        if line not in (lines := by_room.setdefault(room, [])):
            lines.append(line)
    return "\n\n".join("\n".join([f'??? note "{room} ({len(lines)})"', "", *lines]) for room, lines in by_room.items())


# --- the hook ------------------------------------------------------------------------------------------------------


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add the reference's pages."""
    from mkdocs.structure.files import File

    for path, text in reference_pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the places that a page marks."""
    markdown = re.sub(r"<!-- flags: (.+?) -->", lambda found: flags(found[1]), markdown)
    return re.sub("<!-- all messages -->", lambda found: message_list(), markdown)
