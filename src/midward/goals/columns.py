"""How the rows of a table become goals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midward._tables import Row, read_table, require_column
from midward.goals.goal import Goal, GoalsError

#: What a column may be called in somebody's file, in any case; the first that is there counts.
NAMES = {
    "text": ("goal", "prompt", "behavior"),
    "target": ("target",),
    "context": ("context", "contextstring"),
    "category": ("category", "semanticcategory"),
    "id": ("id", "behaviorid"),
    "harmful": ("harmful",),
}
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Columns:
    """The columns that hold each part of a goal.

    Attributes:
        text: the request, which may stand alone in a list (of turns, or messages).
        more: what is appended to it behind a blank line.
        harmful: true or false, for each row.
        only: (column, value) of the rows that belong to the set.
    """

    text: str
    more: str | None = None
    target: str | None = None
    context: str | None = None
    category: str | None = None
    id: str | None = None
    harmful: str | None = None
    only: tuple[str, str] | None = None


def _by_small_name(rows: Sequence[Row]) -> dict[str, str]:
    """The columns, the last one first, by their names in small letters; of those that are alike, the first."""
    return {name.lower(): name for name in reversed(dict.fromkeys(name for row in rows for name in row))}


def text_column(rows: Sequence[Row], where: str, column: str | None = None, first: str = "goal") -> str:
    """The column that holds the requests.

    Args:
        where: the table's name in errors.
        column: its name, where it is known; else it is one of NAMES["text"].
        first: which of those goes before the others.

    Raises:
        InputError: there is none; names the columns there are.
    """
    if column is not None:
        require_column(rows, column, where)
        return column
    names = _by_small_name(rows)
    text = next((names[name] for name in (first, *NAMES["text"]) if name in names), None)
    if text is None:
        raise GoalsError(
            f"{where} has none of the columns {', '.join(NAMES['text'])}; say which one holds the requests "
            f"(--column, column=). Its columns: {', '.join(reversed(names.values()))}."
        )
    return text


def prompts_of(path: str | Path, column: str | None = None) -> tuple[list[Row], str]:
    """The rows of a file, and the column of the prompts: prompt, goal or behavior by default. Raises InputError."""
    rows = read_table(path)
    return rows, text_column(rows, str(path), column, first="prompt")


def detect(rows: Sequence[Row], where: str, column: str | None = None) -> Columns:
    """The columns of a file. `column` names that of the requests; see `text_column`."""
    names = _by_small_name(rows)
    parts = {part: next((names[n] for n in known if n in names), None) for part, known in NAMES.items()}
    return Columns(**parts | {"text": text_column(rows, where, column)})  # type: ignore[arg-type]


def goals_of(rows: Sequence[Row], columns: Columns, *, source: str, harmful: bool, where: str) -> list[Goal]:
    """The goals of a table, in its order.

    An id that is a bare number gets the set's name in front; a row without one has the name and its number from 0.

    Args:
        source: the set's name.
        harmful: of each goal, unless a column says it.
        where: the table's name in errors.

    Raises:
        InputError: a missing column, a row without a text, an id that comes twice, or no row of the set.
    """
    parts = (columns.text, columns.more, columns.target, columns.context, columns.category, columns.id, columns.harmful)
    for name in (*parts, *(columns.only or ())[:1]):
        if name is not None:
            require_column(rows, name, where)
    key, value = columns.only or (None, None)
    chosen = {number: row for number, row in enumerate(rows) if key is None or row.get(key) == value}
    if not chosen:
        raise GoalsError(f"{where} holds no row of the set {source}.")
    ids = _ids({number: _part(row, columns.id) for number, row in chosen.items()}, source, where)
    return [
        Goal(
            id=ids[number],
            text=_text(row, columns, f"{where}, row {number + 1}"),
            source=source,
            harmful=_truth(row, columns.harmful, f"{where}, row {number + 1}") if columns.harmful else harmful,
            target=_part(row, columns.target),
            context=_part(row, columns.context),
            category=_part(row, columns.category),
        )
        for number, row in chosen.items()
    ]


def _part(row: Row, name: str | None) -> str | None:
    value = row.get(name) if name else None
    return None if value is None or not str(value).strip() else str(value)


def _ids(given: Mapping[int, str | None], source: str, where: str) -> dict[int, str]:
    """Row number -> id, of what the column of ids holds. Raises GoalsError where it holds one twice."""
    counts = Counter(name for name in given.values() if name is not None)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise GoalsError(f"{where} has the id {twice[0]!r} more than once; results are kept by id.")
    ids = {number: name for number, name in given.items() if name is not None}
    for number, name in ids.items():
        if name.isdecimal() and f"{source}-{name}" not in counts:
            ids[number] = f"{source}-{name}"
    taken = set(ids.values())
    for number in given.keys() - ids.keys():
        name = f"{source}-{number:04d}"
        ids[number] = f"{source}-row-{number:04d}" if name in taken else name  # made up, so it gives way
    return ids


def _text(row: Row, columns: Columns, line: str) -> str:
    text: Any = row.get(columns.text)
    if isinstance(text, list) and len(text) > 1:
        raise GoalsError(
            f"{line}: the column {columns.text!r} holds a conversation of {len(text)} turns, and a goal is one "
            "request; midward generate --prompts asks conversations."
        )
    if isinstance(text, list) and text:
        text = text[0].get("content") if isinstance(text[0], dict) else text[0]
    if not isinstance(text, str) or not text.strip():
        raise GoalsError(f"{line}: the column {columns.text!r} holds {text!r}, no text; fill or remove it.")
    more = _part(row, columns.more)
    return f"{text}\n\n{more}" if more else text


def _truth(row: Row, column: str, line: str) -> bool:
    truth = _TRUTH.get(str(row.get(column)).strip().lower())
    if truth is None:
        raise GoalsError(f"{line}: the column {column!r} holds {row.get(column)!r}, neither true nor false.")
    return truth
