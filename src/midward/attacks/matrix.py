"""What a run of attacks is made of: rows (models) x attacks x goals, judged; and how flags become one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inspect_ai.model import GenerateConfig, Model, get_model

from midward import goals, judges
from midward._asking import unavailable
from midward._settings import read_value
from midward._tables import grouped
from midward.attacks.attack import AttackInfo
from midward.attacks.capabilities import AttackError
from midward.attacks.config import AttackConfig
from midward.attacks.profiles import attacks_of, profile_of
from midward.attacks.registry import find
from midward.errors import InputError, MidwardError
from midward.goals import Goal, on_sandbox
from midward.goals.loading import name_of
from midward.guards import describe, sampling_of
from midward.guards import find as find_guard
from midward.guards.config import guard_file
from midward.judges import JudgeInfo
from midward.models.loading import adapter_folder, checkpoint_folder, placement
from midward.models.memory import estimate, require
from midward.serving.client import Client
from midward.serving.config import keys_in
from midward.world import ASSISTANT


@dataclass(frozen=True)
class Row:
    """A model, perhaps with an adapter, perhaps behind a guard: a line of the table, or a training seed of one.

    Attributes:
        label: of the line; rows of one label are seeds of it.
        model: what `midward.load` takes.
        adapter: a PEFT adapter's folder.
        arguments: the provider's model arguments; of a served model fields of Inspect's `GenerateConfig`.
        served: whether it is an Inspect model with its provider instead (`openai/...`).
        guard: a fitted guard's file or folder.
        endpoint: the address of the server of ours that runs the model; key: one of its keys. theirs: its guard's name.
    """

    label: str
    model: str
    adapter: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    served: bool = False
    guard: str | None = None
    endpoint: str | None = None
    key: str | None = field(default=None, repr=False)
    theirs: str | None = None

    def load(self) -> Model:
        """The Inspect model. Raises ModelError as the provider does, and AttackError for a served one."""
        if self.served:
            return model_of(self.model, GenerateConfig(**self.arguments))
        given = {"adapter": self.adapter, "guard": self.guard}
        arguments = dict(self.arguments) | {name: value for name, value in given.items() if value}
        return self.bare(**arguments)

    def bare(self, **arguments: Any) -> Model:
        """Our model of this name, where the row's runs, with these arguments alone."""
        at: dict[str, Any] = {} if self.endpoint is None else {"base_url": self.endpoint, "api_key": self.key}
        return model_of(f"midward/{self.model}", **at, **arguments)

    @property
    def guard_path(self) -> str | None:
        """The guard's file, also where its folder was given."""
        return str(guard_file(self.guard)) if self.guard else None

    def check_paths(self) -> None:
        """Raise ModelError for a folder that isn't there, before another row's model is loaded."""
        if not (self.served or self.endpoint):
            checkpoint_folder(self.model)
        if self.adapter:
            adapter_folder(self.adapter)

    def tell_need(self, tell: Callable[[str], None]) -> None:
        """Tell what the model of this process needs of its memory, before it is loaded, as other verbs do. Raises
        ModelError where it doesn't fit."""
        if not (self.served or self.endpoint):
            names = ("device", "dtype", "quantize", "device_map")
            placed = placement(**{name: self.arguments[name] for name in names if name in self.arguments})
            require(estimate(checkpoint_folder(self.model), placed.dtype, placed.quantize), placed, tell)

    def __str__(self) -> str:
        adapter, guard = (f" + {self.adapter}" if self.adapter else "", f" behind {self.guard}" if self.guard else "")
        given = ", ".join(f"{name} {value}" for name, value in self.arguments.items() if value is not None)
        at = f" at {self.endpoint}" + (f", behind its guard {self.theirs}" * bool(self.theirs)) if self.endpoint else ""
        return f"{self.label}: {self.model}{adapter}{guard}{at}" + (f" ({given})" if self.served and given else "")


def model_of(name: str, config: GenerateConfig | None = None, **arguments: Any) -> Model:
    """An Inspect model by name. Raises ModelError as our provider does, and AttackError for any other."""
    config = config or GenerateConfig()
    if name.startswith("midward/"):
        config.max_connections = 1000  # the provider's queue makes batches of all that waits
    try:
        return get_model(name, memoize=False, config=config, **arguments)
    except MidwardError:  # which names the model itself
        raise
    except Exception as error:  # whatever a provider raises over a missing key or package, or that isn't there
        raise AttackError(f"{name}: {unavailable(error)}") from error


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
class Cell:
    """One attack on one set of goals, by its judges; of every row."""

    attack: Planned
    name: str
    goals: Sequence[Goal]
    judges: Sequence[JudgeInfo]


@dataclass(frozen=True)
class Matrix:
    """What to run.

    Attributes:
        rows, attacks: models and what attacks them.
        sets: name -> harmful goals.
        judges: names; one that needs the role `judge` asks `roles["judge"]`.
        roles: Inspect role -> model name.
        seed: of attacks, targets and roles.
        budget: the most queries to a target a goal, over every attack's own; None: the attack's own.
        replay: whether the winning prompt is put once more with fresh seeds.
        harmless: name -> harmless goals, which are asked plainly: of them it is counted how many are refused, never
            attack success.
        profile: which one the attacks' settings are of.

    Raises:
        AttackError: nothing to run, rows of one label that aren't adapters of their own, or an attack that can't follow
            a row's guard.
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
    profile: str = "quick"

    def __post_init__(self) -> None:
        parts = {"rows": self.rows, "attacks": self.attacks, "goals": self.sets, "judges": self.judges}
        parts |= {f"goals in {name}": chosen for name, chosen in self.sets.items()}
        for what, members in parts.items():
            if not members:
                raise AttackError(f"there are no {what} to run; give one or more.")
        for label, seeds in self.seeds.items():
            adapters = {row.adapter for row in seeds}
            if len(seeds) > 1 and (None in adapters or len(adapters) < len(seeds)):
                raise AttackError(
                    f"two rows are called {label!r}, which only adapters can be that are each of a training seed; give "
                    "each its own label: --adapter LABEL=FOLDER."
                )
        for planned in self.attacks:
            if (why := planned.info.unguarded(planned.settings)) is not None:
                for row in self.rows:
                    if row.guard and not planned.info.goes_with(find_guard(describe(row.guard)["guard"]).kind):
                        raise AttackError(f"{row.label}: {why}; the guard {row.guard} was fitted for responses.")

    @property
    def seeds(self) -> dict[str, list[Row]]:
        """Label -> its rows: the same training from several seeds, pooled into one line of a table."""
        return grouped(self.rows, lambda row: row.label)

    def player(self, role: str) -> Model:
        """The model that plays a role. A proxy that is the attacked model is asked where that runs."""
        row, name = self.rows[0], self.roles[role]
        own = role == "proxy" and row.endpoint is not None and name == f"midward/{row.model}"
        return row.bare() if own else model_of(name)

    @property
    def refusal_judges(self) -> list[str]:
        """Those of the judges that say who refused, for the harmless goals."""
        return [name for name in self.judges if not judges.find(name).of_attacks] or ["refusal"]

    @property
    def success_judges(self) -> list[str]:
        """Those of the judges that say whether an attack succeeded."""
        return [name for name in self.judges if judges.find(name).of_attacks]

    def cells(self) -> Iterator[Cell]:
        """All cells of a row: the attacks on the harmful goals, and the harmless ones asked plainly."""
        judged_by = [judges.find(name) for name in self.judges]
        for planned in self.attacks:
            yield from (Cell(planned, name, chosen, judged_by) for name, chosen in self.sets.items())
        direct = find("direct")
        plain = Planned(direct, direct.configure({}))
        of_refusals = [judges.find(name) for name in self.refusal_judges]
        yield from (Cell(plain, name, chosen, of_refusals) for name, chosen in self.harmless.items())

    @property
    def samples(self) -> int:
        """Goals attacked or asked, over all cells."""
        return len(self.rows) * sum(len(cell.goals) for cell in self.cells())

    @property
    def sizes(self) -> dict[str, int]:
        """Set -> number of its goals, harmless ones too."""
        return {name: len(chosen) for name, chosen in {**self.sets, **self.harmless}.items()}

    def judge_records(self) -> list[dict[str, Any]]:
        """Name, version, hash and model of each judge, for the run's record."""
        asked = list(dict.fromkeys([*self.judges, *(self.refusal_judges if self.harmless else ())]))
        return [
            {"judge": info.name, "version": info.version, "hash": info.hash}
            | ({"model": self.roles["judge"]} if info.needs == "role:judge" else {})
            for info in map(judges.find, asked)
        ]

    def most(self, planned: Planned) -> int:
        """The most queries to the target for one goal."""
        most = planned.calls["target"]
        return most if self.budget is None else min(most, self.budget)

    @property
    def no_evidence(self) -> str | None:
        """What makes the figures worth nothing: roles played by a script of another world. None: nothing does."""
        played = [role for role, name in self.roles.items() if name == ASSISTANT]
        if not played or on_sandbox([goal for chosen in self.sets.values() for goal in chosen]):
            return None
        return (
            f"{', '.join(played)}: played by the sandbox's scripted assistant, which understands its own world only. "
            "These figures are no evidence"
        )

    def notes(self, given: Mapping[str, str | None]) -> Iterator[str]:
        """What was resolved, in lines. given: role -> the model that was named for it."""

        def sizes(sets: Mapping[str, Sequence[Goal]]) -> str:
            return ", ".join(f"{name} ({len(chosen)})" for name, chosen in sets.items())

        yield from (f"row       {row}" for row in self.rows)
        if any(row.guard and sampling_of(row.guard) for row in self.rows):
            yield "note      what isn't given of the sampling is as the guard was fitted, in every row"
        yield f"attacks   {', '.join(planned.info.name for planned in self.attacks)} (profile {self.profile})"
        yield f"goals     {sizes(self.sets)}"
        if self.harmless:
            counted = ", ".join(self.refusal_judges)
            yield f"harmless  {sizes(self.harmless)}: asked plainly, refusals counted by {counted}"
        yield f"judges    {', '.join(self.judges)}"
        if not self.success_judges:
            yield (
                "note      these judges say who refused, and nothing of attack success: there will be refusal rates "
                "only. --judges harmfulness measures attack success."
            )
        if self.roles:
            yield f"roles     {', '.join(f'{role} {name}' for role, name in self.roles.items())}"
        if unused := [role for role, name in given.items() if name and role not in self.roles]:
            yield f"not asked {', '.join(unused)}: no attack and no judge here needs them"
        if self.no_evidence:
            yield f"warning   {self.no_evidence}; bind real models (--attacker, --judge, ...)."


# --- from flags --------------------------------------------------------------------------------------------


def matrix_of(config: AttackConfig, rows: Sequence[Row], seed: int = 0) -> Matrix:
    """The matrix that flags describe.

    Args:
        config: the flags.
        rows: see `rows_of`.
        seed: of attacks, targets and roles.

    Raises:
        InputError: an unknown name or setting, or a file that can't be used.
        ModelError: a folder that isn't there.
    """
    asked = load_sets(config.goals, config.limit, column=config.column)
    calm = load_sets(config.harmless, config.limit, column=config.column, harmless=True)
    sets, harmless = by_harm(asked, calm)
    judge_names = judges.ranked(list(config.judges) or judges_for(sets, config.profile))
    planned = plan_attacks(config.attacks, config.profile, settings_of(config.set or []))
    standard = {role: f"midward/{rows[0].model}" if role == "proxy" else ASSISTANT for role in config.roles}
    matrix = Matrix(
        rows=rows,
        attacks=planned,
        sets=sets,
        judges=judge_names,
        roles={role: config.roles[role] or standard[role] for role in roles_needed(planned, judge_names)},
        seed=seed,
        budget=config.budget,
        replay=not config.no_replay,
        harmless=harmless,
        profile=config.profile,
    )
    if config.export and (config.export.suffix.lower() == ".json" or config.export.is_file()):
        raise InputError(f"--export {config.export} is to be a folder: of a JSON file an attack and row.")
    if config.export and not matrix.success_judges:
        raise InputError(
            f"--export says which prompts jailbroke the model, and {', '.join(matrix.judges)} only say who refused; "
            "give a judge of attack success too."
        )
    for row in rows:
        row.check_paths()
    return matrix


def rows_of(
    config: AttackConfig,
    adapters: Sequence[tuple[str, str]],
    guards: Sequence[tuple[str, str]],
    arguments: Mapping[str, Any],
) -> list[Row]:
    """The bare model, and a row for each adapter, guard and served model.

    Args:
        config: the flags.
        adapters, guards: label (empty: made from the name) and path of each.
        arguments: of the provider, as given; what isn't of the sampling is as the profile has it, else as the first
            guard was fitted.
    """
    fitted_for: dict[str, Any] = next(filter(None, (sampling_of(file) for _, file in guards)), {})
    arguments = {**fitted_for, **profile_of(config.profile).sampling, **arguments}
    rows = [_at_endpoint(config, arguments) if config.endpoint else Row("base", config.model, arguments=arguments)]
    rows += [Row(label or Path(folder).name, config.model, folder, arguments) for label, folder in adapters]
    labels = {row.adapter: row.label for row in rows}
    for label, file in guards:
        folder = describe(file)["bound"]["adapter"]
        behind = labels.get(folder) or Path(folder).name
        rows.append(Row(f"{behind}+{label or Path(file).stem}", config.model, folder, arguments, guard=file))
    endpoint = {"temperature": arguments.get("temperature"), "max_tokens": arguments.get("length")}
    return rows + [Row(name.replace("/", "-"), name, None, endpoint, served=True) for name in config.served or ()]


def _at_endpoint(config: AttackConfig, arguments: Mapping[str, Any]) -> Row:
    """The row of the server at `config.endpoint`. Raises ServerError where there is none, and InputError for flags that
    are the server's."""
    theirs = {"--adapter": config.adapter, "--guard": config.guard, "--batch-size": config.batch_size}
    if given := [name for name, value in theirs.items() if value]:
        raise InputError(f"{given[0]} is the server's: give it to midward serve, and leave it out beside --endpoint.")
    key = keys_in(config.api_key_file)[0] if config.api_key_file else None
    card = Client(config.endpoint or "", key).card()
    name, guard = card.name, card.guard["name"] + " (shadow)" * card.shadow if card.guard else None
    if config.model not in (name, AttackConfig.model):
        raise InputError(f"{config.endpoint} serves {name!r}, and --model says {config.model!r}; leave one out.")
    return Row("base", name, arguments=arguments, endpoint=config.endpoint, key=key, theirs=guard)


def settings_of(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """ATTACK.NAME=VALUE -> attack -> name -> value. Raises InputError for another form, and for an unknown attack."""
    settings: dict[str, dict[str, Any]] = {}
    for text in given:
        key, equals, value = text.partition("=")
        attack, dot, name = key.partition(".")
        if not (equals and dot and attack and name):
            raise InputError(f"--set takes ATTACK.NAME=VALUE, e.g. tap.width=5; received {text!r}.")
        settings.setdefault(attack, {})[name] = read_value(find(attack).settings, name, value, f"--set {key}")
    return settings


def plan_attacks(
    names: Sequence[str], profile: str, overrides: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Planned]:
    """The attacks of these names (the profile's where there are none) with the profile's settings and `overrides`.

    Raises:
        InputError: an unknown name or setting, a value out of range, or a required setting that isn't given.
    """
    chosen, overrides = profile_of(profile), overrides or {}
    names = list(dict.fromkeys(names)) or list(attacks_of(chosen))
    if strangers := set(overrides) - set(names):
        raise InputError(f"settings for {min(strangers)!r}, which isn't among the attacks: {', '.join(names)}.")
    planned = []
    for info in map(find, names):
        settings = info.configure({**chosen.settings_of(info), **overrides.get(info.name, {})})
        for name in info.required:
            if not getattr(settings, name):
                raise InputError(
                    f"{info.name} can't run without its setting {name}; give it by --set {info.name}.{name}=..."
                )
        planned.append(Planned(info, settings))
    return planned


def roles_needed(planned: Sequence[Planned], judge_names: Sequence[str]) -> list[str]:
    """Every role that the attacks and judges ask, `judge` last."""
    roles = list(dict.fromkeys(role for each in planned for role in each.info.roles))
    asks = any(judges.find(name).needs == "role:judge" for name in judge_names)
    return [*roles, *(["judge"] if asks else [])]


def judges_for(sets: Mapping[str, Sequence[Goal]], profile: str) -> list[str]:
    """The judges unless others are asked for: the oracle and a rubric on the sandbox, else the profile's; of harmless
    goals alone, who refused."""
    everything = [goal for chosen in sets.values() for goal in chosen]
    if not any(goal.harmful for goal in everything):
        return ["refusal"]
    return ["oracle", "harmfulness"] if on_sandbox(everything) else list(profile_of(profile).judges)


def load_sets(
    names: Sequence[str], count: int | None, column: str | None = None, *, harmless: bool = False
) -> dict[str, list[Goal]]:
    """Sets by name, or files by path. Raises GoalsError; AttackError where two have one name."""
    sets: dict[str, list[Goal]] = {}
    for name in dict.fromkeys(names):
        label = name_of(name)
        if label in sets:
            raise AttackError(f"two sets of goals are called {label!r}; rename the file.")
        own = None if name in goals.SETS else column
        sets[label] = goals.load(name, count=count, column=own, harmless=harmless)
    return sets


def by_harm(
    sets: Mapping[str, Sequence[Goal]], harmless: Mapping[str, Sequence[Goal]]
) -> tuple[dict[str, list[Goal]], dict[str, list[Goal]]]:
    """The harmful goals of `sets`, and the harmless ones with `harmless`: those are no attack's.

    Raises:
        AttackError: none is harmful, or two sets have one name.
    """
    attacked: dict[str, list[Goal]] = {}
    asked: dict[str, list[Goal]] = {}
    for name, members in sets.items():
        if harmful := [goal for goal in members if goal.harmful]:
            attacked[name] = harmful
        if calm := [goal for goal in members if not goal.harmful]:
            # Of a file that holds both, the harmless part has a name of its own.
            asked[f"{name}-harmless" if harmful else name] = calm
    if twice := (asked.keys() | attacked.keys()) & harmless.keys():
        raise AttackError(f"two sets of goals are called {min(twice)!r}; rename the file.")
    if not attacked:
        raise AttackError(
            f"{', '.join(sets)}: no harmful goal to attack with; give some as --goals, and harmless ones as --harmless."
        )
    return attacked, asked | {name: list(members) for name, members in harmless.items()}
