"""The matrix model x adapter x attack x goals as one Inspect `eval_set` that goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import anyio
from inspect_ai import Task, eval_set
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.dataset import MemoryDataset
from inspect_ai.log import EvalLog, list_eval_logs, read_eval_log
from inspect_ai.model import GenerateConfig, Model, get_model
from inspect_ai.util import collect

from midward import attacks, goals, judges
from midward._asking import bounded, preflight, unavailable
from midward.attacks import Ask, AttackError, AttackInfo, Target
from midward.attacks.capabilities import check
from midward.attacks.profiles import attacks_of, profile_of
from midward.attacks.record import sample_of
from midward.errors import InputError
from midward.goals import Goal, on_sandbox
from midward.guards import describe
from midward.guards import find as find_guard
from midward.judges import JudgeInfo
from midward.judges.asking import bounded as as_judge
from midward.judges.phrases import REFUSAL
from midward.serving.provider import MidwardAPI
from midward.store import key_of
from midward.world import ASSISTANT

#: Samples in flight of one task, and tasks in flight: enough to fill the provider's batches.
MAX_SAMPLES, MAX_TASKS = 64, 8


@dataclass(frozen=True)
class Row:
    """One line of the table: a model, perhaps with an adapter, perhaps behind a guard.

    model: what `midward.load` takes; served: it is an Inspect model with its provider instead (`openai/...`).
    arguments: the provider's model arguments; of a served one fields of Inspect's `GenerateConfig`.
    guard: a fitted guard's file or folder.
    """

    label: str
    model: str
    adapter: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    served: bool = False
    guard: str | None = None

    def load(self) -> Model:
        """The Inspect model. Raises ModelError as the provider does, and AttackError for a served one."""
        if self.served:
            return model_of(self.model, GenerateConfig(**self.arguments))
        given = {"adapter": self.adapter, "guard": self.guard}
        arguments = dict(self.arguments) | {name: value for name, value in given.items() if value}
        return model_of(f"midward/{self.model}", **arguments)


def model_of(name: str, config: GenerateConfig | None = None, **arguments: Any) -> Model:
    """An Inspect model by name. Raises ModelError as our provider does, and AttackError for any other."""
    config = config or GenerateConfig()
    if name.startswith("midward/"):
        config.max_connections = 1000  # the provider's queue makes batches of all that waits
    try:
        return get_model(name, memoize=False, config=config, **arguments)
    except PrerequisiteError as error:
        if isinstance(error, ValueError):
            raise
        raise AttackError(f"{name}: {unavailable(error)}") from error
    except ValueError as error:  # a provider that there isn't
        raise AttackError(f"{name}: {error}") from error


@dataclass(frozen=True)
class Planned:
    """An attack with its settings as they will be used."""

    info: AttackInfo
    settings: Any

    @property
    def calls(self) -> Mapping[str, int]:
        """The most it asks for one goal."""
        return self.info.calls(self.settings)


@dataclass(frozen=True)
class Matrix:
    """What to run. sets: name -> harmful goals. roles: Inspect role -> model name. budget: over every attack's own.

    judges: names; one that needs the role `judge` asks `roles["judge"]`. harmless: name -> harmless goals, which are
    asked plainly: of them it is counted how many are refused, never attack success.
    """

    rows: Sequence[Row]
    attacks: Sequence[Planned]
    sets: Mapping[str, Sequence[Goal]]
    judges: Sequence[str]
    roles: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    budget: int | None = None
    replay: bool = True
    harmless: Mapping[str, Sequence[Goal]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found = {"rows": self.rows, "attacks": self.attacks, "goals": self.sets, "judges": self.judges}
        found |= {f"goals in {name}": chosen for name, chosen in self.sets.items()}
        for what, some in found.items():
            if not some:
                raise AttackError(f"there are no {what} to run; give one or more.")
        labels = [row.label for row in self.rows]
        if twice := {label for label in labels if labels.count(label) > 1}:
            raise AttackError(f"two rows are called {min(twice)!r}; give each its own label: --adapter LABEL=FOLDER.")
        if any(getattr(one.settings, "mode", None) == "fill_only" for one in self.attacks):
            self._check_fills()

    def _check_fills(self) -> None:
        """A guard that was fitted for one sampling can't follow an attack that samples the prompt itself."""
        for row in self.rows:
            if row.guard and "sampling" in find_guard(describe(row.guard)["guard"]).kind.tied_to:
                raise AttackError(
                    f"{row.label}: dija only fills the prompt, at a length of its own, and the guard {row.guard} was "
                    "fitted for responses; use --set dija.mode=fill_then_answer, or leave dija out."
                )

    @property
    def refusal_judges(self) -> list[str]:
        """Those of the judges that say who refused, for the harmless goals."""
        return [name for name in self.judges if not judges.find(name).of_attacks] or ["refusal"]

    def cells(self) -> Iterator[tuple[Planned, str, Sequence[Goal], list[JudgeInfo]]]:
        """Attack, name of the goals, goals and judges, of each cell of a row."""
        judged_by = [judges.find(name) for name in self.judges]
        for planned in self.attacks:
            yield from ((planned, name, some, judged_by) for name, some in self.sets.items())
        direct = attacks.find("direct")
        plain = Planned(direct, direct.configure({}))
        of_refusals = [judges.find(name) for name in self.refusal_judges]
        yield from ((plain, name, some, of_refusals) for name, some in self.harmless.items())

    @property
    def samples(self) -> int:
        """Goals attacked or asked, over all cells."""
        return len(self.rows) * sum(len(chosen) for _, _, chosen, _ in self.cells())

    def most(self, planned: Planned) -> int:
        """The most queries to the target for one goal."""
        most = planned.calls["target"]
        return most if self.budget is None else min(most, self.budget)


def plan_attacks(
    names: Sequence[str], profile: str, overrides: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Planned]:
    """The attacks of these names (the profile's where there are none) with the profile's settings and `overrides`.

    Raises InputError for an unknown name or setting, a value out of range, or a required setting that isn't given.
    """
    chosen = profile_of(profile)
    overrides = overrides or {}
    names = list(dict.fromkeys(names)) or list(attacks_of(chosen))
    if strangers := set(overrides) - set(names):
        raise InputError(f"settings for {min(strangers)!r}, which isn't among the attacks: {', '.join(names)}.")
    found = [attacks.find(name) for name in names]
    planned = [
        Planned(info, info.configure({**chosen.settings_of(info), **overrides.get(info.name, {})})) for info in found
    ]
    for one in planned:
        for name in one.info.required:
            if not getattr(one.settings, name):
                raise InputError(
                    f"{one.info.name} can't run without its setting {name}; give it by --set {one.info.name}.{name}=..."
                )
    return planned


def one_task(
    attack: str,
    goals_name: str,
    *,
    count: int | None = None,
    judge_names: Sequence[str] = (),
    profile: str = "quick",
    seed: int = 0,
    budget: int | None = None,
    replay: bool = True,
) -> Task:
    """One attack on one set of goals for Inspect's own command line; its model is whatever that runs.

    Every role is played by the sandbox's scripted assistant unless the command line binds a model to it. judge_names:
    the standard ones unless given, see `judges_for`.
    """
    [planned] = plan_attacks([attack], profile)
    sets = load_sets([goals_name], count)
    [(name, chosen)] = sets.items()
    judge_names = list(judge_names) or judges_for(sets, profile)
    return Task(
        dataset=MemoryDataset([sample_of(goal) for goal in chosen], name=name),
        solver=attacks.solver_of(planned.info)(seed=seed, budget=budget, replay=replay, **asdict(planned.settings)),
        scorer=[judges.scorer_of(judges.find(name))() for name in judge_names],
        model_roles=dict.fromkeys(roles_needed([planned], judge_names), ASSISTANT),
    )


def tasks_of(matrix: Matrix, row: Row, model: Model, roles: Mapping[str, Model]) -> list[Task]:
    """One Inspect task a cell of the row, with the models it asks.

    A task's version is a hash of all that its results depend on, weights included: where anything changed, the cell is
    another task, and its samples are run.
    """
    tasks = []
    about = {"row": row.label, "guard": row.guard}
    for planned, name, chosen, judged_by in matrix.cells():
        judged = ["judge"] if any(info.needs == "role:judge" for info in judged_by) else []
        asked = {role: roles[role] for role in (*planned.info.roles, *judged)}
        cell = cell_key(matrix, row, model, asked, planned, name)
        tasks.append(
            Task(
                name=f"{row.label}.{name}.{planned.info.name}",
                dataset=MemoryDataset([sample_of(goal) for goal in chosen], name=name),
                solver=attacks.solver_of(planned.info)(
                    seed=matrix.seed, budget=matrix.budget, replay=matrix.replay, **asdict(planned.settings)
                ),
                scorer=[judges.scorer_of(info)() for info in judged_by],
                model=model,
                model_roles=dict(asked),
                version=cell,
                metadata={**about, "goals": name, "attack": planned.info.name, "cell": cell},
            )
        )
    return tasks


def cell_key(
    matrix: Matrix, row: Row, model: Model, roles: Mapping[str, Model], planned: Planned, goals_name: str
) -> str:
    """Of where the cell stands, and everything that its results depend on."""
    chosen, judged_by = next((some, infos) for _, name, some, infos in matrix.cells() if name == goals_name)
    return key_of(
        row=row.label,
        goals_name=goals_name,
        model=_identity(model),
        roles={role: _identity(played) for role, played in roles.items()},
        attack=planned.info.hash(planned.settings),
        files=[_sha256(value) for value in asdict(planned.settings).values() if os.path.isfile(str(value))],
        goals=[asdict(goal) for goal in chosen],
        refusals=REFUSAL.hash,  # several attacks look for refusals themselves
        judges=[
            (info.name, info.version, info.hash)
            for info in map(judges.find, judges.ranked([info.name for info in judged_by]))
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
    matrix: Matrix, out: Path, *, display: str | None = None, tell: Callable[[str], None] = lambda text: None
) -> list[EvalLog]:
    """Run what isn't in `out`/logs yet; returns the matrix's logs (headers). The same call again goes on.

    A sample that fails is an error of its own and ends nothing; the same call again tries it anew. Rows run one after
    the other, so that one target is in memory at a time. display: Inspect's ("rich", "plain", "none"; on stderr). tell:
    called with a line on each log that can't be read any more (see `set_aside`).
    Raises what loading raises, ModelDownError for an endpoint that doesn't answer, and CapabilityError, before anything
    runs.
    """
    roles = {role: model_of(name) for role, name in matrix.roles.items()}
    for row in (row for row in matrix.rows if row.served):  # what costs nothing to know comes first
        _check_capabilities(matrix, row, row.load())
    for path in set_aside(out / "logs"):
        tell(f"{path.name.removesuffix('.damaged')} can't be read; it was set aside as {path}, and is run again.")
    finished = _finished(out)
    if not finished:
        _first_calls(matrix)
    plan = []
    for row in matrix.rows:
        model = row.load()
        # How many share a forward changes no answer: a run may go on under another batch size.
        model.model_args.pop("batch_size", None)
        _check_capabilities(matrix, row, model)
        plan.append((model, tasks_of(matrix, row, model, roles)))
        _let_go(model, matrix)
    if finished and not all(str(task.version) in finished for _, tasks in plan for task in tasks):
        _first_calls(matrix)
    found = []
    for model, tasks in plan:
        with contextlib.redirect_stdout(sys.stderr):
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
            raise KeyboardInterrupt  # which Inspect swallows at times
        found += logs
    return found


def _check_capabilities(matrix: Matrix, row: Row, model: Model) -> None:
    target = Target(model)
    for planned in matrix.attacks:
        check(row.label, target.capabilities, planned.info.needs, planned.info.name)


def _finished(out: Path) -> set[str]:
    """The cells in `out`/logs that need nothing more."""
    folder = out / "logs"
    found = list_eval_logs(str(folder)) if folder.is_dir() else []
    logs = [read_eval_log(one, header_only=True) for one in found]
    return {str(log.eval.task_version) for log in logs if log.status == "success"}


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
    if len(matrix.rows) > 1 and isinstance(model.api, MidwardAPI):
        model.api.close()


def measure_rate(row: Row, chosen: Sequence[Goal], *, count: int = 32) -> tuple[float, float]:
    """Responses a second of a row's model, measured on `count` plain requests at once: (rate, seconds it took)."""
    model = row.load()

    async def ask() -> None:
        target = Target(model)
        asks = [Ask.of(chosen[i % len(chosen)].prompt, seed=i) for i in range(count)]
        await collect(*(target.respond(ask) for ask in asks))

    started = time.monotonic()
    anyio.run(ask)
    taken = time.monotonic() - started
    return count / taken, taken


def roles_needed(planned: Sequence[Planned], judge_names: Sequence[str]) -> list[str]:
    """Every role that the attacks and judges ask, `judge` last."""
    found = list(dict.fromkeys(role for one in planned for role in one.info.roles))
    if any(judges.find(name).needs == "role:judge" for name in judge_names):
        found.append("judge")
    return found


def judges_for(sets: Mapping[str, Sequence[Goal]], profile: str) -> list[str]:
    """The judges unless others are asked for: the oracle and a rubric on the sandbox, else the profile's; of harmless
    goals alone, who refused."""
    if not any(goal.harmful for chosen in sets.values() for goal in chosen):
        return ["refusal"]
    return (
        ["oracle", "harmfulness"]
        if on_sandbox([goal for chosen in sets.values() for goal in chosen])
        else list(profile_of(profile).judges)
    )


def load_sets(
    names: Sequence[str], count: int | None, seed: int = 0, column: str | None = None, *, harmless: bool = False
) -> dict[str, list[Goal]]:
    """Sets by name, or files by path. Raises GoalsError; AttackError where two have one name."""
    found: dict[str, list[Goal]] = {}
    for name in dict.fromkeys(names):
        label = name if name in goals.SETS else Path(name).stem
        if label in found:
            raise AttackError(f"two sets of goals are called {label!r}; rename the file.")
        found[label] = goals.load(
            name, count=count, seed=seed, column=column if name not in goals.SETS else None, harmless=harmless
        )
    return found


def by_harm(
    sets: Mapping[str, Sequence[Goal]], harmless: Mapping[str, Sequence[Goal]]
) -> tuple[dict[str, list[Goal]], dict[str, list[Goal]]]:
    """The harmful goals of `sets`, and the harmless ones with `harmless`: those are no attack's. Raises AttackError
    where none is harmful, or two sets have one name."""
    attacked = {name: [goal for goal in some if goal.harmful] for name, some in sets.items()}
    calm = {name: [goal for goal in some if not goal.harmful] for name, some in sets.items()}
    # Of a file that holds both, the harmless part has a name of its own.
    found = {f"{name}-harmless" if attacked[name] else name: some for name, some in calm.items() if some}
    if twice := (found.keys() | attacked.keys()) & harmless.keys():
        raise AttackError(f"two sets of goals are called {min(twice)!r}; rename the file.")
    attacked = {name: some for name, some in attacked.items() if some}
    if not attacked:
        raise AttackError(
            f"{', '.join(sets)}: no harmful goal to attack with; give some as --goals, and harmless ones as --harmless."
        )
    return attacked, found | {name: list(some) for name, some in harmless.items()}
