"""A model on a server: what it answers, scores and derives equals what it does in this process; attacks over it too."""

import threading
from contextlib import contextmanager

import anyio
import pytest
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig, get_model

from midward.errors import InputError
from midward.sampling import Forced
from midward.sampling.likelihood import Span
from midward.serving.card import card_of
from midward.serving.engine import shared
from midward.serving.provider import ProviderError
from midward.serving.research import router
from midward.serving.turn import Turn
from midward.serving.wire import ExtraBody

M = "<|mdm_mask|>"
SETTINGS = {"length": 16, "steps": 8, "end": "keep"}


def app_of(engine, name, given, research):
    app = FastAPI()
    card = card_of(engine, given, name=name, research=research)
    if research:
        app.include_router(router(engine, card, batch_size=8))

    @app.exception_handler(InputError)
    async def wrong(request, error):
        return JSONResponse({"error": {"message": str(error)}}, 400)

    @app.get("/v1/models")
    async def models():
        return {"data": [{"id": name, "midward": card.model_dump(mode="json")}]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request):
        body = await request.json()
        extra = ExtraBody.read(body.get("midward"))
        turn = Turn(engine, body["messages"], extra, extra.masks or "refuse")
        if turn.refused:
            raise InputError("masks")
        ids = turn.encode()
        turn.plan({**given, **extra.sampling}, body.get("n", 1))
        answers = turn.answer(await engine.sample(turn.requests, turn.sampling, batch_size=8))
        written = sum(answer.about.authored_tokens for answer in answers)
        stops = {"max_tokens": "length"}
        return {
            "choices": [
                {"message": {"content": each.text}, "finish_reason": stops.get(each.stop, each.stop)}
                for each in answers
            ],
            "usage": {"prompt_tokens": len(ids), "completion_tokens": written},
            "midward": turn.details.metadata(),
        }

    return app


@contextmanager
def running(app, port=0):
    """The app on a port of this machine; gives its address."""
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@contextmanager
def served(folder, given=None, research=True, name=None):
    """A model on a server; gives its address."""
    engine = shared(str(folder), None, "cpu", "float32")
    with running(app_of(engine, name or str(folder), given or {}, research)) as url:
        yield url


@pytest.fixture(scope="module")
def both(lively_folder):
    """The same model in this process and on a server."""
    name = f"midward/{lively_folder}"
    here = get_model(name, memoize=False, device="cpu", dtype="float32", **SETTINGS)
    with served(lively_folder) as url:
        yield here, get_model(name, memoize=False, base_url=url, **SETTINGS)


def ask(model, prompt, extra=None, **config):
    return anyio.run(lambda: model.generate(prompt, config=GenerateConfig(extra_body=extra, **config)))


def essence(output):
    return [(choice.message.text, choice.stop_reason) for choice in output.choices], output.usage, output.metadata


TURNS = [ChatMessageUser(content="t50 t51"), ChatMessageAssistant(content="t60"), ChatMessageUser(content="t52")]
ASKED = {
    "plain": ("t50 t51", None, {}),
    "history": (TURNS, None, {}),
    "system": ([ChatMessageSystem(content="t40"), ChatMessageUser(content="t50")], None, {}),
    "choices": ("t50 t51", None, {"temperature": 1.5, "seed": 7, "num_choices": 3}),
    "length": ("t50 t51", None, {"max_tokens": 9}),
    "more than there is room for": ("t50 t51", None, {"max_tokens": 100_000}),
    "settings": ("t50", {"sampling": {"order": "random", "length": 12, "steps": 4}}, {"seed": 3, "max_tokens": 14}),
    "forced": ("t50", {"forced": [{"position": 3, "ids": [90, 91]}, {"position": 9, "text": "t33"}]}, {}),
    "bans": ("t50", {"bans": [{"position": 0, "ids": [11]}]}, {}),
    "edits": (
        "t50",
        {"edits": [{"step": 2, "write": [{"position": 0, "ids": [90]}], "remask": "all", "freeze": True}]},
        {},
    ),
    "masks": (f"t50 {M}{M} t51 {M}", None, {}),
    "masks alone": (f"t50 {M}{M} t51 {M}", {"prompt_masks": "fill_only"}, {}),
}


@pytest.mark.parametrize("asked", ASKED)
def test_what_is_asked_over_the_wire_is_answered_as_in_process(both, asked):
    here, there = both
    prompt, extra, config = ASKED[asked]
    assert essence(ask(there, prompt, extra, **config)) == essence(ask(here, prompt, extra, **config))


def test_a_model_is_the_same_wherever_it_runs(both):
    here, there = both
    assert str(there) == str(here) and there.api.base_url == here.api.base_url
    assert there.api.capabilities == here.api.capabilities and there.api.sampling == here.api.sampling
    assert there.api.model.fingerprint == here.api.model.fingerprint
    for text in ("t50 t51", f"t9 {M}", "words, of no token", ""):
        assert there.api.model.tokens(text) == here.api.model.tokens(text)
        assert there.api.model.encode(text or "t1") == here.api.model.encode(text or "t1")


def test_scores_and_gradients_are_those_of_the_process(both):
    here, _ = both
    ids = here.api.model.encode("t50 t51")
    spans = [Span("t50 t51", 0, (90, 91)), Span(ids, 2, (92,), (Forced(0, (90, 91)),)), *[Span(ids, 1, (93,))] * 70]

    async def score(api, mode):
        return await api.score(spans, mode=mode, length=8)

    for mode in ("parallel", "sequential"):
        ours, theirs = (anyio.run(score, model.api, mode) for model in both)
        assert len(theirs) == len(spans)
        for expected, got in zip(ours, theirs, strict=True):
            assert got.tokens == pytest.approx(expected.tokens, abs=1e-4) and got.nfe == expected.nfe

    async def gradient(api):
        return await api.gradient(Span(ids, 0, (90, 91)), [1, 2], length=8)

    ours, theirs = (anyio.run(gradient, model.api) for model in both)
    assert theirs.shape == ours.shape and theirs.dtype == torch.float32
    torch.testing.assert_close(theirs, ours.float(), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_followed_is_told_as_in_process(both):
    for model in both:
        with pytest.raises(InputError, match="99"):
            ask(model, "t50", {"forced": [{"position": 99, "ids": [90]}]})


def test_a_server_without_research_grants_chat_alone(lively_folder):
    with served(lively_folder, research=False) as url:
        there = get_model(f"midward/{lively_folder}", memoize=False, base_url=url, **SETTINGS)
        assert {"CHAT", "HIST", "N"} <= there.api.capabilities <= {"CHAT", "HIST", "N", "SYS"}
        here = get_model(f"midward/{lively_folder}", memoize=False, device="cpu", dtype="float32", **SETTINGS)
        (texts, usage, _), (expected, counted, _) = essence(ask(there, TURNS)), essence(ask(here, TURNS))
        assert (texts, usage) == (expected, counted)


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("x", {}, "serves .*lively"),
        (None, {"stepz": 3}, "unknown model argument 'stepz'"),
        (None, {"base_url": "http://127.0.0.1:9"}, "127.0.0.1:9 doesn't answer"),
        (None, {"base_url": "127.0.0.1:9"}, "address is like http"),
    ],
)
def test_what_is_wrong_with_a_server_is_told_when_it_is_loaded(both, lively_folder, name, arguments, message):
    with pytest.raises(ProviderError, match=message):
        arguments = {"base_url": both[1].api.client.url, **arguments}
        get_model(f"midward/{name or lively_folder}", memoize=False, **arguments)
