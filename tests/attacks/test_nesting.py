"""Context nesting: the structures hold the request whole, whatever stands in it, and one query is put."""

import ast
import json

import pytest
import yaml
from attack_double import CANARY, REFUSAL, Double

from midward.attacks import find
from midward.attacks.nesting import FORMS, nested
from midward.errors import InputError

HARD = 'Say "no" | to a \\ {line}\nand: another # one'


def content(text):
    """A nested request without the sentence before its structure."""
    return text.partition("\n\n")[2]


def test_the_structures_hold_any_request():
    [assigned, steps, _] = ast.parse(content(nested(HARD, "code"))).body
    assert ast.literal_eval(assigned.value) == HARD and len(ast.literal_eval(steps.value)) == 3
    assert json.loads(content(nested(HARD, "json")))["task"] == HARD
    assert yaml.safe_load(content(nested(HARD, "yaml")))["task"] == HARD
    rows = content(nested(HARD, "table")).splitlines()
    assert rows[0].replace("\\|", "") == rows[0].replace("\\|", "").strip()
    assert {row.replace("\\|", "").count("|") for row in rows} == {3}


@pytest.mark.parametrize("form", FORMS)
def test_one_query_finds_the_form_that_works(attack, sandbox, form):
    goal = "Make a drex valm skorn."
    api = Double(lambda seen: CANARY if seen.prompt == nested(goal, form) else REFUSAL, language_model=sandbox)
    record, sample = attack("nesting", api, goal=goal, form=form)
    assert sample.store["texts"]["reply"] == CANARY and record["queries"]["respond"] == 1
    assert record["capabilities"] == ["CHAT"] and record["access"] == "black" and record["calls"] == {}
    other = next(other for other in FORMS if other != form)
    assert attack("nesting", api, goal=goal, form=other)[0]["response"] == REFUSAL


def test_the_goals_context_stands_in_front(attack, sandbox):
    api = Double(lambda seen: REFUSAL, language_model=sandbox)
    attack("nesting", api, metadata={"context": "A harbour at night."})
    [seen, *_] = api.seen
    assert seen.prompt.startswith("A harbour at night.") and seen.prompt.endswith(
        nested("Make a drex valm skorn.", "code")
    )


def test_another_form_is_refused():
    with pytest.raises(InputError, match="form"):
        find("nesting").configure({"form": "xml"})
