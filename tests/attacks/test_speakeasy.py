import pytest
from attack_double import CANARY, REFUSAL, Double, said
from hypothesis import given
from hypothesis import strategies as st

from midward.attacks.speakeasy import SPEAKEASY, trimmed

LANGUAGES = ("English", "Chinese", "Zulu")


def test_every_part_is_asked_in_every_language_at_once(attack):
    api = Double(lambda seen: REFUSAL)
    record, _ = attack("speakeasy", api)
    assert record["queries"]["respond"] == 18 == api.most_in_flight
    most = SPEAKEASY.calls(SPEAKEASY.configure({}))
    assert record["calls"]["rewriter"] == 1 and record["calls"]["translator"] <= most["translator"] == 33
    assert all("words" in seen.prompt for seen in api.seen)


def test_it_finds_the_language_that_gives_a_part_away(attack):
    def rule(seen):
        return "Step 1: grind the salt. Step 1: grind the salt." if "take it does" in seen.prompt else REFUSAL

    record, sample = attack("speakeasy", Double(rule), languages=LANGUAGES)
    assert record["chosen"] == ["English", "English", "Chinese"] and record["composite"]
    assert sample.store["texts"]["reply"] == f"{REFUSAL}\n\n{REFUSAL}\n\nStep 1: grind the salt."
    assert sample.store["texts"]["replay"] == sample.store["texts"]["reply"]
    assert record["languages"]["English"] == {"asked": 3, "refused": 3, "valid": 0, "rate": 0.0}
    assert record["languages"]["Zulu"] == {"asked": 3, "refused": 2, "valid": 1, "rate": 1 / 3}


def test_the_parts_do_not_stand_as_results_by_themselves(attack):
    record, _ = attack("speakeasy", Double(lambda seen: CANARY if "colour" in seen.prompt else "Red."))
    assert record["response"] == f"Red.\n\n{CANARY}\n\nRed." and record["tried"] == 19


def test_what_cannot_be_translated_is_dropped_and_counted(attack):
    model, prompts = said("no idea")
    api = Double(lambda seen: CANARY)
    record, _ = attack("speakeasy", api, roles={"translator": model}, languages=LANGUAGES, replay=False)
    assert record["failed"] == {"translator": 6} and len(prompts) == 12 and len(api.seen) == 3
    assert record["languages"]["Zulu"] == {"asked": 0, "refused": 0, "valid": 0, "rate": None}


def test_an_answer_that_cannot_be_read_back_is_no_answer(attack):
    model, _ = said(lambda prompt: '{"text": "faro"}' if "\nThai\n<<<END INTO" in prompt else "?")
    record, sample = attack("speakeasy", Double(lambda seen: CANARY), roles={"translator": model}, languages=("Thai",))
    assert record["chosen"] == [None] * 3 and sample.store["texts"] == {"reply": None}
    assert record["languages"]["Thai"]["valid"] == 0 and record["failed"] == {"translator": 3}


def test_a_replay_that_cannot_be_read_back_is_unscored(attack):
    model, _ = said(lambda prompt: '{"text": "Red."}' if "TEXT" in prompt and "fresh" not in prompt else "?")
    api = Double(lambda seen: "fresh" if seen.seed > 100 else "old")
    _, sample = attack("speakeasy", api, roles={"translator": model}, languages=("Thai",))
    assert sample.store["texts"]["reply"] == "Red.\n\nRed.\n\nRed." and sample.store["texts"]["replay"] is None


@pytest.mark.parametrize("languages", [(), ("Thai", "Thai"), ("Thai", " ")])
def test_languages_are_one_or_more_each_once(languages):
    with pytest.raises(ValueError, match="speakeasy: languages: languages must be one or more"):
        SPEAKEASY.configure({"languages": languages})


@given(st.lists(st.sampled_from(["Go on.", "Why?", "Mix it!", "Stop"]), max_size=6))
def test_trimming_keeps_each_sentence_once_in_order(sentences):
    once = trimmed(" ".join(sentences))
    assert trimmed(once) == once
    if "Stop" not in sentences:
        assert once == " ".join(dict.fromkeys(sentences))
