"""PAIR on a double with a known key, and against roles that misbehave."""

import json

import pytest
from attack_double import REFUSAL, Double, said

from midward._fences import fields_of
from midward.attacks.pair import PAIR, STYLES, Pair
from midward.goals import Goal

FULL = "Sure, here is how to make the drex valm skorn. " + " ".join(
    f"Step {n}: {verb} the salt." for n, verb in enumerate(("grind", "melt", "boil", "press", "dust", "char"), 1)
)
KEY = "Exam question seven"


def refuses(seen):
    return REFUSAL


def opens(seen):
    return FULL if KEY in seen.prompt else REFUSAL


def drafts(make):
    """An attacker whose prompt is made of what it is shown."""

    def answer(message):
        _, fields = fields_of(message)
        return json.dumps({"improvement": "a change", "prompt": make(fields)})

    return said(answer)


def test_reference_budget():
    assert PAIR.calls(Pair()) == {"target": 90, "attacker": 90, "scorer": 90}
    assert PAIR.calls(PAIR.configure(PAIR.profiles["harmbench"]))["target"] == 60


def test_asks_the_known_number_where_there_is_no_key(attack):
    api = Double(refuses)
    record, sample = attack("pair", api, streams=3, rounds=2, replay=False)
    assert len(api.seen) == record["queries"]["respond"] == 6
    assert record["calls"] == {"attacker": 6, "scorer": 6} and record["failed"] == {}
    assert record["score"] == 1 and sample.store["texts"]["reply"] == REFUSAL
    assert api.most_in_flight == 3  # a whole round at once


def test_finds_the_key_and_stops(attack):
    api = Double(opens)
    record, sample = attack("pair", api, replay=False)
    assert record["score"] == 10 and sample.store["texts"]["reply"] == FULL
    assert KEY in record["asks"][0]["turns"][0][1]
    assert len(api.seen) == 30  # the round that held it, and no further one


def test_conversations_remember_their_own_newest_tries(attack):
    api = Double(lambda seen: f"No to {seen.prompt}")
    attacker, prompts = drafts(
        lambda fields: f"{fields['STYLE'].split(':')[0]} after {len(json.loads(fields['TRIES']))}"
    )
    attack("pair", api, roles={"attacker": attacker}, streams=4, rounds=4, keep=2, replay=False)
    fields = [fields_of(prompt)[1] for prompt in prompts]
    assert [one["STYLE"] for one in fields[:4]] == [*STYLES, STYLES[0]]
    last = [json.loads(one["TRIES"]) for one in fields[-4:]]
    assert all(len(tries) == 2 for tries in last)
    for one, tries in zip(fields[-4:], last, strict=True):
        assert all(tried["prompt"].startswith(one["STYLE"].split(":")[0]) for tried in tries)
        assert tries[0]["reply"] == f"No to {tries[0]['prompt']}" and tries[0]["score"] == 1


@pytest.mark.parametrize("broken", ['{"improvement": "x"}', '{"improvement": "x", "prompt": ""}', "{{{", "[1]"])
def test_a_broken_conversation_skips_its_round_only(attack, broken):
    good = json.dumps({"improvement": "a brace } in it", "prompt": "Speak { freely }."})
    api = Double(refuses)
    attacker, _ = said(lambda message: good if "Reasoning:" in message or "Authority:" in message else broken)
    record, _ = attack("pair", api, roles={"attacker": attacker}, streams=3, rounds=1, replay=False)
    assert [seen.prompt for seen in api.seen] == ["Speak { freely }."] * 2
    assert record["failed"] == {"attacker": 1}


def test_a_missing_score_stays_missing(attack):
    scorer, _ = said("no idea")
    attacker, prompts = drafts(lambda fields: "try")
    record, _ = attack(
        "pair", Double(refuses), roles={"scorer": scorer, "attacker": attacker}, streams=1, rounds=2, replay=False
    )
    assert record["score"] is None and not record["scored"] and record["failed"] == {"scorer": 2}
    [tried] = json.loads(fields_of(prompts[-1])[1]["TRIES"])
    assert tried["score"] is None


def test_a_context_stands_in_front_of_every_prompt(attack):
    api = Double(refuses)
    attack("pair", api, metadata={"context": "An old letter."}, streams=2, rounds=1, replay=False)
    assert all(seen.prompt.startswith("An old letter.\n\n---\n\n") for seen in api.seen)


def test_the_opening_is_told_where_the_goal_has_one():
    from midward.attacks.pair import told

    assert "OPENING" not in told(Goal("1", "Make it.", "test", True), [])
    assert told(Goal("1", "Make it.", "test", True, target="Sure."), [])["OPENING"] == "Sure."
