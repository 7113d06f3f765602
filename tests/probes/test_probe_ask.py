"""A phrase asked for at word k: what the prompt says, what counts as a hit, and what it is compared with."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from midward import goals
from midward.cli import app
from midward.goals import Goal
from midward.judges import bench as verdicts
from midward.probes._run import respond
from midward.probes.ask import Ask, against, cases, cells, findings, readings, stands_at
from midward.sampling import Request, Sampling, sample

TEXTS = {"affirmative": ("t30 t31",), "procedural": ("t40",)}
SAMPLING = Sampling(length=24, steps=6, block=12)
words = st.lists(st.text("abc:", min_size=1, max_size=3), max_size=8)


@given(words, words.filter(len), words)
def test_a_phrase_stands_where_it_was_put_however_it_is_spaced(before, phrase, after):
    text = "  ".join([*before, "\n".join(phrase), *after])
    assert stands_at(text, " ".join(phrase), len(before))
    assert not stands_at(text, " ".join([*phrase, "d"]), len(before))
    assert not stands_at(" ".join(before), " ".join(phrase), len(before))


def test_the_prompt_asks_for_the_phrase_at_a_word_that_counts_from_one(lively):
    goal = Goal("g-1", "t5 t6", "mine", True, context="t9")
    plain, first, second = cases(lively, [goal], Ask((0, 7)), TEXTS, 24)
    assert plain.prompt == goal.prompt and plain.about["word"] is None
    assert first.prompt.startswith(goal.prompt) and first.prompt.endswith("word number 1, it reads: t30 t31")
    assert second.prompt.endswith("word number 8, it reads: t40") and second.about["phrase"] == "t40"
    assert not any(case.forced for case in (plain, first, second))


def test_responses_are_those_to_the_prompts_and_read_beside_the_plain_goal(lively, tmp_path):
    harmful = goals.load("sandbox", count=3)
    judged_by = verdicts.bench(harmful)
    natural = sample(lively, [Request(goal.prompt) for goal in harmful], SAMPLING)
    phrase = natural[0].text.split()[3]  # the first goal's response has it at word 3 without being asked
    wanted = cases(lively, harmful, Ask((3, 23), phrase), TEXTS, 24)
    rows = respond(lively, wanted, tmp_path / "rows.jsonl", judged_by, SAMPLING)
    for case, row in zip(wanted, rows, strict=True):
        assert row["response"] == sample(lively, [Request(case.prompt)], SAMPLING)[0].text
    read = readings(rows)
    assert [row["word"] for row in read] == [3, 23] * 3 and read[0]["unasked"]
    for row in read:
        assert row["hit"] == (row["response"].split()[row["word"] : row["word"] + 1] == [phrase])
        assert row["hit"] <= row["anywhere"] and row["hit"] <= row["reached"]
    sure = cells(rows)
    assert [cell["word"] for cell in sure] == [None, 3, 23] and all(cell["n"] == 3 for cell in sure)
    assert sure[1]["unasked"] == sum(row["unasked"] for row in read if row["word"] == 3) / 3


def row(goal, word, response, success=False):
    phrase = None if word is None else "the phrase"
    return {
        "goal": goal,
        "word": word,
        "phrase": phrase,
        "response": response,
        "success": success,
        "refused": not success,
    }


def test_the_effect_is_paired_with_the_response_to_the_plain_goal():
    rows = [row(f"g{n}", None, "a the phrase" if n == 0 else "a b", success=None) for n in range(6)]
    rows += [row(f"g{n}", 1, "a the phrase" if n < 4 else "the phrase", success=n < 2) for n in range(6)]
    plain, cell = cells(rows)
    assert plain["asr"] is None and plain["unscored"] == 6
    assert (cell["hit"], cell["unasked"], cell["anywhere"]) == (4 / 6, 1 / 6, 1.0)
    assert cell["placed"] == pytest.approx(0.5) and cell["placed_p"] == pytest.approx(0.25)
    assert cell["placed_n"] == 6 and cell["elsewhere"] is None and cell["asr"] == pytest.approx(2 / 6)
    [sentence] = findings(rows)
    assert "at word 1" in sentence and "66.7 %" in sentence and "+50.0 points" in sentence
    none = [{**one, "response": "a b", "success": False} for one in rows]
    hit, success = against(rows, none)
    assert hit["value"] == pytest.approx(4 / 6) and success["value"] == pytest.approx(2 / 6)
    with pytest.raises(ValueError, match="share no row"):
        against(rows, [{**one, "phrase": one["phrase"] and "another"} for one in none])


def test_a_phrase_that_stands_there_whatever_word_is_asked_for_was_not_placed():
    rows = [row(f"g{n}", None, "no") for n in range(4)]
    for n in range(4):
        rows.append(row(f"g{n}", 1, "a the phrase"))  # the rule only made the model talk
        rows.append(row(f"g{n}", 2, "a the phrase"))
        rows.append(row(f"g{n}", 5, "a b c d e the phrase" if n < 3 else "a the phrase"))
    _, first, second, third = cells(rows)
    assert (first["hit"], first["unasked"], first["elsewhere"]) == (1.0, 0.0, 5 / 8)
    assert first["placed"] == pytest.approx(3 / 8)
    assert (second["hit"], second["elsewhere"], second["placed"]) == (0.0, 0.0, 0.0)
    assert (third["hit"], third["elsewhere"], third["placed"]) == (0.75, 0.0, 0.75)
    assert "62.5 % where another word is asked for" in findings(rows)[0]


def test_the_command_writes_data_figure_and_sentences_and_goes_on(lively_folder, tmp_path):
    flags = ["--model", lively_folder, "--device", "cpu", "--length", 16, "--steps", 4, "--words", "0,3"]

    def probe(*more):
        return CliRunner().invoke(app, [str(one) for one in ("probe", "ask", *flags, *more)], env={"COLUMNS": "200"})

    few = probe("--out", tmp_path / "a", "--count", 2)
    assert few.exit_code == 0, few.output
    before = (tmp_path / "a" / "rows.jsonl").read_bytes()
    more = probe("--out", tmp_path / "a", "--count", 3)
    after = (tmp_path / "a" / "rows.jsonl").read_bytes()
    assert more.exit_code == 0 and after.startswith(before) and after.count(b"\n") == 9
    assert {path.name for path in (tmp_path / "a").glob("[!.]*")} == {
        "rows.jsonl",
        "ask.csv",
        "ask.png",
        "ask.svg",
        "summary.json",
        "run.json",
    }
    other = probe("--out", tmp_path / "b", "--count", 3, "--seed", 1, "--compare", tmp_path / "a")
    assert other.exit_code == 0 and f"minus {tmp_path / 'a'}" in other.stdout
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())
    assert all(sentence in other.stdout for sentence in summary["findings"]) and len(summary["findings"]) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--words", "0,16"], "can't fit into a response of 16 tokens"),
        (["--words", "-1"], "position"),
        (["--phrase", " "], "phrase is empty"),
        (["--goals", "nowhere.csv"], "nowhere.csv"),
        (["--compare", "nowhere"], "holds no finished run"),
    ],
)
def test_bad_input_is_told_before_a_model_runs(lively_folder, tmp_path, monkeypatch, flags, message):
    monkeypatch.setattr("midward.probes._run.sample", lambda *args, **more: pytest.fail("the model ran"))
    base = f"probe ask --model {lively_folder} --device cpu --length 16 --steps 4".split()
    found = CliRunner().invoke(app, [*base, "--out", str(tmp_path), *flags], env={"COLUMNS": "200"})
    assert found.exit_code == 2 and message in found.output


def test_no_goals_are_an_error(lively):
    with pytest.raises(ValueError, match="no goals"):
        cases(lively, [], Ask(), TEXTS, 24)
