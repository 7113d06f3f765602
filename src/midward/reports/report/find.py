"""Which runs lie in folders: told by what their files hold, not by what they are called."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from midward._hints import did_you_mean
from midward._tables import Row, read_table
from midward.errors import InputError, MissingFile


@dataclass(frozen=True)
class Run:
    """One run. kind: a key of `KINDS`, "align", "guards", "player" or "unfinished". data: what its summary.json holds,
    or align.json, or generations.json; of an unfinished one the kind that it will be, None where that isn't known."""

    kind: str
    folder: Path
    label: str
    data: Any = None

    def table(self, name: str) -> list[Row]:
        """The rows of a .csv or .jsonl file of the run. Raises InputError and FileNotFoundError as read_table does."""
        return read_table(self.folder / name)

    @property
    def model(self) -> list[str]:
        """Model and adapter as the flags in the folder's run.json name them; empty where it has none."""
        try:
            flags = json.loads((self.folder / FLAGS).read_text(encoding="utf-8"))
            return [str(flags[name]) for name in ("--model", "--adapter") if flags.get(name)]
        except (OSError, ValueError, KeyError, AttributeError):
            return []

    def logs(self) -> list[Path]:
        """Inspect's logs of the run, by name."""
        return sorted((self.folder / "logs").glob("*.eval"))


@dataclass
class Found:
    """runs: in the order of folders. troubles: (file, what is wrong with it). strangers: (a folder that was given,
    files below it that no command wrote)."""

    runs: list[Run] = field(default_factory=list)
    troubles: list[tuple[str, str]] = field(default_factory=list)
    strangers: list[tuple[str, list[str]]] = field(default_factory=list)


def _keys(*names: str) -> Callable[[Any], bool]:
    return lambda data: isinstance(data, dict) and set(names) <= set(data)


def _probe(name: str) -> Callable[[Any], bool]:
    return lambda data: isinstance(data, dict) and data.get("probe") == name and "cells" in data


#: kind -> whether a summary.json is of it
KINDS: dict[str, Callable[[Any], bool]] = {
    "demo": _keys("plan", "models", "paired", "decoding_order"),
    "attack": _keys("rows", "goals", "attacks", "judges", "asr", "paired"),
    "prefill": _probe("prefill"),
    "mirror": _probe("mirror"),
    "ask": _probe("ask"),
    "gcg": _keys("settings", "cells", "between"),
    "order": _keys("sets", "finding"),
    "dynamics": _keys("samplers", "cells", "auroc"),
    "guard": lambda data: (
        isinstance(data, list) and bool(data) and all(_keys("defence", "asr", "flags")(row) for row in data)
    ),
    "utility": lambda data: _keys("verb", "cells")(data) and data["verb"] == "utility",
}
#: the flags that a folder's run was begun with
FLAGS = "run.json"
#: generations that the step player shows
PLAYED = "generations.json"
#: Files whose rows come before any summary: a pattern -> the kind of run; None: told by what its rows hold.
_ROWS = {"searches.jsonl": "gcg", "rows-*.jsonl": "dynamics", "answers-*.jsonl": "utility", "rows.jsonl": None}
#: kind -> what only its rows hold, in the order in which they are told
_COLUMNS = {
    "mirror": {"kind", "position", "attack"},
    "prefill": {"kind", "position", "landed"},
    "ask": {"word", "wording"},
    "order": {"set", "end", "steps"},
    "guard": {"set", "id", "signals"},
    "guards": {"response", "signals"},
}


def find(folders: Sequence[Path], without: Sequence[Path] = ()) -> Found:
    """The runs below `folders`, hidden folders left out, and `without`; links to folders aren't followed.

    Raises FileNotFoundError for a folder that there isn't, and ValueError for a file.
    """
    for root in folders:
        if root.is_file():
            raise InputError(f"{root} is a file; give the folder that a midward command wrote (its --out).")
        if not root.exists():
            beside = [str(other) for other in root.parent.glob("*")] if root.parent.is_dir() else []
            raise MissingFile(f"there is no folder {root}.{did_you_mean(str(root), beside)}")
    found = Found()
    seen = {path.resolve() for path in without}
    labels: set[str] = set()
    for root in folders:
        top = root.resolve()
        owners: set[Path] = set()  # folders of runs, and all below
        strange: list[str] = []
        for here, below, names in os.walk(top, onerror=partial(_unreadable, found, top)):
            below[:] = sorted(name for name in below if not name.startswith("."))
            folder = Path(here)
            if folder in seen:
                below.clear()
                continue
            seen.add(folder)
            label = _label(top, folder, labels)
            runs = _runs(folder, label, sorted(names), found)
            found.runs += runs
            if runs or folder.parent in owners:
                owners.add(folder)
            elif names:
                left = [
                    name
                    for name in sorted(names)
                    if name != FLAGS and not name.startswith(".") and folder / name not in seen
                ]
                if not set(left) & {"summary.json", "align.json"}:
                    strange += [(folder.relative_to(top) / name).as_posix() for name in left]
        if strange:
            found.strangers.append((top.name or "/", strange))
    # What a demo left in the folders below its own is finished with it.
    demos = {run.folder for run in found.runs if (run.kind, run.data) == ("unfinished", "demo")}
    found.runs = [run for run in found.runs if run.kind != "unfinished" or not demos & set(run.folder.parents)]
    return found


def _label(top: Path, folder: Path, taken: set[str]) -> str:
    name = (Path(top.name or "/") / folder.relative_to(top)).as_posix()
    label, count = name, 1
    while label in taken:
        count += 1
        label = f"{name} ({count})"
    taken.add(label)
    return label


def _runs(folder: Path, label: str, names: list[str], found: Found) -> list[Run]:
    runs = []
    if "summary.json" in names:
        data = _json(folder / "summary.json", label, found)
        kind = next((kind for kind, told in KINDS.items() if told(data)), None)
        if kind:
            runs.append(Run(kind, folder, label, data))
        elif data is not None:
            found.troubles.append((f"{label}/summary.json", "is not the summary of any midward command"))
    if "align.json" in names:
        data = _json(folder / "align.json", label, found)
        if _keys("config", "steps")(data):
            runs.append(Run("align", folder, label, data))
        elif data is not None:
            found.troubles.append((f"{label}/align.json", "is not what midward align writes"))
    if PLAYED in names:
        data = _json(folder / PLAYED, label, found)
        if _keys("generations")(data):
            runs.append(Run("player", folder, f"{label}/{PLAYED}", data))
        elif data is not None:
            found.troubles.append((f"{label}/{PLAYED}", "holds no generations"))
    told = {"summary.json", "align.json"} & set(names)
    begun, kind = _begun(folder)
    if begun and not told:
        guards = any(name.endswith(".safetensors") for name in names)
        runs.append(Run("guards", folder, label) if guards else Run("unfinished", folder, label, kind))
    return runs


def _begun(folder: Path) -> tuple[bool, str | None]:
    """Whether a command left logs or rows there, and the kind of run that it makes, None where that isn't known."""
    if any((folder / "logs").glob("*.eval")):
        demo = (folder / "rows").is_dir() or any(folder.glob("adapters/*-steps"))
        return True, "demo" if demo else "attack"
    begun = False
    for pattern, kind in _ROWS.items():
        for path in sorted(folder.glob(pattern)):
            row = _first_row(path)
            if row is None:
                continue
            begun = True
            kind = kind or next((one for one, columns in _COLUMNS.items() if columns <= set(row)), None)
            if kind:
                return True, kind
    return begun, None


def _first_row(path: Path) -> dict[str, Any] | None:
    """The first row of a file of rows, empty where it is torn; None for a file of anything else."""
    try:
        with path.open("rb") as file:
            line = file.readline()
    except OSError:
        return None
    if not line.startswith(b'{"key": "'):
        return None
    try:
        return dict(json.loads(line))
    except (ValueError, RecursionError):
        return {}


def _json(path: Path, label: str, found: Found) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = "is torn, or no JSON" if isinstance(error, ValueError) else "can't be read"
        found.troubles.append((f"{label}/{path.name}", f"{why} ({_first_line(error)})"))
        return None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]


def _unreadable(found: Found, top: Path, error: OSError) -> None:
    where = os.path.relpath(error.filename or top, top.parent)
    found.troubles.append((where, f"can't be read ({error.strerror})"))
