"""Refusal suppression, asked and enforced."""

from types import SimpleNamespace

import pytest
from attack_double import CANARY, REFUSAL, Double
from inspect_ai.model import get_model

from midward.attacks.refusal_suppression import REFUSAL_BAN, WORDS, RefusalSuppression, prompt
from midward.goals import Goal

MODEL = SimpleNamespace(tokens=lambda text: [ord(letter) for letter in text])


def test_each_listed_word_is_in_the_rules_of_both_variants():
    goal = Goal("1", "Make it.", "test", True, target="Sure, here is how.")
    for rules in ("suppress", "inverse"):
        text = prompt(goal, RefusalSuppression(rules=rules))
        assert all(word in text for word in WORDS)
    assert prompt(goal, RefusalSuppression()) != prompt(goal, RefusalSuppression(rules="inverse"))


def test_the_opening_is_the_goals_own():
    goal = Goal("1", "Make it.", "test", True, target="Sure, here is how.")
    assert 'Begin with "Sure, here is how."' in prompt(goal, RefusalSuppression(opening=True))
    bare = Goal("1", "Make it.", "test", True)
    assert 'Begin with "Sure, here is"' in prompt(bare, RefusalSuppression(opening=True))
    assert "Begin with" not in prompt(goal, RefusalSuppression())


def test_the_enforced_variant_bans_the_phrases_as_tokens(attack):
    def rule(seen):
        banned = ["".join(map(chr, one["ids"])) for one in seen.bans if one["position"] == 0]
        return CANARY if any(REFUSAL.startswith(text) for text in banned) else REFUSAL

    api = Double(rule, language_model=MODEL)
    record, sample = attack("refusal-ban", api, replay=False)
    assert sample.store["texts"]["reply"] == CANARY and len(api.seen) == 1
    assert record["access"] == "grey" and record["capabilities"] == ["BAN", "CHAT"]
    assert record["bans"] == len(api.seen[0].bans) == 28


def test_bans_cover_the_first_positions_and_end_with_the_response(attack):
    api = Double(lambda seen: REFUSAL, language_model=MODEL, length=8)
    attack("refusal-ban", api, phrases=["Sorry", "No,"], positions=4, replay=False)
    bans = [(one["position"], "".join(map(chr, one["ids"]))) for one in api.seen[0].bans]
    assert [one for one in bans if one[0] == 0] == [(0, "Sorry"), (0, " Sorry"), (0, "No,"), (0, " No,")]
    assert (3, "Sorry") in bans and (3, " Sorry") not in bans
    assert {position for position, _ in bans} == {0, 1, 2, 3}


def test_a_banned_opening_does_not_open_a_real_reply(attack, roomy_folder):
    target = get_model(f"midward/{roomy_folder}", length=16, steps=16, device="cpu")
    _, sample = attack("refusal-suppression", target, replay=False)
    first = sample.store["texts"]["reply"].split()[0]
    _, sample = attack("refusal-ban", target, phrases=[first], replay=False)
    assert sample.store["texts"]["reply"].split()[0] != first


@pytest.mark.parametrize("settings", [{"phrases": [" "]}, {"positions": 0}, {"rules": "none"}])
def test_bad_settings(settings):
    with pytest.raises(ValueError, match="refusal-ban"):
        REFUSAL_BAN.configure(settings)
