"""What a flag holds: separators that also stand in paths."""

import pytest

from midward.alignment.sources import prompts
from midward.cli._options import labelled, names
from midward.errors import InputError
from midward.goals import load
from midward.goals.columns import text_column


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a, b.csv", "c,d,e.jsonl", "sub,dir/f.csv", "x/lr=1e-4/adapter_config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("a, b.csv", ["a, b.csv"]),
        (" sandbox , a, b.csv,c,d,e.jsonl,, xstest", ["sandbox", "a, b.csv", "c,d,e.jsonl", "xstest"]),
        ("prefill:sub,dir/f.csv,benign", ["prefill:sub,dir/f.csv", "benign"]),
        ("perplexity:reference=sub,dir,sri", ["perplexity:reference=sub,dir", "sri"]),
        ("a,b", ["a", "b"]),
        ("sri,classifier:model=x", ["sri", "classifier:model=x"]),
        ("sri, cascade:members=[masks, hesitate],energy", ["sri", "cascade:members=[masks, hesitate]", "energy"]),
        ("a[,b", ["a[", "b"]),
        (" , ", []),
    ],
)
def test_a_path_that_is_there_and_a_list_in_brackets_win_over_the_comma(here, given, found):
    assert names(given) == found


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("x/lr=1e-4", ("", "x/lr=1e-4")),
        ("mine=x/lr=1e-4", ("mine", "x/lr=1e-4")),
        ("mine=elsewhere", ("mine", "elsewhere")),
        ("elsewhere", ("", "elsewhere")),
    ],
)
def test_a_path_that_is_there_wins_over_the_equals_sign(here, given, found):
    assert labelled("--adapter", [given], str) == [found]


@pytest.mark.parametrize("given", ["mine=", "=x", "="])
def test_half_a_label_is_told(here, given):
    with pytest.raises(InputError, match="--adapter takes a path, or LABEL=PATH; received"):
        labelled("--adapter", [given], str)


@pytest.mark.parametrize("column", ["goal", "Prompt", "behavior"])
def test_goals_and_prompts_are_read_from_the_same_columns(tmp_path, column):
    path = tmp_path / "t.csv"
    path.write_text(f"n,{column}\n1,Placeholder\n")
    assert [goal.text for goal in load(path)] == prompts(str(path), harmful=True) == ["Placeholder"]


def test_of_several_columns_the_one_that_is_asked_for_comes_first():
    rows = [{"goal": "a", "prompt": "b", "id": "c"}]
    assert text_column(rows, "t.csv") == "goal" and text_column(rows, "t.csv", first="prompt") == "prompt"
    assert text_column(rows, "t.csv", "id") == "id"
    with pytest.raises(InputError, match=r"t.csv has no column 'gaol'. Did you mean 'goal'"):
        text_column(rows, "t.csv", "gaol")
    with pytest.raises(InputError, match=r"t.csv has none of the columns goal, prompt, behavior"):
        text_column([{"id": "c"}], "t.csv")


@pytest.mark.parametrize("flags", [["--threshold", "0"], ["--threshold", "0.5", "--order", "random"]])
@pytest.mark.parametrize("verb", [["generate", "x"], ["guard", "eval", "--guard", "none"], ["probe", "ask"]])
def test_a_threshold_that_no_model_takes_is_refused_before_anything_is_read(midward, here, verb, flags):
    result = midward(*verb, "--model", "org/no-model", *flags)
    assert result.exit_code == 2 and "threshold" in result.stderr and "org/no-model" not in result.stderr
    assert not list(here.glob("*/run.json"))
