"""`midward utility` from its flags to its tables."""

import json
import sys

import pytest
from pyarrow import parquet

import midward as package
from midward.guards import STUB, Exchange, MaskFilter, save
from midward.sampling import Request
from midward.stats import paired
from midward.utility import against, cells, load_run
from midward.utility.readings import by_cell


@pytest.fixture
def tiny(llada_folder, tasks_folder):
    return ["utility", "--model", llada_folder, "--device", "cpu", "--steps", 3, "--include-path", tasks_folder]


@pytest.fixture
def unloaded(monkeypatch):
    """No model is to be loaded."""

    def refuse(*args, **more):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(package, "load", refuse)


def test_harness_tasks_from_end_to_end(midward, tiny, tmp_path):
    run = [*tiny, "--tasks", "tiny_choice,tiny_text", "--draws", 8]
    first = midward(*run, "--out", tmp_path / "one")
    assert first.exit_code == 0, first.stderr
    summary, rows = load_run(tmp_path / "one")
    assert len(rows) == 15 and summary["plain"] is False and summary["length_given"] is False
    assert rows[0]["prompt"].startswith("<|startoftext|>")  # through the chat template
    [accuracy] = [cell for cell in summary["cells"] if cell["measure"] == "acc"]
    values = [row["value"] for row in rows if row["measure"] == "acc"]
    assert accuracy["n"] == 5 and accuracy["value"] == sum(values) / 5
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert accuracy["value"] == summary["harness"]["tiny_choice"]["tiny_choice"]["acc,none"]
    assert f"{100 * accuracy['value']:.1f} [" in first.stdout

    plain = midward(*run, "--plain", "--out", tmp_path / "two", "--compare", tmp_path / "one")
    assert plain.exit_code == 0, plain.stderr
    summary, bare = load_run(tmp_path / "two")
    assert bare[0]["prompt"] == "t30 t31"
    [pair] = [pair for pair in summary["compared"][str(tmp_path / "one")] if pair["measure"] == "acc"]
    mine = {row["id"]: row["value"] for row in bare if row["measure"] == "acc"}
    theirs = {row["id"]: row["value"] for row in rows if row["measure"] == "acc"}
    expected = paired([mine], [theirs])
    assert (pair["value"], pair["low"], pair["p"], pair["n"]) == (expected.value, expected.low, expected.p, 5)
    assert f"minus {tmp_path / 'one'}" in plain.stdout
    assert (tmp_path / "two" / "compared.csv").exists()


def test_the_same_command_asks_nothing_twice(midward, tiny, tmp_path, monkeypatch):
    run = [*tiny, "--tasks", "tiny_text", "--out", tmp_path / "out"]
    first = midward(*run)
    answers = (tmp_path / "out" / "answers-0.jsonl").read_bytes()
    samples = (tmp_path / "out" / "samples.csv").read_bytes()
    monkeypatch.setattr("midward.utility.answers.sample", None)
    again = midward(*run)
    assert again.exit_code == 0 and again.stdout == first.stdout
    assert (tmp_path / "out" / "answers-0.jsonl").read_bytes() == answers
    assert (tmp_path / "out" / "samples.csv").read_bytes() == samples


def test_tasks_of_other_measures_alone_leave_the_harnesss_values(midward, tiny, tasks_folder, tmp_path):
    text = (tasks_folder / "tiny_text.yaml").read_text().replace("task: tiny_text", "task: tiny_median")
    text = text.replace("{metric: exact_match}", "{metric: exact_match, aggregation: median, higher_is_better: true}")
    (tasks_folder / "tiny_median.yaml").write_text(text)
    found = midward(*tiny, "--tasks", "tiny_median", "--limit", 2, "--out", tmp_path / "out")
    assert found.exit_code == 0 and found.stdout == ""
    assert "only the task's own value is kept: exact_match" in found.stderr and "none is a share" in found.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["cells"] == [] and "exact_match,none" in summary["harness"]["tiny_median"]["tiny_median"]


def test_the_sandboxs_tasks_need_no_harness(midward, llada_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    run = ["utility", "--model", llada_folder, "--device", "cpu", "--length", 12, "--steps", 2]
    found = midward(*run, "--tasks", "sandbox", "--limit", 3, "--out", tmp_path / "three")
    assert found.exit_code == 0, found.stderr
    table = parquet.read_table(tmp_path / "three" / "utility.parquet").to_pylist()
    assert [(cell["task"], cell["n"]) for cell in table] == [("sums", 3), ("recall", 3), ("programs", 3)]
    more = midward(*run, "--tasks", "sums", "--limit", 4, "--out", tmp_path / "four")
    assert more.exit_code == 0, more.stderr
    assert load_run(tmp_path / "four")[1][:3] == load_run(tmp_path / "three")[1][:3]  # the first ones are the same


def test_a_guard_stands_in_front(midward, llada, llada_folder, tmp_path):
    guard = MaskFilter().fit(llada, [Exchange(Request("t30"))] * 3, alpha=0.5)
    guard.threshold = -1.0  # everything is flagged
    file = save(guard, tmp_path / "guard.safetensors")
    run = ["utility", "--model", llada_folder, "--device", "cpu", "--length", 12, "--steps", 2, "--limit", 2]
    found = midward(*run, "--tasks", "sums", "--guard", file, "--out", tmp_path / "out")
    assert found.exit_code == 0, found.stderr
    summary, rows = load_run(tmp_path / "out")
    assert summary["guard"] == {"name": "masks", "digest": guard.digest}
    assert [(row["flagged"], row["response"], row["value"]) for row in rows] == [(True, STUB, 0.0)] * 2
    assert summary["cells"][0]["flagged"] == 2


def test_code_runs_with_leave_alone(midward, tiny, tmp_path, monkeypatch):
    run = [*tiny, "--tasks", "tiny_program", "--out", tmp_path / "out"]
    with monkeypatch.context() as patch:
        patch.setattr(package, "load", None)  # refused before
        refused = midward(*run)
    assert refused.exit_code == 2 and "--allow-code-execution" in refused.stderr
    found = midward(*run, "--allow-code-execution")
    assert found.exit_code == 0, found.stderr
    assert "programs  " in found.stderr and "limits on" in found.stderr
    _, rows = load_run(tmp_path / "out")
    assert {row["measure"] for row in rows} == {"pass@1"} and {row["value"] for row in rows} <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", ","], "--tasks names no task"),
        (["--model", "elsewhere"], "give --tasks"),
        (["--tasks", "sums", "--guard", "absent"], "there is no file"),
        (["--tasks", "sums", "--compare", "absent"], "absent holds no finished run of midward utility"),
        (["--tasks", "gsm8k"], "load_dataset('openai/gsm8k', 'main')"),
    ],
)
def test_wrong_input_is_told_before_a_model_is_loaded(midward, unloaded, flags, message):
    result = midward("utility", *flags)
    assert result.exit_code == 2 and message in result.stderr


def test_runs_of_other_exercises_do_not_meet():
    row = {
        "task": "sums",
        "subtask": "sums",
        "id": "0",
        "doc": "a",
        "measure": "correct",
        "value": 1.0,
        "flagged": False,
    }
    with pytest.raises(ValueError, match="share no sample"):
        against([[row]], [[row | {"doc": "b"}]])


def test_cells_pool_subtasks_and_count_what_is_unscored():
    def row(subtask, number, value, measure="acc"):
        return {
            "task": "group",
            "subtask": subtask,
            "id": str(number),
            "doc": "",
            "measure": measure,
            "value": value,
            "flagged": number == 1,
        }

    rows = [row("a", 0, 1.0), row("a", 1, 0.0), row("b", 0, 1.0), row("b", 1, None), row("b", 2, 0.25, "f1")]
    found = {(cell["subtask"], cell["measure"]): cell for cell in cells(rows)}
    whole = found["", "acc"]
    assert (whole["n"], whole["unscored"], whole["flagged"]) == (3, 1, 2) and whole["value"] == pytest.approx(2 / 3)
    assert found["a", "acc"]["n"] == 2 and found["b", "acc"]["value"] == 1.0
    assert found["", "f1"]["value"] == 0.25 and ("b", "f1") not in found  # one subtask only
    assert set(by_cell(rows)) == {("group", *key) for key in found}


def test_the_summary_is_plain_json(midward, tiny, tmp_path):
    midward(*tiny, "--tasks", "tiny_text", "--limit", 1, "--out", tmp_path / "out")
    text = (tmp_path / "out" / "summary.json").read_text()
    assert json.loads(text)["limit"] == 1 and "NaN" not in text
