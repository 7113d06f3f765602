"""A model on a server: what it answers, scores and derives equals what it does in this process; attacks over it too."""

import csv
import re
import time
from contextlib import contextmanager
from itertools import count, pairwise
from unittest.mock import MagicMock

import anyio
import pytest
import torch
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from guard_world import fit, prompts
from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig, get_model
from served import app_of, serving

from midward.errors import InputError
from midward.guards import load as load_guard
from midward.guards import make
from midward.models import load
from midward.runs.run import Run
from midward.sampling import Forced, Sampling
from midward.sampling.likelihood import Span
from midward.serving.client import Client, ServerError
from midward.serving.provider import ProviderError
from midward.serving.wire import Details

M = "<|mdm_mask|>"
SETTINGS = {"length": 16, "steps": 8, "end": "keep"}


class Mortal:
    """Ends the server at a POST, as a kill does: no answer, and no more connections. after: so many."""

    def __init__(self, app, state, after):
        self.app, self.state, self.posts = app, state, count(-after)

    async def __call__(self, scope, receive, send):
        if scope.get("method") == "POST" and next(self.posts) >= 0:
            self.state.uvicorn.should_exit = self.state.uvicorn.force_exit = True
            await anyio.sleep(60)
        await self.app(scope, receive, send)


@contextmanager
def served(folder, given=None, guard=None, name=None, dies_after=None, **config):
    """A model on a server of this process; gives its address. given: its sampling. dies_after: so many POSTs."""
    model = load(folder, device="cpu", dtype="float32")
    config = {"research": True, "name": name or str(folder), **config}
    app = app_of(model, guard, sampling=Sampling.for_model(model, **(given or {})), **config)
    if dies_after is not None:
        app.add_middleware(Mortal, state=app.state, after=dies_after)
    with serving(app) as url:
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


def test_a_guard_of_the_server_flags_as_in_process(lively_folder, tmp_path):
    settings = {"length": 16, "steps": 8, "block": 8}
    model = load(lively_folder, device="cpu", dtype="float32")
    paths = fit(model, {"sri-blocks": make("sri-blocks")}, tmp_path, Sampling.for_model(model, **settings))
    file = str(paths["sri-blocks"])
    here = get_model(f"midward/{lively_folder}", memoize=False, device="cpu", dtype="float32", guard=file)
    with served(lively_folder, settings, load_guard(file, model), name="lively") as url:
        there = get_model("midward/lively", memoize=False, base_url=url)
        pairs = [(ask(here, text), ask(there, text)) for text in prompts(300, 12)]
    for ours, theirs in pairs:
        assert essence(theirs)[:2] == essence(ours)[:2]
        [expected], [got] = Details.of(ours).choices, Details.of(theirs).choices
        assert expected.guard.items() <= got.guard.items() and got.authored == expected.authored
    assert {ours.stop_reason for ours, _ in pairs} > {"content_filter"}
    assert there.api.measured().guard_digest == here.api.measured().guard_digest is not None


def test_a_server_with_keys_takes_those_alone(lively_folder, tmp_path, monkeypatch):
    keys = tmp_path / "keys"
    keys.write_text("# of the laboratory\nsesame\n")
    with served(lively_folder, api_key_file=keys) as url:
        for given, right in ((None, False), ("thyme", False), ("sesame", True)):
            made = {"memoize": False, "base_url": url, "api_key": given, **SETTINGS}
            if right:
                assert ask(get_model(f"midward/{lively_folder}", **made), "t50").completion
            else:
                with pytest.raises(ProviderError, match="doesn't take the key"):
                    get_model(f"midward/{lively_folder}", **made)
        monkeypatch.setenv("MIDWARD_API_KEY", "sesame")
        assert Client(url).card().name == str(lively_folder)


def test_a_server_without_research_grants_chat_alone(midward, lively_folder, tmp_path):
    plain = {"memoize": False, "length": 16, "steps": 8}
    here = get_model(f"midward/{lively_folder}", device="cpu", dtype="float32", **plain)
    with served(lively_folder, research=False, name="lively") as url:
        there = get_model("midward/lively", base_url=url, **plain)
        assert {"CHAT", "HIST", "N"} <= there.api.capabilities <= {"CHAT", "HIST", "N", "SYS"}
        got, expected = ask(there, TURNS, num_choices=2), ask(here, TURNS, num_choices=2)
        assert essence(got)[:2] == essence(expected)[:2]
        assert Details.of(got).choices[1].authored == Details.of(expected).choices[1].authored
        with pytest.raises(InputError, match="--research"):
            ask(there, "t50", {"forced": [{"position": 0, "ids": [90]}]})
        flags = ["--endpoint", url, "--length", 16, "--goals", "sandbox", "--count", 2, "--judges", "oracle"]
        refused = midward("attack", *flags, "--attacks", "direct,pad", "--out", tmp_path / "pad")
        assert refused.exit_code == 2 and "'pad' needs the capability POS" in " ".join(refused.stderr.split())
        asked = midward("attack", *flags, "--attacks", "direct", "--out", tmp_path / "direct")
        assert asked.exit_code == 0


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


def test_a_servers_own_settings_are_under_those_of_its_client(lively_folder):
    given, place = {"length": 12, "threshold": 0.8, "end": "keep"}, {"device": "cpu", "dtype": "float32"}
    with served(lively_folder, given) as url:
        for own in ({}, {"steps": 6}, {"order": "random", "temperature": 1.0}, {"threshold": 0.5}):
            expected = {**given, **own}
            if own.keys() & {"steps", "order"}:
                del expected["threshold"]
            here = get_model(f"midward/{lively_folder}", memoize=False, **place, **expected)
            there = get_model(f"midward/{lively_folder}", memoize=False, base_url=url, **own)
            assert there.api.sampling == here.api.sampling
            assert essence(ask(there, "t50 t51", seed=2)) == essence(ask(here, "t50 t51", seed=2))


def test_another_model_at_the_address_is_an_error(both):
    there = get_model(str(both[1]), memoize=False, base_url=both[1].api.client.url, **SETTINGS)
    there.api.card.fingerprint = "0123456789abcdef"  # what it was when the run began
    with pytest.raises(ServerError, match="another model now"):
        ask(there, "t50")


def test_a_busy_server_is_asked_again_when_it_wants_to_be():
    app, asked = FastAPI(), []

    @app.post("/x")
    async def answer():
        asked.append(time.monotonic())
        if len(asked) < 3:
            return JSONResponse({"error": {"message": "busy"}}, (429, 503)[len(asked) - 1], {"Retry-After": "0.2"})
        return {"ok": len(asked)}

    @app.post("/closed")
    async def closed():
        return JSONResponse({"error": {"message": "the guard isn't armed"}}, 503)

    app.state.server = MagicMock()
    with serving(app) as url:
        client = Client(url)
        assert anyio.run(client.post, "/x", {}) == {"ok": 3}
        assert all(0.15 < later - earlier < 5 for earlier, later in pairwise(asked))
        with pytest.raises(ServerError, match="503 to /closed: the guard isn't armed"):
            anyio.run(client.post, "/closed", {})


# --- attacks -------------------------------------------------------------------------------------------------


def rows(out):
    """What an attack's folder holds of each sample, but for its time; in no order, which a run that goes on changes."""
    with (out / "samples.csv").open(newline="") as file:
        samples = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    return sorted(samples, key=lambda row: (row["attack"], row["goal"]))


def test_a_matrix_whose_server_died_goes_on_and_has_the_rows_of_this_process(
    midward, lively_folder, llada_folder, tmp_path
):
    here, there = tmp_path / "here", tmp_path / "there"
    small = ["--length", 24, "--goals", "sandbox", "--count", 2, "--judges", "oracle", "--budget", 6]
    # masks; edits; bans and forced tokens; scores and gradients
    every = [*small, "--attacks", "dija,trajhijack,ept,pal"]
    with served(lively_folder, name="lively") as url:
        result = midward("attack", *small, "--attacks", "dija", "--endpoint", url, "--out", there)
        assert result.exit_code == 0 and f"row       base: lively at {url}" in result.stderr
    with served(lively_folder, name="lively", dies_after=4) as url:
        broken = midward("attack", *every, "--endpoint", url, "--out", there)
    assert "samples failed" in broken.stderr and re.search(rf"ServerError\(['\"]{re.escape(url)}", broken.stderr)
    kept = [row["error"] == "" for row in rows(there)]
    assert any(kept) and not all(kept)
    with served(lively_folder, name="lively") as url:  # at another address: the model is the same
        again = midward("attack", *every, "--endpoint", url, "--out", there)
        assert again.exit_code == 0 and f"{sum(kept)} of them by an earlier run" in again.stderr
    assert midward("attack", "--model", lively_folder, "--device", "cpu", *every, "--out", here).exit_code == 0
    assert rows(there) == rows(here) and len(rows(here)) == 8
    [ours], [theirs] = (Run.load(folder).models for folder in (here, there))
    assert theirs.endpoint == url and theirs.fingerprint == ours.fingerprint and theirs.guard_digest is None
    with served(llada_folder, name="lively") as url:
        other = midward("attack", *every, "--endpoint", url, "--out", there)
    assert other.exit_code == 2 and "weights have changed" in other.stderr


@pytest.mark.slow
def test_mosas_attacks_over_an_endpoint_equal_those_of_this_process(midward, tmp_path):
    """Goal by goal. Minutes: eight searches, twice."""
    flags = ["--profile", "mosa", "--goals", "sandbox", "--count", 2, "--length", 32, "--judges", "oracle"]
    flags += ["--budget", 40]
    with served("sandbox", max_batch=32) as url:
        assert midward("attack", *flags, "--endpoint", url, "--out", tmp_path / "there").exit_code == 0
    assert midward("attack", *flags, "--device", "cpu", "--out", tmp_path / "here").exit_code == 0
    assert rows(tmp_path / "there") == rows(tmp_path / "here") and len(rows(tmp_path / "here")) == 16
