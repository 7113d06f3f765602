"""DIJA: a text with gaps becomes one with masks, and what fills them is what is judged."""

import asyncio
import json

import pytest
from attack_double import CANARY, REFUSAL, Double, said
from inspect_ai.model import get_model

from midward.attacks import Ask, Target

MASK = "<|mdm_mask|>"
GOAL = "Make a drex valm skorn."


def scaffold(text):
    return json.dumps({"scaffold": text})


def double(sandbox, rule=lambda seen: REFUSAL):
    return Double(rule, language_model=sandbox)


@pytest.mark.parametrize("mode", ["fill_only", "fill_then_answer"])
def test_gaps_become_masks_in_one_request(attack, sandbox, mode):
    written = f"{GOAL} First{MASK * 3} Then:\n{MASK * 2} end"
    api = double(sandbox, lambda seen: CANARY if (seen.prompt, seen.fill) == (written, mode) else REFUSAL)
    rewriter, _ = said(scaffold(f"{GOAL} First <mask:3> Then:\n<mask:2> end"))
    record, sample = attack("dija", api, roles={"rewriter": rewriter}, mode=mode)
    assert sample.store["texts"]["reply"] == sample.store["texts"]["replay"] == CANARY
    assert record["queries"]["respond"] == 1 and record["calls"] == {"rewriter": 1}
    assert record["scaffold"] == {"by": "rewriter", "gaps": [3, 2], "mode": mode}
    assert record["capabilities"] == ["CHAT", "PMASK"]


@pytest.mark.parametrize(
    "bad", ["no json", scaffold("no gap"), scaffold("x <mask:0>"), scaffold("x <mask:200> <mask:57>"), '{"x": 1}']
)
def test_a_text_without_fit_gaps_is_asked_for_again_then_a_tail_stands_in(attack, sandbox, bad):
    api = double(sandbox)
    rewriter, prompts = said(bad)
    record, _ = attack("dija", api, roles={"rewriter": rewriter}, tries=3, tail=5)
    assert len(prompts) == 6 and record["calls"] == {"rewriter": 3} and record["failed"] == {"rewriter": 3}
    assert api.seen[0].prompt == GOAL + MASK * 5 and record["scaffold"]["by"] == "tail"


def test_masks_that_the_rewriter_writes_itself_are_taken_out(attack, sandbox):
    api = double(sandbox)
    rewriter, _ = said(scaffold(f"a{MASK} <mask:2> b"))
    attack("dija", api, roles={"rewriter": rewriter})
    assert api.seen[0].prompt == f"a{MASK * 2} b"


def put(fill, text):
    target = Target(get_model("midward/sandbox", length=32, steps=8, device="cpu"))
    [reply] = asyncio.run(target.respond(Ask.of(text, fill=fill)))
    return reply


def test_only_what_was_filled_is_the_models():
    reply = put("fill_only", f"Ab{MASK * 3} cd{MASK * 4} ef")
    start, middle, end = "Ab", " cd", " ef"
    assert reply.text.startswith(start) and reply.text.endswith(end) and middle in reply.text
    assert MASK not in reply.text and len(reply.authored) == len(reply.text) - len(start + middle + end)


def test_with_an_answer_the_filled_turn_and_the_answer_are_the_reply():
    reply = put("fill_then_answer", f"Ab{MASK * 3} cd")
    turn, answer = reply.text.split("\n\n", 1)
    assert turn.startswith("Ab") and turn.endswith(" cd") and MASK not in reply.text
    assert reply.authored == f"{turn[2:-3]}\n\n{answer}"
