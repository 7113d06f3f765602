"""Files that are written whole or not at all, and by one process at a time."""

from __future__ import annotations

import os
from pathlib import Path
from weakref import WeakValueDictionary

from midward.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text through a file beside it, so that a kill leaves the old file or the new one."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


class Hold:
    """This process's claim to be the only one that writes to a file or into a folder; it ends with the object.

    `hold` makes it. A kill ends it too; nothing is left on the disk. Where the file system knows no locks it claims
    nothing.
    """

    def __init__(self, path: Path) -> None:
        if fcntl is None:
            return
        self._file = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another process is writing to {path}; wait until it is done, or give another --out."
            ) from None
        except OSError:
            pass

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


_HELD: WeakValueDictionary[Path, Hold] = WeakValueDictionary()


def hold(path: Path) -> Hold:
    """Claim a file or folder that is there; shared within the process. Raises InputError where another has it."""
    path = path.resolve()
    found = _HELD.get(path)
    if found is None:
        found = _HELD[path] = Hold(path)
    return found
