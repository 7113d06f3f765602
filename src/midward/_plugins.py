"""What midward and installed packages offer under a name: ours, and those added by an entry point.

An entry point's name is the thing's own. Packages are loaded only when the list is shown or one of their things is
asked for. One that can't be loaded or used is an error then, and so is what it gives or raises later (`checking`,
`failure`): each names the thing and its package.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from inspect import signature
from operator import attrgetter
from pathlib import Path
from reprlib import repr
from typing import Any, ClassVar, Generic, TypeVar, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, InstanceOf, TypeAdapter, ValidationError

from midward._hints import did_you_mean
from midward.errors import InputError

T = TypeVar("T")

#: What a thing is called in errors -> the group of its entry points.
GROUPS = {noun: f"midward.{noun}s" for noun in ("attack", "guard", "judge", "probe")} | {"family": "midward.families"}

#: (noun, name) -> entry point, of what other packages added and was loaded.
_ADDED: dict[tuple[str, str], EntryPoint] = {}


@dataclass(frozen=True)
class Plugins(Generic[T]):
    """One kind of thing.

    Attributes:
        noun: one of GROUPS.
        kind: its class, whose annotations say what its attributes are.
        own: midward's, by name.
        error: raised with a message.
        check: raises over one that can't be used, an InputError that goes on behind the thing's name.
        name_of: what one calls itself.
    """

    noun: str
    kind: type[T]
    own: Mapping[str, T]
    error: type[Exception]
    check: Callable[[T], None]
    name_of: Callable[[Any], str] = attrgetter("name")

    def find(self, name: str) -> T:
        """The thing of this name.

        Raises:
            error: an unknown name, or a package's thing that can't be loaded or used.
        """
        if name in self.own:
            return self.own[name]
        check_name(self.noun, self.own, name, self.error)
        return self._load(next(point for point in entry_points(group=GROUPS[self.noun]) if point.name == name))

    def every(self) -> dict[str, Any]:
        """All by name; one that can't be loaded or used is its error."""
        things: dict[str, Any] = dict(self.own)
        for point in entry_points(group=GROUPS[self.noun]):
            # a name of ours stays ours, and the package's error is shown beside it
            name = point.name if point.name not in self.own else f"{point.name} ({_package(point)})"
            try:
                things[name] = self._load(point)
            except self.error as error:
                things[name] = error
        return things

    def _load(self, point: EntryPoint) -> T:
        if point.name in self.own:
            raise self.error(_taken(self.noun, point))
        _ADDED[self.noun, point.name] = point
        try:
            thing: T = point.load()
        except Exception as error:  # whatever a stranger's import raises
            raise self.error(f"{whose(self.noun, point.name)} can't be loaded: {_words(error)}") from error
        with checking(self.noun, point.name, self.error):
            check_types(thing, self.kind)
            self.check(thing)
            if (name := self.name_of(thing)) != point.name:
                raise InputError(f"calls itself {name!r}; entry point and {self.noun} must have one name.")
        return thing


def check_name(noun: str, own: Iterable[str], name: str, error: type[Exception]) -> None:
    """Raise `error` unless a thing has this name, be it of `own` or an entry point's; nothing is loaded."""
    known = [*own, *names(noun)]
    if name not in known:
        raise error(f"there is no {noun} {name!r}.{did_you_mean(name, known)} Available: {', '.join(known)}.")


def names(noun: str) -> list[str]:
    """Of packages' things; nothing is loaded."""
    return [point.name for point in entry_points(group=GROUPS[noun])]


def taken(noun: str, own: Iterable[str]) -> list[str]:
    """What is told of packages' things that have the name of one of midward's own; nothing is loaded."""
    return [_taken(noun, point) for point in entry_points(group=GROUPS[noun]) if point.name in set(own)]


# --- what comes of a thing ------------------------------------------------------------------------------------


def whose(noun: str, name: str) -> str:
    """A thing in words, with the package that added it."""
    point = _ADDED.get((noun, name))
    return f"the {noun} {name!r}" if point is None else _whose(noun, point)


@contextmanager
def checking(noun: str, name: str, error: type[Exception], then: str = "") -> Iterator[None]:
    """Name the thing, and its package, in whatever a check inside the block raises.

    Args:
        noun: one of GROUPS.
        name: of the thing.
        error: what is raised; the message of an InputError goes on behind the thing's name.
        then: said behind that.
    """
    try:
        yield
    except Exception as wrong:
        told = str(wrong) if isinstance(wrong, InputError) else f"can't be used: {_words(wrong)}"
        raise error(f"{whose(noun, name)} {told}{then}") from wrong


def failure(error: Exception) -> str | None:
    """What an exception that a package's thing raised says in a line; None where it passed through no such thing."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = str(frame.f_globals.get("__name__"))
        points = {key: point.module for key, point in _ADDED.items()}
        top = [key for key, of in points.items() if of.partition(".")[0] == module.partition(".")[0]]
        if things := [key for key in top if points[key] == module] or top:
            place = f"{Path(frame.f_code.co_filename).name}, line {line}"
            return f"{' or '.join(whose(*thing) for thing in things)} failed: {_words(error)} ({place})."
    return None


def check_types(thing: Any, kind: type, what: str = "") -> None:
    """Raise InputError unless a thing is of a class, or a subclass of it, and its attributes are as annotated there.

    what: begins the message, where it isn't the thing itself that is named ("gave a verdict that ").
    """
    if not (issubclass(thing, kind) if isinstance(thing, type) else isinstance(thing, kind)):
        raise InputError(f"{what}is {type(thing).__name__}, not a {kind.__name__}: {repr(thing)}.")
    for name, adapter in _adapters(kind).items():
        if not hasattr(thing, name):
            raise InputError(f"{what}has no {name}.")
        try:
            adapter.validate_python(getattr(thing, name), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, (name, *first["loc"])))
            raise InputError(f"{what}has {place} {repr(first['input'])}: {first['msg'].lower()}.") from None


def must_take(what: str, function: Callable[..., Any], *arguments: str, **named: Any) -> None:
    """Raise InputError unless a function can be called with these arguments, and those by name."""
    try:
        signature(function).bind(*arguments, **named)
    except TypeError as error:
        call = f"{what}({', '.join([*arguments, *(f'{name}=...' for name in named)])})"
        raise InputError(f"can't be asked by {call}: {error}.") from None


@cache
def _adapters(kind: type) -> dict[str, TypeAdapter[Any]]:
    config, hints = ConfigDict(arbitrary_types_allowed=True), get_type_hints(kind)
    hints |= {name: get_args(hint)[0] for name, hint in hints.items() if get_origin(hint) is ClassVar}
    return {
        name: TypeAdapter(InstanceOf.__class_getitem__(hint))
        if is_dataclass(hint)
        else TypeAdapter(hint, config=config)
        for name, hint in hints.items()
    }


def _whose(noun: str, point: EntryPoint) -> str:
    return f"the {noun} {point.name!r} of the package {_package(point)!r} ({point.value})"


def _taken(noun: str, point: EntryPoint) -> str:
    return f"{_whose(noun, point)} has the name of one of midward's own; it must take another one."


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
