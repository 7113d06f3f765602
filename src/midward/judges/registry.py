"""The judges there are: ours, and those that packages add by an entry point of the group `midward.judges`."""

from __future__ import annotations

from collections.abc import Iterable

from midward._plugins import Plugins, must_take
from midward.judges.classifier import HARMBENCH_JUDGE
from midward.judges.judge import MEASURES, JudgeInfo, JudgesError
from midward.judges.phrases import REFUSALS
from midward.judges.rubrics import HARMFULNESS_JUDGE, STRONGREJECT_JUDGE
from midward.judges.sandbox import ORACLE, READABLE

#: The judges of this package, by name.
JUDGES: dict[str, JudgeInfo] = {
    info.name: info for info in (*REFUSALS, HARMFULNESS_JUDGE, STRONGREJECT_JUDGE, HARMBENCH_JUDGE, ORACLE, READABLE)
}


def _check(info: JudgeInfo) -> None:
    must_take("factory", info.factory, **({"model": None} if info.needs == "role:judge" else {}))


_PLUGINS = Plugins("judge", JudgeInfo, JUDGES, JudgesError, _check)
#: find(name): the judge of this name, ours or a package's. Raises JudgesError for an unknown name, or one that can't be
#: loaded.
find = _PLUGINS.find

#: every(): all judges by name; a package's that can't be loaded is its error.
every = _PLUGINS.every


def ranked(names: Iterable[str]) -> list[str]:
    """Judges in one order, each once, whatever order they were named in: those of attack success first, the sandbox's
    oracle before all. Figures that take one judge's word take the first one's.

    Raises:
        JudgesError: as `find` does.
    """

    def rank(name: str) -> tuple[int, bool, str]:
        info = find(name)
        return list(MEASURES).index(info.measures), info.needs != "sandbox metadata", name

    return sorted(set(names), key=rank)
