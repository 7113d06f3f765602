"""Results as they come: JSON lines, appended and flushed row by row, keyed by what they were computed from."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from midward._atomic import Hold, hold
from midward.errors import InputError


def key_of(**parts: Any) -> str:
    """A short hash of everything a row depends on (JSON-able values; order of names doesn't matter)."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_OPENING = b'{"key": "'  # of every line; how a torn one is told from somebody else's file


class RowFile:
    """An append-only file of rows, each with a `key`; a torn last line (a kill while writing) is left out, and dropped
    before the first row is written.

    `rows` maps key -> row; a key that is written again replaces its row. From the first row that it writes on, no other
    process may write to the file: `append` raises ValueError there. Raises InputError where an inner line is no row, or
    the last one no beginning of one: that is damage, or a file of something else, and nothing is touched.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.rows: dict[str, dict[str, Any]] = {}
        self._hold: Hold | None = None
        self._whole = 0  # bytes up to the end of the last whole line that was read
        if self.path.is_dir():
            raise InputError(f"{self.path} is a folder; give the path of a file.")
        if self.path.exists():
            self._read()
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def _read(self) -> None:
        whole = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                torn = not line.endswith(b"\n")
                if torn and (line.startswith(_OPENING) or _OPENING.startswith(line)):
                    break
                try:
                    if torn:
                        raise ValueError
                    row = json.loads(line)
                    self.rows[row["key"]] = row
                except (ValueError, KeyError, TypeError):
                    raise InputError(
                        f"{self.path}, line {number} is not a row written here; give another file or remove it."
                    ) from None
                whole += len(line)
        self._whole = whole

    def _claim(self) -> None:
        self.path.touch()
        self._hold = hold(self.path)
        if self.path.stat().st_size == self._whole:
            return
        self._read()  # once more: another process has written to it since, or the last line is torn
        if self._whole < self.path.stat().st_size:
            os.truncate(self.path, self._whole)

    def append(self, row: dict[str, Any]) -> None:
        """Write one row through to the disk. Raises InputError where another process is writing to the file."""
        if self._hold is None:
            self._claim()
        line = json.dumps({"key": row["key"], **row}, ensure_ascii=False) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.rows[row["key"]] = row
