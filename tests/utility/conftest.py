"""Tasks of the harness with data of their own, offline."""

import json
import os
from pathlib import Path

import lm_eval.tasks
import pytest

from midward.utility import programs

CHOICES = [{"q": f"t{n} t31", "options": ["t40", f"t{60 + n}", "t42 t43"], "right": n % 3} for n in range(30, 35)]
PROGRAMS = [
    {
        "prompt": f"def f{n}(x):\n    '''Return x plus {n}.'''\n",
        "entry_point": f"f{n}",
        "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
    }
    for n in range(2)
]
TEXT = 'output_type: generate_until\ngeneration_kwargs: {until: ["t7"], max_gen_toks: 6}\n'
YAMLS = {
    "tiny_choice": """
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{options}}"
doc_to_target: right
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "tiny_text": f"""{TEXT}
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{options[0]}}}}"
metric_list: [{{metric: exact_match}}]
""",
    "tiny_program": f"""{TEXT}
unsafe_code: true
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{test}}}}check({{{{entry_point}}}})"
metric_list: [{{metric: !function absent.pass_at_k, aggregation: mean, higher_is_better: true}}]
""",
}


@pytest.fixture
def tasks_folder(tmp_path):
    """Folder of three tasks over rows made up here: five questions, five questions, two programs."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, rows in (("choices", CHOICES), ("programs", PROGRAMS)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    for name, yaml in YAMLS.items():
        data = "programs" if name == "tiny_program" else "choices"
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ntest_split: test\n{yaml}"
            f"dataset_kwargs: {{data_files: {{test: {folder / data}.jsonl}}, cache_dir: {tmp_path / 'cache'}}}\n"
        )
    return folder


@pytest.fixture(autouse=True)
def few_tasks(monkeypatch):
    """Of the harness's 14,000 tasks the folders that are asked for here: reading them all takes a minute."""
    whole = lm_eval.tasks.TaskManager
    folders = [Path(lm_eval.tasks.__file__).parent / name for name in ("gsm8k", "mmlu/default", "humaneval", "mbpp")]

    def manager(include_path=None):
        return whole(include_path=[*folders, *([include_path] if include_path else [])], include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)


@pytest.fixture
def bubblewrap(tmp_path, monkeypatch):
    """A `bwrap` that runs what it is given, behind no fence at all."""
    (tmp_path / "bin").mkdir()
    bwrap = tmp_path / "bin" / "bwrap"
    bwrap.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n')
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bwrap.parent}{os.pathsep}{os.environ['PATH']}")
    programs.sandbox.cache_clear()
    yield
    programs.sandbox.cache_clear()


@pytest.fixture
def forwards(lively, monkeypatch):
    """Rows of every forward of the lively model."""
    rows = []
    hidden = lively.hidden
    monkeypatch.setattr(lively, "hidden", lambda ids, *more: rows.append(len(ids)) or hidden(ids, *more))
    return rows
