"""Post contexts: what stands behind a response is seen from it, and is no part of it, its length or its schedule."""

import asyncio
import shutil
from dataclasses import replace

import pytest
from attack_double import CANARY, Double
from checkpoints import FIXTURES, random_llada
from inspect_ai.model import get_model

from midward import guards
from midward.attacks import Ask, AttackError, CapabilityError, Target, find
from midward.attacks.post_context import CONTEXTS, PostContext, context, frame
from midward.dynamics.blockwise import States
from midward.dynamics.looks import Looks
from midward.errors import InputError
from midward.guards.config import GUARDS
from midward.guards.looks import LookGuard
from midward.sampling import Forced, Request, Sampling, sample

GOAL = "Make a drex valm skorn."
KINDS = [kind for kind in CONTEXTS if kind != "none"]


def ours(name="sandbox", **settings):
    return Target(get_model(f"midward/{name}", device="cpu", **settings))


def put(target, *asks):
    return asyncio.run(target.respond(*asks))


def double(sandbox, **more):
    return Double(lambda seen: CANARY, language_model=sandbox, **more)


# --- what stands behind a response -----------------------------------------------------------------------------------


def test_what_stands_behind_is_forced_behind_the_response_and_cut_off():
    target = ours(length=24, steps=6, block=None, end="keep")
    ids = context(target, "completed", 10)
    [reply] = put(target, Ask.of(GOAL, behind=ids))
    model = target.runtime.model
    settings = Sampling(length=34, steps=6, block=None, end="keep")
    [response] = sample(model, [Request(GOAL, (Forced(24, ids),))], settings)
    assert reply.text == reply.authored == target.decode(response.raw_ids[:24])
    assert target.decode(ids) not in reply.text and reply.nfe == response.nfe == 6
    assert not reply.ended and reply.forced_at == ()
    [plain] = put(target, Ask.of(GOAL))
    assert reply.text != plain.text and plain.nfe == reply.nfe


@pytest.mark.parametrize(
    "settings", [{"length": 24, "block": 8, "steps": 8}, {"length": 20, "block": 8, "steps": 6}, {"length": 9}]
)
@pytest.mark.parametrize("more", [1, 7, 8, 30])
def test_the_response_keeps_its_blocks_and_steps(settings, more):
    target = ours(**{"steps": 4, "block": None} | settings, end="keep")
    own = target.runtime.sampling
    wide = target._widened(Ask.of(GOAL, behind=(5,) * more))
    wider = Sampling.for_model(
        target.runtime.model, **{"steps": own.steps, **dict(wide.sampling), "length": wide.length}
    )
    assert wide.length == own.length + more and not wide.behind
    count = len(own.blocks)
    assert wider.block_steps[:count] == own.block_steps
    assert [start for start, _ in wider.blocks[:count]] == [start for start, _ in own.blocks]
    [reply] = put(target, Ask.of(GOAL, behind=(5,) * more))
    assert reply.nfe == own.steps  # blocks that hold no mask take no forward


def test_an_end_inside_the_response_ends_it():
    target = ours(length=24, steps=24, block=None)
    end = target.runtime.model.family.end_ids[0]
    [reply] = put(target, Ask.of(GOAL, forced=(Forced(6, (end,)),), behind=context(target, "fraud", 8)))
    assert reply.ended and reply.forced_at == (None,) and len(target.tokens(reply.text)) <= 6


def test_an_end_that_stands_behind_does_not_end_it():
    target = ours(length=12, steps=6, block=None, end="forbid")
    head, tail = frame(target)
    assert head[0] in target.runtime.model.family.end_ids, "this says nothing"
    replies = put(target, *(Ask.of(GOAL, behind=ids) for ids in ((*head, 50, *tail), (50, *head), (50, 51))))
    assert [reply.ended for reply in replies] == [False] * 3


def test_what_does_not_fit_is_told(tmp_path):
    sizes = {"hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 2, "feed_forward": 48, "max_length": 96}
    target = ours(str(random_llada(tmp_path, 5, **sizes)), length=40, steps=4, block=None)
    put(target, Ask.of("t3", behind=(9,) * 8))
    with pytest.raises(AttackError, match="40 tokens and 60 behind it don't fit"):
        put(target, Ask.of("t3", behind=(9,) * 60))


@pytest.mark.parametrize("attention", ["block", "causal"])
def test_a_model_that_sees_nothing_behind_is_refused(attention, tmp_path):
    blocks = shutil.copytree(FIXTURES / "a2d-qwen3-tiny", tmp_path / "tiny-bd3lm")
    target = ours({"block": str(blocks), "causal": "sandbox-ar"}[attention])
    assert target.runtime.model.family.attention == attention
    with pytest.raises(CapabilityError, match="use a model with full attention"):
        put(target, Ask.of("t3", behind=(9, 9)))


# --- the attack ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 16, 300])
def test_contexts_of_one_length_are_equally_long(sandbox, count):
    target = Target(double(sandbox).as_model())
    ids = {kind: context(target, kind, count) for kind in KINDS}
    assert {len(each) for each in ids.values()} == {count}
    if count > 3:
        assert len(set(ids.values())) == len(KINDS)


def test_as_a_turn_it_is_what_the_template_puts_behind_an_answer(sandbox):
    target = Target(double(sandbox).as_model())
    head, tail = frame(target)
    ids = context(target, "benign", 9)  # whole sentences: the template trims a blank at the end
    turns = (("user", GOAL), ("assistant", "Good"), ("user", target.decode(ids)))
    assert target.encode(turns)[-len(head + ids + tail) :] == [*head, *ids, *tail]


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("kind, form", [("safe", "raw"), ("neutral", "raw"), ("concise", "turn")])
def test_published_forms_with_and_without_the_prefix(attack, sandbox, kind, form, prefix):
    api = double(sandbox)
    metadata = {"target": "Sure, here is how."}
    record, _ = attack("post-context", api, kind=kind, tokens=10, prefix=prefix, metadata=metadata)
    target = Target(api.as_model())
    head, tail = frame(target) if form == "turn" else ((), ())
    whole = [*head, *context(target, kind, 10), *tail]
    forced = api.seen[0].forced
    opening = [forced.pop(0)] if prefix else []
    assert [span["position"] for span in opening] == [0] * prefix
    assert [span["position"] for span in forced] == [64, 65]
    assert [token for span in forced for token in span["ids"]] == whole
    assert record["context"]["form"] == form and record["context"]["behind"] == len(whole)
    assert record["queries"]["respond"] == 1 and record["capabilities"] == ["CHAT", "POS"]
    assert record["access"] == "grey" and record["forced"] == ["Sure, here is how."] * prefix


def test_without_a_context_it_is_prefill(attack, sandbox):
    alone, prefill = double(sandbox), double(sandbox)
    attack("post-context", alone, kind="none")
    attack("prefill", prefill)
    assert [seen.forced for seen in alone.seen] == [seen.forced for seen in prefill.seen]


def test_its_replay_is_cut_as_well(attack):
    target = get_model("midward/sandbox", length=24, steps=6, temperature=0.7, end="keep", device="cpu")
    record, sample = attack("post-context", target, kind="completed", tokens=20)
    assert "whole answer" in record["context"]["text"] and record["replay"] == "asked"
    assert not [text for text in sample.store["texts"].values() if "answer, from the first" in text]


def test_settings_and_targets_that_do_not_fit(attack, sandbox):
    assert "needs the capability POS" in attack("post-context", double(sandbox, caps=frozenset({"CHAT"})), error=True)
    info = find("post-context")
    assert info.required == ("kind",)
    for wrong in ({"kind": "rude"}, {"tokens": 0}, {"form": "turns"}):
        with pytest.raises(InputError):
            info.configure(wrong)
    assert info.unguarded(PostContext(kind="safe")) and info.unguarded(PostContext(kind="none")) is None


def test_guards_that_read_no_more_than_the_response_take_it():
    goes = {name for name in GUARDS if find("post-context").goes_with(guards.find(name).kind)}
    by_blocks = {name for name in GUARDS if issubclass(guards.find(name).kind, LookGuard)}
    assert by_blocks and goes == by_blocks | {"perplexity", "masks"}
    assert all(find("anchoring").goes_with(guards.find(name).kind) for name in ("perplexity", "self-examine"))
    assert not find("anchoring").goes_with(guards.find("hesitate").kind)


def test_a_guard_by_blocks_looks_at_no_block_behind_the_response(sandbox):
    size = 16
    sampling = Sampling(length=56, block=size, threshold=0.9)
    watched = []
    for more in (0, 40):
        looks = Looks(States(sandbox.hidden_size))
        behind = (Forced(56, (50,) * more),) if more else ()
        longer = replace(sampling, length=56 + more)
        asked = [Request("Who keeps the velvet feather skreel?", (Forced(0, (60,) * n), *behind)) for n in (1, 40)]
        sample(sandbox, asked, longer, watchers=[looks])
        watched.append([looks.signal(row) for row in range(2)])
    for table in (table for tables in watched for table in tables):
        assert len(table) <= -(-56 // size)
