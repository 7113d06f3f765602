"""Tasks of the harness with data of their own, offline, and the CLI."""

import json
import os
from pathlib import Path

import lm_eval.tasks
import pytest
import torch
from peft import LoraConfig, get_peft_model
from typer.testing import CliRunner

from midward.cli import app
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
def midward(monkeypatch):
    """Run `midward ARGS`; the result has exit_code, stdout and stderr. A traceback fails the test."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args):
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def llada_adapter(llada, tmp_path):
    """Folder of a LoRA adapter of the tiny checkpoint that changes what it says."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(llada.network, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"
