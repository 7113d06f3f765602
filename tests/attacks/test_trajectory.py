"""Attacks on the denoising trajectory: what stands where, in which order the rest is filled, and what the arms do."""

import json
from dataclasses import replace

import pytest
from attack_double import CANARY, Double
from inspect_ai.model import get_model

from midward.attacks.cases import cases
from midward.attacks.phrases import WINDOW, compliant
from midward.attacks.shapes import shape
from midward.errors import InputError
from midward.goals import load

[GOAL] = load("sandbox", count=1)
METADATA = {**GOAL.metadata, "target": GOAL.target}


def double(sandbox, **more):
    return Double(lambda seen: CANARY, language_model=sandbox, **more)


def standing(seen):
    return {span["position"]: span["ids"] for span in seen.forced}


# --- anchoring ---------------------------------------------------------------------------------------


def test_anchors_are_the_texts_own_tokens_at_their_own_places(attack, sandbox):
    api = double(sandbox, length=96)
    record, _ = attack("anchoring", api, metadata=METADATA, texts="sandbox", anchors=5)
    ids = sandbox.tokenizer(compliant(GOAL), add_special_tokens=False)["input_ids"]
    forced = standing(api.seen[0])
    assert len(forced) == 5 and all(written == [ids[place]] for place, written in forced.items())
    assert record["anchors"]["positions"] == sorted(forced) and record["anchors"]["fraction"] == 5 / 96
    assert record["capabilities"] == ["CHAT", "POS"] and record["access"] == "grey"


@pytest.mark.parametrize("positions", ["uniform", "window", "outside", "contiguous"])
def test_places_are_where_they_are_asked_for(attack, sandbox, positions):
    api = double(sandbox, length=96)
    record, _ = attack("anchoring", api, metadata=METADATA, texts="sandbox", fraction=0.0625, positions=positions)
    places = record["anchors"]["positions"]
    inside = [WINDOW[0] <= place < WINDOW[1] for place in places]
    assert len(places) == 6 and record["anchors"]["in_window"] == sum(inside)
    if positions == "contiguous":
        assert places == list(range(places[0], places[0] + 6))
    elif positions != "uniform":
        assert set(inside) == {positions == "window"}


def test_other_texts_give_other_anchors(attack, sandbox, tmp_path):
    path = tmp_path / "texts.json"
    path.write_text(json.dumps({"goal-1": "a b c d e f", "goal-2": "x y z w v u"}))
    written = {}
    for source, texts in (*((name, "sandbox") for name in ("own", "other", "neutral", "refusal")), ("own", str(path))):
        api = double(sandbox)
        attack("anchoring", api, metadata=METADATA, anchors=4, source=source, texts=texts, positions="contiguous")
        written[source, texts] = tuple(sorted((at, *ids) for at, ids in standing(api.seen[0]).items()))
    assert len(set(written.values())) == len(written)


def test_without_a_text_it_says_what_to_give(attack, sandbox, tmp_path):
    assert "anchoring.texts=FILE" in attack("anchoring", double(sandbox), texts="sandbox", error=True)
    assert "can't be drawn of the" in attack(
        "anchoring", double(sandbox), metadata=METADATA, texts="sandbox", anchors=600, error=True
    )
    (tmp_path / "bad.json").write_text("[1]")
    assert "must be a JSON object" in attack("anchoring", double(sandbox), texts=str(tmp_path / "bad.json"), error=True)


def test_the_rest_is_filled_in_random_order_in_one_block(attack):
    target = get_model("midward/sandbox", length=48, steps=6, device="cpu")
    record, sample = attack("anchoring", target, metadata=METADATA, texts="sandbox", anchors=30)
    [call] = [event for event in sample.events if event.event == "model"][:1]
    assert call.output.metadata["sampling"]["order"] == "random" and call.output.metadata["sampling"]["block"] is None
    assert len(call.output.metadata["forced"]) == 30 and record["response"]


def test_a_defence_is_tried_on_the_draw_that_the_attack_makes(attack, sandbox):
    api = double(sandbox, length=96)
    settings = {"texts": "sandbox", "order": "target", "seed": 0, "replay": False}
    attack("anchoring", api, goal=GOAL.prompt, metadata=METADATA, **settings)
    goal = replace(GOAL, id="goal-1", source="test")
    request = shape(sandbox, goal, "anchoring", length=96)
    assert {span.position: list(span.ids) for span in request.forced} == standing(api.seen[0])
    assert len(request.forced) == 8 and request.prompt == api.seen[0].prompt
    others = [shape(sandbox, each, "anchoring", length=96).forced for each in (goal, replace(goal, id="goal-2"))]
    assert others[0] == request.forced != others[1]


@pytest.mark.parametrize("name, harmful", [("sandbox", True), ("sandbox-benign", False)])
def test_anchors_are_of_goals_whose_text_is_known(sandbox, name, harmful):
    asked = cases(sandbox, "anchoring", 12, goals=name)
    assert len(asked) == 12 and {case.goal.harmful for case in asked} == {harmful}
    for case in asked:
        ids = sandbox.tokens(compliant(case.goal))
        assert len(case.request.forced) == 8 and case.about["plain"] == case.request.prompt
        assert all(span.ids == (ids[span.position],) for span in case.request.forced)
    assert [case.request for case in cases(sandbox, "anchoring", 5, goals=name)] == [case.request for case in asked[:5]]


def test_goals_without_a_text_have_no_anchors(sandbox, tmp_path):
    table = tmp_path / "own.csv"
    table.write_text("prompt,harmful\nMake a thing.,1\n")
    with pytest.raises(InputError, match="no compliant text is known for a goal of"):
        cases(sandbox, "anchoring", 5, goals=str(table))
    with pytest.raises(InputError, match="in responses of 6 tokens"):
        cases(sandbox, "anchoring", 5, length=6)


# --- trajhijack --------------------------------------------------------------------------------------


def hijack(attack, arm, step=3, name="sandbox", **settings):
    options = {} if name != "sandbox" else {"steps": 12, "block": None}
    target = get_model(f"midward/{name}", length=48, device="cpu", **options)
    record, _ = attack("trajhijack", target, goal=GOAL.text, metadata=METADATA, arm=arm, step=step, **settings)
    return record


def test_all_masked_again_is_prefill_with_the_steps_that_are_left(attack):
    both, prefilled = hijack(attack, "both"), hijack(attack, "prefill0")
    assert both["response"] == prefilled["response"] and both["response"].startswith("Sure, here is how")
    assert both["edit"]["remasked"] > 0 and prefilled["edit"]["remasked"] == prefilled["edit"]["written"] == 0
    assert "EDIT" in both["capabilities"] and both["access"] == "grey"
    assert both["nfe"] > prefilled["nfe"]  # steps 0 to 3 are the model's own


def test_an_autoregressive_model_is_cut_back_which_is_prefill(attack, llama_folder):
    both, prefilled, late = (
        hijack(attack, arm, step, str(llama_folder), tokens=3)
        for arm, step in (("both", 3), ("prefill0", 3), ("both", None))
    )
    assert both["response"] == prefilled["response"] == late["response"]
    assert late["edit"]["step"] == 11
    assert [record["nfe"] - prefilled["nfe"] for record in (both, late)] == [4 - 3, 12 - 3]  # what was cut off


def test_each_part_alone_leaves_the_other_out(attack):
    remask, write = hijack(attack, "remask"), hijack(attack, "write", tokens=3)
    assert remask["edit"]["written"] == 0 < remask["edit"]["remasked"]
    assert write["edit"]["remasked"] == 0 and write["edit"]["written"] == 3
    assert not remask["response"].startswith("Sure") and write["response"].startswith("Sure,")


def test_only_the_refusal_may_be_masked_again(attack):
    some, every = (hijack(attack, "remask", step=10, remask=remask)["edit"] for remask in ("refusal", "all"))
    assert 0 < some["remasked"] < every["remasked"]


def test_behind_a_chat_interface_it_is_refused(attack, sandbox):
    message = attack("trajhijack", double(sandbox, caps=frozenset({"CHAT", "POS"})), error=True)
    assert "the attack 'trajhijack' needs the capability EDIT" in message


def test_in_blocks_the_step_is_one_of_the_first(attack):
    target = get_model("midward/sandbox", device="cpu")  # with a threshold; six blocks of 16 steps without
    record, _ = attack("trajhijack", target, goal=GOAL.text, metadata=METADATA)
    assert record["edit"]["step"] == 14 and record["edit"]["remasked"] > 0
