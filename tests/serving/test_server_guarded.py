"""The guard in the loop: what it flags never leaves, nothing before its look, and a broken one shuts the door."""

import asyncio
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest
import torch
from guard_world import fit, prompts
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic.dataclasses import dataclass
from served import app_of, chunks_of, left_nothing, post, serving, text_of, through, until

import midward
from midward.guards import STUB, Guard, GuardError, make
from midward.sampling import Sampling, Trace
from midward.serving.armed import arm
from midward.serving.metrics import Drift
from midward.serving.stream import Growing

FRESH = prompts(300, 24)


@pytest.fixture(scope="module")
def model(lively_folder):
    return midward.load(lively_folder, device="cpu")


@pytest.fixture(scope="module")
def sampling(model):
    return Sampling.for_model(model, length=16, steps=8, block=8)


@pytest.fixture(scope="module")
def fitted(model, sampling, tmp_path_factory):
    """A guard that flags a quarter of any prompts, and its file."""
    guard = make("sri-blocks")
    paths = fit(model, {"sri-blocks": guard}, tmp_path_factory.mktemp("guards"), sampling)
    return guard, paths["sri-blocks"]


def asked(model, text="t30 t31 t32", **more):
    return {"model": model.name.rsplit("/")[-1], "messages": [{"role": "user", "content": text}], **more}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_says_what_its_guard_was_not_calibrated_under(model, sampling, fitted, stream):
    fewer = {"midward": {"sampling": {"steps": 4}}}
    bodies = [asked(model, stream=stream, **more) for more in ({}, fewer)]
    answers = post(app_of(model, fitted[0], sampling), *bodies)
    told = [
        [each for each in chunks_of(answer) if "midward" in each] if stream else [answer.json()] for answer in answers
    ]
    assert [[each["midward"]["uncalibrated"] for each in of] for of in told] == [[[]], [["steps 8 there, 4 here"]]]


@dataclass(frozen=True)
class Nothing:
    pass


class Spy(Guard):
    """Flags a signal that isn't its own; notes what it has looked at; raises from a step on, if told to."""

    name, about, looks, Settings, tied_to = "spy", "a test's", "during", Nothing, ()
    decides_at_steps = True

    def __init__(self):
        super().__init__()
        self.bound, self.threshold, self.alpha = {"model": "any"}, 0.5, 0.01
        self.breaks_at, self.looked = None, []

    def score(self, model, exchanges, *, batch_size=8):
        return np.array([0.0 if each.signal is None else float(each.signal.max()) for each in exchanges])

    def watcher(self, stopped=None):
        return Looking(self, stopped)


class Looking:
    needs_all_steps = False

    def __init__(self, guard, stopped):
        self.guard, self.stopped, self.steps = guard, stopped, {}

    def on_start(self, canvas):
        pass

    def on_step(self, step):
        if self.guard.breaks_at is not None and step.index >= self.guard.breaks_at and self.stopped is not None:
            raise RuntimeError(f"it read {'secret'.upper()}")
        for place, row in enumerate(step.rows):
            self.steps[row] = self.steps.get(row, 0) + 1
            stands = step.committed[place].tolist()
            ids = step.ids[place, step.response].tolist()
            self.guard.looked.append([token if there else None for token, there in zip(ids, stands, strict=True)])

    def on_end(self, canvas):
        pass

    def signal(self, row):
        return torch.zeros(self.steps.get(row, 1))


# --- what is flagged ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_guard_flags_is_its_stub_and_the_rest_the_models_own(model, sampling, fitted, stream):
    guard, _ = fitted
    responses = post(app_of(model, guard, sampling), *[asked(model, text, stream=stream) for text in FRESH])
    expected = guard.sample(model, FRESH, sampling)
    assert 0 < sum(each.verdict.flagged for each in expected) < len(FRESH)
    for response, behind in zip(responses, expected, strict=True):
        if stream:
            chunks = chunks_of(response)
            text, told = text_of(chunks), chunks[-1]["midward"]
            finish = chunks[-1]["choices"][0]["finish_reason"]
        else:
            [choice], told = response.json()["choices"], response.json()["midward"]
            text, finish = choice["message"]["content"], choice["finish_reason"]
        verdict = told["choices"][0]["guard"]
        assert verdict["flagged"] == behind.verdict.flagged == (finish == "content_filter")
        assert verdict["score"] == pytest.approx(behind.verdict.score, abs=1e-4)
        assert verdict["threshold"] == guard.threshold and verdict["digest"] == guard.digest
        assert "signal" not in verdict
        if not behind.verdict.flagged:
            assert text == behind.text
        else:
            assert text == STUB or (stream and text in sampled(model, response, sampling))
            assert verdict["step"] == behind.verdict.step + 1
            assert verdict["steps_saved"] == sampling.steps - behind.steps


def sampled(model, response, sampling):
    """The bare text of a streamed request, as far as blocks go."""
    [bare] = model.answer([__import__("json").loads(response.request.content)["messages"]], sampling)
    return [model.text(bare.ids[:stop]) for stop in (8, 16)]


def test_a_shadow_only_says_what_it_would_have_done(model, sampling, fitted):
    guard, _ = fitted
    app = app_of(model, guard, sampling, shadow=True)
    responses = post(app, *[asked(model, text) for text in FRESH])
    flags = [each.verdict.flagged for each in guard.sample(model, FRESH, sampling)]
    told = [response.json()["midward"]["choices"][0]["guard"]["flagged"] for response in responses]
    texts = [response.json()["choices"][0]["message"]["content"] for response in responses]
    assert told == flags and any(flags)
    assert texts == [response.text for response in model.answer(FRESH, sampling)]
    health = through(app, lambda client: client.get("/health")).json()
    assert health["guard"]["shadow"] and health["guard"]["drift"]["flags"] == sum(flags)


# --- streaming ----------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    st.sampled_from([4, 8, 16]),
    st.one_of(st.builds(dict, steps=st.integers(8, 20)), st.builds(dict, threshold=st.sampled_from([0.05, 0.3, 0.9]))),
    st.sampled_from([0.0, 1.0]),
    st.integers(0, 2**31),
    st.sampled_from([None, "t", "t4", "4 t"]),
)
def test_nothing_is_sent_before_the_guard_looked_nor_changed_afterwards(
    model, block, schedule, temperature, seed, stop
):
    guard, sent = Spy(), []
    grow = Growing.grow

    def noted(self, ids):
        piece = grow(self, ids)
        sent.append((list(ids), len(guard.looked), self.sent))
        return piece

    how = {"length": 16, "block": block, "temperature": temperature, "end": "keep"}
    app = app_of(model, guard, Sampling.for_model(model, **how, **schedule))
    body = asked(model, seed=seed, **({"stop": stop} if stop else {}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Growing, "grow", noted)
        [stream] = post(app, {**body, "stream": True})
    [whole] = post(app, body)
    text = whole.json()["choices"][0]["message"]["content"]
    assert text_of(chunks_of(stream)) == text
    assert stop is None or stop not in text
    assert sent  # or nothing was tried
    for ids, looks, told in sent:
        assert text.startswith(told)
        seen = guard.looked[:looks]
        assert any(looked[: len(ids)] == ids for looked in seen)  # these very tokens, all of them standing


class Slow:
    """Text pieces of bytes: a decoder for `Growing`."""

    def __call__(self, ids):
        return bytes(ids).decode("utf-8", errors="replace")


@example("aéb", ["aéb", "é"])  # the one that begins first is whole last
@given(st.text(alphabet="aé€😀b", max_size=12), st.lists(st.text(alphabet="aéb€", min_size=1, max_size=3), max_size=3))
def test_growing_text_is_cut_where_the_whole_is_and_never_torn(text, stops):
    ids = list(text.encode())
    whole, stepwise = Growing(Slow(), stops), Growing(Slow(), stops)
    whole.finish(text)
    pieces = [stepwise.grow(ids[:count]) for count in range(len(ids) + 1)]
    pieces.append(stepwise.finish(text))
    assert "".join(pieces) == whole.sent == stepwise.sent
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    assert whole.sent == (text[: min(ends)[1]] if ends else text)
    assert "\N{REPLACEMENT CHARACTER}" not in whole.sent


# --- a guard that fails -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("breaks_at", [0, 5])
@pytest.mark.parametrize("stream", [False, True])
def test_of_a_guard_that_raises_nothing_unguarded_leaves(model, sampling, breaks_at, stream, caplog):
    guard = Spy()
    app = app_of(model, guard, sampling)
    guard.breaks_at = breaks_at
    [bare] = model.answer(["t30 t31 t32"], sampling)
    [response] = post(app, asked(model, stream=stream))
    assert "SECRET" not in response.text + caplog.text
    if stream and response.status_code == 200:  # a block had been looked at
        assert '"error"' in response.text and "[DONE]" not in response.text and breaks_at > 0
        assert bare.text not in response.text
    else:
        assert response.status_code == 503 and "content" not in response.text
    assert app.state.server.running == 0


def test_a_guard_in_doubt_is_not_served(model, sampling, fitted, monkeypatch):
    monkeypatch.setattr(type(fitted[0]), "doubt", "its threshold is 50")
    with pytest.raises(GuardError, match="can't be proved armed: its threshold is 50"):
        arm(fitted[0], model, sampling)


def test_a_guard_that_no_longer_proves_itself_shuts_the_door(model, sampling, fitted, monkeypatch):
    monkeypatch.setattr("midward.serving.server.PROVED", 0.0)
    guard, path = fitted
    guard = midward.guards.load(path, model, sampling)
    app = app_of(model, guard, sampling)
    ask = lambda client: client.get("/health")  # noqa: E731
    healthy = through(app, ask)
    assert healthy.status_code == 200 and healthy.json()["guard"]["proof"].keys() == {"harmless", "flagged"}
    guard.threshold = float("inf")  # it would let everything pass
    assert through(app, ask).status_code == 503
    [response] = post(app, asked(model))
    assert response.status_code == 503 and response.json()["error"]["code"] == "guard_failed"
    guard.threshold = fitted[0].threshold
    assert through(app, ask).status_code == 503  # shut for good


def test_what_runs_behind_a_guard_that_no_longer_proves_itself_is_not_answered(model, slow, monkeypatch):
    monkeypatch.setattr("midward.serving.server.PROVED", 0.0)
    guard = Spy()
    app = app_of(model, guard, slow)

    async def talk(client):
        running = asyncio.create_task(client.post("/v1/chat/completions", json=asked(model)))
        while not app.state.server.engine.scheduler.rows:
            await asyncio.sleep(0.01)
        guard.threshold = float("inf")
        return await client.get("/health"), await running

    assert [response.status_code for response in through(app, talk)] == [503, 503]
    left_nothing(app)


def test_a_run_that_is_done_again_is_answered_to_the_same_end(model, sampling):
    """Its text stopped in the first try; then the guard failed, once."""
    guard = Spy()
    how = Sampling.for_model(model, length=32, steps=32, block=4, end="keep")
    [plain] = post(app_of(model, None, how), asked(model))
    text = plain.json()["choices"][0]["message"]["content"]
    app, body = app_of(model, guard, how), asked(model, stop=max(text.split(), key=text.index), n=2)
    [once] = post(app, body)
    score, tries = Spy.score, []

    def fails_once(self, model, exchanges, *, batch_size=8):
        tries.append(len(exchanges))
        if len(tries) == 1:
            raise RuntimeError("out of memory")
        return score(self, model, exchanges, batch_size=batch_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Spy, "score", fails_once)
        [again] = post(app, body)
    assert again.status_code == 200 and tries == [2, 1, 1]
    first, second = (each.json() for each in (once, again))
    assert first["choices"] == second["choices"]
    assert first["midward"]["choices"][0]["steps"] == second["midward"]["choices"][0]["steps"] > how.block


def test_of_a_run_that_is_done_again_with_other_tokens_no_mixture_is_sent():
    growing = Growing(Slow())
    assert growing.grow(list(b"abcd")) == "abcd"
    assert growing.grow(list(b"ab")) == "" and growing.grow(list(b"abcdef")) == "ef"
    assert growing.grow(list(b"xb")) == "" and growing.grow(list(b"xbcdefgh")) == ""
    assert growing.sent == "abcdef" and growing.finish("xbcdefgh") is None


def test_a_guard_of_another_model_is_refused_at_the_start(llada, fitted, midward, llada_folder):
    guard, path = fitted
    with pytest.raises(GuardError, match="fitted for something else"):
        app_of(llada, guard)
    done = midward("serve", "--model", llada_folder, "--guard", path, "--port", "0")
    assert done.exit_code == 2 and "fitted for something else" in done.stderr


def test_what_was_fitted_here_is_served_unless_none_is_asked_for(fitted, midward, llada_folder, tmp_path, monkeypatch):
    _, path = fitted
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guard").mkdir()
    words = ["serve", "--model", llada_folder, "--port", "0"]
    for more in ([], ["--guard", "none"]):
        done = midward(*words, *more, "--shadow")
        assert done.exit_code == 2 and "--shadow is of a guard" in done.stderr
    shutil.copy(path, tmp_path / "guard" / "anchors.safetensors")
    assert "--guard none" in midward(*words).stderr  # a fit that was stopped
    shutil.copy(path, tmp_path / "guard" / "hesitate.safetensors")
    done = midward(*words)  # it is another model's
    assert done.exit_code == 2 and "fitted for something else" in done.stderr
    shutil.copy(path, tmp_path / "none")
    (tmp_path / "none.yaml").write_text("guard: none")
    for more in (["--guard", "none"], ["--config", "none.yaml"]):
        done = midward(*words, *more, "--shadow")
        assert done.exit_code == 2 and "--shadow is of a guard" in done.stderr
    done = midward(*words, "--guard", "./none", "--shadow")  # a guard's file of that name
    assert done.exit_code == 2 and "fitted for something else" in done.stderr


def test_a_guard_that_answers_anew_or_cannot_be_proved_is_refused(model, sampling):
    class Blind(Spy):
        def score(self, model, exchanges, *, batch_size=8):
            return np.zeros(len(exchanges))

    class Repairs(Spy):
        repairs = True

    for guard, why in ((Blind(), "--self-test"), (Repairs(), "answers anew")):
        with pytest.raises(GuardError, match=why):
            app_of(model, guard, sampling)


def test_a_setting_that_the_guard_was_not_fitted_for_is_refused(model, sampling, fitted):
    [response] = post(app_of(model, fitted[0], sampling), asked(model, temperature=1.0))
    assert response.status_code == 400 and "temperature" in response.json()["error"]["message"]


def test_more_flags_than_the_rate_says_raise_an_alarm_and_change_nothing(model, sampling):
    drift = Drift(0.01)
    for i in range(300):
        drift.count(i % 100 == 0, 0.1)
    assert drift.alarm is None
    for _ in range(8):
        drift.count(True, 3.0)
    assert drift.alarm == "recalibrate"
    drift.count(False, None)  # unscored: says nothing
    assert drift.seen == 308
    app = app_of(model, Spy(), sampling)
    server = app.state.server
    server.drift.seen, server.drift.flags = 100, 20
    health = through(app, lambda client: client.get("/health"))
    page = through(app, lambda client: client.get("/metrics")).text
    assert health.status_code == 200 and health.json()["guard"]["drift"]["alarm"] == "recalibrate"
    assert "midward_guard_alarm 1.0" in page


# --- many, gone, and going ----------------------------------------------------------------------------------------


@pytest.fixture
def slow(model, monkeypatch):
    """Each forward takes a while, so that there is a middle to hang up in."""
    network = type(model).hidden

    def hidden(self, *args, **more):
        time.sleep(0.02)
        return network(self, *args, **more)

    monkeypatch.setattr(type(model), "hidden", hidden)
    return Sampling.for_model(model, length=64, steps=64, block=8, end="keep")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_leaves_no_row(model, slow, stream):
    app = app_of(model, Spy(), slow)
    with serving(app) as address:
        with httpx.Client(base_url=address) as client:
            if stream:
                with client.stream("POST", "/v1/chat/completions", json=asked(model, stream=True)) as response:
                    assert "data" in next(response.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post("/v1/chat/completions", json=asked(model), timeout=0.1)
        begun = time.monotonic()
        left_nothing(app)
        assert time.monotonic() - begun < 64 * 0.02 / 2  # long before it would have ended
        page = httpx.get(f"{address}/metrics").text
    assert 'outcome="cancelled"} 1.0' in page


def test_random_aborts_of_two_hundred_clients_leave_nothing(model, sampling, fitted):
    app = app_of(model, fitted[0], sampling, max_waiting=1000)
    draw = random.Random(0)
    statuses = []

    async def talk(address):
        async def ask(client, i):
            body = asked(model, FRESH[i % 24], stream=bool(i % 2))
            statuses.append((await client.post("/v1/chat/completions", json=body)).status_code)

        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=address, limits=limits, timeout=60) as client:
            tasks = [asyncio.create_task(ask(client, i)) for i in range(200)]
            for task in draw.sample(tasks, 100):
                await asyncio.sleep(0.005 * draw.random())
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    with serving(app) as address:
        asyncio.run(talk(address))
        left_nothing(app)
        until(lambda: not app.state.uvicorn.server_state.tasks)
        assert not app.state.server._live
    assert len(statuses) >= 100 and {*statuses} == {200}


def test_who_finds_no_place_to_wait_is_told_when_to_come_again(model, sampling, monkeypatch):
    network, go_on = type(model).hidden, threading.Event()
    monkeypatch.setattr(type(model), "hidden", lambda self, *given: go_on.wait(60) and network(self, *given))
    app = app_of(model, None, sampling, max_batch=1, max_waiting=1)

    async def talk(client):
        bodies = [*[asked(model) for _ in range(4)], asked(model, n=3)]
        tasks = [asyncio.create_task(client.post("/v1/chat/completions", json=body)) for body in bodies]
        while sum(task.done() for task in tasks) < 3:  # those that are sent away; the others wait for the network
            await asyncio.sleep(0.005)
        go_on.set()
        return await asyncio.gather(*tasks)

    responses = through(app, talk)
    assert sorted(response.status_code for response in responses) == [200, 200, 400, 429, 429]
    assert all(response.headers["retry-after"] for response in responses if response.status_code == 429)
    left_nothing(app)


def test_what_still_runs_when_the_time_to_drain_is_over_is_told_so(model, slow):
    app = app_of(model, Spy(), slow)

    async def talk(client):
        bodies = [asked(model, stream=stream) for stream in (False, True)]
        running = [asyncio.create_task(client.post("/v1/chat/completions", json=body)) for body in bodies]
        while app.state.server.engine.scheduler.counts.rows < 24:  # two rows, a block of eight steps and more
            await asyncio.sleep(0.005)
        await app.state.server.drain(0.0)
        late = await client.post("/v1/chat/completions", json=bodies[0])
        health = await client.get("/health")
        return [*await asyncio.gather(*running), late, health]

    whole, stream, late, health = through(app, talk)
    assert whole.status_code == late.status_code == health.status_code == 503 and late.headers["retry-after"]
    assert stream.status_code == 200 and '"error"' in stream.text and "[DONE]" not in stream.text
    left_nothing(app)


@pytest.mark.parametrize("sent", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_under_load_ends_it_once_what_runs_is_finished(tmp_path, sent):
    code = "import sys; from midward.cli import main; sys.argv[0] = 'midward'; main()"
    words = ["serve", "--port", "0", "--length", "16", "--drain-timeout", "60"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    try:
        lines = iter(process.stderr.readline, "")
        address = next(match[1] for line in lines if (match := re.search(r"(http://\S+)/v1", line)))
        body = {"model": "sandbox", "messages": [{"role": "user", "content": "Who keeps it?"}], "n": 2}
        statuses = []

        def ask():
            for _ in range(100):
                try:
                    statuses.append(httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).status_code)
                except httpx.ConnectError:
                    return
                if statuses[-1] == 503:
                    return

        until(lambda: is_up(address))
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: statuses)
        process.send_signal(sent)
        for thread in threads:
            thread.join(60)
        assert process.wait(60) == 0
        assert statuses and {*statuses} <= {200, 503}
    finally:
        process.kill()
        process.stderr.close()


def is_up(address):
    try:
        return httpx.get(f"{address}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_settings_that_the_guard_is_not_for_are_named_with_what_they_are_here(model, sampling, fitted):
    [refused] = post(app_of(model, fitted[0], sampling), asked(model, temperature=1, seed=3))
    error = refused.json()["error"]
    assert refused.status_code == 400 and error["code"] == "guard_settings"
    assert "temperature 1.0 (here 0.0)" in error["message"] and "leave out" in error["message"]


def test_a_trace_says_when_each_token_was_committed_and_of_what_is_flagged_nothing(model, sampling, fitted):
    guard, _ = fitted
    bodies = [asked(model, text, midward={"trace": place % 2 == 0}) for place, text in enumerate(FRESH)]
    answers = post(app_of(model, guard, sampling), *bodies)
    trace = Trace()
    guard.sample(model, FRESH, sampling, watchers=[trace])
    traced = 0
    for place, answer in enumerate(answers):
        [choice] = answer.json()["midward"]["choices"]
        if place % 2 or choice["guard"]["flagged"]:
            assert "trace" not in choice
        else:
            assert choice["trace"] == trace.commit_step[place].tolist() and max(choice["trace"]) == 7
            traced += 1
    assert traced
