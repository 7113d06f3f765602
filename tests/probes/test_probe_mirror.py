"""A refusal forced under attack: where it goes, the window that is found, and the recipe that is written."""

import json
from functools import partial

import numpy as np
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from midward import goals
from midward.cli import app
from midward.errors import InputError
from midward.goals import Goal
from midward.probes.mirror import Mirror, cases, findings, recipe, window
from midward.probes.phrases import phrases_for
from midward.stats import paired
from midward.world import REFUSALS, wrappers

LENGTH = 96


@pytest.fixture(scope="module")
def chosen():
    return goals.load("sandbox-tuning", count=6)


def row(goal, start, success, *, tokens=None):
    kind = "none" if start is None else "refusal"
    about = {"goal": goal, "harmful": True, "kind": kind, "position": start, "tokens": tokens, "phrase": kind}
    return about | {"success": success, "attack": "prefill"}


def rows_of(table, gap=4):
    """table [starts, goals] of verdicts; the starts lie `gap` apart."""
    return [row(f"g{n}", gap * place, hit) for place, line in enumerate(table) for n, hit in enumerate(line)]


# --- what is forced --------------------------------------------------------------------------------------------


def test_the_refusal_ends_the_response_and_the_opening_is_the_attackers(llada, chosen):
    texts = phrases_for(chosen)
    wanted = cases(llada, chosen, Mirror(starts=(70, 80), tokens=(None, 3), width=8), texts, LENGTH * 2)
    assert len(wanted) == 6 * (1 + 2 * 2)
    end = llada.family.end_ids[0]
    ids = partial(llada.tokenizer.encode, add_special_tokens=False)
    for case in wanted:
        opening, *safe = case.forced
        assert opening.position == 0 and list(opening.ids) == ids(case.goal.target)
        assert case.prompt == case.goal.text
        for one in safe:
            assert case.about["phrase"] in REFUSALS and one.position == case.about["position"]
            assert list(one.ids) == [*ids(f" {case.about['phrase']}")[: case.about["tokens"]], end]
    assert {len(case.forced) for case in wanted[:6]} == {1} and {len(case.forced) for case in wanted[6:]} == {2}


def test_a_wrapper_of_the_split_dresses_the_request_up(llada, chosen):
    for name, group in (("sandbox-tuning", "tuning"), ("sandbox", "test")):
        some = goals.load(name, count=6)
        wanted = cases(llada, some, Mirror(attack="wrapper", starts=(0,), width=1), phrases_for(some), LENGTH)
        for case in wanted:
            assert case.prompt in {one.apply(case.goal.text) for one in wrappers(group)}
        assert not wanted[0].forced and wanted[6].forced[0].position == 0


def test_the_even_sweep_lies_behind_the_attack_and_fits(llada, chosen):
    wanted = cases(llada, chosen, Mirror(), phrases_for(chosen), LENGTH * 2)
    places = sorted({case.about["position"] for case in wanted} - {None})
    opening = max(len(case.forced[0].ids) for case in wanted)
    longest = max(len(case.measured.ids) for case in wanted if case.measured)
    assert places == list(range(places[0], places[-1] + 1, 8))
    assert places[0] - 8 < opening <= places[0] and places[-1] + longest <= LENGTH * 2 < places[-1] + 8 + longest


def test_what_can_not_be_forced(llada, chosen, monkeypatch):
    monkeypatch.setattr(llada, "hidden", lambda *args, **more: pytest.fail("the model ran"))
    texts = phrases_for(chosen)
    for some, asked, why in (
        (chosen, Mirror(starts=(4,)), "start 4 lies inside the"),
        (chosen, Mirror(starts=(LENGTH,)), "position 96 lies outside the response of 96 tokens"),
        (chosen, Mirror(starts=(40, 48)), "hold no window of 40"),
        (chosen, Mirror(starts=(LENGTH - 2,), width=1), "left from position 94 on"),
        ([], Mirror(), "no goals"),
        ([Goal("g", "t30", "mine", True)], Mirror(attack="wrapper"), "of the sandbox only"),
    ):
        with pytest.raises(ValueError, match=why):
            cases(llada, some, asked, texts, LENGTH)
    with pytest.raises(ValueError, match="Did you mean 'wrapper'"):
        Mirror(attack="wraper")
    for wrong in ({"width": 0}, {"tokens": (0,)}, {"tokens": ()}, {"starts": (-4,)}):
        with pytest.raises(ValueError, match="received|position -4"):  # noqa: RUF043
            Mirror(**wrong)


# --- the window ------------------------------------------------------------------------------------------------


def test_the_window_with_least_success_is_found():
    table = np.ones((20, 30), bool)
    table[6:12] = False  # starts 24 to 44
    found = window(rows_of(table), 24)
    assert (found.start, found.end, found.asr, found.tied) == (24, 48, 0.0, ())


def test_of_windows_that_are_not_told_apart_the_leftmost_is_taken():
    table = np.ones((20, 30), bool)
    table[4:16] = False
    table[5, 0] = True  # one goal of thirty at one start: the windows over it are a little worse, and tied
    found = window(rows_of(table), 24)
    assert found.start == 16 and set(found.tied) == {20, 24, 28, 32, 36, 40} and 0 < found.asr < 0.01


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=3, max_size=9), st.sampled_from((4, 8, 12)))
def test_the_window_agrees_with_the_plain_statement(table, width):
    values = np.array(table, float)
    found = window(rows_of(table), width)
    size = width // 4
    every = {4 * k: values[k : k + size].mean(0) for k in range(len(table) - size + 1)}
    least = min(mean.mean() for mean in every.values())
    best = next(mean for mean in every.values() if mean.mean() == least)
    tied = [start for start, mean in every.items() if paired([dict(enumerate(mean))], [dict(enumerate(best))]).low <= 0]
    assert found.start == tied[0] and set(found.tied) == set(tied[1:])
    assert found.asr == pytest.approx(every[found.start].mean()) and found.end == found.start + width
    assume(found.low < found.high)
    assert found.low <= found.asr <= found.high


def test_unscored_goals_do_not_count():
    table = [[True, None, False]] * 3
    found = window(rows_of(table), 8)
    assert found.asr == 0.5


def test_a_sweep_that_holds_no_window():
    with pytest.raises(ValueError, match="covers the starts 0 to 8, which hold no window of 40"):
        window(rows_of([[True]] * 3), 40)
    with pytest.raises(ValueError, match="covers no start"):
        window([row("g", None, True)], 40)


def test_the_sentence_says_what_is_saved():
    rows = [row(f"g{n}", None, n < 8) for n in range(10)]
    rows += rows_of([[n < 2 for n in range(10)]] * 2)
    said = findings(rows, window(rows, 8))[0]
    assert "ASR 80.0 % alone, n 10" in said and "leaves an ASR of 20.0 %" in said
    assert "saves 75.0 % of the responses" in said
    unscored = rows_of([[n < 2 if n < 4 else None for n in range(10)]] * 2)
    assert "saves 50.0 % of the responses" in findings(rows[:10] + unscored, window(rows, 8))[0]


# --- the command -----------------------------------------------------------------------------------------------


def midward(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_recipe_is_one_that_align_reads(lively_folder, llada, tmp_path, monkeypatch):
    out = tmp_path / "mirror"
    here = ["--model", lively_folder, "--device", "cpu"]
    result = midward(
        "probe",
        "mirror",
        *here,
        "--length",
        80,
        "--steps",
        2,
        "--count",
        2,
        "--starts",
        "60:64:2",
        "--width",
        4,
        "--tokens",
        2,
        "--out",
        out,
    )
    assert result.exit_code == 0, result.stderr
    names = {"rows.jsonl", "mirror.csv", "mirror.png", "mirror.svg", "recipe.yaml", "run.json", "summary.json"}
    assert {path.name for path in out.glob("[!.]*")} == names
    found = json.loads((out / "summary.json").read_text())["window"]
    assert (found["start"], found["end"]) == (60, 64) and "up to 64" in result.stdout

    seen = {}

    def train(model, data, folder, **given):
        seen.update(given)
        raise InputError("enough")

    monkeypatch.setattr("midward.alignment.align", train)
    (tmp_path / "p.jsonl").write_text('{"prompt": "t30"}\n')
    flags = ["--data", tmp_path / "p.jsonl", "--out", tmp_path / "a", "--config", out / "recipe.yaml"]
    result = midward("align", *here, *flags)
    assert result.stderr.endswith("error: enough\n"), result.stderr
    assert (seen["method"], seen["window_start"], seen["window_end"], seen["length"]) == ("mosa", 60, 64, 80)


def test_the_recipe_holds_the_window_and_the_length():
    found = window(rows_of([[True, False]] * 12), 40)
    assert yaml.safe_load(yaml.safe_dump(recipe(found, LENGTH))) == {
        "method": "mosa",
        "set": {"window_start": 0, "window_end": 40, "length": 96},
    }


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--starts", "2"], "start 2 lies inside the"),
        (["--starts", "96"], "position 96 lies outside the response of 96 tokens"),
        (["--attack", "wraper"], "--attack"),
        (["--judges", "refusal"], "never success"),
        (["--width", "0"], "--width"),
        (["--starts", "48", "--width", "40"], "hold no window of 40"),
    ],
)
def test_bad_input_is_told(llada_folder, tmp_path, args, message, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    flags = ["--model", llada_folder, "--device", "cpu", "--length", 96, "--steps", 1, "--count", 1]
    result = midward("probe", "mirror", *flags, "--out", tmp_path / "o", *args)
    assert result.exit_code == 2 and message in " ".join(result.stderr.replace("│", " ").split()), result.stderr
    assert result.stdout == "" and not (tmp_path / "o").exists()
