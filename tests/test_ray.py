"""Several workers, the rows of one; several replicas of a server, the answers of one; whatever dies on the way.

Everything that starts Ray is in this file, so that it starts once.
"""

import asyncio
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import yaml
from starlette.requests import Request as StarletteRequest
from starlette.testclient import TestClient

import midward
from midward import goals
from midward.errors import InputError
from midward.goals import Goal
from midward.guards import make
from midward.guards.exchange import Exchange
from midward.judges.bench import Bench, bench
from midward.judges.judge import JudgeInfo, Verdict
from midward.judges.registry import every
from midward.runs.measure import Case, Reader, measure
from midward.runs.workers import Lost, WorkersError, connected, spread
from midward.sampling import Request, Sampling, Trace
from midward.serving.config import ServeConfig

ray = pytest.importorskip("ray")
from ray.serve.schema import ServeDeploySchema  # noqa: E402

from midward.serving import replicas  # noqa: E402
from midward.serving.engine import Engine  # noqa: E402
from midward.serving.ingress import Ingress, metrics  # noqa: E402
from midward.serving.process import listen  # noqa: E402
from midward.serving.server import create_app  # noqa: E402

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # which workers can't import

SHORT = Sampling(length=12, steps=6)
GOALS = [Goal(f"g{n}", " ".join(f"t{20 + n + word}" for word in range(3 + n % 4)), "mine", True) for n in range(9)]
CASES = [Case(goal, Request(goal.prompt), about={"kind": "plain"}) for goal in GOALS]
PROMPTS = [f"What is the capital of place {n}?" for n in range(10)]


@pytest.fixture(scope="module", autouse=True)
def _no_ray_is_left():
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def llada(llada_folder):
    return midward.load(llada_folder, device="cpu", dtype="float32")


@pytest.fixture
def judge():
    async def even(goal, response, metadata):
        words = len(response.split())
        return Verdict("even", None if words == 3 else words % 2 == 0, float(words), explanation="odd")

    return Bench(JudgeInfo("even", "1", "counts words", "nothing", lambda: even), even, {"judge": "even"})


class Steps(Reader):
    """Reads the steps, and has a text of its own judged."""

    def __init__(self):
        self.trace = Trace(predictions=True)
        self.watchers = (self.trace,)

    def texts(self, place, case, response):
        return [response.text[:9]]

    def fields(self, place, case, response, readings):
        steps = self.trace.commit_step.get(place)  # a guard that looks before stops some at once
        return {"commit": None if steps is None else steps.tolist(), "start": readings}


def die_until(folder, times):
    """Kill this process, unless that was done as often as is said."""
    deaths = len(list(folder.iterdir()))
    if deaths < times:
        (folder / str(deaths)).touch()
        os.kill(os.getpid(), signal.SIGKILL)


class Deadly(Reader):
    """Kills its worker once, at the fifth goal."""

    def __init__(self, folder):
        self.folder = folder

    def fields(self, place, case, response, readings):
        if case.goal.id == "g4":
            die_until(self.folder, 1)
        return {}


class Echo:
    """Work that gives each piece back."""

    def __enter__(self):
        return lambda piece: piece

    def __exit__(self, *error):
        pass


class Failing(Echo):
    def __enter__(self):
        return self.fail

    def fail(self, piece):
        raise InputError(f"piece {piece} is wrong.")


class Mortal(Echo):
    """Kills its worker over the piece b, three times."""

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        return self.do

    def do(self, piece):
        if piece == "b":
            die_until(self.folder, 3)
        return piece


def timeless(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.ray
def test_the_rows_are_those_of_one_worker(llada, judge, tmp_path):
    guard = make("perplexity")
    guard.bind(llada, SHORT)
    guard.threshold = float(np.median(guard.score(llada, [Exchange(case.request) for case in CASES])))
    how = {"sampling": SHORT, "judge": judge, "guard": guard, "readers": [Steps], "batch_size": 2}
    alone = measure(llada, CASES, tmp_path / "1", **how)
    tally = dict(judge.tally)
    judge.tally.clear()
    done = []
    rows = measure(llada, CASES, tmp_path / "2", workers=2, progress=lambda n, of: done.append(n), **how)
    assert timeless(rows) == timeless(alone) and any(row["commit"] for row in rows) and judge.tally == tally
    assert {row["guard"]["flagged"] for row in rows} == {True, False}
    assert sorted(row["key"] for row in lines(tmp_path / "2" / "rows.jsonl")) == sorted(row["key"] for row in rows)
    assert done[0] == 0 and done[-1] == len(CASES)


@pytest.mark.ray
def test_a_model_in_half_precision_travels(llada_folder, tmp_path):
    """Its attention is of our own, which a worker must know too."""
    how = {"sampling": SHORT, "batch_size": 2}
    model = midward.load(llada_folder, device="cpu", dtype="bfloat16")
    rows = measure(model, CASES[:5], tmp_path / "2", workers=2, **how)
    assert timeless(rows) == timeless(measure(model, CASES[:5], tmp_path / "1", **how))
    assert len(rows) == 5 and not any(row.get("error") for row in rows)


@pytest.mark.ray
def test_a_lost_workers_chunk_is_done_by_another(llada, judge, tmp_path):
    (tmp_path / "deaths").mkdir()
    how = {"sampling": SHORT, "judge": judge, "batch_size": 1}
    alone = measure(llada, CASES, tmp_path / "1", **how)
    rows = measure(llada, CASES, tmp_path / "2", workers=2, readers=[partial(Deadly, tmp_path / "deaths")], **how)
    assert timeless(rows) == timeless(alone) and list((tmp_path / "deaths").iterdir())
    assert sorted(row["goal"] for row in lines(tmp_path / "2" / "rows.jsonl")) == [case.goal.id for case in CASES]


@pytest.mark.ray
def test_a_piece_that_takes_three_workers_is_lost_and_no_other(tmp_path):
    results = dict(spread(partial(Mortal, tmp_path), ["a", "b", "c", "d"], 3))
    assert isinstance(results.pop(1), Lost) and results == {0: "a", 2: "c", 3: "d"}
    assert len(list(tmp_path.iterdir())) == 3


def test_rows_of_a_lost_chunk_say_so_and_the_others_stand(llada, judge, monkeypatch, tmp_path):
    def lossy(work, pieces, workers, *, gpus):
        for place, result in spread(work, pieces):
            yield place, Lost("the worker was lost 3 times: it died") if place == 1 else result

    monkeypatch.setattr("midward.runs.measure.spread", lossy)
    rows = measure(llada, CASES, tmp_path, sampling=SHORT, judge=judge, batch_size=2, workers=2)
    lost = [row["goal"] for row in rows if row.get("error")]
    assert lost == ["g4", "g5", "g6", "g7"] and lines(tmp_path / "rows.jsonl") == rows
    assert all("lost 3 times" in row["error"] and row["success"] is None for row in rows if row.get("error"))


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_driver_goes_on_where_it_stopped(midward, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))

    def words(out, *more):
        flags = ["--length", "32", "--batch-size", "1", "--out", str(tmp_path / out)]
        return ["generate", "--prompts", str(prompts), *flags, *more]

    assert midward(*words("alone.jsonl")).exit_code == 0
    list(spread(Echo, [0], 2))  # Ray stands
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "-m", "midward", *words("cut.jsonl", "--workers", "ray")]
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    cut = tmp_path / "cut.jsonl"
    while driver.poll() is None and not (cut.exists() and cut.stat().st_size):
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    _, errors = driver.communicate()
    assert driver.returncode == -signal.SIGKILL, errors.decode()
    there = lines(cut)
    assert 0 < len(there) < len(PROMPTS)
    again = midward(*words("cut.jsonl", "--workers", "2"))
    assert again.exit_code == 0, again.stderr
    rows = sorted(lines(cut), key=lambda row: row["index"])
    assert timeless(rows) == timeless(lines(tmp_path / "alone.jsonl"))
    assert lines(cut)[: len(there)] == there


@pytest.mark.slow
@pytest.mark.ray
def test_a_judge_that_asks_a_model_goes_along(midward, tmp_path):
    flags = (
        "--limit 4 --positions 0 --phrases affirmative --length 32 --judges harmfulness --batch-size 2 --json".split()
    )
    summaries = []
    for workers in "12":
        done = midward("probe", "prefill", *flags, "--out", tmp_path / workers, "--workers", workers)
        assert done.exit_code == 0, done.stderr
        summaries.append(json.loads(done.stdout))
    assert summaries[0] == summaries[1]


@pytest.mark.ray
def test_searches_are_shared(midward, llada_folder, tmp_path):
    flags = ["--limit", "2", "--positions", "0", "--iterations", "2", "--width", "2", "--tokens", "3", "--length", "12"]
    flags += ["--model", llada_folder, "--device", "cpu", "--goals", "sandbox"]
    summaries = []
    for workers in "12":
        done = midward("probe", "gcg", *flags, "--json", "--out", tmp_path / workers, "--workers", workers)
        assert done.exit_code == 0, done.stderr
        summaries.append(json.loads(done.stdout))
    assert summaries[0] == summaries[1]


@pytest.mark.ray
def test_what_the_work_raises_is_raised_here():
    with pytest.raises(InputError, match="piece 7 is wrong"):
        list(spread(Failing, [7], 2))
    assert sorted(spread(Echo, "ab", 2)) == [(0, "a"), (1, "b")]  # and the next work is done


@pytest.mark.ray
def test_work_that_cannot_be_sent_is_told():
    lock = threading.Lock()
    with pytest.raises(WorkersError, match="workers 1"):
        list(spread(lambda: lock, [0], 2))


def test_every_judge_travels():
    for name, info in every().items():
        if info.of_attacks and info.needs != "local classifier":
            ours = bench(goals.load("sandbox", count=1), name)
            theirs = ray.cloudpickle.loads(ray.cloudpickle.dumps(ours))
            assert (theirs.info.name, theirs.key) == (name, ours.key) and callable(theirs.judge)


@pytest.mark.parametrize("workers", ["0", "-1", "many", "1.5", "ray"])
def test_other_workers_are_refused_before_a_model_is_loaded(midward, monkeypatch, tmp_path, workers):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = midward("utility", "--model", "org/no-model", "--out", tmp_path / "out", "--workers", workers)
    assert done.exit_code == 2 and (workers in done.stderr)


def test_what_one_process_alone_does_is_refused(midward, tmp_path):
    for words in (["utility", "--tasks", "gsm8k"], ["guard", "eval", "--behind", "mockllm/x"]):
        done = midward(*words, "--out", tmp_path / "out", "--workers", "2")
        assert done.exit_code == 2 and "--workers" in done.stderr, (words, done.stderr)


def test_without_ray_one_is_told_how_to_get_it(midward, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = midward("dynamics", "--workers", "2")
    assert done.exit_code == 2 and "pip install 'midward[ray]'" in done.stderr


# --- replicas of a server ---------------------------------------------------------------------------------------


def ask(number, **more):
    """The body of a request, one of 30 different ones."""
    messages = [{"role": "user", "content": f"t{30 + number % 30} t31"}]
    return {"model": "tiny", "messages": messages, "max_tokens": 24, "seed": 3, **more}


@contextmanager
def two_replicas(model, sampling, **config):
    """Their address."""
    connected(cluster=False)
    with listen("127.0.0.1", 0) as free:
        config["port"] = free.getsockname()[1]
    served = {"research": True, "drain_timeout": 5, **config}
    replicas.start(replicas.Settings(model=str(model), sampling=sampling, serving=served, replicas=2))
    yield f"http://127.0.0.1:{config['port']}"
    replicas.stop()


@pytest.mark.slow
@pytest.mark.ray
def test_a_search_by_scores_over_replicas_equals_that_of_this_process(midward, tmp_path):
    """Goal by goal. Minutes."""
    flags = "--profile mosa --attacks pal --goals sandbox --count 2 --length 32 --judges oracle --budget 30".split()
    with two_replicas("sandbox", {}, max_batch=32, name="sandbox") as url:
        done = midward("attack", *flags, "--endpoint", url, "--out", tmp_path / "there")
        assert done.exit_code == 0, done.stderr
    assert midward("attack", *flags, "--device", "cpu", "--out", tmp_path / "here").exit_code == 0
    here, there = (
        [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]
        for file in ((tmp_path / side / "samples.csv").open(newline="") for side in ("here", "there"))
    )
    assert len(here) == 2 and here == there


@pytest.fixture(scope="module")
def replicated(llada_folder):
    """The address of two replicas."""
    with two_replicas(llada_folder, {"block": 4, "temperature": 0.7}, name="tiny") as url:
        yield url


def _is_replica(title):
    """Of one that is at work, too, whose title says at what."""
    return title.startswith("ray::") and "midward" in title and "Replica" in title and "Ingress" not in title


def kill_a_replica():
    """Of this process's own Ray."""
    ours = psutil.Process().children(recursive=True)
    first, *_ = [each for each in ours if _is_replica(" ".join(each.cmdline()))]
    first.send_signal(signal.SIGKILL)


async def talk(url, count, kill_after):
    """The texts of so many requests, a few at a time; once some are answered a replica is killed."""
    answered, room = 0, asyncio.Semaphore(12)

    async def text_of(client, number):
        nonlocal answered
        async with room:
            response = await client.post("/v1/chat/completions", json=ask(number))
        answered += 1
        if answered == kill_after:
            kill_a_replica()
        return response.status_code, response.json()["choices"][0]["message"]["content"]

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        return await asyncio.gather(*(text_of(client, number) for number in range(count)))


@pytest.mark.ray
@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_a_killed_replica_loses_no_request_and_changes_none(replicated, llada, count):
    alone = create_app(Engine(llada), ServeConfig(name="tiny"), sampling=Sampling(block=4, temperature=0.7))
    with TestClient(alone, base_url="http://127.0.0.1") as client:
        texts = [client.post("/v1/chat/completions", json=ask(n)).json() for n in range(30)]
    alone.state.server.engine.scheduler.close()
    told = asyncio.run(talk(replicated, count, kill_after=count // 4))
    assert {status for status, _ in told} == {200} and len({text for _, text in told}) > 20
    assert [text for _, text in told] == [texts[n % 30]["choices"][0]["message"]["content"] for n in range(count)]


@pytest.mark.ray
def test_replicas_answer_as_the_server_they_are(replicated):
    with httpx.Client(base_url=replicated, timeout=60) as client:
        whole = client.post("/v1/chat/completions", json=ask(1)).json()["choices"][0]["message"]["content"]
        with client.stream("POST", "/v1/chat/completions", json=ask(1, stream=True)) as response:
            events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
            assert response.headers["content-type"].startswith("text/event-stream")
        deltas = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1]]
        assert events[-1] == "[DONE]" and "".join(deltas) == whole and sum(map(bool, deltas)) > 1
        refused = client.post("/v1/chat/completions", json=ask(1, unheard=1), headers={"x-request-id": "mine"})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "unheard"
        assert refused.headers.get_list("x-request-id") == ["mine"]
        assert client.post("/v1/chat/completions", content=b"x" * (2 << 20)).status_code in (400, 413)
        assert client.get("/midward/model").status_code == 200  # --research
        health = client.get("/health")
        assert health.status_code == 200 and {each["status"] for each in health.json()["replicas"]} == {"ok"}
        page = client.get("/metrics").text
    assert 'midward_requests_total{outcome="answered",replica=' in page


class Replicas:
    """Ray's handle, as far as the ingress asks it: each answer is what comes, up to an error that is raised."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.options = lambda stream: self
        self.answer = self

    async def remote(self, scope, body):
        for message in self.answers.pop(0):
            if isinstance(message, Exception):
                raise message
            yield message


def answered(*answers, body=b"{}"):
    """Status and content that an ingress gives over these replicas."""

    async def app(scope, receive, send):
        response = await Ingress(Replicas(*answers), 100)(StarletteRequest(scope, receive))
        await response(scope, receive, send)

    response = TestClient(app).post("/v1/chat/completions", content=body)
    return response.status_code, response.content


START = {"status": 200, "headers": [(b"content-type", b"application/json")]}
STREAM = {"status": 200, "headers": [(b"content-type", b"text/event-stream")]}
DIED = ray.exceptions.ActorDiedError()


def test_an_answer_is_asked_for_once_more_and_never_sent_twice():
    whole = [START, {"body": b"one"}, {"body": b""}]
    for cut in ([DIED], [START, DIED], [START, {"body": b"o"}, DIED], [STREAM, DIED]):
        assert answered(cut, whole) == (200, b"one")
    status, content = answered([DIED], [START, DIED])
    assert status == 503 and json.loads(content)["error"]["code"] == "replica_lost"


def test_who_may_not_see_the_metrics_is_told_as_a_replica_tells_it():
    refusal = (401, b'{"error": {"message": "no such API key.", "code": "invalid_api_key"}}')
    response = metrics([refusal, refusal])
    assert (response.status_code, response.body) == refusal


def test_a_broken_stream_ends_with_an_error_event():
    status, content = answered([STREAM, {"body": b"data: 1\n\n"}, DIED], [STREAM, {"body": b"data: anew\n\n"}])
    assert status == 200 and content.startswith(b"data: 1\n\n") and b"anew" not in content
    assert json.loads(content.removeprefix(b"data: 1\n\ndata: "))["error"]["code"] == "replica_lost"


def test_the_file_for_serve_deploy_is_one(tmp_path):
    content = yaml.safe_load((Path(__file__).parents[1] / "configs" / "serve.yaml").read_text())
    [application] = ServeDeploySchema.model_validate(content).applications
    module, _, name = application.import_path.partition(":")
    assert getattr(import_module(module), name) is replicas.application
    assert replicas.Settings.model_validate(application.args).config.host == content["http_options"]["host"]


@pytest.mark.slow
@pytest.mark.ray
def test_the_verb_serves_replicas_and_finishes_what_runs_before_it_stops(llada_folder):
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    words = ["serve", "--model", str(llada_folder), "--replicas", "2", "--port", str(port), "--name", "tiny"]
    verb = subprocess.Popen([sys.executable, "-m", "midward", *words], stderr=subprocess.PIPE, text=True)
    assert any("serving" in line for line in verb.stderr)
    with ThreadPoolExecutor() as pool, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        more = {"n": 16, "max_tokens": 96, "midward": {"sampling": {"steps": 96}}}
        long = pool.submit(client.post, "/v1/chat/completions", json=ask(1, **more))
        time.sleep(0.3)
        verb.send_signal(signal.SIGTERM)
        begun = not long.done()
        assert long.result().status_code == 200 and begun
    assert verb.wait(60) == 0
