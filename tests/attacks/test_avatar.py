import json

import pytest
from attack_double import CANARY, REFUSAL, Double, Stub, said

from midward.attacks.avatar import AVATAR

STAND_INS = "kettle trellis ladle seedling teapot rake whisk compost apron hedge"


def double(rule, **more):
    return Double(rule, language_model=Stub(), **more)


def metaphors(*names):
    """An attacker with one metaphor a name; it says what the kind of message is."""
    left = list(names)

    def answer(prompt):
        if "[avatar.mapping]" in prompt:
            name = left.pop(0) if left else names[-1]
            return json.dumps({"pairs": {word: f"{name} {word}" for word in ("drex", "valm", "skorn")}})
        kind = prompt.split("<<<KIND ")[1].split("\n")[1]
        name = prompt.split("drex = ")[1].split()[0]
        again = "" if "\nnone\n<<<END TURNED DOWN" in prompt else " again"
        return json.dumps({"message": f"{kind} of {name}{again}"})

    return said(answer)


@pytest.mark.parametrize(
    "rule, queries",
    [
        (lambda seen: REFUSAL, 8),  # two tries of each of four scenarios, and that is the end of them
        (lambda seen: "Yes.", 20),  # nothing is named, so it is asked for until the last turn calibrates
        (lambda seen: STAND_INS, 8),  # everything is named at once, so the second turn calibrates
    ],
)
def test_the_number_of_queries_is_known(attack, rule, queries):
    api = double(rule)
    record, _ = attack("avatar", api, replay=False)
    assert record["queries"]["respond"] == queries == len(api.seen) and api.most_in_flight == 4
    calls = AVATAR.calls(AVATAR.configure({}))
    assert calls["target"] == 40
    assert all(record["calls"][role] <= calls[role] for role in ("attacker", "rewriter", "scorer"))


def test_the_history_is_the_models_own_and_holds_no_refused_exchange(attack):
    said_by_model = {}

    def rule(seen):
        reply = REFUSAL if len(said_by_model) % 3 == 0 else f"Answer {len(said_by_model)}."
        said_by_model[tuple(seen.turns)] = reply
        return reply

    attack("avatar", double(rule), replay=False, kept=1)
    for turns in said_by_model:
        for i, (role, text) in enumerate(turns):
            if role == "assistant":
                assert said_by_model[turns[:i]] == text != REFUSAL


def test_it_finds_a_calibration_that_the_model_takes(attack):
    def rule(seen):
        if seen.prompt.startswith("calibration of c") and len(seen.turns) > 1:
            return CANARY
        return "We go on." if not seen.prompt.startswith("calibration") else REFUSAL

    model, _ = metaphors(*"abcd")
    record, sample = attack("avatar", double(rule), roles={"attacker": model}, mappings=4, turns=3, cutoff=6)
    assert record["score"] == 6 and record["note"]["metaphor"]["drex"] == "c drex" and record["note"]["calibrated"]
    assert record["note"]["score_transcript"] == 6 and record["note"]["score_restored"] == 6
    assert sample.store["texts"]["reply"] == CANARY


def test_metaphors_must_name_every_entity_apart_and_each_counts_once(attack):
    good = {"drex": "kettle", "valm": "rake", "skorn": "hedge"}
    given = [good, good, {"drex": "kettle"}, dict.fromkeys(good, "kettle"), "none"]
    made = iter(given)

    def answer(prompt):
        if "That can't be read" in prompt:
            return "still none"
        return json.dumps({"pairs": next(made)}) if "mapping" in prompt else json.dumps({"message": "And?"})

    record, _ = attack("avatar", double(lambda seen: "Yes."), roles={"attacker": said(answer)[0]}, mappings=5)
    assert record["metaphors"] == {"made": 1, "weighed": 1, "kept": 1} and record["failed"]["attacker"] == 3


def test_the_best_weighed_metaphors_are_kept(attack):
    def weigh(prompt):
        if "[avatar.weigh]" not in prompt:
            return '{"score": 1}'
        name = prompt.split("drex = ")[1].split()[0]
        return json.dumps({"a": {"similarity": 9, "toxicity": 9}, "b": {"similarity": 5, "toxicity": 1}}.get(name, {}))

    model, _ = metaphors("a", "b", "c")
    api = double(lambda seen: "Yes.")
    record, _ = attack(
        "avatar", api, roles={"attacker": model, "scorer": said(weigh)[0]}, mappings=3, kept=1, replay=False
    )
    assert record["metaphors"] == {"made": 3, "weighed": 2, "kept": 1} and record["failed"] == {"scorer": 1}
    assert {seen.prompt.split()[-1] for seen in api.seen} == {"b"}


def test_old_exchanges_are_forgotten_where_the_context_has_no_room(attack):
    model = Stub()
    model.max_positions = 500
    api = Double(lambda seen: "word " * 40, language_model=model, length=100)
    record, _ = attack("avatar", api, kept=1, replay=False)
    assert record["exchanges_forgotten"] > 0
    for seen in api.seen:
        messages = [{"role": role, "content": text} for role, text in seen.turns]
        assert len(model.encode(messages)) + 100 <= 500 and seen.turns[0][0] == "user"
