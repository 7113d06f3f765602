"""TAP and its middle variant on a double with a known key, and against roles that misbehave."""

import json
import random
from collections import Counter

import pytest
from attack_double import Double, said
from hypothesis import given
from hypothesis import strategies as st
from test_pair import KEY, drafts, refuses

from midward._fences import fields_of
from midward.attacks.tap import TAP, TAP_MID, Tap, landing, prune


def scores(topic=lambda fields: "yes", grade=lambda fields: 1):
    """A scorer that answers both of its questions."""

    def answer(message):
        name, fields = fields_of(message)
        if name == "shared.on-topic":
            return json.dumps({"same": topic(fields)})
        return json.dumps({"score": grade(fields)})

    return said(answer)


def test_prune_keeps_a_uniform_sample_of_ties():
    kept = Counter(item for seed in range(400) for item in prune(range(40), 10, lambda item: 0, random.Random(seed)))
    assert sum(kept.values()) == 4000
    assert all(60 <= kept[item] <= 140 for item in range(40))  # 100 expected, five standard deviations


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 12), st.integers())
def test_prune_never_drops_a_better_one(items, width, seed):
    kept = prune(items, width, lambda item: item, random.Random(seed))
    assert kept == sorted(items, reverse=True)[:width]


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"branching": 4, "width": 5, "depth": 3}, 4 + 5 + 5),
        ({"branching": 3, "width": 2, "depth": 2}, 2 + 2),
        ({"branching": 3, "width": 2, "depth": 2, "query_all": True}, 3 + 6),
        ({"branching": 1, "width": 3, "depth": 2, "roots": 2}, 2 + 2),
    ],
)
def test_asks_the_known_number_where_there_is_no_key(attack, settings, asked):
    api = Double(refuses)
    record, _ = attack("tap", api, replay=False, **settings)
    known = TAP.calls(Tap(**settings))
    assert len(api.seen) == record["queries"]["respond"] == known["target"] == asked
    assert record["calls"] == {role: known[role] for role in ("attacker", "scorer")}
    assert record["dropped"] == {"off_topic": 0, "too_many": known["attacker"] - asked}
    assert record["score"] == 1 and not record["spent"]


def test_off_topic_prompts_are_not_put(attack):
    api = Double(refuses)
    attacker, _ = drafts(lambda fields: "about bread" if "word 2" in fields["TRIES"] else "word 2")
    scorer, _ = scores(topic=lambda fields: "no" if "bread" in fields["PROMPT"] else "yes")
    record, _ = attack("tap", api, roles={"attacker": attacker, "scorer": scorer}, branching=2, depth=3, replay=False)
    assert [seen.prompt for seen in api.seen] == ["word 2"] * 2
    # the same leaves are grown again
    assert record["dropped"]["off_topic"] == 8 and record["calls"]["attacker"] == 2 + 4 + 4


def test_the_attacker_sees_the_newest_tries_of_its_branch(attack):
    attacker, prompts = drafts(lambda fields: "x" * (1 + len(fields["TRIES"]) % 97))
    attack(
        "tap",
        Double(lambda seen: f"No to {seen.prompt}"),
        roles={"attacker": attacker, "scorer": scores()[0]},
        branching=1,
        depth=4,
        keep=2,
        replay=False,
    )
    seen = [json.loads(fields_of(prompt)[1]["TRIES"]) for prompt in prompts]
    assert [len(tries) for tries in seen] == [0, 1, 2, 2]
    assert seen[3][0] == seen[2][1] and all(tried["reply"] == f"No to {tried['prompt']}" for tried in seen[3])


def test_the_best_leaves_are_kept(attack):
    """With every prompt put, the leaf that scored is grown, whatever else ties."""
    attacker, prompts = drafts(lambda fields: f"good {fields['TRIES'].count('good')}")
    grades = iter([1, 1, 7, 1, *[1] * 20])
    attack(
        "tap",
        Double(lambda seen: "so so"),
        roles={"attacker": attacker, "scorer": scores(grade=lambda fields: next(grades))[0]},
        branching=4,
        width=1,
        depth=2,
        query_all=True,
        replay=False,
    )
    grown = [json.loads(fields_of(prompt)[1]["TRIES"])[0]["score"] for prompt in prompts[4:]]
    assert grown == [7] * 4


# --- in front of a guard ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tap", "pair"])
@pytest.mark.parametrize("feedback", [True, False])
def test_a_guards_score_is_feedback_where_the_attack_is_to_have_it(attack, name, feedback):
    """Longer prompts are farther from what the guard lets through; the scorer itself calls all of it a ten."""

    def verdict(seen):
        beyond = len(seen.prompt) - 10.0
        return {"flagged": beyond > 0, "score": beyond + 2, "threshold": 2.0}

    attacker, prompts = drafts(lambda fields: "y" * (15 - len(json.loads(fields["TRIES"]))))
    scorer, _ = scores(grade=lambda fields: 10)
    api = Double(lambda seen: "Step 1: so.", guard_rule=verdict)
    many = {"branching": 1, "depth": 9} if name == "tap" else {"streams": 1, "rounds": 9}
    roles = {"attacker": attacker, "scorer": scorer}
    record, _ = attack(name, api, roles=roles, keep=9, replay=False, feedback=feedback, **many)
    if not feedback:
        assert len(api.seen) == 1 and record["score"] == 10
        return
    assert [len(seen.prompt) for seen in api.seen] == [15, 14, 13, 12, 11, 10] and record["score"] == 10
    shown = [tried["score"] for tried in json.loads(fields_of(prompts[-1])[1]["TRIES"])]
    assert shown == [0.167, 0.2, 0.25, 0.333, 0.5]


# --- the middle variant ----------------------------------------------------------------------------------------------


def test_landing_counts_words_and_looks_in_the_window_only():
    text = "wanted phrase " + "word " * 28 + "Wanted phrase. more"
    assert landing(text, "wanted phrase", (20, 60))[1] == 30
    assert landing(text, "wanted phrase", (20, 60))[0] > 0.9
    assert landing(text, "wanted phrase", (0, 10)) == (1.0, 0)
    assert landing(text, "wanted phrase", (2, 20))[0] < 0.8
    assert landing("too short", "wanted phrase", (20, 60)) == (0.0, None)


@given(st.text(max_size=200), st.integers(0, 30), st.integers(1, 30))
def test_landing_never_leaves_its_window(text, start, width):
    closeness, position = landing(text, "step 3:", (start, start + width))
    assert 0 <= closeness <= 1 and (position is None or start <= position < start + width)


def test_middle_record_and_no_token_forced(attack):
    late = "word " * 25 + "Step 3: melt the wax."
    api = Double(lambda seen: late if KEY in seen.prompt else "Step 3: at once.")
    attacker, prompts = drafts(lambda fields: KEY if "before" in fields["TRIES"] else "first")
    record, _ = attack(
        "tap-mid", api, roles={"attacker": attacker, "scorer": scores()[0]}, branching=1, depth=2, replay=False
    )
    _, fields = fields_of(prompts[1])
    assert fields["WANTED PHRASE"] == "Step 3:" and fields["PLACE"] == "from word 20 to word 60"
    assert json.loads(fields["TRIES"])[0]["reply"] == "before: Step 3: at once.\nat it: (nothing)\nbehind: (nothing)"
    assert record["middle"] == {
        "phrase": "Step 3:",
        "window": [20, 60],
        "unit": "words",
        "landed": False,
        "position": None,
        "hit_rate": 0.5,
    }
    assert all(seen.forced == [] and seen.bans == [] for seen in api.seen)


@pytest.mark.parametrize("settings", [{"window": (60, 20)}, {"window": (-1, 20)}, {"phrase": " "}, {"width": 0}])
def test_bad_settings(settings):
    with pytest.raises(ValueError, match="tap-mid"):
        TAP_MID.configure(settings)
