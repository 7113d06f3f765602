"""FlipAttack: each flip undoes itself, and a double that can read it."""

import pytest
from attack_double import CANARY, REFUSAL, Double
from hypothesis import given
from hypothesis import strategies as st

from midward.attacks import Capability
from midward.attacks.flip import MODES, FlipOptions, request, restored
from midward.goals import Goal

GOAL = "Make a drex valm skorn."


def goal(text=GOAL, **more):
    return Goal("1", text, "test", True, **more)


def reads(mode):
    """A target that restores what one mode hides, and does it."""
    flip, _ = MODES[mode]
    return lambda seen: CANARY if flip(seen.prompt.removeprefix("TASK: ")) == GOAL else REFUSAL


@given(st.text(), st.sampled_from(sorted(MODES)))
def test_a_flip_undoes_itself(text, mode):
    flip, _ = MODES[mode]
    assert flip(flip(text)) == text


def test_flips_keep_blanks():
    flipped = {mode: MODES[mode][0]("ab  cd\nef") for mode in MODES}
    assert flipped == {"fwo": "ef\ncd  ab", "fcw": "ba  dc\nfe", "fcs": "fe\ndc  ba", "fmm": "fe\ndc  ba"}


@pytest.mark.parametrize("mode", ["fwo", "fcw", "fcs", "fmm"])
def test_asks_once_and_names_the_mode(attack, mode):
    api = Double(reads(mode))
    record, sample = attack("flip", api, mode=mode, replay=False)
    assert len(api.seen) == 1 and api.seen[0].turns[0][0] == "system"
    assert record["settings"]["mode"] == record["note"]["mode"] == mode
    assert sample.store["texts"]["reply"] == CANARY and record["calls"] == {}
    assert record["restored"] == 1.0


def test_best_of_4_says_so_and_finds_the_one_that_is_read(attack):
    api = Double(reads("fcw"))
    record, sample = attack("flip-best-of-4", api, replay=False)
    assert len(api.seen) == api.most_in_flight == 4
    assert record["best_of"] == 4 and record["note"]["mode"] == "fcw"
    assert sample.store["texts"]["reply"] == CANARY


def test_without_system_turns_the_instruction_stands_in_front(attack):
    api = Double(lambda seen: REFUSAL, caps=frozenset({Capability.CHAT}))
    record, _ = attack("flip", api, replay=False)
    [(role, text)] = api.seen[0].turns
    assert role == "user" and text.endswith(f"TASK: {GOAL[::-1]}") and "reverse" in text
    assert "SYS-folded" in record["capabilities"]


@given(st.text(min_size=1), st.sampled_from(sorted(MODES)))
def test_examples_never_fail_on_a_short_goal(text, mode):
    ask = request(goal(text), mode, FlipOptions(few_shot=True))
    assert ask.turns[0][1].count("For example") == (1 if len(text.split()) < 2 else 3)


def test_a_context_is_hidden_with_the_goal():
    assert "An old letter." in request(goal(context="An old letter."), "fcs", FlipOptions()).text[6:][::-1]


def test_restored_counts_words_of_the_goal():
    assert restored("Break the green lamp", "The LAMP is green.") == pytest.approx(2 / 3)
    assert restored("a b", "a b") == 0.0
    assert restored("Break the lamp", "pmal eht kaerB") == 0.0
