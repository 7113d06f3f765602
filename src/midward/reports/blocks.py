"""What a result is shown as: tables, figures, sentences. `render` turns these records into text, files and markup.

A builder makes them of a run's summary, one builder a verb (`present.BUILDERS`). Nothing here is escaped or formatted,
but for `text`, the one text form of a cell.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal, TypeVar

from midward.errors import InputError
from midward.reports.chart import Chart
from midward.stats import FEW, Area, Estimate, Paired, Rate, from_record

#: What a table's cell may be. A mapping is a record of `stats`, as a summary.json has it; None is shown as "-".
Cell = str | int | float | Estimate | Mapping[str, Any] | None
#: exposed: bad news, which is sure. held: good news, which is sure. unclear: too few goals to say. note: neither.
Tone = Literal["exposed", "held", "unclear", "note"]
Kind = TypeVar("Kind", bound=Estimate)
#: Kind of number -> its ends.
_ENDS: dict[type[Estimate], tuple[float, float]] = {Rate: (0, 1), Area: (0, 1), Paired: (-1, 1)}
_COUNTS = ("n", "goals", "seeds", "hits", "unscored", "positives", "negatives", "family")


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row names it, or the first `named_by` cells together.

    name: of its file. note: what its numbers are. finding: what they say, in a sentence. heat: all cells but the first
    are rates, which the page colours. folded: it is a detail, closed at first on the page and not on the terminal.
    section: of the page, by default that of the verb.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    finding: str = ""
    heat: bool = False
    folded: bool = False
    section: str = ""
    named_by: int = 1

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table {self.name!r}: a row isn't as long as its {len(self.columns)} columns")


@dataclass(frozen=True)
class Figure:
    """One chart or several side by side. note: what they show. finding: what that says, in a sentence."""

    name: str
    title: str
    charts: Sequence[Chart]
    note: str = ""
    finding: str = ""
    section: str = ""


@dataclass(frozen=True)
class Statement:
    """A sentence: what was found."""

    text: str
    tone: Tone = "note"
    section: str = ""


@dataclass(frozen=True)
class Missing:
    """A sentence without its full stop: what the run lacks. quote: an error, which may hold what a model said."""

    text: str
    quote: str = ""


@dataclass(frozen=True)
class Card:
    """One model at a glance. value: its strongest attack's success, share the same in 0..1. about: which that is. line:
    the verdict's reason. of: its model, adapter, guard and judge, where they are known."""

    model: str
    tone: Tone
    value: str
    about: str
    line: str
    of: Mapping[str, str] = field(default_factory=dict)
    share: float = 0.0


@dataclass(frozen=True)
class Turn:
    """What one model was asked and answered. asked: empty where it is the goal itself."""

    model: str
    asked: str
    reply: str
    verdict: str


@dataclass(frozen=True)
class Talk:
    """One goal put to several models: its id, and what was asked. It may be harmful text: on the page only, folded."""

    title: str
    goal: str
    asked: str
    turns: Sequence[Turn]


Block = Table | Figure | Statement | Missing | Card | Talk


# --- readings ------------------------------------------------------------------------------------------------


def finite(value: Any) -> float:
    """A number of a file.

    Raises:
        InputError: it is none, or isn't finite.
    """
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not abs(value) <= sys.float_info.max:
        raise InputError(f"{str(value)[:40]!r} stands where a number should")
    return float(value)


def whole(value: Any) -> int:
    """A count of a file.

    Raises:
        InputError: it is none.
    """
    if finite(value) < 0 or not isinstance(value, int):
        raise InputError(f"{value} stands where a count should")
    return value


def reading(record: Estimate | Mapping[str, Any]) -> Estimate:
    """The number of a record, as its `record()` gives it.

    Raises:
        InputError: it is the record of none, holds what is no number, or a number that can't be: a share above 1,
            outside its own interval, or of a negative count.
    """
    if not isinstance(record, Mapping):
        return record
    number = from_record(record)
    for name, value in asdict(number).items():
        if name in _COUNTS:
            whole(value)
        elif value is not None:
            finite(value)
    if not _can_be(number):
        fields = ", ".join(f"{name} {value}" for name, value in asdict(number).items())
        raise InputError(f"its {record['stat']} can't be: {fields}")
    return number


def _can_be(number: Estimate) -> bool:
    if number.value is None or not number.n:
        return number.value is None and not number.n
    lowest, highest = _ENDS.get(type(number), (-math.inf, math.inf))
    interval = [end for end in (number.low, number.value, number.high) if end is not None]
    if type(number) in _ENDS and len(interval) < 3:  # only a mean may be without its interval
        return False
    rounding = 1e-6
    if any(low > high + rounding for low, high in pairwise([lowest, *interval, highest])):
        return False
    return not isinstance(number, Rate) or number.hits == round(number.value * number.n)


def reading_of(record: Any, kind: type[Kind]) -> Kind | None:
    """The number of a record that may be missing or of another kind: None then."""
    number = None if record is None else reading(record)
    return number if isinstance(number, kind) else None


def required(record: Any, kind: type[Kind]) -> Kind:
    """The same of a record that has to be there. Raises InputError where it isn't, or is of another kind."""
    number = reading_of(record, kind)
    if number is None:
        raise InputError(f"{text(record)} stands where a {kind.__name__.lower()} should")
    return number


def by_chance(area: Area) -> bool:
    """Whether a detector may be guessing: the interval of its area holds one half, or lies below, of scores enough to
    tell."""
    return area.low <= 0.5 and min(area.positives, area.negatives) >= FEW


def text(cell: Cell) -> str:
    """A cell as text. Readings have the form that `stats` gives them."""
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.4g}" if math.isfinite(cell) else "-"
    return str(reading(cell) if isinstance(cell, Mapping) else cell)


def parts(cell: Cell) -> tuple[str, str, str]:
    """The text of a cell in three: the value, its interval, and what it rests on; the last two may be empty."""
    if not isinstance(cell, Mapping | Estimate):
        return text(cell), "", ""
    number = reading(cell)
    value, bracket, ends = number.text().partition("[")
    return value.strip(), bracket + ends, number.size


def numbers(cell: Cell) -> dict[str, Any]:
    """A cell's columns in a file: of a reading its number and what belongs to it, of anything else itself, as ""."""
    if not isinstance(cell, Mapping | Estimate):
        return {"": cell}
    number = reading(cell)
    kept = ("low", "high", "n", "unscored", "p", "holm", "positives", "negatives")
    return {"": number.value} | {name: value for name, value in asdict(number).items() if name in kept}


# --- words ---------------------------------------------------------------------------------------------------


def percent(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:.1f} %"


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def some(count: int, what: str) -> str:
    """1 attack, 2 attacks."""
    return f"{count} {what}{'' if count == 1 else 's'}"
