"""What midward and installed packages offer under a name: ours, and those added by an entry point.

An entry point's name is the thing's own. Packages are loaded only when the list is shown or one of their things is
asked for; one that can't be loaded is an error then, and names the package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter
from typing import Any, Generic, TypeVar

from midward._hints import did_you_mean

T = TypeVar("T")


@dataclass(frozen=True)
class Plugins(Generic[T]):
    """One kind of thing.

    Attributes:
        noun: what it is called in errors.
        group: of the entry points.
        kind: its class.
        own: midward's, by name.
        error: raised with a message.
        check: raises ValueError over one that can't be used.
        name_of: what one calls itself.
    """

    noun: str
    group: str
    kind: type[T]
    own: Mapping[str, T]
    error: type[Exception]
    check: Callable[[T], None] = lambda thing: None
    name_of: Callable[[Any], str] = attrgetter("name")

    def find(self, name: str) -> T:
        """The thing of this name.

        Raises:
            error: an unknown name, or a package's thing that can't be loaded.
        """
        if name in self.own:
            return self.own[name]
        check_name(self.noun, self.group, self.own, name, self.error)
        return self._load(next(point for point in entry_points(group=self.group) if point.name == name))

    def every(self) -> dict[str, Any]:
        """All by name; one that can't be loaded is its error."""
        things: dict[str, Any] = dict(self.own)
        for point in entry_points(group=self.group):
            # a name of ours stays ours, and the package's error is shown beside it
            name = point.name if point.name not in self.own else f"{point.name} ({_package(point)})"
            try:
                things[name] = self._load(point)
            except self.error as error:
                things[name] = error
        return things

    def _load(self, point: EntryPoint) -> T:
        whose = f"the {self.noun} {point.name!r} of the package {_package(point)!r} ({point.value})"
        if point.name in self.own:
            raise self.error(f"{whose} has the name of one of midward's own; it must take another one.")
        try:
            thing = point.load()
        except Exception as error:  # whatever a stranger's import raises
            raise self.error(f"{whose} can't be loaded: {type(error).__name__}: {error}") from error
        if not isinstance(thing, self.kind):
            raise self.error(f"{whose} is {type(thing).__name__}, not a {self.kind.__name__}.")
        try:
            self.check(thing)
        except ValueError as error:
            raise self.error(f"{whose} {error}") from None
        name = self.name_of(thing)
        if name != point.name:
            raise self.error(f"{whose} calls itself {name!r}; entry point and {self.noun} must have one name.")
        return thing


def check_name(noun: str, group: str, own: Iterable[str], name: str, error: type[Exception]) -> None:
    """Raise `error` unless a thing has this name, be it of `own` or an entry point's; nothing is loaded."""
    known = [*own, *(point.name for point in entry_points(group=group))]
    if name not in known:
        raise error(f"there is no {noun} {name!r}.{did_you_mean(name, known)} Available: {', '.join(known)}.")


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value
