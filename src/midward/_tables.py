"""Tables: rows of a CSV or JSONL file, read as they stand, whatever their fields hold; results as CSV."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from midward._hints import did_you_mean, near_path
from midward.errors import InputError, MissingFile
from midward.store import write_text

Row = dict[str, Any]
Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items by a key, in the order in which the keys first appear."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def read_table(path: str | Path) -> list[Row]:
    """Return the rows of a .csv file (with a header line), a .jsonl file (one object a line) or a .json file (a list of
    objects, or an artifact of JailbreakBench), in file order.

    UTF-8, with or without a byte order mark; blank lines are skipped, as are a CSV's empty rows (`,,`) and the columns
    that have neither name nor content, which spreadsheets leave.

    Raises:
        MissingFile: there is no such file.
        InputError: it can't be read, naming the line: broken quoting, more fields than the header has, a line that is
            no JSON object, another encoding, another extension, or no row at all.
    """
    path = Path(path)
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".json": lambda path: artifact_rows(read_json(path), path)}
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file.")
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} has the extension {path.suffix!r}; give a file that ends in .csv, .jsonl or .json.")
    if not path.exists():
        raise MissingFile(f"there is no file {path}.{near_path(path, folder=False)}")
    try:
        rows = reader(path)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 (byte {error.start} is {error.object[error.start]:#x}); save it as UTF-8."
        ) from None
    if not rows:
        raise InputError(f"{path} holds no rows.")
    return rows


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises InputError where it is none, is nested beyond reason, or holds no text."""
    try:
        content = json.loads(path.read_bytes())
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path} holds half of a surrogate pair, no text.") from None
    except (ValueError, RecursionError) as error:  # a broken encoding is the first, too
        raise InputError(f"{path} can't be read as JSON: {error}.") from None
    return content


def artifact_rows(content: Any, where: str | Path) -> list[Row]:
    """The rows of a JSON file's content: of a list, or of an artifact in JailbreakBench's layout, with those that ours
    keep apart for want of a verdict: `jailbroken` is null there, whatever they say. Raises InputError for anything
    else, and where there is no row."""
    scored, unscored = content, list[Row]()
    if isinstance(content, dict):
        scored, unscored = content.get("jailbreaks"), content.get("unscored") or []
    if not (isinstance(scored, list) and isinstance(unscored, list)):
        raise InputError(f'{where}: it must be a list of rows, or an artifact: {{"jailbreaks": [rows], ...}}.')
    for number, row in enumerate([*scored, *unscored]):
        if not isinstance(row, dict):
            raise InputError(f"{where}, row {number} is {str(row)[:40]!r}, not an object of columns.")
    rows = [*scored, *(row | {"jailbroken": None} for row in unscored)]
    if not rows:
        raise InputError(f"{where} holds no rows.")
    return rows


def require_column(rows: Sequence[Row], column: str, where: str | Path) -> None:
    """Raise InputError, naming the columns there are, unless some row has this column."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if column not in names:
        raise InputError(
            f"{where} has no column {column!r}.{did_you_mean(column, names)} Its columns: {', '.join(names)}."
        )


def csv_text(head: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """A header line and rows as CSV that reads back whatever the texts hold; None is empty.

    Every text stands in quotes: without, a bare carriage return would end a line for whoever reads it.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()


def write_table(stem: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as `<stem>.csv`, whole or not at all, and return its path.

    Columns are those of all rows, in the order they first appear; a value that a row lacks is empty there. A list or
    mapping is written as JSON text.

    Raises:
        InputError: there are no rows.
    """
    if not rows:
        raise InputError(f"there are no rows to write to {stem}.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    path = Path(f"{stem}.csv")
    write_text(path, csv_text(names, ([_plain(row.get(name)) for name in names] for row in rows)))
    return path


def _plain(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping | list | tuple) else value


def _read_csv(path: Path) -> list[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file, _any_field_length():
        reader = csv.reader(file, strict=True)  # strict: an unclosed quote would swallow the rest
        try:
            # An empty line is no row, nor is one of empty fields.
            lines = [(reader.line_num, fields) for fields in reader if any(fields)]
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num} is no proper CSV: {error}.") from None
    if not lines:
        return []
    (_, header), *lines = lines
    used = [n for n, name in enumerate(header) if name or any("".join(fields[n : n + 1]) for _, fields in lines)]
    twice = [name for name, count in Counter(header[n] for n in used).items() if count > 1]
    if twice:
        raise InputError(f"{path} has more than one column {twice[0]!r}; rename them.")
    rows = []
    for number, fields in lines:
        if any(fields[len(header) :]):
            raise InputError(
                f"{path}, line {number} has more fields than the header's {len(header)}; "
                "put quotes around a field with a comma."
            )
        rows.append({header[n]: fields[n] if n < len(fields) else None for n in used})
    return rows


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    # Lines end at "\n" alone: U+2028 and its like may stand inside a text.
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                json.dumps(row, ensure_ascii=False).encode()
            except json.JSONDecodeError as error:
                raise InputError(f"{path}, line {number} is no JSON: {error.msg}.") from None
            except UnicodeEncodeError:
                raise InputError(f"{path}, line {number} holds half of a surrogate pair, no text.") from None
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number} is {line.strip()[:40]!r}, not an object of columns.")
            rows.append(row)
    return rows


@contextmanager
def _any_field_length() -> Iterator[None]:
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)
