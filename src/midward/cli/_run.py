"""One run a folder: a verb's flags, kept in its --out, so that another run never replaces its tables."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from midward.cli._options import names, running
from midward.errors import InputError

RECORD = "run.json"
#: Flags that change no result.
_FREE = {
    "out_folder",
    "batch_size",
    "device",
    "device_map",
    "compare",
    "workers",
    "repeats",
    "plan",
    "listing",
    "verdict",
    "export",
}
#: Flags of how many, and lists (by comma, or given several times): a run that goes on may have more of them.
_COUNTS = {"count", "limit", "benign"}
_LISTS = {
    "adapter",
    "guard",
    "served",
    "attacks",
    "goals",
    "harmless",
    "judges",
    "sets",
    "attacked",
    "positions",
    "starts",
    "words",
    "phrases",
    "tokens",
    "tasks",
}


class RunFolder:
    """The --out of the verb that is running.

    Made before anything costly: raises InputError where the folder can't be written, and where it holds results of
    other flags, naming those. The same flags, or more goals, attacks, rows, go on.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        verb, given = running.get()
        self.settings: dict[str, Any] = {"verb": verb} | {
            option.spellings[0]: _value(name, value)
            for name, (option, value) in given.items()
            if name not in _FREE and not option.flag.free
        }
        self._names = {option.spellings[0]: name for name, (option, _) in given.items()}
        _check_writable(folder)
        path = folder / RECORD
        there = [each for each in folder.glob("[!.]*") if each != path] if path.exists() else []
        if there and (changed := self._changed(_read(path))):
            raise InputError(f"{folder} holds another run: {'; '.join(changed)}. Give another --out.")

    def _changed(self, before: dict[str, Any]) -> list[str]:
        found = []
        for flag, old in before.items():
            new, name = self.settings.get(flag), self._names.get(flag)
            if name in _LISTS and isinstance(old, list) and isinstance(new, list):
                if lost := [str(value) for value in old if value not in new]:
                    found.append(f"{flag} lacks {', '.join(lost)} here")
            elif name in _COUNTS and old is not None and (new is None or new >= old):
                continue
            elif new != old:
                found.append(f"{flag} {_text(old)} there, {_text(new)} here")
        return found

    def start(self) -> None:
        """Claim the folder, as long as this object lives, and write the flags. Raises InputError where another process
        has it."""
        from midward.store import hold, write_text

        if os.environ.get("RANK", "0") != "0":  # under torchrun one process does
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._hold = hold(self.folder)
        write_text(self.folder / RECORD, json.dumps(self.settings, indent=1, ensure_ascii=False, default=str) + "\n")


def _value(name: str, value: Any) -> Any:
    """As JSON; a file with a hash of what is in it."""
    if name in _LISTS and isinstance(value, str):
        value = names(value)
    if isinstance(value, list | tuple):
        return [_value("", each) for each in value]
    if isinstance(value, str | Path) and os.path.isfile(value):
        return f"{value} (sha256 {hashlib.sha256(Path(value).read_bytes()).hexdigest()[:12]})"
    return str(value) if isinstance(value, Path) else value


def _text(value: Any) -> str:
    return "not given" if value is None else ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, OSError):
        raise InputError(f"{path} isn't what midward writes there; give another --out.") from None


def _check_writable(folder: Path) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"--out {folder} can't be made: {there} is a file; give another path.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--out {folder} can't be written: no permission in {there}; give another path.")
