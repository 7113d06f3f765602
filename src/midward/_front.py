"""A room's front door: its public names, imported when they are asked for (PEP 562).

The flags of a verb are read off config dataclasses, and `midward VERB --help` imports no torch; so a room that has
such a class and needs torch for the rest keeps its `__init__` light.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def front_door(room: str, *modules: str) -> Callable[[str], Any]:
    """The `__getattr__` of a room's `__init__`.

    Args:
        room: its `__name__`.
        modules: of the room, those that hold the names of its `__all__`, none called as such a name. They are looked
            through in this order.
    """

    def find(name: str) -> Any:
        package = sys.modules[room]
        if name in package.__all__:
            for module in modules:
                home = import_module(f"{room}.{module}")
                if hasattr(home, name):
                    setattr(package, name, getattr(home, name))
                    return getattr(home, name)
        raise AttributeError(f"module {room!r} has no attribute {name!r}")

    return find
