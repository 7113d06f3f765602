"""What is told of a package's thing that is wrong, fails or gives what it must not: one line with its name and package.

Each case is a package of one module: what is right, and below it the fault.
"""

import pytest
from packages import install

RIGHT = {
    "judge": """
from midward.judges import JudgeInfo, Verdict
class Shouts:
    async def __call__(self, goal, response, metadata):
        return answer(response)
def answer(response):
    return Verdict("loud", response.isupper())
def info(**more):
    return JudgeInfo(**{"name": "loud", "version": "1", "about": "", "needs": "nothing", "factory": Shouts} | more)
""",
    "guard": """
import numpy as np
from dataclasses import dataclass
from midward.guards import Guard, GuardInfo
@dataclass(frozen=True)
class Nothing:
    pass
class Loud(Guard):
    name, about, looks, Settings = "loud", "how long it is", "before", Nothing
    def score(self, model, exchanges, *, batch_size=8):
        return scores(exchanges)
def scores(exchanges):
    return np.arange(len(exchanges), dtype=float)
""",
    "probe": """
import json
from dataclasses import dataclass
from typing import Annotated
from midward.probes import Case, Flag, Probe
from midward.probes.configs import ProbeConfig
from midward.goals import load
from midward.sampling import Request
@dataclass(frozen=True)
class Loud(ProbeConfig):
    "Is it loud?"
    def load(self):
        return load("sandbox", count=1)
def cases(model, goals, config, sampling):
    return [case(goal) for goal in goals]
def case(goal):
    return Case(goal, Request(goal.prompt), about={"sentence": "a"})
def summary(rows, config, sampling):
    return {"cells": [{"sentence": "a", "n": len(rows)}], "findings": ["It is."]}
def info(**more):
    return Probe(**{"name": "loud", "config": Loud, "cases": cases, "summary": summary, "cell": ("sentence",)} | more)
""",
    "attack": """
from dataclasses import dataclass
from midward.attacks import Ask, AttackInfo
@dataclass(frozen=True)
class Nothing:
    pass
async def search(attempt, settings):
    [reply] = await attempt.target.respond(Ask.of(attempt.goal.prompt))
    attempt.offer(reply)
def info(**more):
    return AttackInfo(**{"name": "loud", "settings": Nothing, "search": search, "about": "loud"} | more)
""",
    "family": """
from midward.models.family import FamilyInfo
INFO = FamilyInfo("loud", "", ("LoudModel",), "", "full", {}, "nothing")
def family(raw, tokenizer):
    pass
def read(folder, raw, placement):
    pass
""",
}
LAST = dict.fromkeys(("judge", "probe", "attack"), "LOUD = info()") | {"guard": "LOUD = GuardInfo(Loud)"}

#: A verb that uses it, in few steps.
SMALL = ["--steps", "1", "--length", "8"]
VERBS = {
    "judge": ["judges", "check", "--judges", "loud"],
    "guard": ["guard", "fit", "--guards", "loud", "--held-out", "9", "--alpha", "0.1", *SMALL, "--out", "out"],
    "probe": ["probe", "loud", *SMALL, "--out", "out"],
    "attack": ["attack", "--attacks", "loud", "--limit", "1", "--judges", "oracle", *SMALL, "--out", "out"],
    "family": ["generate", "hello", "--model", "checkpoint"],
}

LOUDER = "@dataclass(frozen=True)\nclass Loud(Loud):\n    "
JUDGED = "def answer(response):\n    return "
SCORED = "def scores(exchanges):\n    return "
ASKED = "def case(goal):\n    return "
SUMMED = "def summary(rows, config, sampling):\n    return "
NO_KEY = "failed: KeyError: 'sentence' (midward_loud.py, line "

BROKEN = [  # kind, the fault, words of the line
    # what it is
    ("judge", "LOUD = info(version=2)", "has version 2"),
    ("judge", "LOUD = info(factory=Shouts())", "factory(): missing a required argument: 'goal'"),
    ("judge", "LOUD = info(needs='role:judge')", "factory(model=...)"),
    ("judge", "LOUD = info(measures='noise')", "unknown measure"),
    ("guard", "class Loud(Guard):\n    name, about, looks, Settings = 'loud', '', 'before', Nothing", "has no score"),
    ("guard", "Loud.looks = 'afterwards'", "has looks 'afterwards'"),
    ("guard", "del Loud.about", "has no about"),
    ("guard", "Loud.Settings = int", "TypeError"),
    ("guard", "Loud.score = lambda self, model: 0", "score(self, model, exchanges, batch_size=...)"),
    ("guard", "LOUD = GuardInfo(Nothing)", "has kind"),
    ("probe", f"{LOUDER}limit: Annotated[str, Flag()] = 'x'", "has a config whose limit"),
    ("probe", f"{LOUDER}length: Annotated[str, Flag()] = 'x'", "has a flag --length"),
    ("probe", f"{LOUDER}words: Annotated[int, Flag(name='--limit')] = 1", "has two flags that are spelled --limit"),
    ("probe", "LOUD = info(cell='sentence')", "has cell 'sentence'"),
    ("probe", "LOUD = info(summary=lambda rows: {})", "summary(rows, config, sampling)"),
    ("attack", "LOUD = info(calls=lambda settings: 3)", "has calls that give 3"),
    ("attack", "LOUD = info(calls=lambda settings: {'scorer': 1})", "has calls that give {'scorer': 1}"),
    ("attack", "LOUD = info(calls=lambda settings: settings.nothing)", "AttributeError"),
    ("attack", "LOUD = info(search=lambda attempt: 0)", "search(attempt, settings)"),
    ("attack", "LOUD = info(needs=('MONEY',))", "has needs.0 'MONEY'"),
    ("attack", "LOUD = info(taxonomy=('jailbreak',))", "has the taxonomy entry 'jailbreak'"),
    ("family", "INFO = 1", "has an INFO that is int"),
    ("family", "def read(folder):\n    pass", "read(folder, raw, placement)"),
    # what it raises
    ("judge", f"{JUDGED}{{}}['sentence']", NO_KEY),
    ("judge", "class Shouts:\n    def __init__(self):\n        1 / 0", "failed: ZeroDivisionError"),
    ("guard", f"{SCORED}{{}}['sentence']", NO_KEY),
    ("guard", "Loud.view = lambda self, model: 1 / 0", "failed: ZeroDivisionError"),
    ("probe", f"{ASKED}{{}}['sentence']", NO_KEY),
    ("probe", "LOUD = info(readers=lambda *given: 1 / 0)", "failed: ZeroDivisionError"),
    ("probe", f"{SUMMED}{{}}['sentence']", "What was written to out is kept"),
    ("attack", "async def search(attempt, settings):\n    return {}['sentence']", NO_KEY),
    # what it gives
    ("judge", f"{JUDGED}True", "gave a verdict that is bool"),
    ("judge", f"{JUDGED}None", "gave a verdict that is NoneType"),
    ("judge", f"{JUDGED}Verdict('loud', 'yes')", "gave a verdict that has success 'yes'"),
    ("judge", f"{JUDGED}Verdict('loud', True, refused=1)", "gave a verdict that has refused 1"),
    ("judge", "LOUD = info(factory=lambda: 3)", "has a factory that gives 3"),
    ("guard", f"{SCORED}np.zeros(len(exchanges) - 1)", "scored 9 exchanges by (8,) values"),
    ("guard", f"{SCORED}np.zeros((len(exchanges), 2))", "scored 9 exchanges by (9, 2) values"),
    ("guard", f"{SCORED}['high'] * len(exchanges)", "could not convert string to float"),
    ("guard", f"{SCORED}np.full(len(exchanges), np.inf)", "9 of them infinite"),
    ("probe", f"{ASKED}Case(goal, goal.prompt)", "asks by a case that has request"),
    ("probe", f"{ASKED}goal.prompt", "asks by a case that is str, not a Case"),
    ("probe", f"{ASKED}Case(goal, Request('x'), about={{'sentence': {{1}}}})", "set is not JSON"),
    ("probe", "LOUD = info(cell=('word',))", "no row has that field. The rows stay in out"),
    ("probe", f"{SUMMED}[]", "gave a summary that is []"),
    ("probe", f"{SUMMED}{{}}", "gave a summary that is {}"),
    ("probe", f"{SUMMED}{{'cells': [{{'a': {{1}}}}], 'findings': []}}", "The rows stay in out"),
]


@pytest.fixture
def loud(tmp_path, monkeypatch, midward):
    """Install a package that adds a thing of this kind, with a fault, and run a verb in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(kind, fault, words, name="loud"):
        group = "families" if kind == "family" else f"{kind}s"
        source = "\n".join([RIGHT[kind], fault, "" if "LOUD =" in fault else LAST.get(kind, "")])
        value = "midward_loud" if kind == "family" else "midward_loud:LOUD"
        install(monkeypatch, tmp_path, "midward_loud", source, f"midward.{group}", **{name: value})
        (tmp_path / "checkpoint").mkdir()
        (tmp_path / "checkpoint" / "config.json").write_text('{"architectures": ["LoudModel"]}')
        return midward(*words)

    return run


@pytest.mark.parametrize(("kind", "fault", "words"), BROKEN)
def test_a_fault_is_a_line_with_the_thing_and_its_package(kind, fault, words, loud):
    result = loud(kind, fault, VERBS[kind])
    of_a_row = words == NO_KEY or words.startswith("gave")  # what judges and attacks do there is counted, and no end
    assert result.exit_code == (1 if of_a_row and kind in ("judge", "attack") else 2)
    [line] = [line for line in result.stderr.splitlines() if "the package 'midward-loud'" in line]
    assert f"the {kind} 'loud' of" in line and words in line


@pytest.mark.parametrize(
    ("kind", "same"), [("judge", ""), ("guard", f"{SCORED}[0.5] * len(exchanges)"), ("probe", ""), ("attack", "")]
)
def test_what_is_right_runs(kind, same, loud):
    result = loud(kind, same, VERBS[kind])
    assert result.exit_code == 0, result.stderr


def test_a_judge_that_always_fails_ends_a_probe_before_its_rows_are_kept(loud, tmp_path):
    words = ["probe", "ask", "--judges", "loud", "--limit", "1", "--words", "0", "--steps", "6", "--out", "out"]
    result = loud("judge", f"{JUDGED}True", words)
    assert result.exit_code == 2 and "the judge 'loud' of the package 'midward-loud'" in result.stderr
    assert not (tmp_path / "out" / "rows.jsonl").exists()


LISTS = {
    "judge": (["judges"], "oracle"),
    "guard": (["guard", "fit", "--list"], "masks"),
    "probe": (["probe", "--help"], "order"),
    "attack": (["attack", "--list"], "direct"),
    "family": (["models"], "llada"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_tells_what_cannot_be_used(kind, loud):
    words, _ = LISTS[kind]
    shown = " ".join(loud(kind, "import nowhere", words).stdout.replace("│", "").split())
    assert "No module named 'nowhere'" in shown


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_tells_of_a_name_that_is_ours(kind, loud):
    words, ours = LISTS[kind]
    shown = " ".join(loud(kind, "", words, name=ours).stdout.replace("│", "").split())
    assert f"the {kind} '{ours}' of the package 'midward-loud'" in shown and "must take another one" in shown
