"""A refusal forced under attack: where it goes, and the window that is found."""

from functools import partial

import numpy as np
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from midward import goals
from midward.errors import InputError
from midward.goals import Goal
from midward.probes.configs import Mirror
from midward.probes.mirror import cases, findings, window
from midward.sampling import Sampling
from midward.stats import paired, rate
from midward.world import REFUSALS, wrappers

LONG = Sampling(length=192, steps=1)
SHORT = Sampling(length=96, steps=1)


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
    asked = cases(llada, chosen, Mirror(starts=(70, 80), tokens=(3, 99), width=8), LONG)
    assert len(asked) == 6 * (1 + 2 * 2)
    end = llada.family.end_ids[0]
    ids = partial(llada.tokenizer.encode, add_special_tokens=False)
    for case in asked:
        opening, *safe = case.request.forced
        assert opening.position == 0 and list(opening.ids) == ids(case.goal.target)
        assert case.request.prompt == case.goal.text
        for span in safe:
            assert case.about["phrase"] in REFUSALS and span.position == case.about["position"]
            assert list(span.ids) == [*ids(f" {case.about['phrase']}")[: case.about["tokens"]], end]
    assert [len(case.request.forced) for case in asked] == [1] * 6 + [2] * 24


def test_a_wrapper_of_the_split_dresses_the_request_up(llada, chosen):
    for name, group in (("sandbox-tuning", "tuning"), ("sandbox", "test")):
        some = goals.load(name, count=6)
        asked = cases(llada, some, Mirror(attack="wrapper", starts=(0,), width=1), SHORT)
        for case in asked:
            assert case.request.prompt in {wrapper.apply(case.goal.text) for wrapper in wrappers(group)}
        assert not asked[0].request.forced and asked[6].request.forced[0].position == 0


def test_the_even_sweep_lies_behind_the_attack_and_fits(llada, chosen):
    asked = cases(llada, chosen, Mirror(), LONG)
    places = sorted({case.about["position"] for case in asked} - {None})
    opening = max(len(case.request.forced[0].ids) for case in asked)
    longest = max(len(case.request.forced[1].ids) for case in asked[6:])
    assert places == list(range(places[0], places[-1] + 1, 8))
    assert places[0] - 8 < opening <= places[0] and places[-1] + longest <= 192 < places[-1] + 8 + longest


def test_what_can_not_be_forced(llada, chosen, monkeypatch):
    monkeypatch.setattr(llada, "hidden", lambda *args, **more: pytest.fail("the model ran"))
    for some, config, why in (
        (chosen, Mirror(starts=(4,)), "start 4 lies inside the"),
        (chosen, Mirror(starts=(96,)), "position 96 lies outside the response of 96 tokens"),
        (chosen, Mirror(starts=(40, 48)), "hold no window of 40"),
        (chosen, Mirror(starts=(94,), width=1), "ends behind the response"),
        ([Goal("g", "t30", "mine", True)], Mirror(attack="wrapper"), "of the sandbox only"),
    ):
        with pytest.raises(ValueError, match=why):
            cases(llada, some, config, SHORT)
    for wrong, why in (({"attack": "wraper"}, "Did you mean 'wrapper'"), ({"width": 0}, "received 0")):
        with pytest.raises(InputError, match=why):
            Mirror(**wrong)


# --- the window ------------------------------------------------------------------------------------------------


def test_the_window_with_least_success_is_found():
    table = np.ones((20, 30), bool)
    table[6:12] = False  # starts 24 to 44
    found = window(rows_of(table), 24)
    assert (found["start"], found["end"], found["asr"]["value"], found["tied"]) == (24, 48, 0.0, [])


def test_of_windows_that_are_not_told_apart_the_leftmost_is_taken():
    table = np.ones((20, 30), bool)
    table[4:16] = False
    table[5, 0] = True  # one goal of thirty at one start: the windows over it are a little worse, and tied
    found = window(rows_of(table), 24)
    assert found["start"] == 16 and set(found["tied"]) == {20, 24, 28, 32, 36, 40} and 0 < found["asr"]["value"] < 0.01


@settings(max_examples=25)
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=3, max_size=9), st.sampled_from((4, 8, 12)))
def test_the_window_agrees_with_the_plain_statement(table, width):
    values = np.array(table, float)
    found = window(rows_of(table), width)
    size = width // 4
    every = {4 * k: values[k : k + size].mean(0) for k in range(len(table) - size + 1)}
    least = min(mean.mean() for mean in every.values())
    best = next(mean for mean in every.values() if mean.mean() == least)
    tied = [start for start, mean in every.items() if paired([dict(enumerate(mean))], [dict(enumerate(best))]).low <= 0]
    assert found["start"] == tied[0] and set(found["tied"]) == set(tied[1:])
    assert (
        found["asr"]["value"] == pytest.approx(every[found["start"]].mean()) and found["end"] == found["start"] + width
    )
    assume(found["asr"]["low"] < found["asr"]["high"])
    assert found["asr"]["low"] <= found["asr"]["value"] <= found["asr"]["high"]


def test_unscored_goals_do_not_count():
    assert window(rows_of([[True, None, False]] * 3), 8)["asr"]["value"] == 0.5
    with pytest.raises(InputError, match="no goal was scored"):
        window(rows_of([[None]] * 3), 8)


def test_a_sweep_that_holds_no_window():
    with pytest.raises(ValueError, match="covers the starts 0 to 8, which hold no window of 40"):
        window(rows_of([[True]] * 3), 40)
    with pytest.raises(ValueError, match="covers no start"):
        window([row("g", None, True)], 40)


def test_the_sentence_says_what_is_saved():
    rows = [row(f"g{n}", None, n < 8) for n in range(10)]
    rows += rows_of([[n < 2 for n in range(10)]] * 2)
    [sentence] = findings(rows, window(rows, 8))
    assert "ASR 80.0 %" in sentence and "leaves an ASR of 20.0 %" in sentence
    saved = rate([n >= 2 for n in range(8)] * 2, [*range(8)] * 2)
    assert f"saves {saved.text()} of the responses" in sentence
    unscored = rows_of([[n < 2 if n < 4 else None for n in range(10)]] * 2)
    assert "saves 50.0 % [" in findings(rows[:10] + unscored, window(rows, 8))[0]


# --- the command -----------------------------------------------------------------------------------------------


def test_the_window_is_one_that_align_reads(midward, lively_folder, tmp_path, summary_of):
    out, here = tmp_path / "mirror", ["--model", lively_folder, "--device", "cpu"]
    sizes = ["--length", 80, "--steps", 2, "--limit", 2, "--starts", "60:64:2", "--width", 4, "--tokens", 2]
    result = midward("probe", "mirror", *here, *sizes, "--out", out)
    assert result.exit_code == 0, result.stderr
    found = summary_of(out)["window"]
    assert (found["start"], found["end"]) == (60, 64) and "up to 64" in result.stdout and "align.yaml" in result.stderr
    assert yaml.safe_load((out / "align.yaml").read_text())["window_end"] == 64

    (tmp_path / "p.jsonl").write_text('{"prompt": "t30"}\n')
    flags = ["--data", tmp_path / "p.jsonl", "--out", tmp_path / "a", "--config", out / "align.yaml"]
    result = midward("align", *here, *flags)  # told, and refused as harmless prompts are missing
    assert "length 80, window_start 60, window_end 64" in result.stderr and "benign" in result.stderr
