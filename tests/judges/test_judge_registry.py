"""Judges of other packages, by entry point."""

import sys
from functools import partial

import pytest
from packages import install

from midward.judges import JUDGES, JudgeInfo, JudgesError, every, find, scorer_of

JUDGE = """
from midward.judges import JudgeInfo, Verdict

def factory():
    async def judge(goal, response, metadata):
        return Verdict("loud", response.isupper())
    return judge

INFO = JudgeInfo("loud", "3", "capital letters", "nothing", factory)
OTHER = JudgeInfo("other", "1", "another name", "nothing", factory)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a package with these entry points, as far as Python can tell."""

    return partial(install, monkeypatch, tmp_path, "midward_loud", JUDGE, "midward.judges")


def test_an_installed_package_adds_a_judge(package):
    package(loud="midward_loud:INFO")
    found = find("loud")
    assert isinstance(found, JudgeInfo) and found.version == "3" and every()["loud"] == found
    assert scorer_of(found)()


def test_nothing_is_loaded_before_it_is_wanted(package):
    package(loud="midward_loud:INFO", broken="midward_loud.nowhere:INFO")
    assert find("oracle") is JUDGES["oracle"]
    assert "midward_loud" not in sys.modules
    assert find("loud").name == "loud"  # the other one is broken


@pytest.mark.parametrize(
    "value, why",
    [
        ("midward_nowhere:INFO", "ModuleNotFoundError: No module named 'midward_nowhere'"),
        ("midward_loud:NOTHING", "AttributeError"),
        ("midward_loud:factory", "is function, not a JudgeInfo"),
        ("midward_loud:OTHER", "calls itself 'other'"),
    ],
)
def test_a_broken_one_is_an_error_that_names_the_package(package, value, why):
    package(loud=value)
    with pytest.raises(JudgesError) as error:
        find("loud")
    assert "of the package 'midward-loud'" in str(error.value) and why in str(error.value)
    listed = every()["loud"]
    assert isinstance(listed, JudgesError) and why in str(listed)


def test_what_a_judge_needs_must_be_known():
    with pytest.raises(ValueError, match=r"unknown need .*'a dinner'. Available: nothing, role:judge"):
        JudgeInfo("greedy", "1", "needs what there isn't", "a dinner", lambda: None)


def test_our_names_stay_ours(package):
    package(oracle="midward_loud:INFO")
    assert find("oracle") is JUDGES["oracle"] is every()["oracle"]
    assert "must take another one" in str(every()["oracle (midward-loud)"])


def test_an_unknown_name_gets_the_nearest(package):
    package(loud="midward_loud:INFO")
    with pytest.raises(JudgesError, match=r"no judge 'harmfullness'. Did you mean 'harmfulness'\?.*loud"):
        find("harmfullness")
