"""Several workers: the rows of one, whatever happens to a worker or to the process that drives them.

Everything that starts Ray is in this file, so that it starts once.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest

import midward
from midward import goals
from midward.errors import InputError
from midward.goals import Goal
from midward.guards import make
from midward.guards.guard import Exchange
from midward.judges.bench import Bench, bench
from midward.judges.judge import JudgeInfo, Verdict
from midward.judges.registry import every
from midward.runs.measure import Case, Reader, measure
from midward.runs.workers import Lost, WorkersError, spread
from midward.sampling import Request, Sampling, Trace

ray = pytest.importorskip("ray")
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
    done = midward("utility", "--model", tmp_path, "--out", tmp_path / "out", "--workers", workers)
    assert done.exit_code == 2 and (workers in done.stderr)


def test_what_one_process_alone_does_is_refused(midward, tmp_path):
    for words in (["probe", "gcg"], ["utility", "--tasks", "gsm8k"], ["guard", "eval", "--behind", "mockllm/x"]):
        done = midward(*words, "--out", tmp_path / "out", "--workers", "2")
        assert done.exit_code == 2 and "--workers" in done.stderr, (words, done.stderr)


def test_without_ray_one_is_told_how_to_get_it(midward, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = midward("dynamics", "--workers", "2")
    assert done.exit_code == 2 and "pip install 'midward[ray]'" in done.stderr
