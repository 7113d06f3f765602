"""The harness's tasks on our models: ours of the tests, its own GSM8K, MMLU and HumanEval over rows made up here, and
several processes."""

import json
import math
import multiprocessing
import os
import socket
import sys

import datasets
import pytest
import torch
from accelerate import PartialState
from near import near

from midward.utility import harness
from midward.utility.lm import Continuation, MidwardLM

GIVEN = {"steps": 3}


@pytest.fixture
def loaded(tasks_folder):
    return harness.load(["tiny_choice", "tiny_text"], tasks_folder)


def lm_of(model, folder=None, **how):
    return MidwardLM(model, sampling=GIVEN, folder=folder, draws=8, **how)


def test_rows_are_what_the_model_says(lively, loaded):
    rows, reports = harness.run(lm_of(lively), loaded)
    assert {(row["set"], row["measure"]): 5 for row in rows} == {
        ("tiny_choice", "acc"): 5,
        ("tiny_choice", "acc_norm"): 5,
        ("tiny_text", "exact_match"): 5,
    }
    for row in rows:
        if row["measure"] == "acc":
            scores = [float(one) for one in row["response"].split()]
            prompt = tuple(lively.tokenizer.encode(row["prompt"]))
            n = 30 + int(row["goal"])
            options = [Continuation(prompt, ids) for ids in [(40,), (60 + n,), (42, 43)]]
            direct = lm_of(lively).log_probs(options, greedy=False)
            assert scores == pytest.approx([one["total"] for one in direct], abs=2e-4)
            assert row["value"] == float(scores.index(max(scores)) == int(row["target"]))
    accuracy = [row["value"] for row in rows if row["measure"] == "acc"]
    assert reports["tiny_choice"]["tiny_choice"]["acc,none"] == pytest.approx(sum(accuracy) / 5)


def test_a_group_is_all_its_tasks(lively, tasks_folder):
    (tasks_folder / "group.yaml").write_text("group: tiny\ntask: [tiny_choice, tiny_text]\n")
    rows, _ = harness.run(lm_of(lively), harness.load(["tiny"], tasks_folder), limit=2)
    assert {(row["set"], row["subtask"]) for row in rows} == {("tiny", "tiny_choice"), ("tiny", "tiny_text")}
    assert all(not math.isnan(row["value"]) for row in rows) and {row["goal"] for row in rows} == {"0", "1"}


MEASURES = """
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{options[0]}}"
generation_kwargs: {until: ["t7"], max_gen_toks: 6}
process_results: !function measures.values
metric_list:
- {metric: share, aggregation: mean, higher_is_better: true}
- {metric: points, aggregation: mean, higher_is_better: true}
- {metric: loss, aggregation: perplexity, higher_is_better: false}
- {metric: pair, aggregation: !function measures.first, higher_is_better: true}
"""


def test_what_is_no_share_is_left_to_the_harness(lively, tasks_folder):
    (tasks_folder / "measures.py").write_text(
        "def values(doc, results):\n"
        "    return {'share': 0.5, 'points': 50.0, 'loss': 0.5, 'pair': (1, 2), 'other': 1.0}\n"
        "def first(items):\n    return items[0][0]\n"
    )
    text = (tasks_folder / "tiny_text.yaml").read_text()
    data = text.splitlines()[-1]
    (tasks_folder / "tiny_measures.yaml").write_text(
        f"task: tiny_measures\ndataset_path: json\ntest_split: test\n{MEASURES}{data}\n"
    )
    told = []
    rows, reports = harness.run(lm_of(lively, say=told.append), harness.load(["tiny_measures"], tasks_folder), limit=2)
    assert {row["measure"] for row in rows} == {"share", "other"} and len(rows) == 4
    assert reports["tiny_measures"]["tiny_measures"]["points,none"] == 50
    [line] = [line for line in told if "share" in line]
    assert line == "tiny_measures: of what is no share of samples only the task's own value is kept: loss, pair, points"


def _process(rank, folder, loaded, model, queue):
    PartialState._reset_state()  # what the parent knew
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": (folder / "port").read_text()}
    torch.set_num_threads(1)
    lm = lm_of(model, folder / "answers")
    rows, reports = harness.run(lm, loaded)
    queue.put((rank, rows, json.dumps(reports, default=str)))
    lm.barrier()


def test_two_processes_give_one_processs_rows(lively, loaded, tmp_path):
    folder = tmp_path / "two"
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (folder / "port").write_text(str(free.getsockname()[1]))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    started = [context.Process(target=_process, args=(rank, folder, loaded, lively, queue)) for rank in (0, 1)]
    for one in started:
        one.start()
    found = dict((rank, more) for rank, *more in (queue.get(timeout=60) for _ in started))
    for one in started:
        one.join()
    alone, reports = harness.run(lm_of(lively), loaded)
    assert found[1] == [[], "{}"]
    assert [{**row, "response": None} for row in found[0][0]] == near([{**row, "response": None} for row in alone])
    assert json.loads(found[0][1])["tiny_choice"]["tiny_choice"]["acc,none"] == pytest.approx(
        reports["tiny_choice"]["tiny_choice"]["acc,none"]
    )
    shares = [(folder / "answers" / f"answers-{rank}.jsonl").read_text().count("\n") for rank in (0, 1)]
    assert min(shares) > 0


# --- its own tasks ---------------------------------------------------------------------------------------------------

SUMS = [{"question": f"t{30 + n} t31?", "answer": f"t40 t41 #### {n}"} for n in range(8)]
CHOICES = [
    {"question": f"t{30 + n} ?", "subject": "anatomy", "choices": ["t1", "t2", "t3", "t4"], "answer": n % 4}
    for n in range(8)
]
PROBLEMS = [
    {
        "task_id": f"made-up/{n}",
        "prompt": f"def f{n}(x):\n    '''Return x plus {n}.'''\n",
        "canonical_solution": f"    return x + {n}\n",
        "entry_point": f"f{n}",
        "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
    }
    for n in range(2)
]
SETS = {
    "openai/gsm8k": {"train": SUMS[2:], "test": SUMS[:2]},
    "cais/mmlu": {"dev": CHOICES[3:], "validation": CHOICES[:1], "test": CHOICES[:3]},
    "openai/openai_humaneval": {"test": PROBLEMS},
}


@pytest.fixture
def published(monkeypatch):
    """What the harness downloads, without a network."""

    def load_dataset(path, name=None, **settings):
        return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in SETS[path].items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.fixture
def lm(lively):
    return MidwardLM(lively, sampling={"length": 8, "steps": 2}, batch_size=16)


def saying(monkeypatch, texts):
    """Let every model say these texts."""
    rows = [{"text": text, "ids": [], "flagged": False} for text in texts]
    monkeypatch.setattr(MidwardLM, "texts", lambda self, generations: rows)


def test_gsm8k_asks_with_solved_examples(published, lm):
    loaded = harness.load(["gsm8k"])
    rows, _ = harness.run(lm, loaded, fewshot=2)
    assert sorted((row["goal"], row["measure"]) for row in rows) == [
        (number, f"exact_match,{way}") for number in "01" for way in ("flexible-extract", "strict-match")
    ]
    assert all(row["prompt"].count("Question:") == 3 for row in rows)
    chat, _ = harness.run(lm, loaded, fewshot=2, chat=True)
    assert chat[0]["prompt"].count("<|eot_id|>") == 5  # two examples of two turns, and the question


def test_gsm8k_reads_the_answer(published, lm, monkeypatch):
    saying(monkeypatch, ["so it is #### 0", "it may be 1"])
    rows, _ = harness.run(lm, harness.load(["gsm8k"]), fewshot=0)
    assert {(row["goal"], row["measure"].split(",")[1]): row["value"] for row in rows} == {
        ("0", "strict-match"): 1.0,
        ("1", "strict-match"): 0.0,
        ("0", "flexible-extract"): 1.0,
        ("1", "flexible-extract"): 1.0,
    }


def test_mmlu_takes_a_forward_a_question(published, lm, forwards):
    rows, _ = harness.run(lm, harness.load(["mmlu_anatomy"]))
    assert sum(forwards) == 3  # the four letters share one
    scores = [[float(one) for one in row["response"].split()] for row in rows]
    assert [len(one) for one in scores] == [4, 4, 4]
    assert [row["value"] for row in rows] == [float(one.index(max(one)) == n) for n, one in enumerate(scores)]


@pytest.mark.parametrize("name", ["humaneval", "humaneval_instruct"])
def test_humaneval_runs_what_was_written(published, bubblewrap, lm, monkeypatch, name):
    loaded = harness.load([name], allow_code=True)
    rows, _ = harness.run(lm, loaded, chat=name.endswith("instruct"))
    assert [(row["measure"], row["value"]) for row in rows] == [("pass@1", 0.0)] * 2
    saying(monkeypatch, ["    return x + 1\n"] * 2)
    rows, reports = harness.run(lm, loaded)
    assert [row["value"] for row in rows] == [0.0, 1.0]
    assert reports[name][name]["pass@1,none"] == 0.5


# --- what can't be done ----------------------------------------------------------------------------------------------


def test_a_missing_harness_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(ValueError, match=r"pip install 'midward\[lm-eval\]'"):
        harness.load(["gsm8k"])


def test_data_that_are_nowhere_are_named():
    with pytest.raises(ValueError, match=r"the task 'gsm8k' can't be loaded: .*openai/gsm8k"):
        harness.load(["gsm8k"])


@pytest.mark.parametrize("name", ["tiny_program", "humaneval", "humaneval_instruct"])
def test_code_takes_leave_and_a_sandbox(tasks_folder, name, monkeypatch, bubblewrap):
    with pytest.raises(ValueError, match=f"{name}.*--allow-code-execution"):
        harness.load([name], tasks_folder)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="need bubblewrap"):
        harness.load([name], tasks_folder, allow_code=True)


def test_code_that_is_not_judged_here_is_refused_with_leave_too(bubblewrap):
    with pytest.raises(ValueError, match=r"only HumanEval's .* are judged here, not 'mbpp'"):
        harness.load(["mbpp"], allow_code=True)


@pytest.mark.parametrize(
    "members", ["[tiny_choice]\nunsafe_code: true", "[{task: tiny_choice, unsafe_code: true}]"], ids=["all", "one"]
)
def test_code_takes_leave_wherever_a_group_has_it_from(tasks_folder, bubblewrap, members):
    (tasks_folder / "mixed.yaml").write_text(f"group: mixed\ntask: {members}\n")
    with pytest.raises(ValueError, match=r"'mixed' runs programs.*--allow-code-execution"):
        harness.load(["mixed"], tasks_folder)
    with pytest.raises(ValueError, match="HumanEval's"):
        harness.load(["mixed"], tasks_folder, allow_code=True)


def test_an_unknown_task_is_told_with_a_near_one(tasks_folder):
    with pytest.raises(ValueError, match=r"no task is called 'tiny_choise'.*Did you mean 'tiny_choice'"):
        harness.load(["tiny_choise"], tasks_folder)
    with pytest.raises(ValueError, match="is no folder"):
        harness.load(["tiny_choice"], tasks_folder / "absent")
