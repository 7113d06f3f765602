"""HumanEval and data sets of its columns (prompt, test, entry_point), judged by running the programs here.

The harness's own scorer needs the `evaluate` package, a download and a flag in the environment, and runs programs with
no limit but a timeout; its task is taken without that scorer. Source: Chen et al. 2021, pass@1 of one sample a problem.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from midward.errors import InputError
from midward.utility.execution import Limits, run_program

MEASURE = "pass@1"
COLUMNS = ("prompt", "test", "entry_point")
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|$)", re.DOTALL)


def task_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The harness's configuration of such a task, with our scorer in place of its own. Raises InputError for a task
    that draws several samples a problem."""
    if config.get("repeats", 1) != 1:
        raise InputError(
            f"the task {config['task']!r} draws {config['repeats']} samples a problem; here it is one: "
            "humaneval, humaneval_instruct or humaneval_plus."
        )
    kept = {key: value for key, value in config.items() if key not in ("metric_list", "filter_list")}
    return kept | {
        "process_results": score,
        "metric_list": [{"metric": MEASURE, "aggregation": "mean", "higher_is_better": True}],
    }


def score(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """1 where the completed program passes its tests. Raises InputError for a data set without HumanEval's columns."""
    missing = [name for name in COLUMNS if name not in doc]
    if missing:
        raise InputError(f"programs are judged by the columns {', '.join(COLUMNS)}; the data set lacks {missing[0]!r}.")
    return {MEASURE: float(run_program(program(doc, results[0]), Limits()).passed)}


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
