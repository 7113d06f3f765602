"""The judges there are: ours, and those that packages add by an entry point of the group `midward.judges`."""

from __future__ import annotations

from midward._plugins import Plugins
from midward.errors import InputError
from midward.judges.classifier import HARMBENCH_JUDGE
from midward.judges.judge import NEEDS, JudgeInfo, JudgesError
from midward.judges.phrases import REFUSAL
from midward.judges.rubrics import HARMFULNESS_JUDGE, STRONGREJECT_JUDGE
from midward.judges.sandbox import ORACLE

#: The judges of this package, by name.
JUDGES: dict[str, JudgeInfo] = {
    info.name: info for info in (REFUSAL, HARMFULNESS_JUDGE, STRONGREJECT_JUDGE, HARMBENCH_JUDGE, ORACLE)
}


def _check(info: JudgeInfo) -> None:
    if info.needs not in NEEDS:
        raise InputError(f"needs {info.needs!r}, none of {', '.join(NEEDS)}.")


_PLUGINS = Plugins("judge", "midward.judges", JudgeInfo, JUDGES, JudgesError, _check)
#: find(name): the judge of this name, ours or a package's. Raises JudgesError for an unknown name, or one that can't be
#: loaded.
find = _PLUGINS.find

#: every(): all judges by name; a package's that can't be loaded is its error.
every = _PLUGINS.every
