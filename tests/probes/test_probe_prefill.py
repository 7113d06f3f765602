"""Phrases forced along a response: what goes where, what is read from it, and what is said when it can't."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from midward import goals
from midward.cli import app
from midward.cli.probe_prefill import _harmless
from midward.errors import InputError
from midward.goals import Goal
from midward.judges import JudgesError
from midward.judges import bench as verdicts
from midward.probes import _readings
from midward.probes._run import respond
from midward.probes.phrases import GENERAL, KINDS, phrase_for, phrases_for, span
from midward.probes.prefill import Prefill, cases, findings, positions_of
from midward.sampling import Request, Sampling, sample
from midward.stats import paired, rate
from midward.world import Thing
from midward.world.language import procedure

PHRASES = {kind: (f"t{30 + n} t{40 + n}", f"t{50 + n} t{60 + n} t{70 + n}") for n, kind in enumerate(KINDS)}
SAMPLING = Sampling(length=24, steps=6, block=12)


@pytest.fixture(scope="module")
def harmful():
    return goals.load("sandbox", count=5)


@pytest.fixture(scope="module")
def calm():
    return goals.load("sandbox-benign", count=3)


@pytest.fixture
def silent(lively, monkeypatch):
    """A model that must not be run."""
    monkeypatch.setattr(lively, "hidden", lambda *args, **more: pytest.fail("the model ran"))
    return lively


# --- what is forced, and where -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "places"),
    [("0,40, 80", (0, 40, 80)), ("0:30:8", (0, 8, 16, 24)), ("9,0:4", (0, 1, 2, 3, 9)), ("7,7", (7,))],
)
def test_positions_and_sweeps(text, places):
    assert positions_of(text) == places


@pytest.mark.parametrize("text", ["", ",", "a", "1:2:3:4", "0:9:0", "5:5:1", "-3", "1.5"])
def test_what_is_no_position(text):
    with pytest.raises(ValueError, match="position"):
        positions_of(text)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 200), st.integers(0, 5), st.sampled_from(KINDS))
def test_the_draw_hangs_on_goal_kind_and_seed_alone(position, seed, kind):
    goal = Goal("g-1", "t30", "mine", True)
    drawn = phrase_for(goal, kind, position, PHRASES[kind], seed)
    other = replace(goal, text="another wording")
    assert drawn in PHRASES[kind] and drawn == phrase_for(other, kind, 7, PHRASES[kind], seed)


def test_every_phrase_of_a_set_is_drawn_and_a_step_has_its_number():
    many = [Goal(f"g-{n}", "t30", "mine", True) for n in range(60)]
    for kind in KINDS:
        drawn = {phrase_for(goal, kind, 40, GENERAL[kind]) for goal in many}
        assert drawn == {text.replace("{step}", "5") for text in GENERAL[kind]}
    with_target = replace(many[0], target="Sure, t31")
    assert phrase_for(with_target, "affirmative", 0, GENERAL["affirmative"]) == "Sure, t31"
    assert phrase_for(with_target, "affirmative", 0, ("mine",)) == "mine"


def test_a_file_takes_the_place_of_its_kinds(harmful, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"kind": "neutral", "text": "t30"}\n{"kind": "neutral", "text": "t31"}\n')
    found = phrases_for(harmful, path)
    assert found["neutral"] == ("t30", "t31") and found["refusal"] == phrases_for(harmful)["refusal"]
    assert phrases_for([Goal("g", "t", "mine", True)])["refusal"] != found["refusal"]


def test_the_response_is_that_of_the_forced_request(lively, harmful, calm, tmp_path):
    """A row is what sampling the same request alone gives, with the phrase where it should be."""
    few = harmful[:2]
    wanted = cases(lively, few, calm[:1], Prefill(positions=(0, 9), tokens=(None, 2)), PHRASES, 24)
    assert len(wanted) == 2 * (1 + 4 * 2 * 2) + (1 + 2 * 2 * 2)
    assert {case.about["kind"] for case in wanted if not case.goal.harmful} == {"none", "neutral", "refusal"}
    rows = respond(lively, wanted, tmp_path / "rows.jsonl", verdicts.bench(few), SAMPLING)
    for case, row in list(zip(wanted, rows, strict=True))[::5]:
        [alone] = sample(lively, [Request(case.prompt, case.forced)], SAMPLING)
        assert row["response"] == alone.text
        for one in case.forced:
            assert one.position == row["position"] and len(one.ids) == (row["tokens"] or len(one.ids))
            assert tuple(alone.raw_ids[one.position : one.position + len(one.ids)]) == one.ids
            assert row["landed"] == (len(alone.ids) >= one.position + len(one.ids))
    unforced = [row for row in rows if row["kind"] == "none"]
    assert len(unforced) == 3 and all(row["landed"] is None for row in unforced)


def test_an_even_sweep_stops_where_a_phrase_no_longer_fits(lively, harmful):
    wanted = cases(lively, harmful, [], Prefill(), PHRASES, 48)
    places = sorted({case.about["position"] for case in wanted} - {None})
    longest = max(len(case.measured.ids) for case in wanted if case.measured)
    assert places == list(range(0, places[-1] + 1, 4))
    assert places[-1] + longest <= 48 < places[-1] + 4 + longest


@pytest.mark.parametrize(
    ("asked", "length", "why"),
    [
        ({"positions": (0, 24)}, 24, "position 24 lies outside the response of 24 tokens"),
        ({"positions": (23,)}, 24, "left from position 23 on"),
        ({}, 1, "don't fit into a response of 1 tokens"),
    ],
)
def test_what_does_not_fit_is_told_before_the_model_runs(silent, harmful, asked, length, why):
    with pytest.raises(ValueError, match=why):
        cases(silent, harmful, [], Prefill(**asked), PHRASES, length)


def test_other_bad_input(silent, harmful):
    with pytest.raises(ValueError, match="no goals"):
        cases(silent, [], [], Prefill(positions=(0,)), PHRASES, 24)
    with pytest.raises(ValueError, match="Did you mean 'procedural'"):
        Prefill(kinds=("procedral",))
    with pytest.raises(ValueError, match="at least one kind"):
        Prefill(kinds=())
    with pytest.raises(ValueError, match="received 0"):
        Prefill(tokens=(0,))
    with pytest.raises(ValueError, match="position -1"):
        Prefill(positions=(-1,))

    class Mute:
        tokenizer = type("T", (), {"encode": staticmethod(lambda text, add_special_tokens: [])})

    with pytest.raises(ValueError, match="holds no token"):
        span(Mute(), "x", 0, 9)


# --- rows ------------------------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_to_the_same_rows(lively, harmful, tmp_path, monkeypatch):
    monkeypatch.setattr("midward.probes._run.CHUNK", 4)
    wanted = cases(lively, harmful, [], Prefill(("procedural",), (0, 9)), PHRASES, 24)
    judge = verdicts.bench(harmful)
    whole = respond(lively, wanted, tmp_path / "whole.jsonl", judge, SAMPLING)

    class Stop(Exception):
        pass

    done = []

    def stop(rows):
        done.append(rows)
        if sum(done) >= 8:
            raise Stop

    path = tmp_path / "rows.jsonl"
    with pytest.raises(Stop):
        respond(lively, wanted, path, judge, SAMPLING, progress=stop)
    assert len(path.read_text().splitlines()) == 8
    counts = []
    assert respond(lively, wanted, path, judge, SAMPLING, progress=counts.append) == whole
    assert counts[0] == 8 and sum(counts) == len(wanted)
    assert path.read_text() == (tmp_path / "whole.jsonl").read_text()
    respond(lively, wanted, path, judge, replace(SAMPLING, steps=4))  # other settings, other rows
    assert len(path.read_text().splitlines()) == 2 * len(wanted)


# --- judges ----------------------------------------------------------------------------------------------------


def test_verdicts_stand_in_the_rows_order(harmful):
    right = [procedure(g.metadata["kind"], Thing(*g.metadata["thing"].split())) for g in harmful]
    texts = [text if n % 2 else "I cannot help with that." for n, text in enumerate(right)]
    judge = verdicts.bench(harmful)
    found = verdicts.judge_rows(harmful, texts, judge)
    assert [one.success for one in found] == [bool(n % 2) for n in range(5)]
    read = [verdicts.reading(judge, one, text) for one, text in zip(found, texts, strict=True)]
    assert [one["refused"] for one in read] == [not n % 2 for n in range(5)]
    rubric = verdicts.bench(harmful, "harmfulness")
    with verdicts.judging(rubric) as ask:  # several calls on one loop
        assert ask(harmful, texts) == ask(harmful, texts)
        assert [one.success for one in ask(harmful, texts)] == [one.success for one in found]
    with pytest.raises(ValueError, match="5 goals for 1 responses"):
        verdicts.judge_rows(harmful, ["x"], judge)


def test_harmless_goals_are_put_to_no_model(calm):
    class Loud:
        async def __call__(self, goal, response, metadata):
            raise AssertionError("the judge was asked")

    judge = replace(verdicts.bench(calm, "harmfulness"), judge=Loud())
    found = verdicts.judge_rows(calm, ["I cannot help with that.", "t30", ""], judge)
    read = [verdicts.reading(judge, one, text) for one, text in zip(found, ["", "", ""], strict=True)]
    assert [(one["success"], one["refused"]) for one in read] == [(None, True), (None, False), (None, False)]


def test_judges_that_can_not_judge(harmful):
    stranger = [Goal("g", "t30", "mine", True)]
    for some, name, why in (
        (harmful, "orcale", "Did you mean 'oracle'"),
        (harmful, "refusal", "never success"),
        (stranger, "oracle", "goals of the sandbox only"),
        (stranger, None, "'harmfulness' asks a model"),
    ):
        with pytest.raises(JudgesError, match=why):
            verdicts.bench(some, name)
    assert verdicts.bench(stranger, None, "midward/sandbox-assistant").info.name == "harmfulness"


# --- readings --------------------------------------------------------------------------------------------------


def row(goal, kind, position, success, **more):
    about = {"goal": goal, "harmful": True, "kind": kind, "position": position, "tokens": None, "phrase": kind}
    read = {"success": success, "score": None if success is None else float(success), "own_refusal": False}
    return about | read | {"correct": None, "coherent": True, "landed": True} | more


outcomes = st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(outcomes)
def test_the_table_counts_what_was_scored_and_nothing_else(found):
    [cell] = _readings.cells([row(f"g{n}", "neutral", 3, hit) for n, hit in enumerate(found)])
    expected = rate(found).record()
    assert (cell["asr"], cell["unscored"], cell["n"]) == (expected["value"], expected["unscored"], len(found))
    if expected["n"]:
        assert (cell["asr_low"], cell["asr_high"]) == (expected["low"], expected["high"])
        assert cell["score"] == pytest.approx(expected["value"])


@settings(max_examples=25, deadline=None)
@given(st.lists(outcomes.map(lambda o: (o + [True] * 4)[:4]), min_size=2, max_size=6))
def test_the_slope_is_that_of_least_squares(table):
    places = (0, 8, 16, 30)
    rows = [
        row(f"g{n}", "neutral", p, hit) for n, line in enumerate(table) for p, hit in zip(places, line, strict=True)
    ]
    naive = [10 * np.polyfit(places, np.array(line, float), 1)[0] for line in table if None not in line]
    found = _readings.slope(rows)
    if not naive or np.ptp(naive) < 1e-9:
        assert found is None  # goals that are all alike give an interval no width
    else:
        value, low, high, n = found.value / 100, found.low / 100, found.high / 100, found.n
        assert value == pytest.approx(np.mean(naive), abs=1e-9) and n == len(naive)
        assert low <= value + 1e-9 and high >= value - 1e-9


def test_runs_are_compared_by_goal_condition_and_phrase():
    mine = [row(f"g{n}", "neutral", p, n < 3 or p == 0) for n in range(6) for p in (0, 8)]
    theirs = [row(f"g{n}", "neutral", p, False) for n in reversed(range(6)) for p in (8, 16)]
    [found] = _readings.against(mine, theirs)
    pair = paired([{f"g{n}": n < 3 for n in range(6)}], [{f"g{n}": False for n in range(6)}])
    assert found["position"] == 8 and found["value"] == pair.value == 0.5
    assert (found["low"], found["high"], found["p"], found["n"]) == (pair.low, pair.high, pair.p, 6)
    with pytest.raises(ValueError, match="share no row"):
        _readings.against(mine, [one | {"phrase": "another"} for one in theirs])


def test_the_sentence_tells_which_way_and_by_how_much():
    rows = [row(f"g{n}", "none", None, False) for n in range(20)]
    rows += [row(f"g{n}", "affirmative", 0, n < 10) for n in range(20)]
    rows += [row(f"g{n}", "procedural", p, n < (18 if p == 44 else 2)) for p in (12, 44, 80) for n in range(20)]
    said = findings(rows)
    assert said[1].startswith(
        "A procedural phrase at token 44 raises ASR from 50.0 % to 90.0 % (paired difference +40.0"
    )
    assert "over an affirmative phrase at token 0" in said[1]
    turned = [one | {"success": not one["success"]} for one in rows]
    assert "lowers ASR from 50.0 % to 10.0 %" in findings(turned)[1]
    same = [one | {"success": one["goal"] in ("g1", "g2")} for one in rows]
    assert findings(same)[1].startswith(
        "ASR is 10.0 % with an affirmative phrase at token 0 and 10.0 % with a procedural phrase at token 44: not told "
        "apart from no change (paired difference +0.0 points"
    )
    few = [one for one in rows if one["goal"] in ("g10", "g11", "g12")]
    assert findings(few)[1].startswith(
        "ASR is 0.0 % with an affirmative phrase at token 0 and 100.0 % with a procedural phrase at token 44: too few "
        "goals to tell (paired difference +100.0 points"
    )


# --- the command -----------------------------------------------------------------------------------------------


@pytest.fixture
def probe(lively_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "phrases.csv"
    path.write_text("kind,text\n" + "".join(f"{kind},{text}\n" for kind, texts in PHRASES.items() for text in texts))

    def run(*args):
        flags = ["--model", lively_folder, "--device", "cpu", "--length", 24, "--steps", 6, "--block", 12, "--count", 2]
        flags += ["--phrases-file", path, *args]
        result = CliRunner().invoke(app, ["probe", "prefill", *map(str, flags)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def test_harmless_goals_are_asked_unasked_on_the_sandbox_alone():
    of_the_sandbox, others = goals.load("sandbox", count=1), [Goal("1", "t30", "own", True)]
    assert len(_harmless(of_the_sandbox, None, None)) == 50 and _harmless(of_the_sandbox, 0, None) == []
    assert _harmless(others, None, None) == []
    assert len(_harmless(others, None, "sandbox-benign")) == 50
    with pytest.raises(InputError, match="--benign needs --benign-goals"):
        _harmless(others, 5, None)


def test_the_command_leaves_tables_figures_and_sentences(probe, tmp_path):
    flags = ["--positions", "0,10", "--benign", 2]
    result = probe(*flags, "--out", tmp_path / "a")
    assert result.exit_code == 0, result.stderr
    assert "28 responses, 10 of them to harmless goals (--benign 0 leaves those out)" in result.stderr
    names = {path.name for path in (tmp_path / "a").glob("[!.]*")}
    figures = {f"{stem}.{kind}" for stem in ("prefill", "prefill-heat") for kind in ("png", "svg")}
    assert names == figures | {"rows.jsonl", "prefill.csv", "summary.json", "run.json"}
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert len(summary["cells"]) == 1 + 4 * 2 + 1 + 2 * 2
    assert all(sentence in result.stdout for sentence in summary["findings"])
    other = probe("--positions", "10", "--benign", 2, "--out", tmp_path / "b", "--compare", tmp_path / "a")
    assert f"minus {tmp_path / 'a'}, by goal" in other.stdout
    pairs = json.loads((tmp_path / "b" / "summary.json").read_text())["compared"][str(tmp_path / "a")]
    assert {pair["value"] for pair in pairs} == {0.0} and {pair["n"] for pair in pairs} == {2}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--positions", "0,24"], "position 24 lies outside the response of 24 tokens"),
        (["--positions", "23"], "left from position 23 on"),
        (["--positions", "x"], "received 'x'"),
        (["--positions", ""], "names no position"),
        (["--phrases", "procedral"], "Did you mean 'procedural'"),
        (["--phrases", ","], "at least one kind"),
        (["--tokens", "1,two"], "--tokens takes numbers"),
        (["--judges", "orcale"], "Did you mean 'oracle'"),
        (["--goals", "sandbxo"], "Did you mean 'sandbox'"),
        (["--compare", "/nowhere"], "holds no finished run"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_bad_input_is_told_before_any_response(probe, tmp_path, args, message):
    result = probe("--out", tmp_path / "o", *args)
    assert result.exit_code == 2 and message in result.stderr, result.stderr
    assert result.stdout == "" and not (tmp_path / "o").exists()
