"""lm-evaluation-harness's tasks: found and loaded by its own task manager, run by its `simple_evaluate`, a row for each
sample and measure."""

from __future__ import annotations

import logging
import math
import numbers
import os
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from midward._hints import did_you_mean
from midward._tables import grouped
from midward.errors import InputError
from midward.guards import STUB
from midward.utility import programs
from midward.utility.asked import OWN

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

    from midward.utility.lm import MidwardLM

Row = dict[str, Any]


@dataclass(frozen=True)
class Loaded:
    """Tasks with their data: name -> what `simple_evaluate` takes for it, and the manager that found them."""

    manager: TaskManager
    tasks: dict[str, list[Task | Group]]


def load(names: Sequence[str], include: Path | None = None, allow_code: bool = False) -> Loaded:
    """The harness's tasks of these names (of a task, a group or a tag), with their data.

    Args:
        include: folder of your own task files (YAML), whose names go before the harness's.
        allow_code: whether tasks that run the model's programs may be asked for.

    Raises:
        InputError: lm-eval isn't installed; an unknown name; data that are neither on this machine nor to be had; a
            task that runs programs without leave, without a sandbox for them, or of a kind that isn't judged here.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise InputError(
            "these tasks are lm-evaluation-harness's, which isn't installed: pip install 'midward[lm-eval]'. "
            "--tasks sandbox needs nothing."
        ) from None
    if include is not None and not include.is_dir():
        raise InputError(f"--include-path {include} is no folder.")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # else of every task that is there twice
    manager = TaskManager(include_path=include)
    for name in names:
        if name not in manager.task_index:
            hint = did_you_mean(name, OWN) or did_you_mean(name, manager.all_tasks)
            raise InputError(
                f"no task is called {name!r}.{hint} `lm-eval ls tasks` lists the harness's; sandbox, {', '.join(OWN)} "
                "are the sandbox's."
            )
    specs: dict[str, str | dict[str, Any]] = {}
    for name in names:
        config = manager.task_index[name].cfg or {}
        specs[name] = name
        if config.get("unsafe_code"):
            _require_leave(name, allow_code)
            specs[name] = programs.task_config(name, config)
    random.seed(0)  # as `simple_evaluate` seeds them: some tasks shuffle their choices as they load
    np.random.seed(1234)
    loaded: dict[str, list[Task | Group]] = {}
    for name, spec in specs.items():
        try:
            built = manager.load([spec])
        except Exception as error:  # whatever the task's own code, its packages and its data raise
            raise InputError(
                f"the task {name!r} can't be loaded: {type(error).__name__}: {str(error)[:300]}. Data that aren't on "
                "this machine are fetched where there is a network and HF_HUB_OFFLINE isn't set."
            ) from error
        if any(_runs_code(task) and not _is_ours(task) for task in built["tasks"].values()):  # a group's
            _require_leave(name, allow_code)
            raise InputError(f"{name!r} holds tasks that run code; of those name HumanEval's, each by itself.")
        groups = built.get("groups", {})
        loaded[name] = [groups[name]] if name in groups else list(built["tasks"].values())
    return Loaded(manager, loaded)


def _runs_code(task: Task) -> bool:
    return getattr(task, "UNSAFE_CODE", False)


def _is_ours(task: Task) -> bool:
    """Whether the programs of a task are run by our scorer, in a sandbox."""
    return task.get_config("process_results") is programs.score


def _require_leave(name: str, allow_code: bool) -> None:
    if not allow_code:
        raise InputError(
            f"the task {name!r} runs programs that the model wrote. Where that is all right, give "
            "--allow-code-execution: bubblewrap runs each of them without network; see docs/utility.md."
        )
    programs.sandbox()


def needs_greedy(tasks: Sequence[Task]) -> bool:
    """Whether some task asks if a continuation is the greedy one."""
    return any(
        task.OUTPUT_TYPE == "loglikelihood"
        or (task.OUTPUT_TYPE == "multiple_choice" and "exact_match" in task.aggregation())
        for task in tasks
    )


def run(
    lm: MidwardLM, loaded: Loaded, *, limit: int | None = None, fewshot: int | None = None, chat: bool = False
) -> tuple[list[Row], dict[str, Any]]:
    """Evaluate.

    Args:
        loaded: of `load`.
        limit: samples of each task, the first ones.
        fewshot: solved examples before each sample, where the task doesn't fix them at none; None for its own number.
        chat: whether prompts go through the model's chat template, solved examples as earlier turns.

    Returns:
        The rows of all tasks, and what the harness itself reports by name; both empty but in the first process.
        Rows are of measures that are shares: means over samples of values from 0 to 1. Others, such as a perplexity or
        BLEU, are in the report alone, and `lm` says which. A row: set (the name asked for), subtask, goal (the
        sample's number), subject (a hash of the exercise), measure, value, prompt, response, target, flagged.
    """
    from lm_eval import simple_evaluate

    # Its bootstraps are one chunk, so a pool of processes gains nothing; behind Ray's handlers a fork may hang.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    rows: list[Row] = []
    reports: dict[str, Any] = {}
    for name, spec in loaded.tasks.items():
        tasks = {task.task_name: task for task in _tasks(spec)}
        lm.greedy = needs_greedy(list(tasks.values()))
        results = simple_evaluate(
            lm,
            tasks=spec,
            num_fewshot=fewshot,
            limit=limit,
            task_manager=loaded.manager,
            bootstrap_iters=1000,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            confirm_run_unsafe_code=all(_is_ours(task) for task in tasks.values() if _runs_code(task)),
        )
        if results is None:
            continue
        reports[name] = results["results"]
        samples = results["samples"]
        others = {measure for subtask in samples for measure in _no_shares(tasks[subtask], samples[subtask])}
        if others:
            lm.tell(
                f"{name}: of what is no share of samples only the task's own value is kept: {', '.join(sorted(others))}"
            )
        for subtask in samples:
            for sample in sorted(samples[subtask], key=lambda sample: sample["doc_id"]):
                rows += _rows(lm, name, subtask, sample, others)
    return rows, reports


def _tasks(spec: Sequence[Task | Group]) -> Iterator[Task]:
    for each in spec:
        yield from each.get_all_tasks() if hasattr(each, "get_all_tasks") else [each]


def _no_shares(task: Task, samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """The measures of a task that aren't means of values from 0 to 1 (or NaN)."""
    pairs = [(measure, sample[measure]) for sample in samples for measure in sample["metrics"]]
    values = grouped(pairs, lambda pair: pair[0])

    def is_share(value: Any) -> bool:
        return isinstance(value, numbers.Real | np.bool_) and (math.isnan(value) or 0 <= float(value) <= 1)

    # What a task doesn't aggregate is averaged by the harness.
    how = {measure: getattr(task.aggregation().get(measure, np.mean), "__name__", "") for measure in values}
    shares = {measure for measure, pairs in values.items() if all(is_share(value) for _, value in pairs)}
    return [measure for measure in values if how[measure] not in ("mean", "nanmean") or measure not in shares]


def _rows(lm: MidwardLM, name: str, subtask: str, sample: Mapping[str, Any], others: Collection[str]) -> Iterator[Row]:
    """A row for each measure of a sample but `others`."""
    answers = [repeats[0] for repeats in sample["resps"]]
    if isinstance(answers[0], str):
        response = answers[0]
    else:  # log-probabilities, of each choice or of the text
        response = " ".join(f"{value[0] if isinstance(value, tuple | list) else value:.4f}" for value in answers)
    for metric in sample["metrics"]:
        if metric in others:
            continue
        measure = metric if sample["filter"] == "none" else f"{metric},{sample['filter']}"
        asked = {"set": name, "subtask": subtask, "goal": str(sample["doc_id"]), "subject": sample["doc_hash"][:16]}
        yield {
            **asked,
            "measure": measure,
            "value": None if math.isnan(sample[metric]) else float(sample[metric]),
            "prompt": sample["arguments"][0][0],
            "response": response,
            "target": str(sample["target"]),
            "flagged": lm.guard is not None and response == STUB,
        }
