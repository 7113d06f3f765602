"""Which runs lie in folders: those with a `run.json`, which says the verb that wrote it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from midward._hints import near_path, printable
from midward.errors import InputError, MissingFile
from midward.runs.run import OLD, RECORD, ROWS, SUMMARY, Run
from midward.world.world import MODELS

T = TypeVar("T")


@dataclass(frozen=True)
class RunFolder:
    """A run's folder. label: its path from the folder that was given. summary: None of a run that has none yet."""

    label: str
    folder: Path
    run: Run
    summary: Any = None

    @property
    def unfinished(self) -> str:
        """What is said behind its label where not all of it was measured, else nothing; a summary may be that of an
        earlier time."""
        done = self.summary is not None and self.run.finished is not None
        return "" if done else "isn't finished: the same command again goes on with it"

    def check_finished(self) -> None:
        """Raises LeftOut unless it is finished."""
        if self.unfinished:
            raise LeftOut(self.unfinished)

    def logs(self) -> list[Path]:
        """Inspect's logs of the run, by name."""
        return sorted((self.folder / "logs").glob("*.eval"))


@dataclass
class Found:
    """runs: in the order of folders. troubles: (folder, why it can't be read). strangers: files that belong to none."""

    runs: list[RunFolder] = field(default_factory=list)
    troubles: list[tuple[str, str]] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    def read(
        self, read: Callable[[RunFolder], T], shown: Callable[[str], str] = lambda why: f" ({printable(why, '')})"
    ) -> Iterator[tuple[RunFolder, T]]:
        """What `read` makes of each run. A run whose files hold what no command would have written is a trouble, and
        takes no other with it; so is one of which `read` says why it is `LeftOut`.

        shown: how the error stands in the trouble, which may quote what a file holds.
        """
        for run in self.runs:
            try:
                made = read(run)
            except LeftOut as reason:
                self.troubles.append((run.label, str(reason)))
            except Exception as error:  # whatever a file holds
                why = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:300]
                self.troubles.append((run.label, f"can't be read as a run of midward {run.run.verb}{shown(why)}"))
            else:
                yield run, made


class LeftOut(Exception):
    """Why a run that can be read isn't taken, behind its label."""


def find(roots: Sequence[Path], without: Sequence[Path] = ()) -> Found:
    """Look for runs at any depth. Hidden folders are left out, and links to folders aren't followed.

    Args:
        roots: folders to look in.
        without: files and folders that are none of a run: the page itself.

    Raises:
        MissingFile: a folder isn't there.
        InputError: it is a file.
    """
    for root in roots:
        if root.is_file():
            raise InputError(f"{root} is a file; give the folder that a midward command wrote (its --out).")
        if not root.exists():
            raise MissingFile(f"there is no folder {root}.{near_path(root, folder=True)}")
    found = Found()
    seen = {path.resolve() for path in without}
    for top in dict.fromkeys(root.resolve() for root in roots):
        of_runs: set[Path] = set()  # folders of runs, and all below
        for here, below, names in os.walk(top, onerror=lambda error: _unreadable(found, error)):
            folder = Path(here)
            below[:] = sorted(name for name in below if not name.startswith("."))
            if folder in seen:
                below.clear()
                continue
            seen.add(folder)
            label = _label((Path(top.name or "/") / folder.relative_to(top)).as_posix(), found)
            if RECORD in names or ({ROWS, *OLD} & set(names) and folder.parent not in of_runs):
                of_runs.add(folder)
                _read(found, folder, label, finished=SUMMARY in names)
            elif folder.parent in of_runs:
                of_runs.add(folder)
            else:
                left = [name for name in sorted(names) if not name.startswith(".") and folder / name not in seen]
                found.strangers += [f"{label}/{name}" for name in left]
    return found


def _label(name: str, found: Found) -> str:
    """The name, with a number behind it where a folder has it already."""
    taken = {run.label for run in found.runs} | {label for label, _ in found.troubles}
    return next(label for n in count(1) if (label := f"{name} ({n})" if n > 1 else name) not in taken)


def _read(found: Found, folder: Path, label: str, *, finished: bool) -> None:
    try:
        run = Run.load(folder)
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8")) if finished else None
        found.runs.append(RunFolder(label, folder, run, summary))
    except (OSError, ValueError, RecursionError) as error:
        found.troubles.append((label, " ".join(str(error).split())[:300]))


def _unreadable(found: Found, error: OSError) -> None:
    found.troubles.append((str(error.filename), f"can't be read ({error.strerror})"))


def at_home(runs: Sequence[RunFolder]) -> str:
    """Whether "all" of the models are the sandbox's, "some", or none ("")."""
    at_home = [Path(model.name).name in MODELS for run in runs for model in run.run.models]
    return "all" if at_home and all(at_home) else "some" if any(at_home) else ""
