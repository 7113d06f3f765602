"""lm-evaluation-harness's tasks: found, loaded and run on our models, a row for each sample and measure."""

from __future__ import annotations

import logging
import math
import numbers
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from midward._hints import did_you_mean
from midward.errors import InputError
from midward.utility import humaneval

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

    from midward.utility.lm import MidwardLM

Row = dict[str, Any]
Member = str | Mapping[str, Any]  # what a group holds: a name, or a name or task of its own with settings


def require() -> None:
    """Raise InputError where lm-eval isn't installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise InputError(
            "these tasks are lm-evaluation-harness's, which isn't installed: pip install 'midward[lm-eval]'. "
            "--tasks sandbox needs nothing."
        ) from None


def load(
    names: Sequence[str],
    *,
    include: Path | None = None,
    fewshot: int | None = None,
    allow_code: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, Any]]:
    """Name -> what the harness's `evaluate` takes, with the data loaded. A name is a task, a group or a tag.

    include: a folder of your own task files (YAML), whose names go first. fewshot: solved examples before each, where
    the task doesn't fix them at none. allow_code: whether tasks that run the model's programs may be asked for. say:
    told before what takes long. Raises InputError: an unknown name, such a task without leave or of a kind that isn't
    judged here, data that are neither on this machine nor to be had, a package that a task needs.
    """
    require()
    manager = _manager(names, include, say)
    specs = {name: _spec(manager, name, allow_code) for name in names}
    loaded = {}
    with _as_seeded():
        for name, spec in specs.items():
            loaded[name] = dict(_load(manager, name, spec))
            for task in loaded[name]["tasks"].values():
                if _unsafe(task) and not _fenced(task):  # by settings that only the harness puts together
                    _refuse_code(name, allow_code)
                own = task.get_config("num_fewshot")
                if own is None or (fewshot is not None and own != 0):
                    task.set_config(key="num_fewshot", value=fewshot or 0)
                task.set_fewshot_seed(seed=1234)  # the harness's own
    return loaded


def needs_greedy(loaded: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether some task asks if a continuation is the greedy one."""

    def asks(task: Task) -> bool:
        kind = task.OUTPUT_TYPE
        return kind == "loglikelihood" or (kind == "multiple_choice" and "exact_match" in task.aggregation())

    return any(asks(task) for one in loaded.values() for task in one["tasks"].values())


def run(
    lm: MidwardLM, loaded: Mapping[str, Mapping[str, Any]], *, limit: int | None = None, chat: bool = False
) -> tuple[list[Row], dict[str, Any]]:
    """Evaluate; the rows of all tasks, and what the harness itself reports by name. Empty but in the first process.

    Rows are of measures that are shares: means over samples of values from 0 to 1. Others, such as a perplexity or
    BLEU, are in the report alone, and `lm` says which.

    limit: samples of each task, the first ones. chat: whether prompts go through the model's chat template, solved
    examples as earlier turns. A row: task (the name asked for), subtask, id, doc (a hash), measure, value, prompt,
    response, target, flagged.
    """
    from lm_eval.evaluator import evaluate

    rows: list[Row] = []
    reports: dict[str, Any] = {}
    for name, one in loaded.items():
        with _without_bars():
            found = evaluate(
                lm,
                one,
                limit=limit,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
                confirm_run_unsafe_code=all(_fenced(task) for task in one["tasks"].values() if _unsafe(task)),
            )
        if found is None:
            continue
        reports[name] = found["results"]
        others = {
            measure: None
            for subtask, samples in found["samples"].items()
            for measure in _no_shares(one["tasks"][subtask], samples)
        }
        if others:
            lm.tell(f"{name}: of what is no share of samples only the task's own value is kept: {', '.join(others)}")
        for subtask, samples in found["samples"].items():
            for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
                rows += _rows(lm, name, subtask, sample, others)
    return rows, reports


def _no_shares(task: Task, samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """The measures of a task that aren't means of values from 0 to 1 (or NaN)."""
    values: dict[str, list[Any]] = {}
    for sample in samples:
        for measure in sample["metrics"]:
            values.setdefault(measure, []).append(sample[measure])

    def share(value: Any) -> bool:
        return isinstance(value, numbers.Real | np.bool_) and (math.isnan(value) or 0 <= float(value) <= 1)

    # What a task doesn't aggregate is averaged by the harness.
    averaged = {
        measure
        for measure in values
        if getattr(task.aggregation().get(measure, np.mean), "__name__", "") in ("mean", "nanmean")
    }
    return [measure for measure in values if measure not in averaged or not all(map(share, values[measure]))]


def _rows(lm: MidwardLM, name: str, subtask: str, sample: Mapping[str, Any], others: Collection[str]) -> Iterator[Row]:
    """A row for each measure of a sample but `others`."""
    said = [answers[0] for answers in sample["resps"]]
    if isinstance(said[0], str):
        response = said[0]
    else:  # log-probabilities, of each choice or of the text
        response = " ".join(f"{one[0] if isinstance(one, tuple | list) else one:.4f}" for one in said)
    from midward.guards import STUB

    for measure in sample["metrics"]:
        if measure in others:
            continue
        value = sample[measure]
        yield {
            "task": name,
            "subtask": subtask,
            "id": str(sample["doc_id"]),
            "doc": sample["doc_hash"][:16],
            "measure": measure if sample["filter"] == "none" else f"{measure},{sample['filter']}",
            "value": None if math.isnan(value) else float(value),
            "prompt": sample["arguments"][0][0],
            "response": response,
            "target": str(sample["target"]),
            "flagged": getattr(lm.model, "guard", None) is not None and response == STUB,
        }


# --- finding and loading -----------------------------------------------------------------------------------------


def _manager(names: Sequence[str], include: Path | None, say: Callable[[str], None]) -> TaskManager:
    """An index of task files that holds the names. The harness's whole index takes a minute and more to read, so first
    only the folders whose names theirs begin with are read, then those that begin alike."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    if include is not None and not include.is_dir():
        raise InputError(f"--include-path {include} is no folder.")
    own = [include] if include is not None else []
    folders = [path for path in sorted(Path(lm_eval.tasks.__file__).parent.iterdir()) if path.is_dir()]
    near = [path for path in folders if any(name.startswith(path.name) for name in names)]
    further = [path for path in folders if any(path.name.startswith(name.split("_")[0]) for name in names)]
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # else of every task that is there twice
    for some in (near, [*near, *further], None):
        if some is None:
            say("looking through all of the harness's tasks: a minute or more")
            manager = TaskManager(include_path=own)
        else:
            manager = TaskManager(include_path=[*some, *own], include_defaults=False)
        if not any(True for name in names for _ in _missing(manager, name, {"dataset_path", "doc_to_text"})):
            break
    for name in names:
        for one in _missing(manager, name, {"dataset_path"}):
            raise InputError(
                f"no task is called {one!r}.{did_you_mean(one, manager.task_index)} `lm-eval ls tasks` lists the "
                "harness's; sandbox, sums, recall and programs are the sandbox's."
            )
    return manager


def _missing(manager: TaskManager, one: Member, own: Set[str]) -> Iterator[str]:
    """The names that the index doesn't know, of all behind one. own: what a group's member has that is a task of its
    own; others change one that has a name."""
    if isinstance(one, str):
        name, known = one, False
    else:
        name, known = str(one.get("task")), "group" in one or "custom_dataset" in one or own <= one.keys()
    if not (known or name in manager.task_index):
        yield name
    for each in _members(manager, one):
        yield from _missing(manager, each, own)


def _members(manager: TaskManager, one: Member) -> list[Member]:
    """What a group or tag stands for, or a group's member that changes something with a name; of a task nothing."""
    if not isinstance(one, str):
        name = one.get("group", one.get("task"))
        if name in manager.task_index:
            return [name]
        held = one.get("task")  # a group without a file of its own
    elif one not in manager.task_index:
        return []
    else:
        entry = manager.task_index[one]
        held = sorted(entry.tags) if entry.kind.name == "TAG" else (entry.cfg or {}).get("task")
    return held if isinstance(held, list) else []


def _configs(manager: TaskManager, one: Member) -> Iterator[Mapping[str, Any]]:
    """The configurations of the groups and tasks behind a name, and what groups change of them."""
    if not isinstance(one, str):
        yield one
    elif one in manager.task_index:
        yield manager.task_index[one].cfg or {}
    for each in _members(manager, one):
        yield from _configs(manager, each)


def _spec(manager: TaskManager, name: str, allow_code: bool) -> str | dict[str, Any]:
    """What the manager loads for a name: itself, or our version of a task that runs code."""
    if not any(config.get("unsafe_code") for config in _configs(manager, name)):
        return name
    config = manager.task_index[name].cfg or {}
    ours = not _members(manager, name) and "entry_point" in str(config)
    if not (allow_code and ours):
        _refuse_code(name, allow_code)
    return humaneval.task_config(config)


def _unsafe(task: Task) -> bool:
    return bool(getattr(task, "UNSAFE_CODE", False))


def _fenced(task: Task) -> bool:
    """Whether the programs of a task are run by our scorer, behind fences; with leave alone it is made so."""
    return task.get_config("process_results") is humaneval.score


def _refuse_code(name: str, allow_code: bool) -> NoReturn:
    if not allow_code:
        raise InputError(
            f"the task {name!r} runs programs that the model wrote. Where that is all right, give "
            "--allow-code-execution: they run in a process of their own, with limits of time and memory, and without "
            "network where the platform has a way; see docs/utility.md."
        )
    raise InputError(
        f"of the tasks that run code only HumanEval's are judged here, not {name!r}: humaneval (for base models), "
        f"humaneval_instruct, humaneval_plus, or your own with the columns {', '.join(humaneval.COLUMNS)}."
    )


def _load(manager: TaskManager, name: str, spec: str | dict[str, Any]) -> Mapping[str, Any]:
    try:
        return manager.load([spec])
    except ImportError as error:
        raise InputError(f"the task {name!r} needs a package that isn't installed: {error}.") from None
    except OSError as error:
        sets = {
            (config["dataset_path"], config.get("dataset_name"))
            for config in _configs(manager, name)
            if config.get("dataset_path")
        }
        by_path = defaultdict(list)
        for path, part in sorted(sets, key=str):
            by_path[path].append(part)
        wanted = "; ".join(
            f"load_dataset({path!r}{f', {parts[0]!r}' if parts[0] else ''})"
            + (f" and {len(parts) - 1} more of its parts" if len(parts) > 1 else "")
            for path, parts in by_path.items()
        )
        raise InputError(
            f"the data of the task {name!r} are not on this machine and can't be fetched ({str(error)[:200]}). With a "
            f"network, and without HF_HUB_OFFLINE, this command fetches them; or once, in Python: from datasets import "
            f"load_dataset; {wanted or 'see the task'}."
        ) from None


@contextmanager
def _without_bars() -> Iterator[None]:
    """The harness shows its own progress as it builds prompts, whoever else has the terminal."""
    from lm_eval.api import task

    before = task.tqdm
    task.tqdm = lambda items, **settings: items
    try:
        yield
    finally:
        task.tqdm = before


@contextmanager
def _as_seeded() -> Iterator[None]:
    """The random state that the harness loads tasks in: some shuffle their choices as they load."""
    before, before_np = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(1234)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(before_np)
