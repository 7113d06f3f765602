"""`midward utility` from its flags to its tables."""

import json

import pytest
from checkpoints import lora

from midward import models
from midward.guards import STUB, Exchange, MaskFilter
from midward.guards.files import save
from midward.runs.compare import load as load_run
from midward.sampling import Request
from midward.stats import paired
from midward.utility import against, cells
from midward.utility.asked import Asked
from midward.utility.readings import by_cell


@pytest.fixture
def tiny(llada_folder, tasks_folder):
    return ["utility", "--model", llada_folder, "--device", "cpu", "--steps", 3, "--include-path", tasks_folder]


@pytest.fixture
def own(llada_folder):
    return ["utility", "--model", llada_folder, "--device", "cpu", "--length", 12, "--steps", 2]


def result_of(folder):
    """Summary and rows of a run."""
    return json.loads((folder / "summary.json").read_text()), load_run(folder)[1]


def test_harness_tasks_from_end_to_end(midward, tiny, tmp_path):
    run = [*tiny, "--tasks", "tiny_choice,tiny_text", "--draws", 8]
    first = midward(*run, "--out", tmp_path / "one")
    assert first.exit_code == 0, first.stderr
    summary, rows = result_of(tmp_path / "one")
    assert len(rows) == 15
    assert rows[0]["prompt"].startswith("<|startoftext|>")  # through the chat template
    [accuracy] = [cell["score"] for cell in summary["cells"] if cell["measure"] == "acc"]
    values = [row["value"] for row in rows if row["measure"] == "acc"]
    assert accuracy["n"] == 5 and accuracy["value"] == sum(values) / 5
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    [report] = summary["harness"].values()
    assert accuracy["value"] == report["tiny_choice"]["tiny_choice"]["acc,none"]
    assert f"{100 * accuracy['value']:.1f}" in first.stdout

    plain = midward(*run, "--plain", "--out", tmp_path / "two", "--compare", tmp_path / "one")
    assert plain.exit_code == 0, plain.stderr
    summary, bare = result_of(tmp_path / "two")
    assert bare[0]["prompt"] == "t30 t31"
    [pair] = [pair for pair in summary["compared"][str(tmp_path / "one")] if pair["measure"] == "acc"]
    mine, theirs = ({row["goal"]: row["value"] for row in of if row["measure"] == "acc"} for of in (bare, rows))
    expected = paired([mine], [theirs])
    assert (pair["value"], pair["low"], pair["p"], pair["n"]) == (expected.value, expected.low, expected.p, 5)


def test_the_same_command_asks_nothing_twice(midward, tiny, tmp_path, monkeypatch):
    run = [*tiny, "--tasks", "tiny_text,sums", "--limit", 2, "--out", tmp_path / "out"]
    first = midward(*run)
    assert first.exit_code == 0, first.stderr
    before = {name: (tmp_path / "out" / name).read_bytes() for name in ("answers-0.jsonl", "rows.jsonl")}
    monkeypatch.setattr("midward.utility.lm.sample", None)
    monkeypatch.setattr("midward.runs.measure.sample", None)
    again = midward(*run)
    assert again.exit_code == 0 and again.stdout == first.stdout
    assert before == {name: (tmp_path / "out" / name).read_bytes() for name in before}


def test_tasks_of_other_measures_alone_leave_the_harnesss_values(midward, tiny, tasks_folder, tmp_path):
    text = (tasks_folder / "tiny_text.yaml").read_text().replace("task: tiny_text", "task: tiny_median")
    text = text.replace("{metric: exact_match}", "{metric: exact_match, aggregation: median, higher_is_better: true}")
    (tasks_folder / "tiny_median.yaml").write_text(text)
    found = midward(*tiny, "--tasks", "tiny_median", "--limit", 2, "--out", tmp_path / "out")
    assert found.exit_code == 0, found.stderr
    assert "only the task's own value is kept: exact_match" in found.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    [report] = summary["harness"].values()
    assert summary["cells"] == [] and "exact_match,none" in report["tiny_median"]["tiny_median"]


def test_the_sandboxs_tasks_are_the_first_ones_of_a_longer_run(midward, own, tmp_path):
    found = midward(*own, "--tasks", "sandbox,banned", "--limit", 3, "--out", tmp_path / "three")
    assert found.exit_code == 0, found.stderr
    summary, three = result_of(tmp_path / "three")
    cells_of = [(cell["task"], cell["measure"], cell["score"]["n"]) for cell in summary["cells"]]
    assert cells_of == [(name, "correct", 3) for name in ("sums", "recall", "programs", "banned")]
    assert midward(*own, "--tasks", "sums", "--limit", 4, "--out", tmp_path / "four").exit_code == 0
    four = result_of(tmp_path / "four")[1]
    told = ("goal", "prompt", "response", "correct")
    assert [[row[name] for name in told] for row in four[:3]] == [[row[name] for name in told] for row in three[:3]]


def test_several_adapters_stand_beside_the_bare_model(midward, own, tmp_path, llada):
    llada_adapter = lora(llada, tmp_path / "adapter")
    adapters = [flag for seed in range(2) for flag in ("--adapter", f"mine={llada_adapter}")]
    found = midward(*own, *adapters, "--tasks", "sums", "--limit", 4, "--out", tmp_path / "out")
    assert found.exit_code == 0, found.stderr
    summary, rows = result_of(tmp_path / "out")
    assert [(cell["model"], cell["score"]["n"], cell["score"]["seeds"]) for cell in summary["cells"]] == [
        ("base", 4, 1),
        ("mine", 8, 2),
    ]
    assert [(row["model"], row["seed"]) for row in rows[::4]] == [("base", 0), ("mine", 0), ("mine", 1)]
    [pair] = summary["compared"]["base"]
    assert (pair["model"], pair["n"], pair["seeds"]) == ("mine", 4, 2)
    assert "mine" in found.stdout
    alone = midward(*own, "--adapter", llada_adapter, "--tasks", "sums", "--limit", 4, "--out", tmp_path / "alone")
    assert alone.exit_code == 0, alone.stderr
    assert len(result_of(tmp_path / "alone")[1]) == 4


def test_a_guard_stands_in_front(midward, own, llada, tmp_path):
    guard = MaskFilter().fit(llada, [Exchange(Request("t30"))] * 3, alpha=0.5)
    guard.threshold = -1.0  # everything is flagged
    file = save(guard, tmp_path / "guard.safetensors")
    found = midward(*own, "--tasks", "sums", "--limit", 2, "--guard", file, "--out", tmp_path / "out")
    assert found.exit_code == 0, found.stderr
    summary, rows = result_of(tmp_path / "out")
    assert load_run(tmp_path / "out")[0].models[0].guard_digest == guard.digest
    assert [(row["response"], row["correct"]) for row in rows] == [(STUB, False)] * 2
    assert summary["cells"][0]["flagged"] == 2
    (tmp_path / "adapter_config.json").touch()
    several = midward(*own, "--adapter", f"a={tmp_path}", "--guard", file, "--tasks", "sums", "--out", tmp_path / "no")
    assert several.exit_code == 2 and "--guard goes with one model" in several.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", ","], "--tasks names nothing"),
        (["--model", "else/where"], "give --tasks"),
        (["--tasks", "sums", "--guard", "absent"], "there is no guard at absent"),
        (["--tasks", "sums", "--adapter", "a=./absent"], "no adapter './absent'"),
        (["--tasks", "sums", "--compare", "absent"], "there is no folder absent"),
        (["--tasks", "gsm8k"], "the task 'gsm8k' can't be loaded"),
        (["--tasks", "humaneval"], "--allow-code-execution"),
    ],
)
def test_wrong_input_is_told_before_a_model_is_loaded(midward, monkeypatch, tmp_path, flags, message):
    monkeypatch.setattr(models, "load", None)
    monkeypatch.chdir(tmp_path)
    result = midward("utility", *flags)
    assert result.exit_code == 2 and message in result.stderr


def row(subtask="a", goal=0, value=1.0, measure="acc", **more):
    sample = {"set": "group", "subtask": subtask, "goal": str(goal), "subject": "", "measure": measure}
    return {**sample, "value": value, "flagged": goal == 1, **more}


def test_runs_of_other_exercises_do_not_meet():
    with pytest.raises(ValueError, match="share nothing"):
        against({"": [row(subject="a")]}, [row(subject="b")])


def test_cells_pool_subtasks_and_count_what_is_unscored():
    rows = [row("a"), row("a", 1, 0.0), row("b"), row("b", 1, None), row("b", 2, 0.25, "f1")]
    records = {(cell["subtask"], cell["measure"]): cell for cell in cells(rows)}
    whole = records["", "acc"]
    assert (whole["score"]["n"], whole["score"]["unscored"], whole["flagged"]) == (3, 1, 2)
    assert whole["score"]["value"] == pytest.approx(2 / 3)
    assert records["a", "acc"]["score"]["n"] == 2 and records["b", "acc"]["score"]["value"] == 1.0
    assert records["", "f1"]["score"]["value"] == 0.25 and ("b", "f1") not in records  # one subtask only
    assert set(by_cell(rows)) == {("group", *key) for key in records}


@pytest.mark.parametrize("name", ["gsm8k", "xsum", "bening"])
def test_a_name_that_the_harness_or_ones_own_folder_may_have_is_left_to_it(name, tmp_path):
    folder = tmp_path if name == "bening" else None
    assert Asked(tasks=(name, "sums"), include_path=folder).split(at_home=True) == (["sums"], [name])
