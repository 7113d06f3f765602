"""`midward goals`: what there is to ask."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from midward._flags import Flag
from midward.cli._run import Result, listing
from midward.errors import InputError
from midward.goals import SETS, GoalSet, load
from midward.goals.cache import cached_path
from midward.store import cache_folder


def goals(
    name: Annotated[str | None, Flag(argument=True)] = None,
    column: Annotated[str | None, Flag()] = None,
    download: Annotated[bool, Flag()] = False,
    show: Annotated[int, Flag(min=0)] = 0,
) -> Result:
    """List the sets of goals; with NAME, everything about one. Goals themselves are printed by --show only.

    Args:
        name: A set, or a .csv, .jsonl or .json file.
        column: Of a file: the column of the goals (goal, prompt or behavior).
        download: Fetch the set into the cache if it isn't there.
        show: Print the first N goals; they may be harmful.
    """
    if name is not None:
        return _set(name, column, download, show)
    if column or download or show:
        raise InputError("--column, --download and --show go with a NAME: midward goals NAME ...")
    rows = [
        (each.name, each.size, _yes(each.harmful), each.licence, _yes(each.gated), *_source(each), each.about)
        for each in SETS.values()
    ]
    heads = ("name", "rows", "harmful", "licence", "gated", "pinned", "cached", "about")
    return listing(heads, rows, f"cache: {cache_folder() / 'goals'} (MIDWARD_CACHE changes it)")


def _set(name: str, column: str | None, download: bool, show: int) -> Result:
    """All about one set, or a file."""
    known = SETS.get(name)
    about: dict[str, Any] = {"file": name}
    if known is not None:
        about = {name: getattr(known, name) for name in ("name", "about", "harmful", "licence")} | {"rows": known.size}
    if known is not None and not known.build:
        about |= {
            "url": known.address,
            "revision": known.revision,
            "sha256": known.sha256 or "not stated anywhere; that of the first download is kept and must match",
            "gated": f"terms at {known.gated}, and HF_TOKEN" if known.gated else False,
            "cached": cached_path(known) if cached_path(known).exists() else False,
        }
    shown = [f"{key:<9} {_yes(value) if isinstance(value, bool) else value}" for key, value in about.items()]
    if known is not None and not (known.build or cached_path(known).exists() or download or show):
        return Result(about, "\n".join(shown), f"midward goals {name} --download fetches it")
    goals = load(name, column=column)
    counts = Counter(goal.category or "no category" for goal in goals).most_common()
    harmful = sum(goal.harmful for goal in goals)
    about |= {"loaded": len(goals), "loaded_harmful": harmful, "categories": dict(counts)}
    about |= {"goals": {goal.id: goal.prompt for goal in goals[:show]}} if show else {}
    shown.append(f"loaded    {len(goals)}, {harmful} of them harmful")
    shown += [f"  {count:6d}  {category}" for category, count in counts]
    return Result(about, "\n".join([*shown, *(f"\n[{goal.id}]\n{goal.prompt}" for goal in goals[:show])]))


def _source(each: GoalSet) -> tuple[str, str]:
    """What a set is pinned by, and whether it is on this machine."""
    if each.build or not each.revision:
        return "built in", "-"
    sha256 = each.sha256[:8] if each.sha256 else "of the first download"
    return f"{each.revision[:8]}, sha256 {sha256}", _yes(cached_path(each).exists())


def _yes(value: object) -> str:
    return "yes" if value else "no"
