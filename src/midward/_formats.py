"""Versions of the files that midward writes, MAJOR.MINOR, and what is told of a file of another version.

The minor is raised where a field is added that files of before can do without, the major where they can't be read any
more. A file is read if its major is that of this midward and its minor no higher: a field that isn't known here may be
one that decides the result.
"""

from __future__ import annotations

import re
from typing import Any

from midward.errors import InputError

_VERSION = re.compile(r"([0-9]{1,6})(?:\.([0-9]{1,6}))?")


def require_readable(version: Any, own: str, source: str, again: str) -> None:
    """Refuse a file of another version in one line that says which of the two is older.

    Args:
        version: as it stands in the file: "1.2", or "1" and 1 for 1.0; None in files of before they had one.
        own: the version that this midward writes.
        source: the file or folder, which begins the line.
        again: what to do about a file of an earlier version.

    Raises:
        InputError: the file isn't read here, or its version is none.
    """
    theirs, ours = _numbers(version), _numbers(own)
    if version is None:
        raise InputError(f"{source} was written by an earlier midward, whose files had no version yet; {again}.")
    if theirs is None or ours is None:
        raise InputError(f"{source} is of the version {version!r:.40}, which is none, so it is damaged; {again}.")
    if theirs > ours:
        raise InputError(
            f"{source} was written by a newer midward (format {version}, this one reads up to {own}); update midward, "
            f"or {again}."
        )
    if theirs[0] < ours[0]:
        raise InputError(
            f"{source} was written by an earlier midward (format {version}, this one reads {own}); {again}."
        )


def is_newer(version: Any, own: str) -> bool:
    """Whether a version lies after another one; False where one of them isn't made of numbers."""
    theirs, ours = _numbers(version), _numbers(own)
    return theirs is not None and ours is not None and theirs > ours


def _numbers(version: Any) -> tuple[int, int] | None:
    match = _VERSION.fullmatch(str(version))
    return match and (int(match[1]), int(match[2] or 0))
