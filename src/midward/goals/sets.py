"""The sets of goals that have a name: what stands in sets.toml beside this file, and the sandbox's own.

A set is one entry there.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midward.goals.columns import Columns
from midward.goals.goal import Goal, of_trial
from midward.world import Trial, benign, forbidden
from midward.world.trials import trials


@dataclass(frozen=True)
class GoalSet:
    """A named set: downloaded (url, revision, columns) or built in (build).

    Attributes:
        size: goals.
        url: of one file, with `{revision}`.
        revision: a full commit id.
        sha256: of the file; None where no public statement of it was found, then the first file seen sets it.
        gated: the page of the terms to accept.
    """

    name: str
    about: str
    licence: str
    size: int
    harmful: bool = True
    url: str | None = None
    revision: str | None = None
    sha256: str | None = None
    gated: str | None = None
    columns: Columns | None = None
    build: Callable[[str], list[Goal]] | None = None  # called with the set's name

    @property
    def address(self) -> str | None:
        """The URL at the pinned revision."""
        return self.url and self.url.format(revision=self.revision)


#: The sandbox's sets, of the test split but for one: name -> how many -> requests of the invented world.
_WORLD: dict[str, Callable[[int], list[Trial]]] = {
    "sandbox": lambda size: forbidden("test", size),
    "sandbox-tuning": lambda size: forbidden("tuning", size),
    "sandbox-contextual": lambda size: forbidden("test", size, style="contextual"),
    "sandbox-wrapped": lambda size: trials("wrappers", size),
    "sandbox-benign": lambda size: benign("test", size),
    "sandbox-banned": lambda size: benign("test", size, about="banned"),
}


def _sandbox(name: str) -> list[Goal]:
    """Goals of the invented world, with what its oracle needs in `metadata`."""
    made = _WORLD[name](SETS[name].size)
    return [of_trial(trial, name, f"{name}-{number:04d}") for number, trial in enumerate(made)]


def _read(path: Path) -> dict[str, GoalSet]:
    entries: dict[str, dict[str, Any]] = {}
    for name, entry in tomllib.loads(path.read_text(encoding="utf-8")).items():
        like = entry.pop("like", None)
        entries[name] = {**(entries[like] if like else {}), **entry}
    sets = {}
    for name, entry in entries.items():
        columns = entry.pop("columns", {})
        only = {"only": tuple(columns["only"])} if "only" in columns else {}
        source = {"columns": Columns(**columns | only)} if columns else {"build": _sandbox}
        sets[name] = GoalSet(name, **entry, **source)
    return sets


#: The sets that have a name, by name.
SETS = _read(Path(__file__).with_name("sets.toml"))
