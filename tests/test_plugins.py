"""What installed packages add to a room by an entry point, and how a broken one is told."""

import sys
from functools import partial

import pytest
from packages import install

from midward import attacks, guards, judges
from midward.attacks import AttackError
from midward.guards import GuardError
from midward.judges import JudgesError
from midward.probes import registry as probes
from midward.probes.probe import ProbeError

#: room -> find, every, its error, a name of ours, what a package writes.
ROOMS = {
    "attacks": (
        attacks.find,
        attacks.every,
        AttackError,
        "direct",
        """
from midward.attacks import ATTACKS
OTHER = ATTACKS["direct"]
INFO = replace(OTHER, name="loud")
""",
    ),
    "judges": (
        judges.find,
        judges.every,
        JudgesError,
        "oracle",
        """
from midward.judges import JUDGES
OTHER = JUDGES["oracle"]
INFO = replace(OTHER, name="loud")
""",
    ),
    "probes": (
        probes.find,
        probes.every,
        ProbeError,
        "order",
        """
from midward.probes.order import ORDER as OTHER
INFO = replace(OTHER, name="loud")
""",
    ),
    "guards": (
        guards.find,
        guards.every,
        GuardError,
        "masks",
        """
from midward.guards import GuardInfo, MaskFilter
OTHER = GuardInfo(MaskFilter)
INFO = GuardInfo(type("Loud", (MaskFilter,), {"name": "loud"}))
""",
    ),
}


@pytest.fixture(params=ROOMS)
def room(request, tmp_path, monkeypatch):
    """find, every, error, a name of ours, and a function that installs a package with these entry points."""
    *room, source = ROOMS[request.param]
    source = f"from dataclasses import replace\n{source}"
    return *room, partial(install, monkeypatch, tmp_path, "midward_loud", source, f"midward.{request.param}")


def test_a_package_adds_one_and_is_loaded_when_it_is_wanted(room):
    find, every, error, ours, package = room
    package(loud="midward_loud:INFO", broken="midward_loud.nowhere:INFO")
    find(ours)
    assert "midward_loud" not in sys.modules
    listed = every()
    assert listed["loud"] == find("loud") != find(ours) == listed[ours]
    assert isinstance(listed["broken"], error)


BROKEN = {
    "midward_nowhere:INFO": "ModuleNotFoundError: No module named 'midward_nowhere'",
    "midward_loud:NOTHING": "AttributeError",
    "midward_loud:replace": "is function, not a ",
    "midward_loud:OTHER": "calls itself '",
}


@pytest.mark.parametrize("value", BROKEN)
def test_a_broken_one_is_an_error_that_names_the_package(room, value):
    find, every, error, _, package = room
    package(loud=value)
    with pytest.raises(error) as told:
        find("loud")
    assert "of the package 'midward-loud'" in str(told.value) and BROKEN[value] in str(told.value)
    assert BROKEN[value] in str(every()["loud"])


def test_our_names_stay_ours_and_an_unknown_one_gets_the_nearest(room):
    find, every, error, ours, package = room
    before = find(ours)
    package(**{ours: "midward_loud:INFO"})
    assert find(ours) is before is every()[ours]
    assert "must take another one" in str(every()[f"{ours} (midward-loud)"])
    with pytest.raises(error, match=f"no .* '{ours}e'. Did you mean '{ours}'"):
        find(f"{ours}e")
