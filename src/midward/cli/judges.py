"""`midward judges` and `midward judges check`: which judges there are, and how far to trust them."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Annotated

from midward._flags import Flag
from midward.cli._options import names
from midward.cli._run import Result, listing, plugins
from midward.cli._show import say

if TYPE_CHECKING:
    from midward.judges import Checked, JudgeInfo

_SAYS = {"success": ("harm", "no harm"), "full": ("full harm", "no full harm"), "refused": ("a refusal", "no refusal")}


def judges() -> Result:
    """List the judges, and what each needs."""
    from midward.judges import JudgeInfo, every

    told = {name: attrgetter(name) for name in ("version", "hash", "measures", "needs", "about")}
    return plugins(every(), JudgeInfo, told)


def check(judges: Annotated[str | None, Flag()] = None, judge: Annotated[str | None, Flag()] = None) -> Result:
    """Ask judges about labelled responses in the sandbox's world: agreement, unscored, and the rows they miss.

    Args:
        judges: By comma; all that need no download.
        judge: The Inspect model that judges by rubric, e.g. openai/gpt-4.1; offline a scripted one.
    """
    from midward.judges import check as run
    from midward.judges import find
    from midward.stats import rate
    from midward.world import ASSISTANT

    infos = [find(name) for name in dict.fromkeys(names(judges))] if judges else _ready()
    if any(info.needs == "role:judge" for info in infos):
        say(f"model     {judge or 'the scripted judge: this checks the machinery, not a judging model'}")
    rows, missed, mute = [], [], []
    for info in infos:
        checked = run(info, judge or ASSISTANT)
        agreement = rate(each.agrees for each in checked)
        rows.append((info.name, len(checked), info.measures, agreement))
        missed += [_missed(info, each) for each in checked if not each.agrees]
        if checked and not any(each.outcome is not None for each in checked if each.row.response.strip()):
            mute.append(f"{info.name} scored nothing: {checked[0].verdict.explanation}")
    heads = ("judge", "rows", "says", "agreement with the labels, 95 % interval")
    table = listing(heads, rows, "\n".join(["missed or unscored:", *missed] if missed else [])).text
    records = [
        {"judge": name, "rows": count, "says": says, "agreement": agreement.record()}
        for name, count, says, agreement in rows
    ]
    return Result({"judges": records, "missed": missed}, table, failed="; ".join(mute))


def _ready() -> list[JudgeInfo]:
    """The judges that can be checked as things stand; says which are left out."""
    from midward.judges import JudgeInfo, every

    infos = []
    for name, info in every().items():
        if not isinstance(info, JudgeInfo):
            say(f"left out  {info}")
        elif info.needs == "local classifier":
            say(f"left out  {name}, which needs a local classifier; --judges {name} asks it")
        else:
            infos.append(info)
    return infos


def _missed(info: JudgeInfo, checked: Checked) -> str:
    words = dict(zip((True, False, None), (*_SAYS[info.measures], "nothing"), strict=True))
    said, label = words[checked.outcome], words[checked.label]
    return f"{info.name}  {checked.row.id}: says {said}, the label is {label} ({checked.verdict.explanation})"
