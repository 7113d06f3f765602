"""The Inspect provider: what it answers equals what the sampler gives, whatever else runs; and every clear error."""

import logging
import os
import random
import signal
import subprocess
import sys
import time

import anyio
import pytest
import torch
from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import read_eval_log
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    GenerateConfig,
    get_model,
)
from inspect_ai.solver import generate
from inspect_ai.tool import ToolInfo

import midward
from midward.guards import STUB
from midward.models import ModelError
from midward.sampling import Ban, Edit, Forced, Request, Sampling, sample
from midward.sampling.likelihood import Span, span_gradient, span_log_probs
from midward.serving.provider import ProviderError

MASK, M = 2, "<|mdm_mask|>"
SETTINGS = {"length": 16, "steps": 8, "end": "keep"}


@pytest.fixture(scope="module")
def lively(lively_folder):
    return midward.load(lively_folder, device="cpu")


@pytest.fixture(scope="module")
def name(lively_folder):
    return f"midward/{lively_folder}"


@pytest.fixture(scope="module")
def target(name):
    return get_model(name, **SETTINGS)


def ask(model, prompt, extra=None, **config):
    """One request, on an event loop of its own."""
    config = GenerateConfig(extra_body=extra, **config)
    return anyio.run(lambda: model.generate(prompt, config=config))


def chat(*texts):
    return [(ChatMessageUser if i % 2 == 0 else ChatMessageAssistant)(content=text) for i, text in enumerate(texts)]


# --- a whole evaluation --------------------------------------------------------------------------------------


def test_an_evaluation_holds_what_the_sampler_gives(lively, name, tmp_path):
    prompts = [f"t{50 + i} t9 " + "t30 t31 " * (i % 5) for i in range(20)]
    task = Task(dataset=MemoryDataset([Sample(input=p, id=i) for i, p in enumerate(prompts)]), solver=generate())
    eval(task, model=name, model_args=SETTINGS, log_dir=str(tmp_path), display="none", max_tokens=12)
    [path] = tmp_path.glob("*.eval")
    log = read_eval_log(str(path))
    assert log.status == "success" and len(log.samples) == 20
    expected = lively.generate(prompts, **{**SETTINGS, "length": 12})
    for log_sample, response in zip(sorted(log.samples, key=lambda s: s.id), expected, strict=True):
        output = log_sample.output
        assert output.completion == response.text
        assert output.stop_reason == ("stop" if response.ended else "max_tokens")
        assert output.metadata["fingerprint"] == lively.fingerprint
        assert output.metadata["sampling"] == {
            **{
                field: getattr(Sampling(), field)
                for field in ("guidance", "threshold", "prompt_masks", "cache", "schedule")
            },
            **{"length": 12, "steps": 8, "block": None, "order": "low_confidence", "temperature": 0.0},
            **{"end": "keep", "seed": 0},
        }
        [choice] = output.metadata["choices"]
        assert choice["nfe"] == response.nfe == output.metadata["nfe"] == choice["steps"] == 8
        assert choice["authored"] == response.text and choice["authored_tokens"] == 12
        assert output.usage.input_tokens == len(response.prompt_ids) and output.usage.output_tokens == 12


# --- equality ------------------------------------------------------------------------------------------------


def mixed_requests(seed):
    """(prompt, extra_body, config) of all kinds."""
    draw = random.Random(seed)
    requests = []
    for i in range(40):
        extra = {}
        if i % 3 == 0:
            extra["forced"] = [{"position": draw.randrange(8), "ids": [draw.randrange(5, 512)]}]
        if i % 5 == 0:
            extra["bans"] = [{"ids": [draw.randrange(5, 512)], "position": 9}]
        if i % 4 == 0:
            extra["sampling"] = {"order": draw.choice(["random", "left_to_right"])}
        prompt = " ".join(draw.choice(["t11", "t12", M, "t13"]) for _ in range(draw.randrange(1, 12)))
        if i % 8 == 0 and M in prompt:
            extra = {"prompt_masks": "fill_only"}
        config = {"temperature": draw.choice([0.0, 1.0]), "seed": draw.randrange(3)}
        requests.append((prompt, extra or None, config | ({"num_choices": 2} if i % 6 == 0 else {})))
    return requests


def essence(output):
    return ([choice.message.text for choice in output.choices], output.stop_reason, output.usage, output.metadata)


def test_company_changes_nothing(target, monkeypatch):
    requests = mixed_requests(0)
    forwards = []
    network = type(target.api.engine.model).hidden
    monkeypatch.setattr(
        type(target.api.engine.model),
        "hidden",
        lambda self, ids, *more: forwards.append(len(ids)) or network(self, ids, *more),
    )
    together: dict = {}

    async def all_at_once():
        async def one(i, prompt, extra, config):
            config = GenerateConfig(extra_body=extra, max_connections=100, **config)
            together[i] = await target.generate(prompt, config=config)

        async with anyio.create_task_group() as group:
            for i, request in enumerate(requests):
                group.start_soon(one, i, *request)

    anyio.run(all_at_once)
    assert len(forwards) < sum(output.metadata["nfe"] for output in together.values()) / 2
    for i, (prompt, extra, config) in enumerate(requests):
        assert essence(together[i]) == essence(ask(target, prompt, extra, **config))


def test_choices_are_the_single_requests_with_the_next_seeds(target):
    many = ask(target, "t50 t51", temperature=1.5, seed=7, num_choices=4)
    assert [choice["seed"] for choice in many.metadata["choices"]] == [7, 8, 9, 10]
    singles = [ask(target, "t50 t51", temperature=1.5, seed=seed) for seed in range(7, 11)]
    assert [choice.message.text for choice in many.choices] == [one.completion for one in singles]
    assert len({one.completion for one in singles}) == 4
    assert many.metadata["nfe"] == sum(one.metadata["nfe"] for one in singles)
    assert many.usage.output_tokens == sum(one.usage.output_tokens for one in singles)
    assert (
        ask(target, "t50 t51", temperature=1.5).completion == ask(target, "t50 t51", temperature=1.5, seed=0).completion
    )


def test_a_conversation_goes_through_the_chat_template(target, lively):
    messages = [ChatMessageSystem(content="t43"), *chat("t40", "t41", "t42")]
    plain = [{"role": message.role, "content": message.text} for message in messages]
    output = ask(target, messages)
    [response] = lively.generate([plain], **SETTINGS)
    assert output.completion == response.text
    assert ask(target, messages[1:], system_message="t43").completion == response.text
    assert ask(target, messages[1:]).completion != response.text


def test_an_autoregressive_model_is_served_too(llama_folder):
    model = get_model(f"midward/{llama_folder}", length=8)
    plain = midward.load(llama_folder, device="cpu")
    forced = (Forced.text(plain, 0, "t12"),)
    [response] = sample(plain, [Request("t11", forced=forced)], Sampling.for_model(plain, length=8))
    output = ask(model, "t11", {"forced": [{"position": 0, "text": "t12"}]})
    assert output.completion == response.text and output.metadata["prompt_masks"] == 0
    with pytest.raises(ValueError, match=r"autoregressive .* guidance=1"):
        ask(model, "t11", {"sampling": {"guidance": 1}})


def test_score_and_gradient_are_those_of_the_model(target, lively):
    spans = [Span("t60 t61", 3, (40, 41)), Span([5, 6, 7], 0, (50,))]

    async def both():
        scores = await target.api.score(spans, mode="sequential", length=16)
        return scores, await target.api.gradient(spans[1], [0, 2], length=16)

    scores, gradient = anyio.run(both)
    direct = span_log_probs(lively, spans, mode="sequential", length=16)
    assert [s.tokens for s in scores] == [pytest.approx(s.tokens, abs=1e-4) for s in direct]
    assert torch.allclose(gradient, span_gradient(lively, spans[1], [0, 2], length=16), atol=1e-4)


def test_a_bad_span_is_its_callers_error_only(target):
    good, bad = Span([5, 6, 7], 0, (50,)), Span([5, 6, 7], 15, (50, 51))
    found = {}

    async def one(i, span):
        try:
            found[i] = await target.api.score([span], mode="parallel", length=16)
        except ValueError as error:
            found[i] = str(error)

    async def all_at_once():
        async with anyio.create_task_group() as group:
            for i in range(9):
                group.start_soon(one, i, bad if i == 4 else good)

    anyio.run(all_at_once)
    assert "ends behind" in found.pop(4)
    # Batches of other sizes (halved around the bad span) round otherwise.
    assert [score.tokens for [score] in found.values()] == [pytest.approx(found[0][0].tokens, abs=1e-4)] * 8


# --- what is forced and banned --------------------------------------------------------------------------------


def test_forced_spans_stand_and_are_not_authored(target, lively):
    extra = {"forced": [{"position": 3, "text": "t33 t44"}, {"position": 9, "ids": [300, 301]}]}
    output = ask(target, "t60", extra)
    spans = (Forced.text(lively, 3, "t33 t44"), Forced(9, (300, 301)))
    [response] = sample(lively, [Request("t60", forced=spans)], Sampling.for_model(lively, **SETTINGS))
    assert output.completion == response.text
    ids = output.metadata["forced"]
    assert [(span["position"], tuple(span["ids"])) for span in ids] == [(s.position, s.ids) for s in spans]
    assert ids[0]["text"].split() == ["t33", "t44"] and "t33 t44" in output.completion
    [choice] = output.metadata["choices"]
    taken = {span.position + i for span in spans for i in range(len(span.ids))}
    own = [token for position, token in enumerate(response.ids) if position not in taken]
    assert choice["authored_tokens"] == len(own) == 16 - len(taken)
    assert choice["authored"] == lively.tokenizer.decode(own, skip_special_tokens=True)
    assert not {"t33", "t44"} & set(choice["authored"].split())


def test_edits_of_an_autoregressive_model_cut_it_back(llama_folder):
    target = get_model(f"midward/{llama_folder}", length=16, end="keep")
    prefix = [{"position": 0, "text": "t33 t44"}]
    cut, prefilled = (
        ask(target, "t60", {"edits": [{"step": 5, "write": prefix, "remask": "all"}]}),
        ask(target, "t60", {"forced": prefix}),
    )
    assert cut.completion == prefilled.completion and "EDIT" in target.api.capabilities
    with pytest.raises(ValueError, match="can only be cut back"):
        ask(target, "t60", {"edits": [{"step": 5, "remask": [2]}]})


def test_edits_are_made_and_what_they_write_is_not_authored(target, lively):
    extra = {"edits": [{"step": 1, "write": [{"position": 3, "text": "t33 t44"}], "remask": "all"}]}
    output = ask(target, "t60", extra)
    edit = Edit(1, (Forced.text(lively, 3, "t33 t44"),), "all")
    [response] = sample(lively, [Request("t60", edits=(edit,))], Sampling.for_model(lively, **SETTINGS))
    assert output.completion == response.text and "t33 t44" in output.completion
    [choice] = output.metadata["choices"]
    assert choice["edits"] == [{"step": 1, "written": [3, 4], "remasked": list(response.edits[0].remasked)}]
    assert not {"t33", "t44"} & set(choice["authored"].split())
    assert "edits" not in ask(target, "t60").metadata["choices"][0]


def test_bans_hold(target, lively):
    free = sample(lively, ["t60"], Sampling.for_model(lively, **SETTINGS))[0].raw_ids[:2]
    output = ask(target, "t60", {"bans": [{"ids": free}]})
    ban = Request("t60", bans=(Ban(tuple(free)),))
    [response] = sample(lively, [ban], Sampling.for_model(lively, **SETTINGS))
    assert output.completion == response.text and response.raw_ids[:2] != free


# --- masks in the prompt -------------------------------------------------------------------------------------

SCAFFOLD = f"t20 {M}{M}{M} t21 {M} t22"


def test_sent_masks_are_filled_with_the_answer(target, lively):
    output = ask(target, SCAFFOLD)
    [response] = lively.generate([SCAFFOLD], **SETTINGS)
    assert output.completion == response.text
    assert output.metadata["prompt_masks"] == 4 and output.metadata["masks"] == "allow"
    [choice] = output.metadata["choices"]
    [message] = choice["filled"]
    prompt = lively.encode(SCAFFOLD)
    fills = [now for was, now in zip(prompt, response.prompt_ids, strict=True) if was == MASK]
    assert message["role"] == "user"
    expected = SCAFFOLD
    for part, ids in ((M * 3, fills[:3]), (M, fills[3:])):
        expected = expected.replace(part, lively.tokenizer.decode(ids, skip_special_tokens=True), 1)
    assert message["content"] == expected


def one_at_a_time(model, ids):
    """The published loop in its plainest form: the most confident mask of all, until there is none."""
    ids = torch.tensor([ids])
    while (ids == MASK).any():
        with torch.no_grad():
            best = model.network(input_ids=ids).logits[0].softmax(-1).max(-1)
        confidence = best.values.masked_fill(ids[0] != MASK, -1)
        where = confidence.argmax()
        ids[0, where] = best.indices[where]
    return ids[0].tolist()


@pytest.mark.parametrize("words", [1, 60])
def test_fill_only_fills_the_users_turn_and_answers_nothing(target, lively, words):
    conversation = chat("t40", "t41", SCAFFOLD + " t23" * words)
    extra = {"prompt_masks": "fill_only", "sampling": {"steps": 64}}
    output = ask(target, conversation, extra)
    prompt = lively.encode([{"role": m.role, "content": m.text} for m in conversation])
    filled = one_at_a_time(lively, prompt)
    fills = [now for was, now in zip(prompt, filled, strict=True) if was == MASK]
    run, last = (lively.tokenizer.decode(part, skip_special_tokens=True) for part in (fills[:3], fills[3:]))
    assert output.completion == f"t20 {run} t21 {last} t22" + " t23" * words
    [choice] = output.metadata["choices"]
    assert choice["filled"][2]["content"] == output.completion and choice["filled"][0]["content"] == "t40"
    assert choice["authored"] == lively.tokenizer.decode(fills, skip_special_tokens=True)
    assert choice["authored_tokens"] == output.usage.output_tokens == choice["nfe"] == 4
    assert output.stop_reason == "stop"


def test_masks_can_be_stripped_or_refused(target, name, lively):
    nested = f"t20 <|mdm_{M}mask|> t21"
    [plain] = lively.generate(["t20  t21"], **SETTINGS)
    for prompt in (f"t20 {M} t21", nested):
        output = ask(target, prompt, {"masks": "strip"})
        assert output.completion == plain.text
        assert output.metadata["prompt_masks"] == 1 and "filled" not in output.metadata["choices"][0]
    refusing = get_model(name, masks="refuse", **SETTINGS)
    refused = ask(refusing, SCAFFOLD, num_choices=2)
    assert [choice.message.text for choice in refused.choices] == [STUB, STUB]
    assert refused.stop_reason == "content_filter"
    assert refused.metadata["prompt_masks"] == 4 and refused.metadata["nfe"] == 0
    assert ask(refusing, "t20  t21").completion == plain.text
    assert ask(refusing, SCAFFOLD, {"masks": "allow"}).completion == ask(target, SCAFFOLD).completion


# --- settings ------------------------------------------------------------------------------------------------


def test_the_nearest_setting_wins(name):
    model = get_model(name, temperature=0.5, length=12, seed=4, end="keep")

    def used(extra=None, **config):
        return ask(model, "t60", extra, **config).metadata["sampling"]

    def pick(found):
        return found["temperature"], found["length"], found["seed"]

    assert pick(used()) == (0.5, 12, 4)
    assert pick(used(temperature=0.7, max_tokens=9, seed=5)) == (0.7, 9, 5)
    extra = {"sampling": {"temperature": 0.9, "length": 8, "seed": 6}}
    assert pick(used(extra, temperature=0.7, max_tokens=9, seed=5)) == (0.9, 8, 6)


def test_what_has_no_effect_is_said_once(name, caplog):
    model = get_model(name, end="keep", steps=2, memoize=False)
    with caplog.at_level(logging.WARNING, "midward"):
        for _ in range(2):
            output = ask(model, "t60", top_p=0.5, max_tokens=100_000)
    room = 256 - output.usage.input_tokens
    assert output.metadata["sampling"]["length"] == room == output.usage.output_tokens
    messages = [record.message for record in caplog.records if record.name.startswith("midward")]
    assert sorted(message.split()[0] for message in messages) == ["max_tokens=100000", "top_p"]


@pytest.mark.parametrize(
    "extra, message",
    [
        ({"force": []}, "unknown key 'force'. Did you mean 'forced'"),
        ({"forced": [{"position": 1, "txt": "a"}]}, "unknown key 'forced.0.txt'. Did you mean 'text'"),
        ({"forced": [{"position": 1}]}, "forced: give text or ids"),
        ({"forced": [{"position": 1, "text": "a", "ids": [5]}]}, "forced: give text or ids"),
        ({"forced": [{"position": "1", "text": "a"}]}, "forced.0.position: .*integer.*received '1'"),
        ({"forced": [{"position": -1, "text": "a"}]}, "0 or more; received -1"),
        ({"forced": [{"position": 0, "text": ""}]}, "forced: .*non-empty"),
        ({"forced": [{"position": 15, "ids": [5, 6]}]}, "ends behind the response's 16 positions"),
        ({"forced": [{"position": 0, "ids": [600]}]}, "vocabulary of 512"),
        ({"bans": [{"ids": [5], "position": 16}]}, "bans nothing"),
        ({"edits": [{"step": 0, "remasc": "all"}]}, "unknown key 'edits.0.remasc'. Did you mean 'remask'"),
        ({"edits": [{"step": 0, "write": [{"txt": "a"}]}]}, "unknown key 'edits.0.write.0.txt'. Did you mean 'text'"),
        ({"edits": [{"step": 0}]}, "changes nothing"),
        ({"edits": [{"step": 999, "remask": "all"}]}, "comes too late"),
        ({"edits": [{"step": 0, "remask": "refusals"}]}, "'refusals'"),
        ({"prompt_masks": "fill_only", "edits": [{"step": 0, "remask": "all"}]}, "forced, banned or edited"),
        ({"masks": "keep"}, "masks: .*'allow', 'strip' or 'refuse'"),
        ({"prompt_masks": "fill_only"}, "needs mask tokens"),
        ({"prompt_masks": "fill_only", "masks": "strip"}, "needs mask tokens"),
        ({"prompt_masks": "fill_only", "forced": [{"ids": [5]}]}, "nothing can be forced"),
        ({"sampling": {"stepz": 3}}, "unknown sampling setting 'stepz'. Did you mean 'steps'"),
        ({"sampling": {"steps": 0}}, "steps is 1 or more"),
        ({"masks": "yes"}, "masks: input should be"),
        ({"masks": object()}, "extra_body must be JSON"),
    ],
)
def test_a_bad_extra_body_is_named(target, extra, message):
    with pytest.raises(ValueError, match=message):
        ask(target, "t60", extra)


def test_what_cannot_be_followed_is_refused(target):
    with pytest.raises(ValueError, match="can't follow stop_seqs; received"):
        ask(target, "t60", stop_seqs=["."])
    with pytest.raises(ValueError, match="num_choices must be 1 or more"):
        ask(target, "t60", num_choices=0)
    with pytest.raises(ValueError, match="together more than the model's 256 positions"):
        ask(target, "t23 " * 300)
    image = ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AAAA")])
    with pytest.raises(ValueError, match="text only; received image"):
        anyio.run(target.api.generate, [image], [], "auto", GenerateConfig())
    tool = ToolInfo(name="calculator", description="adds")
    with pytest.raises(ValueError, match="can't call tools"):
        anyio.run(target.api.generate, chat("t60"), [tool], "auto", GenerateConfig())


# --- models, and what Inspect knows of them ------------------------------------------------------------------


def test_a_model_that_cannot_be_had_is_one_clear_error(name, tmp_path):
    with pytest.raises(ProviderError, match=r"^no model '/nowhere/at/all'"):  # which is named once
        get_model("midward//nowhere/at/all")
    with pytest.raises(ModelError, match="has no adapter_config"):
        get_model(name, adapter=str(tmp_path))
    with pytest.raises(ProviderError, match=r"unknown model argument 'adaptor'\. Did you mean 'adapter'"):
        get_model(name, adaptor="x")
    with pytest.raises(ProviderError, match="order 'leftright'"):
        get_model(name, order="leftright")
    with pytest.raises(ProviderError, match="batch_size must be an integer, 1 or more; received 0"):
        get_model(name, batch_size=0)
    with pytest.raises(ProviderError, match="Did you mean 'strip'"):
        get_model(name, masks="stripe")


def test_one_loaded_model_for_all_who_ask_for_it(lively_folder, name, target, monkeypatch):
    again = get_model(name, temperature=1.0)
    assert again.api is not target.api and again.api.engine is target.api.engine
    assert again.api.connection_key() == target.api.connection_key()
    monkeypatch.chdir(lively_folder.parent)
    relative = get_model(f"midward/./{lively_folder.name}", **SETTINGS)
    assert ask(relative, "t60").completion == ask(target, "t60").completion
    again.api.close()
    assert ask(again, "t60", max_tokens=4).metadata["fingerprint"] == target.api.engine.fingerprint


def test_inspects_cache_does_not_mix_settings(name, monkeypatch, tmp_path):
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path))
    models = [get_model(name, end="keep", steps=4, length=length) for length in (4, 8)]
    for _ in range(2):
        tokens = [ask(model, "t60", cache=True).usage.output_tokens for model in models]
        assert tokens == [4, 8]
    assert list(tmp_path.rglob("*"))  # it was used


ENDLESS = """
import sys
from inspect_ai.model import GenerateConfig, get_model
assert "torch" not in sys.modules
model = get_model("midward/sandbox" if sys.argv[1] == "sandbox" else "midward/" + sys.argv[1], length=150, end="keep")
import anyio

async def main():
    async with anyio.create_task_group() as group:
        for i in range(2000):
            group.start_soon(model.generate, f"t{5 + i % 500}", [], None, GenerateConfig(max_connections=2000))
        await anyio.sleep(1)
        print("running", type(model.api).__module__, flush=True)

anyio.run(main)
"""


@pytest.mark.slow
def test_installed_inspect_finds_the_provider_and_ctrl_c_ends_it(llada_folder):
    """By the package's entry point, in a process that imported nothing of ours."""
    run = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(llada_folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A job in a shell's background inherits that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        line = run.stdout.readline()
        assert line == "running midward.serving.provider\n", run.stderr.read()
        time.sleep(1)  # the requests are under way
        asked = time.monotonic()
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=60)
        assert run.returncode == 130 and errors == ""  # no crash of a thread that was still in the network
        assert time.monotonic() - asked < 30  # seconds on a quiet machine; the two thousand would take minutes
    finally:
        run.kill()
