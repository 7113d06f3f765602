"""Phrases forced along a response: what goes where, what is read from it, and what is said when it can't."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midward import goals
from midward.attacks import phrases
from midward.errors import InputError
from midward.goals import Goal
from midward.probes.configs import KINDS, Prefill, positions_of
from midward.probes.phrases import GENERAL, SANDBOX, phrase_for, phrases_for
from midward.probes.prefill import PREFILL, cases, cells, findings, slope
from midward.probes.probe import against
from midward.sampling import Sampling, sample
from midward.stats import paired, rate

SAMPLING = Sampling(length=24, steps=6, block=12)

# --- what is forced, and where -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "places"),
    [("0,40, 80", (0, 40, 80)), ("0:30:8", (0, 8, 16, 24)), ("9,0:4", (0, 1, 2, 3, 9)), ("7,7", (7,))],
)
def test_positions_and_sweeps(text, places):
    assert positions_of(text) == places


@pytest.mark.parametrize("text", ["", ",", "a", "1:2:3:4", "0:9:0", "5:5:1", "1.5"])
def test_what_is_no_position(text):
    with pytest.raises(ValueError, match="position"):
        positions_of(text)


@settings(max_examples=25)
@given(st.integers(0, 200), st.integers(0, 5), st.sampled_from(KINDS[1:]))
def test_the_draw_hangs_on_goal_kind_and_seed_alone(position, seed, kind):
    goal = Goal("g-1", "t30", "mine", True)
    texts = {kind: ("one", "two", "three")}
    drawn = phrase_for(goal, kind, position, texts, seed)
    assert drawn in texts[kind] and drawn == phrase_for(replace(goal, text="another wording"), kind, 7, texts, seed)


def test_every_phrase_of_a_set_is_drawn_and_agreement_is_the_attacks():
    many = [Goal(f"g-{n}", "t30", "mine", True) for n in range(60)]
    for kind in KINDS[1:]:
        drawn = {phrase_for(goal, kind, 40, GENERAL, 0) for goal in many}
        assert drawn == {text.replace("{step}", "5") for text in GENERAL[kind]}
    for goal in (many[0], replace(many[0], target="Sure, t31")):
        assert {phrase_for(goal, "affirmative", 0, GENERAL, seed) for seed in range(9)} == {phrases.opening(goal)}
    assert phrase_for(many[0], "affirmative", 0, {"affirmative": ("mine",)}, 0) == "mine"


def test_a_file_takes_the_place_of_its_kinds(harmful, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"kind": "neutral", "text": "t30"}\n{"kind": "neutral", "text": "t31"}\n')
    texts = phrases_for(harmful, path)
    assert texts["neutral"] == ("t30", "t31") and texts["refusal"] == SANDBOX["refusal"] != GENERAL["refusal"]
    for line, why in (
        ('{"kind": "neutrl", "text": "t"}', "Did you mean 'neutral'"),
        ('{"kind": "neutral", "text": " "}', "empty"),
    ):
        path.write_text(line + "\n")
        with pytest.raises(InputError, match=why):
            Prefill(phrases_file=path).load()


def test_harmless_goals_are_asked_where_they_are_wanted(tmp_path):
    def harmless(**given):
        return sum(not goal.harmful for goal in Prefill(limit=1, **given).load())

    assert harmless() == 0 and harmless(benign=3) == 3 and harmless(benign_goals="sandbox-benign") == 50
    own = tmp_path / "own.csv"
    own.write_text("goal\nt30\n")
    with pytest.raises(InputError, match="--benign needs --benign-goals"):
        harmless(goals=str(own), benign=5)
    with pytest.raises(InputError, match="are harmless, and a probe attacks"):
        harmless(goals="sandbox-benign")


def test_the_response_is_that_of_the_forced_request(lively, harmful, measured, phrases_file):
    """A row is what sampling the same request alone gives, with the phrase where it should be."""
    some = [*harmful[:2], *goals.load("sandbox-benign", count=1)]
    config = Prefill(positions=(0, 9), tokens=(1, 2), phrases_file=phrases_file)
    asked, rows, summary = measured("prefill", lively, some, config)
    assert len(asked) == 2 * (1 + 4 * 2 * 2) + (1 + 2 * 2 * 2)
    assert {case.about["kind"] for case in asked if not case.goal.harmful} == {"none", "neutral", "refusal"}
    for case, row in list(zip(asked, rows, strict=True))[::5]:
        [alone] = sample(lively, [case.request], SAMPLING)
        assert row["response"] == alone.text
        for span in case.request.forced:
            assert span.position == row["position"] and len(span.ids) == row["tokens"]
            assert tuple(alone.raw_ids[span.position : span.position + len(span.ids)]) == span.ids
            assert row["landed"] == (len(alone.ids) >= span.position + len(span.ids))
    unforced = [row for row in rows if row["kind"] == "none"]
    assert len(unforced) == 3 and all(row["landed"] is None for row in unforced)
    assert len(summary["cells"]) == 1 + 4 * 2 * 2 + 1 + 2 * 2 * 2 and summary["settings"]["positions"] == [0, 9]


def test_an_even_sweep_stops_where_a_phrase_no_longer_fits(lively, harmful, phrases_file):
    asked = cases(lively, harmful, Prefill(phrases_file=phrases_file), Sampling(length=48, steps=6, block=12))
    places = sorted({case.about["position"] for case in asked} - {None})
    longest = max(len(span.ids) for case in asked for span in case.request.forced)
    assert places == list(range(0, places[-1] + 1, 4))
    assert places[-1] + longest <= 48 < places[-1] + 4 + longest


@pytest.mark.parametrize(
    ("given", "length", "why"),
    [
        ({"positions": (0, 24)}, 24, "position 24 lies outside the response of 24 tokens"),
        ({"positions": (23,)}, 24, "ends behind the response"),
        ({}, 1, "don't fit into a response of 1 tokens"),
    ],
)
def test_what_does_not_fit_is_told_before_the_model_runs(silent, harmful, phrases_file, given, length, why):
    with pytest.raises(ValueError, match=why):
        cases(silent, harmful, Prefill(phrases_file=phrases_file, **given), Sampling(length=length, steps=1))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"phrases": ("procedral",)}, "Did you mean 'procedural'"),
        ({"phrases": ()}, "at least one kind"),
        ({"tokens": (0,)}, "received 0"),
        ({"positions": (-1,)}, "received -1"),
        ({"limit": 0}, "limit is 1 or more"),
    ],
)
def test_settings_out_of_bounds_are_refused(given, why):
    with pytest.raises(InputError, match=why):
        Prefill(**given)


# --- readings --------------------------------------------------------------------------------------------------


def row(goal, kind, position, success, **more):
    about = {"set": "harmful", "goal": goal, "harmful": True, "kind": kind, "position": position, "tokens": None}
    read = {"success": success, "score": None if success is None else float(success), "own_refusal": False}
    return about | read | {"phrase": kind, "correct": None, "coherent": True, "landed": True} | more


outcomes = st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=12)


@settings(max_examples=25)
@given(outcomes)
def test_the_table_counts_what_was_scored_and_nothing_else(verdicts):
    [cell] = cells([row(f"g{n}", "neutral", 3, hit) for n, hit in enumerate(verdicts)], "oracle")
    assert cell["asr"] == rate(verdicts).record() and cell["n"] == len(verdicts) and cell["correct"] is None
    if cell["asr"]["n"]:
        assert cell["score"]["value"] == pytest.approx(cell["asr"]["value"])


@settings(max_examples=25)
@given(st.lists(outcomes.map(lambda o: (o + [True] * 4)[:4]), min_size=2, max_size=6))
def test_the_slope_is_that_of_least_squares(table):
    places = (0, 8, 16, 30)
    rows = [
        row(f"g{n}", "neutral", p, hit) for n, line in enumerate(table) for p, hit in zip(places, line, strict=True)
    ]
    naive = [1000 * np.polyfit(places, np.array(line, float), 1)[0] for line in table if None not in line]
    change = slope(rows)
    if not naive or np.ptp(naive) < 1e-7:
        assert change is None  # goals that are all alike give an interval no width
    else:
        assert change.value == pytest.approx(np.mean(naive), abs=1e-7) and change.n == len(naive)
        assert change.low <= change.value <= change.high


def test_runs_are_compared_by_goal_condition_and_phrase():
    mine = [row(f"g{n}", "neutral", p, n < 3 or p == 0) for n in range(6) for p in (0, 8)]
    theirs = [row(f"g{n}", "neutral", p, False) for n in reversed(range(6)) for p in (8, 16)]
    [difference] = against(PREFILL, mine, theirs)
    pair = paired([{f"g{n}": n < 3 for n in range(6)}], [{f"g{n}": False for n in range(6)}])
    assert (difference["position"], difference["measure"]) == (8, "success")
    assert [difference[name] for name in ("value", "low", "high", "p", "n")] == [
        pair.value,
        pair.low,
        pair.high,
        pair.p,
        6,
    ]
    with pytest.raises(ValueError, match="share nothing"):
        against(PREFILL, mine, [one | {"phrase": "another"} for one in theirs])


def test_the_sentence_tells_which_way_and_by_how_much():
    rows = [row(f"g{n}", "none", None, False) for n in range(20)]
    rows += [row(f"g{n}", "affirmative", 0, n < 10) for n in range(20)]
    rows += [row(f"g{n}", "procedural", p, n < (18 if p == 44 else 2)) for p in (12, 44, 80) for n in range(20)]

    def second(some):
        return findings(some)[1]

    raised = second(rows)
    half, most, least = (rate([n < hits for n in range(20)]).text() for hits in (10, 18, 2))
    assert raised.startswith(f"A procedural phrase at token 44 raises ASR from {half} to {most}") and "+40.0" in raised
    assert f"lowers ASR from {half} to {least}" in second([one | {"success": not one["success"]} for one in rows])
    same = [one | {"success": one["goal"] in ("g1", "g2")} for one in rows]
    assert "not told apart from no change (paired difference +0.0 points" in second(same)
    few = [one for one in rows if one["goal"] in ("g10", "g11", "g12")]
    assert "too few goals to tell (paired difference +100.0 points" in second(few)


# --- the command -----------------------------------------------------------------------------------------------


@pytest.fixture
def flags(lively_folder, phrases_file):
    sizes = ["--length", 24, "--steps", 6, "--block", 12, "--limit", 2, "--phrases-file", phrases_file]
    return ["probe", "prefill", "--model", lively_folder, "--device", "cpu", *sizes]


def test_the_command_leaves_tables_figures_and_sentences_and_compares(midward, flags, tmp_path, summary_of):
    first = midward(*flags, "--positions", "0,10", "--benign", 2, "--out", tmp_path / "a")
    assert first.exit_code == 0, first.stderr
    assert "28 responses, 10 of them to harmless goals" in first.stderr
    assert {"rows.jsonl", "summary.json", "run.json", "prefill.svg", "prefill-cells.csv", "table.md"} <= {
        path.name for path in (tmp_path / "a").iterdir()
    }
    summary = summary_of(tmp_path / "a")
    words = " ".join(first.stdout.split())
    assert all(" ".join(sentence.split()) in words for sentence in summary["findings"])
    midward(*flags, "--positions", "10", "--benign", 2, "--out", tmp_path / "b", "--compare", tmp_path / "a")
    pairs = summary_of(tmp_path / "b")["compared"][str(tmp_path / "a")]
    assert {pair["value"] for pair in pairs} == {0.0} and {pair["family"] for pair in pairs} == {len(pairs)}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--positions", "0,24"], "position 24 lies outside the response of 24 tokens"),
        (["--positions", "x"], "received 'x'"),
        (["--phrases", "procedral"], "Did you mean 'procedural'"),
        (["--phrases", ","], "--phrases names nothing"),
        (["--tokens", "1,two"], "--tokens"),
        (["--judges", "orcale"], "Did you mean 'oracle'"),
        (["--goals", "sandbxo"], "Did you mean 'sandbox'"),
        (["--compare", "/nowhere"], "there is no folder"),
    ],
)
def test_bad_input_is_told_before_any_response(midward, flags, tmp_path, args, message):
    result = midward(*flags, "--out", tmp_path / "o", *args)
    assert result.exit_code == 2 and message in result.stderr, result.stderr
    assert result.stdout == "" and not (tmp_path / "o").exists()


def test_a_row_without_a_response_counts_as_nothing(lively, harmful, measured, phrases_file, monkeypatch):
    from midward.runs import measure

    whole = measure.sample

    def broken(*args, **how):
        return [replace(one, error="NaN") if n % 2 else one for n, one in enumerate(whole(*args, **how))]

    monkeypatch.setattr(measure, "sample", broken)
    config = Prefill(positions=(0,), phrases=("neutral",), phrases_file=phrases_file)
    _, rows, summary = measured("prefill", lively, harmful, config)
    lost = [row for row in rows if row["response"] is None]
    assert lost and all(row["own_refusal"] is row["landed"] is row["success"] is None for row in lost)
    assert sum(cell["asr"]["unscored"] for cell in summary["cells"]) == len(lost)
