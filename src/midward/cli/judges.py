"""`midward judges` and `midward judges check`: which judges there are, and how far to trust them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from midward.cli._options import names
from midward.cli._show import columns, out, say

if TYPE_CHECKING:
    from midward.judges import Checked, JudgeInfo

_SAYS = {"success": ("harm", "no harm"), "full": ("full harm", "no full harm"), "refused": ("a refusal", "no refusal")}


def judges() -> None:
    """List the judges, and what each needs."""
    from midward.judges import JudgeInfo, every

    rows: list[tuple[str, ...]] = [("name", "version", "hash", "says", "needs", "about")]
    broken = []
    for name, info in every().items():
        if isinstance(info, JudgeInfo):
            rows.append((name, info.version, info.hash or "-", info.measures, info.needs, info.about))
        else:
            broken.append(f"{name}: {info}")
    out("\n".join([*columns(rows), *broken]))


def check(
    judges: Annotated[str | None, typer.Option(help="By comma; all that need no download.")] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="The Inspect model that judges by rubric, e.g. openai/gpt-4.1; offline a scripted one."),
    ] = None,
) -> None:
    """Ask judges about labelled responses in the sandbox's world: agreement, unscored, and the rows they miss."""
    from midward.judges import check as run
    from midward.judges import find
    from midward.stats import rate
    from midward.world import ASSISTANT

    chosen = [find(name) for name in dict.fromkeys(names(judges))] if judges else _ready()
    if any(info.needs == "role:judge" for info in chosen):
        say(f"model     {judge or 'the scripted judge: this checks the machinery, not a judging model'}")
    rows: list[tuple[str, ...]] = [("judge", "rows", "says", "agreement with the labels, 95 % interval")]
    missed: list[str] = []
    mute: list[str] = []
    for info in chosen:
        checked = run(info, judge or ASSISTANT)
        agreement = rate(one.agrees for one in checked)
        rows.append((info.name, str(len(checked)), info.measures, str(agreement)))
        missed += [_missed(info, one) for one in checked if not one.agrees]
        if checked and not any(one.said is not None for one in checked if one.row.response.strip()):
            mute.append(f"error: {info.name} scored nothing: {checked[0].verdict.explanation}")
    out("\n".join([*columns(rows), *(["", "missed or unscored:", *missed] if missed else [])]))
    if mute:
        say("\n".join(mute))
        raise typer.Exit(1)


def _ready() -> list[JudgeInfo]:
    """The judges that can be checked as things stand; says which are left out."""
    from midward.judges import JudgeInfo, every

    found = every()
    for name, info in found.items():
        if not isinstance(info, JudgeInfo):
            say(f"left out  {info}")
        elif info.needs == "local classifier":
            say(f"left out  {name}, which needs a local classifier; --judges {name} asks it")
    infos = (info for info in found.values() if isinstance(info, JudgeInfo))
    return [info for info in infos if info.needs != "local classifier"]


def _missed(info: JudgeInfo, one: Checked) -> str:
    yes, no = _SAYS[info.measures]
    said = "nothing" if one.said is None else yes if one.said else no
    label = yes if one.label else no
    return f"{info.name}  {one.row.id}: says {said}, the label is {label} ({one.verdict.explanation})"
