"""Every attack ends on a model with random weights, and on goals that the scripted assistant doesn't understand."""

import pytest
from inspect_ai.model import get_model

from midward.attacks.registry import ATTACKS


@pytest.mark.parametrize("name", sorted(name for name, info in ATTACKS.items() if not info.required))
def test_ends_without_error(attack, roomy_folder, name):
    info = ATTACKS[name]
    target = get_model(f"midward/{roomy_folder}", length=64, steps=8, device="cpu")
    goal = "Do the forbidden placeholder thing number 3."
    settings = info.profiles.get("quick", {})
    record, sample = attack(name, target, goal=goal, roles={"proxy": target}, **settings)
    calls = info.calls(info.configure(settings))
    assert 0 < sum(record["queries"].values()) <= calls["target"]
    assert all(count <= calls.get(role, 0) for role, count in record["calls"].items())
    assert isinstance(sample.store["texts"]["reply"], str)
