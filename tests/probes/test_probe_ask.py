"""A phrase asked for at word k: what the prompt says, what counts as a hit, and what it is compared with."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midward.errors import InputError
from midward.goals import Goal
from midward.probes.ask import ASK, Placed, cases, cells, controls, findings, stands_at
from midward.probes.configs import Ask
from midward.probes.probe import against
from midward.runs.measure import Case
from midward.sampling import Request, Sampling, sample
from midward.stats import from_record

SAMPLING = Sampling(length=24, steps=6, block=12)
words = st.lists(st.text("abc:", min_size=1, max_size=3), max_size=8)


@given(words, words.filter(len), words)
def test_a_phrase_stands_where_it_was_put_however_it_is_spaced(before, phrase, after):
    text = "  ".join([*before, "\n".join(phrase), *after])
    assert stands_at(text, " ".join(phrase), len(before))
    assert not stands_at(text, " ".join([*phrase, "d"]), len(before))
    assert not stands_at(" ".join(before), " ".join(phrase), len(before))


def test_the_prompt_asks_for_the_phrase_at_a_word_that_counts_from_one(lively, phrases_file):
    goal = Goal("g-1", "t5 t6", "mine", True, context="t9")
    plain, first, second = cases(lively, [goal], Ask(words=(0, 7), phrases_file=phrases_file), SAMPLING)
    assert plain.request.prompt == goal.prompt and plain.about["word"] is None
    for case, number in ((first, 1), (second, 8)):
        text = f"word number {number}, it reads: {case.about['phrase']}"
        assert case.request.prompt.startswith(goal.prompt) and case.request.prompt.endswith(text)
    assert not any(case.request.forced for case in (plain, first, second))
    with pytest.raises(InputError, match="can't fit into a response of 24 tokens"):
        cases(lively, [goal], Ask(words=(24,), phrases_file=phrases_file), SAMPLING)
    for wrong in ({"words": ()}, {"words": (-1,)}, {"phrase": " "}):
        with pytest.raises(InputError, match="word"):
            Ask(**wrong)


def test_responses_are_those_to_the_prompts_and_read_beside_the_plain_goal(lively, harmful, measured):
    some = harmful[:3]
    natural = sample(lively, [Request(goal.prompt) for goal in some], SAMPLING)
    phrase = natural[0].text.split()[3]  # the first goal's response has it at word 3 without being asked
    asked, rows, summary = measured("ask", lively, some, Ask(words=(3, 23), phrase=phrase))
    for case, row in zip(asked, rows, strict=True):
        assert row["response"] == sample(lively, [case.request], SAMPLING)[0].text
    by_word = controls(rows)
    assert [*by_word] == [3, 23] and by_word[3][0]["unasked"]
    for row in (*by_word[3], *by_word[23]):
        assert row["hit"] == (row["response"].split()[row["word"] : row["word"] + 1] == [phrase])
        assert row["hit"] <= row["anywhere"] and row["hit"] <= row["reached"]
    table = summary["cells"]
    assert [cell["word"] for cell in table] == [None, 3, 23] and all(cell["n"] == 3 for cell in table)
    assert table[1]["unasked"]["hits"] == sum(row["unasked"] for row in by_word[3])


def row(goal, word, response, success=False):
    about = {"word": word, "phrase": None if word is None else "the phrase"}
    case = Case(Goal(goal, "t5", "mine", True), Request("t5"), about=about)
    read = Placed().fields(0, case, SimpleNamespace(text=response, error=None if response else "NaN"), [])
    about |= {"set": "mine", "goal": goal} | read
    return about | {"response": response, "success": success, "refused": not success}


def test_the_effect_is_paired_with_the_response_to_the_plain_goal():
    rows = [row(f"g{n}", None, "a the phrase" if n == 0 else "a b", success=None) for n in range(6)]
    rows += [row(f"g{n}", 1, "a the phrase" if n < 4 else "the phrase", success=n < 2) for n in range(6)]
    plain, cell = cells(rows)
    assert plain["asr"]["value"] is None and plain["asr"]["unscored"] == 6
    assert [cell[name]["value"] for name in ("hit", "unasked", "anywhere")] == [4 / 6, 1 / 6, 1.0]
    placed = cell["placed"]
    assert (placed["value"], placed["p"], placed["n"]) == (pytest.approx(0.5), pytest.approx(0.25), 6)
    assert cell["elsewhere"] is None and cell["asr"]["value"] == pytest.approx(2 / 6)
    [sentence] = findings(rows)
    assert "at word 1" in sentence and "66.7 %" in sentence and "+50.0 points" in sentence
    none = [{**one, "hit": one["hit"] and False, "success": False} for one in rows]
    hit, success = against(ASK, rows, none)  # of the plain goals nothing is scored
    assert hit["value"] == pytest.approx(4 / 6) and success["value"] == pytest.approx(2 / 6)
    with pytest.raises(ValueError, match="share nothing"):
        against(ASK, rows[6:], [{**one, "phrase": "another"} for one in none[6:]])


def test_a_phrase_that_stands_there_whatever_word_is_asked_for_was_not_placed():
    rows = [row(f"g{n}", None, "no") for n in range(4)]
    for n in range(4):
        rows.append(row(f"g{n}", 1, "a the phrase"))  # the rule only made the model talk
        rows.append(row(f"g{n}", 2, "a the phrase"))
        rows.append(row(f"g{n}", 5, "a b c d e the phrase" if n < 3 else "a the phrase"))

    def shares(cell):
        return [cell[name]["value"] for name in ("hit", "elsewhere", "placed")]

    _, first, second, third = cells(rows)
    first_elsewhere = from_record(first["elsewhere"])
    assert shares(first) == [1.0, 5 / 8, pytest.approx(3 / 8)] and first["unasked"]["value"] == 0.0
    assert shares(second) == [0.0, 0.0, 0.0] and shares(third) == [0.75, 0.0, 0.75]
    assert f"{first_elsewhere} where another word is asked for" in findings(rows)[0]


def test_a_response_that_there_is_not_counts_as_nothing():
    rows = [row("a", None, None, None), row("a", 1, None, None), row("b", None, "no"), row("b", 1, "a the phrase")]
    _, cell = cells(rows)
    assert (cell["hit"]["n"], cell["hit"]["unscored"], cell["anywhere"]["n"], cell["unasked"]["n"]) == (1, 1, 1, 1)


def test_the_command_goes_on_and_compares(midward, lively_folder, tmp_path, summary_of):
    flags = ["--model", lively_folder, "--device", "cpu", "--length", 16, "--steps", 4, "--words", "0,3"]

    def probe(*more):
        result = midward("probe", "ask", *flags, *more)
        assert result.exit_code == 0, result.stderr
        return result

    probe("--out", tmp_path / "a", "--limit", 2)
    before = (tmp_path / "a" / "rows.jsonl").read_bytes()
    probe("--out", tmp_path / "a", "--limit", 3)
    after = (tmp_path / "a" / "rows.jsonl").read_bytes()
    assert after.startswith(before) and after.count(b"\n") == 9
    other = probe("--out", tmp_path / "b", "--limit", 3, "--temperature", 0.5, "--compare", tmp_path / "a")
    assert "sampled otherwise" in other.stderr
    summary = summary_of(tmp_path / "b")
    assert len(summary["findings"]) == 2 and len(summary["compared"][str(tmp_path / "a")]) == 5
