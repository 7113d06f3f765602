"""Guards of other packages, by entry point."""

from functools import partial

import pytest
from packages import install

from midward.guards import Exchange, GuardError, find, load, make, save
from midward.sampling import Request

GUARD = """
import numpy as np
from pydantic.dataclasses import dataclass
from midward.guards import Guard, GuardInfo

@dataclass(frozen=True)
class Nothing:
    letters: int = 1

class Length(Guard):
    name, about, looks, Settings = "length", "how long a prompt is", "before", Nothing

    def score(self, model, exchanges, *, batch_size=8):
        return np.array([float(len(each.request.prompt)) for each in exchanges])

class Late(Length):
    name, looks = "late", "afterwards"

LENGTH, LATE = GuardInfo(Length), GuardInfo(Late)
NO = "no guard"
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    return partial(install, monkeypatch, tmp_path, "midward_long", GUARD, "midward.guards")


def test_an_installed_package_adds_a_guard(package, model, sampling, tmp_path):
    package(length="midward_long:LENGTH")
    guard = make("length:letters=2")
    held_out = [Exchange(Request("x" * n)) for n in range(1, 21)]
    guard.fit(model, held_out, alpha=0.2, sampling=sampling)
    again = load(save(guard, tmp_path / "g.safetensors"), model)
    assert again.threshold == guard.threshold == 17 and again.settings.letters == 2
    found = again.sample(model, ["t30", "t" * 30], sampling)
    assert [one.verdict.flagged for one in found] == [False, True]


def test_settings_of_a_guard_are_told_where_they_are_no_value():
    assert make("perplexity:reference=models: mine;window=5").settings.reference == "models: mine"
    assert make("perplexity:reference=null").settings.reference is None
    with pytest.raises(GuardError, match=r"the guard 'sri': early: '\[' is no value"):
        make("sri:early=[")


def test_a_package_that_gives_no_guard_is_told(package):
    package(late="midward_long:LATE", no="midward_long:NO")
    with pytest.raises(GuardError, match="looks 'afterwards', none of before, during, after"):
        find("late")
    with pytest.raises(GuardError, match="is str, not a GuardInfo"):
        find("no")
