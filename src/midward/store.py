"""What is kept on the disk: rows as they come, files that are whole or not there, one process at a time."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

from filelock import BaseFileLock, FileLock, Timeout

from midward.errors import InputError

#: The lock of a folder, in it.
LOCK = ".lock"
T = TypeVar("T")


class LockWarning(UserWarning):
    """A place can't be locked, so nothing keeps a second process from writing there."""


def cache_folder() -> Path:
    """Where downloads are kept: $MIDWARD_CACHE, or ~/.cache/midward."""
    return Path(os.environ.get("MIDWARD_CACHE") or Path.home() / ".cache" / "midward")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: the path that is yielded takes its place when the block ends well. Its folder
    is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # several processes may make one file
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_once(read: Callable[..., T]) -> Callable[..., T]:
    """A reader of a file that reads it once, and again once it was written anew.

    Args:
        read: Path, and more that can be hashed -> its content. What it raises isn't kept.

    Returns:
        The same of a path or its text, whose `~` is the home folder.
    """

    @lru_cache(maxsize=8)
    def of_version(path: Path, version: int, *more: Any) -> T:
        return read(path, *more)

    @wraps(read)
    def reader(path: str | Path, *more: Any) -> T:
        file = Path(path).expanduser()
        try:
            version = file.stat().st_mtime_ns
        except OSError:  # `read` says why
            version = 0
        return of_version(file, version, *more)

    return reader


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def require_writable(path: Path, read: Path) -> None:
    """Make the folder of a file. Raises InputError where the file can't be written, or is the one that is read."""
    if path.is_dir():
        raise InputError(f"--out {path} is a folder; give the path of a file.")
    if path.exists() and path.samefile(read):
        raise InputError(f"--out {path} is the file that is read; give another one.")
    new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
        if new:
            path.unlink()
    except OSError as error:
        raise InputError(f"--out {path} can't be written: {error.strerror}.") from None


def hold(path: Path) -> BaseFileLock:
    """Claim a file, or a folder that is there, for as long as what is returned lives; this process shares it.

    The lock stands beside the file, or in the folder, under a hidden name that stays; a kill ends the claim. Raises
    InputError where another process has it. Warns, and claims nothing, where the place can't be locked.
    """
    path = path.resolve()
    file = path / LOCK if path.is_dir() else path.with_name(f".{path.name}.lock")
    lock = FileLock(file, is_singleton=True, thread_local=False)
    if lock.is_locked:
        return lock
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"another process is writing to {path}; wait until it is done, or give another --out."
        ) from None
    except (OSError, NotImplementedError) as error:
        warnings.warn(
            f"{path} can't be locked ({error}): nothing keeps a second process from writing there.",
            LockWarning,
            stacklevel=2,
        )
    return lock


def key_of(**parts: Any) -> str:
    """A short hash of everything a row depends on (JSON-able values; order of names doesn't matter)."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_OPENING = b'{"key": "'  # of every line; how a torn one is told from somebody else's file


class RowFile:
    """An append-only file of rows (JSON lines), each with a `key`; a torn last line (a kill while writing) is left out,
    and dropped before the first row is written.

    `rows` maps key -> row; a key that is written again replaces its row. From the first row that it writes on, no other
    process may write to the file: `append` raises InputError there. Raises InputError where an inner line is no row, or
    the last one no beginning of one: that is damage, or a file of something else, and nothing is touched.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.rows: dict[str, dict[str, Any]] = {}
        self._hold: BaseFileLock | None = None
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

    def append(self, *rows: dict[str, Any]) -> None:
        """Write rows through to the disk, all of a chunk at once: each waits for the disk.

        Raises InputError where another process is writing to the file.
        """
        if not rows:
            return
        if self._hold is None:
            self._claim()
        lines = [json.dumps({"key": row["key"], **row}, ensure_ascii=False) + "\n" for row in rows]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        self.rows |= {row["key"]: row for row in rows}
