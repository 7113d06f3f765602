"""What the command line has to know of a setting beside its name, type and default.

A config dataclass says it once, in the field's annotation, and `midward.cli` derives the flag:

    length: Annotated[int, Flag("Response tokens.", min=1)] = 128
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from midward._hints import one_of
from midward.errors import InputError


@dataclass(frozen=True)
class Flag:
    """A setting as a flag; a field of a config without one is none.

    Args:
        help: a sentence or two for `--help`.
        min, max: bounds of a number, both included.
        choices: the texts that it may be.
        name: how it is spelled where that isn't the field's own name; several spellings apart by blanks ("--limit
            --count").
        metavar: what stands for its value in `--help`.
        panel: the heading of `--help` that it stands under.
        argument: whether it is given by its place instead of its name.
        read: from the text on the command line to the value; a tuple is read by comma unless given.
        grows: a run that goes on may have more of it: a count that is higher, or a list with more names.
        free: changes no result, so a run that goes on may have another.
    """

    help: str = ""
    min: float | None = None
    max: float | None = None
    choices: tuple[str, ...] = ()
    name: str = ""
    metavar: str | None = None
    panel: str | None = None
    argument: bool = False
    read: Callable[[str], Any] | None = None
    grows: bool = False
    free: bool = False


def check(config: Any) -> None:
    """Raise InputError where a field of a config is none of its flag's choices, or outside its bounds."""
    hints = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        value = getattr(config, field.name)
        for flag in getattr(hints[field.name], "__metadata__", ()):
            for each in value if isinstance(value, tuple) else [value]:
                if flag.choices and each is not None:
                    one_of(field.name, each, flag.choices)
                if flag.min is not None and each is not None and each < flag.min:
                    raise InputError(f"{field.name} is {flag.min:g} or more; received {each}.")
                if flag.max is not None and each is not None and each > flag.max:
                    raise InputError(f"{field.name} is {flag.max:g} or less; received {each}.")
