"""What a result is shown as: tables, figures, sentences. `render` turns these records into text, files and markup.

A builder makes them of a run's summary, one builder a verb (`present.BUILDERS`). Nothing here is escaped or formatted,
but for `text`, the one text form of a cell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from midward.errors import InputError
from midward.reports.chart import Chart
from midward.stats import Area, Mean, Paired, Rate, from_record

Reading = Rate | Mean | Area | Paired
#: What a table's cell may be. A mapping is the record of a reading, as a summary.json has it; None is shown as "-".
Cell = str | int | float | Reading | Mapping[str, Any] | None
#: exposed: bad news, which is sure. held: good news, which is sure. unclear: too few goals to say. note: neither.
Tone = Literal["exposed", "held", "unclear", "note"]


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row names it.

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
    """One model at a glance. value: its strongest attack's success. about: which that is. line: the verdict's reason.
    of: model, adapter, guard and judge by short names."""

    model: str
    tone: Tone
    value: str
    about: str
    line: str
    of: str = ""


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
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{str(value)[:40]!r} stands where a number should")
    return float(value)


def reading(record: Reading | Mapping[str, Any]) -> Reading:
    """The reading of a record, as its `record()` gives it.

    Raises:
        InputError: it is the record of none, or holds what is no number.
    """
    if not isinstance(record, Mapping):
        return record
    for name, value in record.items():
        if value is not None and name in ("value", "low", "high", "p", "holm"):
            finite(value)
    return cast(Reading, from_record(record))


def value_of(cell: Reading) -> float | None:
    """The number itself; None where nothing was scored."""
    return cell.value


def apart(pair: Paired, *, corrected: bool = True) -> bool:
    """Whether a difference is measurable: its interval leaves 0 out, and p is below 0.05.

    Args:
        pair: the difference.
        corrected: p is that for all the comparisons of its table, where there are several.
    """
    if pair.value is None or pair.low is None or pair.high is None:
        return False
    tests = (pair.p, pair.holm if corrected and pair.family > 1 else None)
    return (pair.low > 0 or pair.high < 0) and all(p is None or p < 0.05 for p in tests)


def by_chance(area: Area) -> bool:
    """Whether a detector may be guessing: the interval of its area holds one half, or lies below."""
    return area.low <= 0.5


def text(cell: Cell) -> str:
    """A cell as text. Readings have the form that `stats` gives them."""
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return str(cell)
    if isinstance(cell, float):
        return f"{cell:.4g}" if math.isfinite(cell) else "-"
    return str(reading(cell))


def parts(cell: Cell) -> tuple[str, str, str]:
    """The text of a cell in three: the value, its interval, and what it rests on; the last two may be empty."""
    whole = text(cell)
    found = None if isinstance(cell, str) else re.fullmatch(r"(.*?)(?: (\[.*?\]))?(?: \((.*)\))?", whole)
    return (found[1], found[2] or "", found[3] or "") if found else (whole, "", "")


def numbers(cell: Cell) -> dict[str, Any]:
    """A cell's columns in a file: of a reading its number and what belongs to it, of anything else itself, as ""."""
    if isinstance(cell, Mapping | Rate | Mean | Area | Paired):
        found = reading(cell)
        kept = ("low", "high", "n", "unscored", "p", "holm", "positives", "negatives")
        return {"": value_of(found)} | {name: value for name, value in asdict(found).items() if name in kept}
    return {"": cell}


# --- words ---------------------------------------------------------------------------------------------------


def percent(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:.1f} %"


def points(pair: Paired) -> str:
    """A difference with its interval, without what it rests on."""
    return " ".join(part for part in parts(pair)[:2] if part)


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def some(count: int, what: str) -> str:
    """1 attack, 2 attacks."""
    return f"{count} {what}{'' if count == 1 else 's'}"
