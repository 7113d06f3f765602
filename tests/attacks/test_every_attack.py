r"""Every attack, against a target whose replies hang on the request alone: it is what it was, and keeps to its budget.

An attack that changes on purpose raises its `version`, and its line in golden.json with it: the test says the new one.
All new ones are put there by

    python -m pytest tests/attacks/test_every_attack.py -k what_it_was --tb=short |
        sed -nE "s/^E +assert '(\w+)' == '(\w+)'$/s#\2#\1#/p" > renew.sed; sed -i -f renew.sed tests/attacks/golden.json
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from attack_double import CANARY, REFUSAL, Double, said

from midward.attacks import config, sets, shapes
from midward.attacks.profiles import PROFILES
from midward.attacks.registry import ATTACKS
from midward.store import key_of

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())
REPLIES = (
    REFUSAL,
    CANARY,
    "Sure, here is how. Step 1: boil the ash.",
    "Of course. Step 3: melt the wax. Step 4: wait.",
)
KEPT = ("queries", "calls", "failed", "score", "spent", "tried", "prompts", "response", "capabilities")


def draw(*about):
    return int(hashlib.sha256(repr(about).encode()).hexdigest(), 16)


class Fixed(Double):
    async def gradient(self, span, slots, *, length, drafts=((),)):
        start = draw(span.prompt, *slots) % 1009
        return ((torch.arange(self.model.vocab_size) * 7919 + start) % 1009).float().repeat(len(slots), 1)


def fixed(sandbox):
    def rule(seen):
        return REPLIES[draw(seen.turns, seen.forced, seen.bans, seen.fill, seen.seed) % len(REPLIES)]

    return Fixed(rule, lambda span: -(draw(span) % 3000) / 100, language_model=sandbox)


NAMES = sorted(name for name, info in ATTACKS.items() if not info.required)
#: Of attacks that need a setting.
GIVEN = {"post-context": {"kind": "fraud"}}
METADATA = {"kind": "make", "thing": "drex valm skorn", "target": "Sure, here is how to make the drex valm skorn."}


@pytest.mark.parametrize("name", [*NAMES, *GIVEN])
def test_an_attack_is_what_it_was(attack, sandbox, name):
    info, target = ATTACKS[name], fixed(sandbox).as_model()
    settings = GIVEN.get(name) or PROFILES["quick"].settings_of(info)
    record, sample = attack(name, target, roles={"proxy": target}, metadata=METADATA, **settings)
    calls = info.calls(info.configure(settings))
    assert 0 < sum(record["queries"].values()) <= calls["target"]
    assert all(count <= calls.get(role, 0) for role, count in record["calls"].items())
    outcome = {"version": info.version, **{key: record[key] for key in KEPT}, "texts": sample.store["texts"]}
    assert key_of(**outcome) == GOLDEN.get(name), name


#: The most queries to the target for one goal, at the reference settings: what each paper spends.
REFERENCE = {
    "direct": 1,
    "trajhijack": 1,
    "nesting": 1,
    "maskforge": 10,
    "pair": 90,
    "tap": 94,
    "tap-mid": 94,
    "prefill": 1,
    "prefill-mid": 1,
    "pad": 1,
    "dija": 1,
    "aos": 400,
    "flip": 1,
    "flip-best-of-4": 4,
    "refusal-suppression": 1,
    "refusal-ban": 1,
    "wildjailbreak": 10,
    "ept": 300,
    "ept-mid": 300,
    "dia": 10,
    "dia-prefill": 10,
    "speakeasy": 18,
    "avatar": 40,
    "advprefix": 4001,
    "advprefix-ask": 2501,
    "advprefix-mid": 2801,
    "random-search": 10_002,
    "pal": 16_501,
    "ral": 16_501,
}


def test_what_an_attack_spends_at_its_reference_settings():
    assert {name: ATTACKS[name].calls(ATTACKS[name].configure({}))["target"] for name in NAMES} == REFERENCE


def test_the_names_that_are_known_without_loading_are_all_of_them():
    assert tuple(ATTACKS) == config.ATTACKS
    assert tuple(shapes.SHAPES) == ("plain", *sets.SHAPES)


def test_a_docstring_says_what_an_attack_is_and_departs_from():
    for name, info in ATTACKS.items():
        assert info.about and info.citation and (info.deviations or name == "direct"), name
    pal, ral = ATTACKS["pal"], ATTACKS["ral"]
    assert pal.about != ral.about and len(pal.deviations) == len(ral.deviations) + 1
    assert "Table 4" in ATTACKS["tap-mid"].citation and "Table 4" not in ATTACKS["tap"].citation


@pytest.mark.parametrize("name", NAMES)
def test_it_ends_within_a_small_budget_and_whatever_its_roles_say(attack, sandbox, name):
    info, target = ATTACKS[name], fixed(sandbox).as_model()
    roles = dict.fromkeys(("attacker", "rewriter", "translator", "scorer", "guard", "uncensored"), said("no json")[0])
    settings = PROFILES["quick"].settings_of(info)
    record, _ = attack(name, target, roles=roles | {"proxy": target}, metadata=METADATA, budget=3, **settings)
    assert sum(record["queries"].values()) <= 3 and record["score"] is None
    asked = {role: count for role, count in record["calls"].items() if role != "proxy"}
    assert record["failed"] == asked


@pytest.mark.parametrize("name", ["advprefix-mid", "avatar", "dia", "maskforge", "random-search", "ral"])
def test_another_seed_is_another_search(attack, sandbox, name):
    def asked(seed):
        double = fixed(sandbox)
        settings = PROFILES["quick"].settings_of(ATTACKS[name])
        attack(name, double.as_model(), roles={}, metadata=METADATA, seed=seed, replay=False, **settings)
        return sorted(str(seen.turns) for seen in double.seen), [(span.prompt, span.ids) for span in double.spans]

    assert asked(1) != asked(2)
