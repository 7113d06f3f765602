"""What the files of the package import, where in the file, and how many lines of code they hold."""

from __future__ import annotations

import ast
import graphlib
from dataclasses import dataclass
from pathlib import Path

import midward

SOURCE = Path(midward.__file__).parent

#: The rooms and single files from the ground up; a file imports from its own room and those below.
GROUND = (
    "stats store tensors errors _hints _settings _tables _plugins _asking _peft _fences _flags _formats _process "
    "_front _version"
)
ORDER = (
    GROUND.split(),
    ("world",),
    ("models",),
    ("sampling",),
    ("goals",),
    ("dynamics",),
    ("judges",),
    ("runs",),
    ("alignment",),
    ("guards",),
    ("chat",),  # what `midward.load` gives: a model with a guard in front of it
    ("serving",),
    ("attacks",),
    ("audit",),
    ("probes",),
    ("utility",),
    ("reports",),
    ("cli",),
    ("__init__", "__main__", "_inspect", "_sglang"),  # the doors to the street
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}


@dataclass(frozen=True)
class Import:
    """One import. target: a module in full; late: inside a function; typing: for type checkers alone."""

    file: str  # relative to the package, e.g. cli/attack.py
    target: str
    late: bool
    typing: bool

    @property
    def to(self) -> str | None:
        """The file of ours that it names; None for other packages."""
        return _file_of(self.target)

    def __str__(self) -> str:
        return f"{self.file} -> {self.target}"


def room_of(file: str) -> str:
    """The room of a file: its folder, or its own name."""
    return Path(file).parts[0].removesuffix(".py")


def files() -> list[str]:
    """All files of the package."""
    return sorted(str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py"))


def imports(file: str) -> list[Import]:
    """All imports of a file."""
    found: list[Import] = []

    def visit(node: ast.AST, late: bool, typing: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(file, alias.name, late, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            above = ["midward", *Path(file).parts[:-1]]
            parts = (
                [*above[: len(above) + 1 - node.level], *filter(None, [node.module])] if node.level else [node.module]
            )
            module = ".".join(map(str, parts))
            inside = [f"{module}.{alias.name}" for alias in node.names]
            targets = [name if module.startswith("midward") and _file_of(name) else module for name in inside]
            found.extend(Import(file, target, late, typing) for target in dict.fromkeys(targets))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            found.append(Import(file, "import_module", late, typing))
        late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        only_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            visit(child, late, typing or only_types)

    visit(ast.parse((SOURCE / file).read_text(encoding="utf-8")), False, False)
    return found


def _file_of(module: str) -> str | None:
    if module.split(".")[0] != "midward":
        return None
    path = SOURCE.joinpath(*module.split(".")[1:])
    if path.with_suffix(".py").is_file():
        return str(path.with_suffix(".py").relative_to(SOURCE))
    return str((path / "__init__.py").relative_to(SOURCE)) if (path / "__init__.py").is_file() else None


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Files that import each other in a ring; none where there is no ring."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []
