"""PAIR on a double with a known key, and against roles that misbehave."""

import json

from attack_double import REFUSAL, Double, said

from midward._fences import fields_of
from midward.attacks.pair import STYLES
from midward.goals import Goal

FULL = "Sure, here is how to make the drex valm skorn. " + " ".join(
    f"Step {n}: {verb} the salt." for n, verb in enumerate(("grind", "melt", "boil", "press", "dust", "char"), 1)
)
KEY = "Exam question seven"


def refuses(seen):
    return REFUSAL


def drafts(make):
    """An attacker whose prompt is made of what it is shown."""

    def answer(message):
        _, fields = fields_of(message)
        return json.dumps({"improvement": "a change", "prompt": make(fields)})

    return said(answer)


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


def test_a_context_stands_in_front_of_every_prompt(attack):
    api = Double(refuses)
    attack("pair", api, metadata={"context": "An old letter."}, streams=2, rounds=1, replay=False)
    assert all(seen.prompt.startswith("An old letter.\n\n---\n\n") for seen in api.seen)


def test_the_opening_is_told_where_the_goal_has_one():
    from midward.attacks.pair import material

    assert "OPENING" not in material(Goal("1", "Make it.", "test", True), [])
    assert material(Goal("1", "Make it.", "test", True, target="Sure."), [])["OPENING"] == "Sure."
