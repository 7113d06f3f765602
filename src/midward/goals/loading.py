"""Goals by the name of a set or the path of a file, all of them or a stable sample."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from midward._hints import did_you_mean
from midward._tables import read_json, read_table
from midward.goals.cache import fetch
from midward.goals.columns import detect, goals_of
from midward.goals.goal import Goal, GoalsError
from midward.goals.sets import SETS

FILES = (".csv", ".jsonl", ".json")


def load(
    name_or_path: str | Path,
    *,
    count: int | None = None,
    seed: int = 0,
    column: str | None = None,
    cache: str | Path | None = None,
    harmless: bool = False,
) -> list[Goal]:
    """The goals of a set in SETS, or of a .csv, .jsonl or .json file.

    Args:
        count: without it all, in the set's order; with it a sample of at most that many, in a random order that
            depends on nothing but the seed and the ids: a larger count begins with the smaller one's goals.
        column: of a file, the one that holds the requests (otherwise goal, prompt or behavior); target, context,
            category, id and harmful are read where they are there.
        cache: folder of downloaded files instead of $MIDWARD_CACHE/goals.
        harmless: what a file's rows count as where it has no column `harmful` (see `says_harm`); what is said to be
            harmful is then refused.

    Raises:
        InputError: mostly a GoalsError; there is no such set, or its file can't be had or read.
    """
    if count is not None and count < 1:
        raise GoalsError(f"count must be 1 or more; received {count}.")
    name = str(name_or_path)
    known = SETS.get(name)
    if known is None:
        _require_file(name)
        rows = read_table(name)
        goals = goals_of(rows, detect(rows, name, column), source=name_of(name), harmful=not harmless, where=name)
    elif column is not None:
        raise GoalsError(f"column goes with a file; {name} is a set, and its columns are known.")
    elif known.build is not None:
        goals = known.build(name)
    else:
        assert known.columns
        path = fetch(known, cache)
        rows = json.loads(path.read_bytes()) if path.suffix == ".json" else read_table(path)
        goals = goals_of(rows, known.columns, source=name, harmful=known.harmful, where=str(path))
    if harmless and (harmful := sum(goal.harmful for goal in goals)):
        raise GoalsError(f"{name}: {harmful} of its {len(goals)} requests are harmful ones; give harmless ones.")
    return goals if count is None else sample(goals, count, seed)


def name_of(name: str) -> str:
    """What goals are called: as their set, or as their file without its extension. The file of an artifact is called as
    the model that was attacked, so the attack's name stands in front."""
    path = Path(name)
    content = read_json(path) if name not in SETS and path.suffix.lower() == ".json" else None
    method = (content.get("parameters") or {}).get("method") if isinstance(content, dict) else None
    if name in SETS:
        return name
    return f"{method}-{path.stem}" if isinstance(method, str) and re.fullmatch(r"[\w .-]+", method) else path.stem


def says_harm(name_or_path: str | Path, column: str | None = None) -> bool:
    """Whether it is known of each goal if it is harmful: of a set, and of a file with a column `harmful`.

    Raises:
        InputError: any other name, or a file that can't be read.
    """
    name = str(name_or_path)
    if name in SETS:
        return True
    _require_file(name)
    return detect(read_table(name), name, column).harmful is not None


def _require_file(name: str) -> None:
    if not is_file(name):
        beside = [str(path) for path in Path(name).parent.glob("*") if path.suffix.lower() in FILES]
        raise GoalsError(
            f"no set of goals {name!r}.{did_you_mean(name, [*SETS, *beside])} Available: {', '.join(SETS)}, or the "
            "path of a .csv, .jsonl or .json file."
        )


def is_file(name: str) -> bool:
    """Whether a name that is no set means a file."""
    return name not in SETS and (Path(name).suffix.lower() in FILES or Path(name).exists())


def sample(goals: Sequence[Goal], count: int, seed: int = 0) -> list[Goal]:
    """At most `count` goals, those whose hashed ids come first: other goals don't change which of two is taken."""

    def place(goal: Goal) -> str:
        return hashlib.sha256(f"{seed}:{goal.id}".encode()).hexdigest()

    return sorted(goals, key=place)[:count]
