"""A room's front door: its public names, imported when they are asked for (PEP 562).

The flags of a verb are read off config dataclasses, and `midward VERB --help` imports no torch; so a room that has
such a class and needs torch for the rest keeps its `__init__` light.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def front_door(room: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__` and `__all__` of an `__init__`.

    The names are those that its source imports, be it for type checkers alone (`if TYPE_CHECKING:`): listed once, each
    with its home.

    Args:
        room: its `__name__`.
    """
    package = sys.modules[room]
    homes: dict[str, str] = {}
    for node in ast.walk(ast.parse(package.__spec__.loader.get_source(room))):  # type: ignore[union-attr]
        if isinstance(node, ast.ImportFrom) and node.module not in ("__future__", "typing", __name__):
            homes |= {alias.name: f"{'.' * node.level}{node.module}" for alias in node.names}
    names = sorted(homes)

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {room!r} has no attribute {name!r}; there are {', '.join(names)}")
        return getattr(import_module(homes[name], room), name)

    return find, lambda: sorted({*vars(package), *names}), names
