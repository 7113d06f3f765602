"""Anchors along their number: what stands where, what is judged apart, and where no refusal has room."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import midward as package
from midward import goals
from midward.errors import InputError
from midward.probes import anchor
from midward.probes.configs import SOURCES, Anchor
from midward.probes.probe import against
from midward.sampling import Sampling, sample
from midward.world import judge as oracle

SAMPLING = Sampling(length=24, steps=6, order="random")
TEXT = " ".join(f"t{number}" for number in range(30, 60))


@pytest.fixture(scope="module")
def embedded():
    """The model in the package, whose tokenizer knows the procedures' words."""
    return package.load("sandbox", device="cpu", dtype="float32")


@pytest.fixture
def texts(harmful, tmp_path):
    """A compliant text of 30 tokens of the tiny vocabulary for each goal, as a file."""
    path = tmp_path / "texts.json"
    path.write_text(json.dumps({goal.id: f"t{100 + n} {TEXT}" for n, goal in enumerate(harmful)}))
    return str(path)


# --- what is asked -----------------------------------------------------------------------------------


def test_anchors_are_the_texts_own_tokens_at_their_own_places(lively, harmful, texts):
    config = Anchor(anchors=(0, 1, 6), draws=2, texts=texts, places="uniform")
    asked = anchor.cases(lively, harmful[:2], config, SAMPLING)
    assert len(asked) == 2 + 2 * 2 * 2
    for number, goal in enumerate(harmful[:2]):
        ids = lively.tokenizer(f"t{100 + number} {TEXT}", add_special_tokens=False)["input_ids"]
        own = [case for case in asked if case.goal is goal]
        assert [len(case.request.forced) for case in own] == [case.about["anchors"] for case in own]
        for case in own:
            assert all(span.ids == (ids[span.position],) for span in case.request.forced)
        assert len({tuple(span.position for span in case.request.forced) for case in own}) == len(own)
    assert asked == anchor.cases(lively, harmful[:2], config, SAMPLING)
    twice = Anchor(anchors=(1, 6), draws=2, texts=texts, sources=("own", "own"))
    assert asked == anchor.cases(lively, harmful[:2], twice, SAMPLING)


def test_fractions_are_numbers_of_anchors_once_each():
    assert Anchor().counts(96) == (1, 3, 6, 12, 24)
    assert Anchor(fractions=(0, 0.01, 0.02, 0.5)).counts(24) == (1, 12)
    assert Anchor(anchors=(8, 0, 4)).counts(24) == (4, 8)


@settings(max_examples=60)
@given(st.sets(st.integers(0, 15)), st.integers(1, 18))
def test_a_refusal_has_room_where_so_many_places_in_a_row_are_free(taken, room):
    row = "".join("x" if place in taken else "." for place in range(16))
    free = anchor.free_starts(taken, room, 16)
    assert free == [start for start in range(16) if row[start : start + room] == "." * room]


def test_the_ceiling_is_the_share_of_draws_without_room(lively, harmful, texts, measured):
    config = Anchor(anchors=(12,), draws=4, texts=texts, room=4)
    asked, _, summary = measured("anchor", lively, harmful, config, SAMPLING)
    closed = [case for case in asked if not anchor.free_starts({s.position for s in case.request.forced}, 4, 24)]
    [cell] = [cell for cell in summary["cells"] if cell["anchors"]]
    assert cell["no_room"]["value"] == len(closed) / 20 and 0 < len(closed) < 20
    assert cell["no_room"]["goals"] == 5 and cell["fraction"] == 0.5


# --- what comes of it --------------------------------------------------------------------------------


def test_own_tokens_and_anchors_are_judged_apart(embedded, harmful, measured):
    config = Anchor(anchors=(4, 12), draws=1, sources=SOURCES)
    asked, rows, summary = measured("anchor", embedded, harmful[:2], config, SAMPLING)
    for case, row in list(zip(asked, rows, strict=True))[::3]:
        [response] = sample(embedded, [case.request], SAMPLING)
        anchored = {span.position: span.ids[0] for span in case.request.forced}
        assert row["response"] == response.text and set(anchored) <= set(range(24))
        own = embedded.decode([token for at, token in enumerate(response.ids) if at not in anchored])
        reading = oracle(case.goal.metadata, own)
        assert row["own_success"] == reading.success and row["own_refused"] == reading.refused
        assert (row["alone_success"] is None) == (not anchored)
    assert {cell["source"] for cell in summary["cells"]} == {"none", *SOURCES}


def test_what_anchors_say_alone_is_their_runs_in_order(lively, harmful, texts):
    [_, case] = anchor.cases(
        lively, harmful[:1], Anchor(anchors=(5,), draws=1, texts=texts, places="contiguous"), SAMPLING
    )
    [response] = sample(lively, [case.request], SAMPLING)
    own, alone = anchor.Apart(lively).texts(0, case, response)
    assert alone == lively.decode([span.ids[0] for span in case.request.forced]).strip()
    [_, case] = anchor.cases(lively, harmful[:1], Anchor(anchors=(5,), draws=1, texts=texts), SAMPLING)
    [response] = sample(lively, [case.request], SAMPLING)
    own, alone = anchor.Apart(lively).texts(0, case, response)
    words = [lively.decode([span.ids[0]]).strip() for span in case.request.forced]
    assert [word for word in alone.split() if word != "..."] == words and "..." in alone
    taken = {span.position for span in case.request.forced}
    assert own == lively.decode([token for at, token in enumerate(response.ids) if at not in taken])


def test_harmless_goals_get_anchors_of_their_own_texts(lively, measured):
    some = Anchor(limit=2, benign=2).load()
    assert [goal.harmful for goal in some] == [True, True, False, False]
    config = Anchor(anchors=(2,), draws=2, sources=("neutral",))
    asked, _, summary = measured("anchor", lively, some, config, SAMPLING)
    benign = [case for case in asked if not case.goal.harmful]
    assert [case.about["source"] for case in benign] == ["none"] * 2 + ["own"] * 4
    assert any("On harmless goals 2 anchors" in sentence for sentence in summary["findings"])
    assert all(cell["asr"] is None for cell in summary["cells"] if cell["set"] == "benign")


def test_a_run_that_was_stopped_goes_on_and_two_runs_are_paired_by_draw(lively, harmful, texts, measured, tmp_path):
    config = Anchor(anchors=(3,), draws=3, texts=texts, batch_size=1)
    _, whole, summary = measured("anchor", lively, harmful, config, SAMPLING, folder="whole")

    def stop(what, done, of):
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured("anchor", lively, harmful, config, SAMPLING, folder="cut", progress=stop)
    _, again, other = measured("anchor", lively, harmful, config, SAMPLING, folder="cut")

    def timeless(rows):
        return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]

    assert timeless(again) == timeless(whole) and other == summary
    pairs = against(anchor.ANCHOR, whole, [{**row, "success": not row["success"]} for row in again])
    [pair] = [pair for pair in pairs if pair["measure"] == "success" and pair["anchors"] == 3]
    assert pair["n"] == 15 and abs(pair["value"]) == pytest.approx(
        abs(1 - 2 * sum(row["success"] for row in whole if row["anchors"]) / 15)
    )


# --- what can't be -----------------------------------------------------------------------------------


def test_what_can_not_be_asked_is_told_before_the_model_runs(silent, harmful, texts, tmp_path):
    with pytest.raises(InputError, match=r"40 anchors can't be drawn of the 24 tokens"):
        anchor.cases(silent, harmful, Anchor(anchors=(40,), texts=texts), SAMPLING)
    path = tmp_path / "mine.csv"
    path.write_text("goal\nt30\n")
    with pytest.raises(InputError, match="no compliant text is known for the goal"):
        anchor.cases(silent, goals.load(path), Anchor(anchors=(1,)), SAMPLING)
    with pytest.raises(InputError, match="Did you mean 'neutral'"):
        Anchor(sources=("neutrl",))
    with pytest.raises(InputError, match="fractions is 0 to 1"):
        Anchor(fractions=(0.1, 3.0))


def test_the_command_fills_in_random_order_unless_it_is_told_otherwise(midward, lively_folder, tmp_path, summary_of):
    flags = ["probe", "anchor", "--model", lively_folder, "--count", 2, "--draws", 1, "--fractions", "0,.1,.25"]
    flags += ["--length", 24, "--steps", 6, "--out", tmp_path / "a"]
    shown = midward(*flags)
    assert shown.exit_code == 0, shown.stderr
    run = json.loads((tmp_path / "a" / "run.json").read_text())
    assert run["sampling"]["order"] == "random" and run["sampling"]["block"] is None
    assert {"anchor.svg", "anchor-cells.csv"} <= {path.name for path in (tmp_path / "a").iterdir()}
    assert [cell["anchors"] for cell in summary_of(tmp_path / "a")["cells"]] == [0, 2, 6]
    other = midward(
        *flags[:-1], tmp_path / "b", "--order", "low_confidence", "--block", 12, "--compare", tmp_path / "a"
    )
    assert other.exit_code == 0 and "was sampled otherwise" in other.stderr, other.stderr
