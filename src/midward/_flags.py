"""What the command line has to know of a setting beside its name, type and default.

A config dataclass says it once, and `midward.cli` derives the flag. The field's annotation holds what the parser needs,

    length: Annotated[int, Flag(min=1)] = 128

and the `Args:` of the class's docstring what it is; its first sentence there is what `--help` says. The parameters of a
verb's function are flags in the same way.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from midward._hints import one_of
from midward.errors import InputError


@dataclass(frozen=True)
class Flag:
    """A setting as a flag; a field of a config without one is none.

    Args:
        help: the sentence for `--help`, of a type that several verbs share; else it stands in the docstring.
        min, max: bounds of a number, both included; no upper one without a lower one.
        name: how it is spelled where that isn't the field's own name; several spellings apart by blanks ("--limit
            --count").
        metavar: what stands for its value in `--help`.
        panel: the heading of `--help` that it stands under.
        argument: whether it is given by its place instead of its name.
        read: from a text on the command line to the value, of a list each; a tuple is read by comma unless given.
        grows: a run that goes on may have more of it: a count that is higher, or a list with more names.
        free: changes no result, so a run that goes on may have another.
    """

    help: str = ""
    min: float | None = None
    max: float | None = None
    name: str = ""
    metavar: str | None = None
    panel: str | None = None
    argument: bool = False
    read: Callable[[str], Any] | None = None
    grows: bool = False
    free: bool = False


_SECTION = re.compile(r"^(?:Args|Attributes):\n((?:(?: .*)?\n)*(?: .*)?)", re.MULTILINE)
_ENTRY = re.compile(r"^    (\w+(?:, \w+)*): (.+(?:\n {5,}.+)*)", re.MULTILINE)


def summary(owner: Any) -> str:
    """What the docstring of a function or a class says before its sections."""
    return re.split(r"\n+(?:Args|Attributes|Returns|Raises):\n", inspect.getdoc(owner) or "")[0]


@cache
def flags_of(owner: Any) -> Mapping[str, Flag]:
    """Field of a config, or parameter of a function -> its flag, with the help from the docstring.

    What a class doesn't say of a field, the class says that it is from.
    """
    sections = [_SECTION.search(inspect.cleandoc(each.__doc__ or "")) for each in getattr(owner, "__mro__", [owner])]
    helps: dict[str, str] = {}
    for names, text in _ENTRY.findall("".join(section[1] + "\n" for section in reversed(sections) if section)):
        sentence = re.split(r'(?<=\.) (?=["A-Z])', " ".join(text.split()))[0]
        helps |= dict.fromkeys(names.split(", "), sentence)
    return {
        name: replace(flag, help=helps.get(name, flag.help))
        for name, hint in get_type_hints(owner, include_extras=True).items()
        for flag in getattr(hint, "__metadata__", ())
        if isinstance(flag, Flag)
    }


def check(config: Any) -> None:
    """Raise InputError where a field of a config is none of its `Literal`'s choices, or outside its flag's bounds."""
    for name, kind in get_type_hints(config.__class__).items():
        kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        choices = [choice for each in kinds if get_origin(each) is Literal for choice in get_args(each)]
        if choices and getattr(config, name) is not None:
            one_of(name, getattr(config, name), choices)
    for name, flag in flags_of(config.__class__).items():
        value, low, high = getattr(config, name), flag.min, flag.max
        if low is None or value is None:
            continue
        bounds = f"{low:g} or more" if high is None else f"{low:g} to {high:g}"
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int | float) or not low <= number <= (
                sys.float_info.max if high is None else high
            ):
                raise InputError(f"{name} is {bounds}; received {number!r}.")


def prompt_of(text: str) -> str:
    """A prompt as it is given, - being standard input. Raises InputError for an empty one."""
    text = sys.stdin.read().strip() if text == "-" else text
    if not text.strip():
        raise InputError("the prompt is empty.")
    return text


BatchSize = Annotated[int, Flag("Rows per forward pass.", min=1, free=True)]
