"""The one loop: a run that was stopped is that of an uninterrupted one; rows say what they are of."""

import json

import numpy as np
import pytest

import midward
from midward import errors
from midward.goals import Goal
from midward.judges.bench import Bench
from midward.judges.judge import JudgeInfo, Verdict
from midward.runs.compare import differences, load
from midward.runs.measure import JUDGED, Case, Reader, measure
from midward.runs.run import Measured, Run, RunFolder
from midward.sampling import Edit, Forced, Request, Sampling, Trace

SHORT = Sampling(length=12, steps=6)


def goal(number, harmful=True):
    return Goal(f"g{number}", " ".join(f"t{20 + number + word}" for word in range(3 + number % 4)), "mine", harmful)


EDITS = {4: (Edit(2, (Forced(0, (40, 41)),), "all"),), 7: (Edit(1, (), (3, 4)), Edit(3, (Forced(5, (50,)),)))}
CASES = [Case(goal(n), Request(goal(n).prompt, edits=EDITS.get(n, ())), about={"kind": "plain"}) for n in range(9)]


@pytest.fixture(scope="module")
def llada(llada_folder):
    return midward.load(llada_folder, device="cpu", dtype="float32")


class Counted:
    """A judge that says yes to texts with an even number of words, and counts what it was asked."""

    def __init__(self):
        self.asked = []

    async def __call__(self, goal, response, metadata):
        self.asked.append((goal, response))
        return Verdict("counted", len(response.split()) % 2 == 0, float(len(response.split())), False)


@pytest.fixture
def bench():
    judge = Counted()
    return Bench(JudgeInfo("counted", "1", "counts words", "nothing", lambda: judge), judge, {"judge": "counted"})


def timeless(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_stopped_run_goes_on_to_the_same_rows(llada, bench, tmp_path, after):
    whole = measure(llada, CASES, tmp_path / "whole", sampling=SHORT, judge=bench, batch_size=2)
    calls = []

    def stop(done, total):
        calls.append(done)
        if len(calls) > after:
            raise Stop

    with pytest.raises(Stop):
        measure(llada, CASES, tmp_path / "cut", sampling=SHORT, judge=bench, batch_size=2, progress=stop)
    there = (tmp_path / "cut" / "rows.jsonl").read_bytes()
    (tmp_path / "cut" / "rows.jsonl").write_bytes(there[:-9])  # and the kill tore the last row
    rows = measure(llada, CASES, tmp_path / "cut", sampling=SHORT, judge=bench, batch_size=1 + 2 * after)
    assert timeless(rows) == timeless(whole)
    lines = (tmp_path / "cut" / "rows.jsonl").read_text().splitlines()
    assert len(lines) == len(CASES) and [row["goal"] for row in rows] == [case.goal.id for case in CASES]


def test_more_cases_ask_only_for_those(llada, bench, tmp_path):
    measure(llada, CASES[:4], tmp_path, sampling=SHORT, judge=bench)
    asked = len(bench.judge.asked)
    measure(llada, CASES, tmp_path, sampling=SHORT, judge=bench)
    assert len(bench.judge.asked) == asked + 5


@pytest.mark.parametrize(
    "change",
    [
        {"sampling": Sampling(length=12, steps=3)},
        {"depends": "other anchors"},
        {"about": {"model": "aligned"}},
        {"judge": None},
    ],
)
def test_what_a_row_depends_on_is_in_its_key(llada, bench, tmp_path, change):
    how = {"sampling": SHORT, "judge": bench}
    first = measure(llada, CASES[:2], tmp_path, **how)
    second = measure(llada, CASES[:2], tmp_path, **how | change)
    assert not {row["key"] for row in first} & {row["key"] for row in second}


def test_edits_are_in_the_key(llada, tmp_path):
    edits = [
        (),
        (Edit(2, (Forced(0, (40,)),)),),
        (Edit(3, (Forced(0, (40,)),)),),
        (Edit(3, (Forced(0, (40,)),), "all"),),
    ]
    cases = [Case(goal(1), Request(goal(1).prompt, edits=each)) for each in edits]
    rows = measure(llada, cases, tmp_path, sampling=SHORT)
    assert len({row["key"] for row in rows}) == len(edits)


def test_readers_see_their_own_rows_and_their_texts_are_judged(llada, bench, tmp_path):
    class Steps(Reader):
        def __init__(self):
            self.trace = Trace()
            self.watchers = [self.trace]

        def texts(self, place, case, response):
            return ["", f"{response.text} more"]

        def fields(self, place, case, response, readings):
            return {"order": self.trace.order(place), "scores": [reading["score"] for reading in readings]}

    cases = [*CASES[:3], Case(goal(3), Request(goal(3).prompt, (Forced.text(llada, 2, "t9 t8"),)))]
    rows = measure(llada, cases, tmp_path, sampling=SHORT, judge=bench, readers=[Steps], batch_size=3)
    for row in rows:
        assert row["scores"] == [0.0, len(row["response"].split()) + 1.0]
        assert row["score"] == len(row["response"].split())
    free = [len([step for step in np.ravel(row["order"]) if step is not None]) for row in rows]
    assert len(set(free[:3])) == 1


def test_a_case_that_cannot_be_asked_stops_no_other(llada, bench, tmp_path):
    cases = [CASES[0], Case(goal(7), Request(""), error="row 1 has an empty prompt"), CASES[1]]
    rows = measure(llada, cases, tmp_path, sampling=SHORT, judge=bench)
    assert [row.get("error") for row in rows] == [None, "row 1 has an empty prompt", None]
    assert all(rows[1][name] is None for name in (*JUDGED, "response"))


def test_an_answer_that_failed_is_unscored(llada, bench, tmp_path):
    rows = measure(
        llada, CASES[:2], tmp_path, sampling=SHORT, judge=bench, text=lambda cases, responses: [None, "two words"]
    )
    assert rows[0]["success"] is None and rows[0]["error"]
    assert rows[1]["success"] is True and rows[1]["response"] == "two words"


def test_equal_cases_are_an_error(llada, tmp_path):
    with pytest.raises(errors.InputError, match="two cases are equal"):
        measure(llada, [CASES[0], CASES[0]], tmp_path, sampling=SHORT)


def test_a_request_that_cannot_be_followed_is_told_before_anything_runs(llada, tmp_path):
    late = Case(goal(1), Request("t30", (Forced(12, (30,)),)))
    with pytest.raises(ValueError, match="request 1"):
        measure(llada, [CASES[0], late], tmp_path, sampling=SHORT)
    assert not (tmp_path / "rows.jsonl").exists()


# --- the record -----------------------------------------------------------------------------------------------


def begun(folder, settings, grows=("count", "sets"), verb="probe x"):
    run = RunFolder(folder, verb, settings, grows)
    run.start()
    run.finish({"cells": []})
    return run


def test_a_folder_says_what_it_holds(llada, tmp_path):
    run = RunFolder(tmp_path, "probe x", {"seed": 3})
    run.start([Measured.of(llada)], sampling={"length": 12}, goals={"mine": 2}, seed=3)
    before = Run.load(tmp_path)
    assert before.models[0].fingerprint == llada.fingerprint and before.finished is None
    run.finish({"cells": [1]})
    assert Run.load(tmp_path).finished and json.loads((tmp_path / "summary.json").read_text()) == {"cells": [1]}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"seed": 1, "count": 5, "sets": ["a"]}, "seed 0 there, 1 here"),
        ({"seed": 0, "count": 4, "sets": ["a"]}, "count 5 there, 4 here"),
        ({"seed": 0, "count": 5, "sets": ["b"]}, "sets lacks a here"),
    ],
)
def test_another_run_is_refused_and_more_of_the_same_goes_on(tmp_path, settings, message):
    begun(tmp_path, {"seed": 0, "count": 5, "sets": ["a"]})
    with pytest.raises(errors.InputError, match=message):
        RunFolder(tmp_path, "probe x", settings, ("count", "sets"))
    with pytest.raises(errors.InputError, match="holds a run of midward probe x"):
        RunFolder(tmp_path, "attack", {"seed": 0, "count": 5, "sets": ["a"]})
    begun(tmp_path, {"seed": 0, "count": 9, "sets": ["a", "b"]})


def test_what_changed_on_the_disk_under_its_name_is_another_run(tmp_path):
    adapter = Measured(name="base", adapter="runs/mosa", fingerprint="1")
    RunFolder(tmp_path / "out", "utility").start([Measured(name="base", fingerprint="0"), adapter])
    (tmp_path / "out" / "rows.jsonl").write_text("{}")
    (tmp_path / "out" / "summary.json.123.part").write_text("{")  # of a process that was killed
    with pytest.raises(errors.InputError, match=r"base \+ runs/mosa as it was before"):
        RunFolder(tmp_path / "out", "utility").start([adapter.model_copy(update={"fingerprint": "2"})])
    RunFolder(tmp_path / "out", "utility").start([adapter, Measured(name="base", adapter="other", fingerprint="3")])
    assert not list((tmp_path / "out").glob("*.part"))


def test_a_folder_of_the_layout_before_is_told(tmp_path):
    (tmp_path / "run.json").write_text('{"verb": "prefill", "--seed": 0}')
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(errors.InputError, match="an earlier midward"):
        RunFolder(tmp_path, "probe prefill")
    with pytest.raises(errors.MissingFile, match="there is no folder"):
        Run.load(tmp_path / "nothing")


# --- comparison -----------------------------------------------------------------------------------------------


def test_two_runs_are_compared_by_what_both_were_asked(llada, bench, tmp_path):
    for name, cases in (("one", CASES), ("two", CASES[2:])):
        RunFolder(tmp_path / name, "probe x").start()
        measure(llada, cases, tmp_path / name, sampling=SHORT, judge=bench)
    (_, first), (_, second) = (load(tmp_path / name) for name in ("one", "two"))
    pairs = {(about["set"], about["measure"]): pair for about, pair in differences(first, second, ["set"], ["success"])}
    assert pairs["mine", "success"].value == 0 and pairs["mine", "success"].n == 7
    with pytest.raises(errors.InputError, match="share nothing"):
        differences(first[:2], second, ["set"], ["success"])
