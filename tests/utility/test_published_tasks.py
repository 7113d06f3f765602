"""The harness's own GSM8K, MMLU and HumanEval, over rows made up here in the columns of the published sets."""

import datasets
import pytest

from midward.utility import Answers, MidwardLM, harness
from midward.utility.answers import Text

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
    return MidwardLM(lively, sampling={"length": 8, "steps": 2}, answers=Answers(lively, batch_size=16))


def test_gsm8k_asks_with_solved_examples(published, lm):
    loaded = harness.load(["gsm8k"], fewshot=2)
    rows, _ = harness.run(lm, loaded)
    found = [(row["id"], row["measure"]) for row in rows]
    assert sorted(found) == [
        (number, f"exact_match,{way}") for number in "01" for way in ("flexible-extract", "strict-match")
    ]
    assert all(row["prompt"].count("Question:") == 3 for row in rows)
    chat, _ = harness.run(lm, loaded, chat=True)
    assert chat[0]["prompt"].count("<|eot_id|>") == 5  # two examples of two turns, and the question


def test_gsm8k_reads_the_answer(published, lm, monkeypatch):
    said = ["so it is #### 0", "it may be 1"]
    monkeypatch.setattr(Answers, "texts", lambda self, questions: [Text(one, [], False) for one in said])
    rows, _ = harness.run(lm, harness.load(["gsm8k"], fewshot=0))
    values = {(row["id"], row["measure"].split(",")[1]): row["value"] for row in rows}
    assert values == {
        ("0", "strict-match"): 1.0,
        ("1", "strict-match"): 0.0,
        ("0", "flexible-extract"): 1.0,
        ("1", "flexible-extract"): 1.0,
    }


def test_mmlu_takes_a_forward_a_question(published, lm, lively, monkeypatch):
    loaded = harness.load(["mmlu_anatomy"])
    assert not harness.needs_greedy(loaded)
    seen = []
    hidden = lively.hidden
    monkeypatch.setattr(lively, "hidden", lambda ids, *more: seen.append(len(ids)) or hidden(ids, *more))
    rows, _ = harness.run(lm, loaded)
    assert sum(seen) == 3  # the four letters share one
    scores = [[float(one) for one in row["response"].split()] for row in rows]
    assert [len(one) for one in scores] == [4, 4, 4]
    assert [row["value"] for row in rows] == [float(one.index(max(one)) == n) for n, one in enumerate(scores)]


@pytest.mark.parametrize("name", ["humaneval", "humaneval_instruct"])
def test_humaneval_runs_what_was_written(published, lm, monkeypatch, name):
    loaded = harness.load([name], allow_code=True)
    rows, _ = harness.run(lm, loaded, chat=name.endswith("instruct"))
    assert [(row["measure"], row["value"]) for row in rows] == [("pass@1", 0.0)] * 2
    monkeypatch.setattr(
        Answers, "texts", lambda self, questions: [Text("    return x + 1\n", [], False) for _ in questions]
    )
    rows, reports = harness.run(lm, loaded)
    assert [row["value"] for row in rows] == [0.0, 1.0]
    assert reports[name][name]["pass@1,none"] == 0.5
