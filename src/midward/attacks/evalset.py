"""A matrix as one Inspect `eval_set`: a task a cell, known by what its results depend on, so that a run goes on."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
from inspect_ai import Task, eval_set
from inspect_ai.dataset import MemoryDataset
from inspect_ai.log import EvalLog, list_eval_logs, read_eval_log, read_eval_log_sample_summaries
from inspect_ai.model import GenerateConfig, Model

from midward import judges
from midward._asking import bounded, preflight
from midward.attacks.capabilities import check
from midward.attacks.matrix import Cell, Matrix, Row, judges_for, load_sets, model_of, plan_attacks, roles_needed
from midward.attacks.record import sample_of
from midward.attacks.solver import following, solver_of
from midward.attacks.target import Ask, Target
from midward.judges.asking import bounded as as_judge
from midward.judges.phrases import REFUSAL
from midward.runs.run import Measured
from midward.serving.provider import Runtime
from midward.store import key_of
from midward.world import ASSISTANT

#: Samples in flight of one task, and tasks in flight: enough to fill the provider's batches.
MAX_SAMPLES, MAX_TASKS = 64, 8
#: Responses that a rate is measured on.
MEASURED = 32
#: Seconds between two lines on how far a run is.
EVERY = 15.0


def one_task(
    attack: str,
    goals_name: str,
    *,
    count: int | None = None,
    judge_names: Sequence[str] = (),
    profile: str = "quick",
    **search: Any,
) -> Task:
    """One attack on one set of goals for Inspect's own command line; its model is whatever that runs.

    Every role is played by the sandbox's scripted assistant unless the command line binds a model to it.

    Args:
        attack, goals_name: which.
        count: of goals; all unless given.
        judge_names: the standard ones unless given, see `judges_for`.
        profile: as in `Matrix`.
        search: seed, budget and replay, as in `Matrix`.
    """
    [planned] = plan_attacks([attack], profile)
    sets = load_sets([goals_name], count)
    [(name, chosen)] = sets.items()
    judge_names = list(judge_names) or judges_for(sets, profile)
    cell = Cell(planned, name, chosen, list(map(judges.find, judge_names)))
    roles = dict.fromkeys(roles_needed([planned], judge_names), ASSISTANT)
    return _task(cell, search, model_roles=roles)


def _task(cell: Cell, search: Mapping[str, Any], **more: Any) -> Task:
    """A cell as Inspect's task. search: seed, budget and replay."""
    return Task(
        dataset=MemoryDataset([sample_of(goal) for goal in cell.goals], name=cell.name),
        solver=solver_of(cell.attack.info)(**search, **asdict(cell.attack.settings)),
        scorer=[judges.scorer_of(judge)() for judge in cell.judges],
        **more,
    )


def tasks_of(matrix: Matrix, row: Row, model: Model, roles: Mapping[str, Model]) -> list[Task]:
    """One Inspect task a cell of the row, with the models it asks.

    A task's version is a hash of all that its results depend on, weights included: where anything changed, the cell is
    another task, and its samples are run.
    """
    search = {"seed": matrix.seed, "budget": matrix.budget, "replay": matrix.replay}
    tasks = []
    for cell in matrix.cells():
        attack = cell.attack.info
        judged = ["judge"] if any(judge.needs == "role:judge" for judge in cell.judges) else []
        asked = {role: roles[role] for role in (*attack.roles, *judged)}
        key = cell_key(matrix, row, model, asked, cell)
        origin = {"row": row.label, "adapter": row.adapter, "guard": row.guard}
        origin |= {"goals": cell.name, "attack": attack.name, "cell": key}
        name = f"{row.label}.{cell.name}.{attack.name}"
        tasks.append(_task(cell, search, name=name, model=model, model_roles=asked, version=key, metadata=origin))
    return tasks


def cell_key(matrix: Matrix, row: Row, model: Model, roles: Mapping[str, Model], cell: Cell) -> str:
    """Of where the cell stands, and everything that its results depend on."""
    settings = cell.attack.settings
    return key_of(
        row=row.label,
        goals_name=cell.name,
        model=_identity(model),
        roles={role: _identity(player) for role, player in roles.items()},
        attack=cell.attack.info.hash(settings),
        files=[_sha256(value) for value in asdict(settings).values() if os.path.isfile(str(value))],
        goals=[asdict(goal) for goal in cell.goals],
        refusals=REFUSAL.hash,  # several attacks look for refusals themselves
        judges=[
            (judge.name, judge.version, judge.hash)
            for judge in map(judges.find, judges.ranked([judge.name for judge in cell.judges]))
        ],
        seed=matrix.seed,
        budget=matrix.budget,
        replay=matrix.replay,
    )


def _sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _identity(model: Model) -> list[Any]:
    """What tells a model from others: one of ours has weights and settings hashed into its base URL."""
    return [str(model), model.api.base_url, model.config.model_dump(exclude_none=True)]


def set_aside(logs: Path) -> list[Path]:
    """Rename what Inspect can't read among its logs, so that their cells are run again; returns the new paths."""
    damaged = []
    for path in sorted(logs.glob("*.eval")):
        try:
            # The header, and every sample's checksum.
            read_eval_log(str(path), header_only=True)
            with contextlib.suppress(NotImplementedError), zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:
                    raise ValueError
        except Exception:  # of zip, JSON, pydantic, or Inspect's own: whatever a torn file leads to
            damaged.append(path.rename(path.with_name(f"{path.name}.damaged")))
    identity = logs / ".eval-set-id"
    if identity.exists() and not identity.read_text().strip():
        identity.unlink()
    return damaged


def run(
    matrix: Matrix,
    out: Path,
    *,
    display: str | None = None,
    begin: Callable[[list[Measured]], None] = lambda models: None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[EvalLog]:
    """Run what isn't in `out`/logs yet. The same call again goes on.

    A sample that fails is an error of its own and ends nothing; the same call again tries it anew. Rows run one after
    the other, so that one target is in memory at a time.

    Args:
        matrix: what to run.
        out: the folder.
        display: Inspect's ("rich", "plain", "none"; on stderr).
        begin: called with the rows' models before the first sample, and before any log is touched.
        tell: called with a line on where each row's model runs and one on its sampling, and one on each log that can't
            be read any more (see `set_aside`); where `display` is "none" also with one on how far it is, every `EVERY`
            seconds and at the end.

    Returns:
        The matrix's logs (headers).

    Raises:
        ModelDownError: an endpoint doesn't answer. CapabilityError: a row lacks what an attack needs. What loading
            raises. All before anything runs.
    """
    roles = {role: matrix.player(role) for role in matrix.roles}
    for row in (row for row in matrix.rows if row.served):  # what costs nothing to know comes first
        _check_capabilities(matrix, row, row.load())
    known = (out / "logs").is_dir()
    if not known:
        _first_calls(matrix)
    plan, models = [], []
    matrix.rows[0].tell_need(tell)  # its model is that of all rows of this process
    for row in matrix.rows:
        model = row.load()
        # How many share a forward changes no answer: a run may go on under another batch size.
        model.model_args.pop("batch_size", None)
        _check_capabilities(matrix, row, model)
        plan.append((model, tasks_of(matrix, row, model, roles)))
        models.append(_measured(row, model))
        for line in _resolved(row, model):
            tell(line)
        _let_go(model, matrix)
    begin(models)
    for path in set_aside(out / "logs"):
        name = path.name.removesuffix(".damaged")
        tell(f"warning   {name} can't be read; it was set aside as {path}, and is run again.")
    ready = _ready(out)
    before = sum(ready[str(task.version)] for _, tasks in plan for task in tasks)
    if known and before < matrix.samples:
        _first_calls(matrix)
    done, started = 0, time.monotonic()
    last = started

    def progress() -> None:
        earlier = f", {before} of them by an earlier run" if before else ""
        tell(f"run       {before + done} of {matrix.samples} samples{earlier}; {time.monotonic() - started:.0f} s")

    def ended() -> None:
        nonlocal done, last
        done += 1
        if display == "none" and time.monotonic() - last >= EVERY:
            last = time.monotonic()
            progress()

    with following(ended):
        logs = [log for model, tasks in plan for log in _run_row(matrix, model, tasks, out, display)]
    if done and display == "none":
        progress()
    return logs


def _run_row(matrix: Matrix, model: Model, tasks: list[Task], out: Path, display: str | None) -> list[EvalLog]:
    """All tasks of one row. Raises KeyboardInterrupt, which Inspect swallows at times."""
    with contextlib.redirect_stdout(io.StringIO() if display == "none" else sys.stderr):  # it prints how it ended
        _, logs = eval_set(
            tasks,
            log_dir=str(out / "logs"),
            display=display,  # type: ignore[arg-type]
            fail_on_error=True,
            continue_on_fail=True,
            log_dir_allow_dirty=True,
            log_buffer=1,
            max_samples=MAX_SAMPLES,
            max_tasks=MAX_TASKS,
            retry_attempts=0,
            retry_immediate=False,
            score_display=False,
            log_model_api=False,
            log_realtime=False,
        )
    _let_go(model, matrix)
    cells = {str(task.version) for task in tasks}
    logs = [log for log in logs if str(log.eval.task_version) in cells]
    if len(logs) < len(tasks) or any(log.status == "cancelled" for log in logs):
        raise KeyboardInterrupt
    return logs


def _measured(row: Row, model: Model) -> Measured:
    """Whose results a row's are."""
    if not isinstance(model.api, Runtime):
        return Measured(name=row.model, label=row.label)
    return model.api.measured(row.label, row.guard_path)


def _check_capabilities(matrix: Matrix, row: Row, model: Model) -> None:
    target = Target(model)
    for planned in matrix.attacks:
        check(row.label, target.capabilities, planned.info.needs, planned.info.name)


def _resolved(row: Row, model: Model) -> Iterator[str]:
    """Where the row's model runs and how it samples, in lines; nothing of a served one."""
    if isinstance(model.api, Runtime):
        placed = _measured(row, model)
        at = "" if placed.endpoint is None else f" at {placed.endpoint}"
        on = "" if placed.device is None else f" on {placed.device}"
        yield f"model     {row.label} ({placed.family}){at}{on} as {placed.dtype}"
        yield f"sampling  {model.api.sampling.words(model.api.model.family.kind)}"


def _ready(out: Path) -> Counter[str]:
    """Cell -> how many of its samples in `out`/logs need nothing more."""
    ready: Counter[str] = Counter()
    for info in list_eval_logs(str(out / "logs")) if (out / "logs").is_dir() else []:
        cell = str(read_eval_log(info, header_only=True).eval.task_version)
        done = sum(each.completed and not each.error for each in read_eval_log_sample_summaries(info))
        ready[cell] = max(ready[cell], done)
    return ready


def _first_calls(matrix: Matrix) -> None:
    """Ask every endpoint once, as it will be asked."""
    configs = {row.model: GenerateConfig(**row.arguments) for row in matrix.rows if row.served}
    asked = {name: f"the {role}" for role, name in matrix.roles.items()}
    asked |= {name: "the served model" for name in configs}

    def make(name: str) -> Model:
        bound = as_judge if name == matrix.roles.get("judge") else bounded
        return bound(model_of(name, configs.get(name)))

    preflight(asked, make)


def _let_go(model: Model, matrix: Matrix) -> None:
    """Free the memory of a model of this process; it is loaded again when it is asked."""
    if len(matrix.rows) > 1 and isinstance(model.api, Runtime):
        model.api.let_go()


# --- what it would cost ------------------------------------------------------------------------------------


def measure_rate(matrix: Matrix) -> tuple[float, float]:
    """Responses a second of the first row's model, measured on plain requests at once: (rate, seconds it took)."""
    model, chosen = matrix.rows[0].load(), next(iter(matrix.sets.values()))

    asks = [Ask.of(chosen[i % len(chosen)].prompt, seed=i) for i in range(MEASURED)]
    started = time.monotonic()
    anyio.run(Target(model).respond, *asks)
    taken = time.monotonic() - started
    return MEASURED / taken, taken


def cost(matrix: Matrix) -> tuple[list[str], list[list[Any]], str]:
    """Calls by role and hours, at most, before anything runs: the columns of a table, its rows, and what it says."""
    speed, taken = measure_rate(matrix)
    cells = len(matrix.rows) * sum(len(chosen) for chosen in matrix.sets.values())
    roles = list(dict.fromkeys(role for planned in matrix.attacks for role in planned.calls if role != "target"))
    rows: list[list[Any]] = []
    for planned in matrix.attacks:
        queries = matrix.most(planned) * cells
        calls = [planned.calls.get(role, 0) * cells for role in roles]
        hours = f"{queries / speed / 3600:.2f}"
        rows.append([planned.info.name, cells, matrix.most(planned), queries, *calls, hours])
    total = sum(matrix.most(planned) for planned in matrix.attacks) * cells
    judged = cells * len(matrix.attacks) * len(matrix.judges)
    text = (
        f"measured: {speed:.1f} responses a second ({MEASURED} of them in {taken:.1f} s); scored spans and gradients "
        "count as responses, and searches that succeed stop early: an upper limit\n"
        f"in all: at most {total} queries to the targets, {total / speed / 3600:.2f} hours, {judged} samples to judge "
        "(each text apart)"
    )
    return ["attack", "goals x rows", "queries a goal", "queries", *roles, "hours"], rows, text
