"""What the site says straight from the source, so that it can't grow old: a hook of mkdocs.

- `reference/ROOM.md`: a page a room, written by mkdocstrings from the docstrings of its public names (of a constant:
  the comment that begins with `#:`);
- `<!-- flags: midward VERB -->` in a page: what that verb's --help says;
- `notebook.md`: the notebook beside this file.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import griffe

import midward

SOURCE = Path(midward.__file__).parent
ROOMS = (
    *("stats", "world", "models", "sampling", "goals", "dynamics", "alignment", "judges", "runs", "guards", "serving"),
    *("attacks", "audit", "probes", "utility"),
)


# --- the reference -------------------------------------------------------------------------------------------------


def reference_pages() -> dict[str, str]:
    """Path in the site -> Markdown."""
    pages = {f"reference/{room}.md": _page(room) for room in ROOMS}
    listed = "\n".join(f"- [midward.{room}]({room}.md): {_first_line(room)}" for room in ROOMS)
    pages["reference/index.md"] = (
        "# Reference\n\nGenerated from the docstrings. Rooms are listed from the ground up: each imports only those "
        f"before it.\n\n{listed}\n\n## midward\n\n::: midward\n    options:\n      heading_level: 3\n"
    )
    return pages


def _page(room: str) -> str:
    # A name that a module of the room has as well is taken for the module.
    own = "    options: {show_root_heading: true, show_root_toc_entry: true, show_root_full_path: false}\n"
    twice = [f"{name}.{name}" for name in exported(room) if (SOURCE / room / f"{name}.py").is_file()]
    modules = [] if exported(room) else [path.stem for path in sorted((SOURCE / room).glob("[!_]*.py"))]
    more = (f"\n::: midward.{room}.{name}\n{own}" for name in (*twice, *modules))
    return f"# midward.{room}\n\n::: midward.{room}\n{''.join(more)}"


def exported(room: str) -> list[str]:
    """A room's public names: what its `__init__` imports or sets; none where its modules are its public names."""
    return _names(_tree(room)) if (SOURCE / room).is_dir() else []


def _names(tree: ast.Module) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module not in ("__future__", "typing", "midward._front"):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names.append(node.targets[0].id)
    return sorted(names)


def _first_line(room: str) -> str:
    return (ast.get_docstring(_tree(room)) or "").split("\n\n")[0].replace("\n", " ")


def _tree(room: str) -> ast.Module:
    path = SOURCE / room / "__init__.py" if (SOURCE / room).is_dir() else SOURCE / f"{room}.py"
    return ast.parse(path.read_text(encoding="utf-8"))


class Comments(griffe.Extension):
    """Takes the `#:` comment above a constant for its docstring, and what a room's `__init__` imports for its public
    names."""

    def on_module_members(self, *, node: Any, mod: griffe.Module, **_: Any) -> None:
        """Called for each module, once its members are there."""
        if mod.is_init_module and isinstance(node, ast.Module):
            mod.exports = list(_names(node))

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Called for each attribute that is found in the source."""
        if attr.docstring is None and attr.lineno and isinstance(attr.filepath, Path):
            text = _comment(attr.filepath, attr.lineno)
            attr.docstring = griffe.Docstring(text, parent=attr) if text else None


def _comment(path: Path, line: int) -> str:
    """The `#:` comment that ends just above a line, counted from 1."""
    above = path.read_text(encoding="utf-8").splitlines()[: line - 1]
    lines: list[str] = []
    while above and above[-1].strip().startswith("#:"):
        lines.insert(0, above.pop().strip().removeprefix("#:").strip())
    return " ".join(lines)


# --- the verbs -----------------------------------------------------------------------------------------------------


def flags(name: str) -> str:
    """What `midward VERB --help` says, folded. Raises KeyError for a verb that there isn't."""
    from typer.testing import CliRunner

    from midward.cli import app
    from midward.cli._app import VERBS

    VERBS[name.removeprefix("midward ")]
    shown = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    told = CliRunner().invoke(app, [*name.split()[1:], "--help"], env=shown).output
    lines = ["```text", *(line.rstrip() for line in told.strip().splitlines()), "```"]
    return "\n".join([f'??? note "{name} --help"', "", *(f"    {line}" for line in lines), ""])


# --- the notebook --------------------------------------------------------------------------------------------------


def notebook() -> str:
    """The notebook as Markdown: its code in fences, where lines that begin with ! are a shell's."""
    parts = []
    for cell in json.loads(Path(__file__).with_name("notebook.ipynb").read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            language = "bash" if text.startswith("!") else "python"
            text = f"```{language}\n{re.sub('^!', '', text, flags=re.M)}\n```"
        parts.append(text)
    return "\n\n".join(parts) + "\n"


# --- the hook ------------------------------------------------------------------------------------------------------


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add the reference's pages and the notebook's."""
    from mkdocs.structure.files import File

    for path, text in {**reference_pages(), "notebook.md": notebook()}.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the places that a page marks."""
    return re.sub(r"<!-- flags: (.+?) -->", lambda match: flags(match[1]), markdown)
