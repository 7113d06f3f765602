"""HumanEval and data sets of its columns (prompt, test, entry_point): the programs are run by bubblewrap, each alone.

The harness's own scorer downloads code to run them with, behind a timeout and nothing else; its tasks are taken without
that scorer. In the sandbox a program sees the file system read-only but for an empty /tmp, no network, no other
process, no socket of the machine, and an empty environment. It can read what you can read, and can tell nobody.
Source: Chen et al. 2021, pass@1 of one sample a problem.
"""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from midward.errors import InputError

MEASURE = "pass@1"
COLUMNS = ("prompt", "test", "entry_point")
SECONDS = 10.0  # a program
MEMORY = 1 << 30  # bytes of address space
_FENCES = (
    "--unshare-all --die-with-parent --new-session --clearenv --ro-bind / / --dev /dev --tmpfs /proc --tmpfs /run "
    "--tmpfs /tmp --chdir /tmp --"
).split()
#: Runs the program that stands on stdin; the status is the given one where it comes to its end.
_RUN = (
    "import os, resource, sys; resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2); "
    "exec(compile(sys.stdin.read(), 'program', 'exec'), {'__name__': 'program'}); os._exit(int(sys.argv[1]))"
)
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|$)", re.DOTALL)


def run_program(source: str, seconds: float = SECONDS) -> bool:
    """Whether Python source, run in the sandbox, comes to its end in time. An exit of its own making is none."""
    bwrap = sandbox()
    passed = 100 + secrets.randbelow(100)
    command = [bwrap, *_FENCES, sys.executable, "-I", "-B", "-c", _RUN, str(passed), str(MEMORY)]
    try:
        return _status(command, source, seconds) == passed
    except subprocess.TimeoutExpired:
        return False


def _status(command: list[str], source: str = "", seconds: float = SECONDS) -> int:
    nothing = subprocess.DEVNULL
    encoded = source.encode(errors="replace")
    return subprocess.run(command, input=encoded, stdout=nothing, stderr=nothing, timeout=seconds).returncode


@cache
def sandbox() -> str:
    """The path of bubblewrap.

    Raises:
        InputError: it isn't installed, or can't make a sandbox here.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise InputError(
            "tasks that run the model's programs need bubblewrap (Linux), which isn't here: apt install bubblewrap."
        )
    if _status([bwrap, *_FENCES, sys.executable, "-I", "-c", ""]) != 0:
        raise InputError(
            f"{bwrap} can't make a sandbox here (containers and some distributions forbid user namespaces), so the "
            "model's programs aren't run; allow them, or leave the task out."
        )
    return bwrap


def task_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The harness's configuration of such a task, with our scorer in place of its own.

    Raises:
        InputError: it isn't of HumanEval's kind, or draws several samples a problem.
    """
    if "entry_point" not in str(config) or config.get("repeats", 1) != 1:
        raise InputError(
            f"of the tasks that run code only HumanEval's with one sample a problem are judged here, not {name!r}: "
            "humaneval (for base models), humaneval_instruct, humaneval_plus, or your own with the columns "
            f"{', '.join(COLUMNS)}."
        )
    kept = {key: value for key, value in config.items() if key not in ("metric_list", "filter_list")}
    metric = {"metric": MEASURE, "aggregation": "mean", "higher_is_better": True}
    return kept | {"process_results": score, "metric_list": [metric]}


def score(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """1 where the completed program passes its tests.

    Raises:
        InputError: the data set lacks one of HumanEval's columns.
    """
    if missing := [name for name in COLUMNS if name not in doc]:
        raise InputError(f"programs are judged by the columns {', '.join(COLUMNS)}; the data set lacks {missing[0]!r}.")
    return {MEASURE: float(run_program(program(doc, results[0])))}


def program(doc: Mapping[str, Any], response: str) -> str:
    """The problem's beginning, what the model wrote, and the tests.

    A response may go on where the problem ends, up to a closing fence, or hold the whole function in a fenced block.
    """
    block = _BLOCK.search(response)
    if block and f"def {doc['entry_point']}" in block.group(1):
        response = "\n" + block.group(1)
    else:
        response = response.split("```", 1)[0]
    return f"{doc['prompt']}{response}\n\n{doc['test']}\n\ncheck({doc['entry_point']})\n"
