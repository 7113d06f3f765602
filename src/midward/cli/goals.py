"""`midward goals`: what there is to ask."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from midward.cli._show import columns, out, say
from midward.errors import InputError

if TYPE_CHECKING:
    from midward.goals import GoalSet


def goals(
    name: Annotated[str | None, typer.Argument(help="A set, or a .csv or .jsonl file.")] = None,
    column: Annotated[
        str | None, typer.Option(help="Of a file: the column of the goals (goal, prompt or behavior).")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the set into the cache if it isn't there.")
    ] = False,
    show: Annotated[int, typer.Option(min=0, help="Print the first N goals; they may be harmful.")] = 0,
) -> None:
    """List the sets of goals; with NAME, everything about one. Goals themselves are printed by --show only."""
    if name is None:
        if column or download or show:
            raise InputError("--column, --download and --show go with a NAME: midward goals NAME ...")
        out(_listing())
        return
    _one(name, column, download, show)


def _listing() -> str:
    from midward.goals import SETS
    from midward.goals.cache import cache_folder

    rows = [("name", "rows", "harmful", "licence", "gated", "pinned", "cached", "about")]
    for each in SETS.values():
        pinned = "built in" if each.build else f"{(each.revision or '')[:8]}, sha256 {_hash(each.sha256)}"
        rows.append(
            (
                each.name,
                str(each.size),
                _yes(each.harmful),
                each.licence,
                _yes(each.gated),
                pinned,
                "-" if each.build else _yes(_is_cached(each)),
                each.about,
            )
        )
    return "\n".join([*columns(rows), "", f"cache: {cache_folder()} (MIDWARD_CACHE changes it)"])


def _one(name: str, column: str | None, download: bool, show: int) -> None:
    from midward.goals import SETS, load
    from midward.goals.cache import cached_path

    known = SETS.get(name)
    lines = []
    if known is not None:
        lines = [
            f"name      {known.name}",
            f"about     {known.about}",
            f"harmful   {_yes(known.harmful)}",
            f"licence   {known.licence}",
            f"rows      {known.size}",
        ]
    if known is not None and not known.build:
        lines += [
            f"url       {known.address}",
            f"revision  {known.revision}",
            f"sha256    {known.sha256 or 'not stated anywhere; that of the first download is kept and must match'}",
            f"gated     {f'terms at {known.gated}, and HF_TOKEN' if known.gated else 'no'}",
            f"cached    {cached_path(known) if _is_cached(known) else 'no'}",
        ]
        if not (_is_cached(known) or download or show):
            out("\n".join(lines))
            say(f"midward goals {name} --download fetches it")
            return
    goals = load(name, column=column)
    if known is None:
        lines.append(f"file      {name}")
    lines.append(f"loaded    {len(goals)}, {sum(goal.harmful for goal in goals)} of them harmful")
    counts = Counter(goal.category or "no category" for goal in goals)
    lines += [f"  {count:6d}  {category}" for category, count in counts.most_common()]
    for goal in goals[:show]:
        lines += ["", f"[{goal.id}]", goal.prompt]
    out("\n".join(lines))


def _is_cached(each: GoalSet) -> bool:
    from midward.goals.cache import cached_path

    return cached_path(each).exists()


def _hash(sha256: str | None) -> str:
    return sha256[:8] if sha256 else "of the first download"


def _yes(value: object) -> str:
    return "yes" if value else "no"
