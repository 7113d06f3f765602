"""`midward attack`: models against attacks, one table."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from midward.cli._options import DeviceMap, Quantize, SamplingOptions, labelled, say_harm
from midward.cli._options import names as names_of
from midward.cli._run import run_folder
from midward.cli._show import columns, console, out, say
from midward.errors import InputError
from midward.goals import says_harm

if TYPE_CHECKING:
    from midward.attacks.matrix import Matrix, Row
    from midward.attacks.results import Outcome


def _role(name: str, what: str) -> Any:
    return typer.Option(
        help=f"{what}: an Inspect model (openai/..., midward/...); offline the sandbox's scripted assistant.",
        rich_help_panel="Roles",
    )


def attack(
    sampling: SamplingOptions,
    model: Annotated[str, typer.Option(help="sandbox, a checkpoint folder, or a Hub id.")] = "sandbox",
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="LABEL=FOLDER of a PEFT adapter; may be given several times, a row each, beside the bare model."
        ),
    ] = None,
    guard: Annotated[
        list[str] | None,
        typer.Option(
            help="[LABEL=]FILE of a fitted guard; may be given several times: one more row each, the model and adapter "
            "that it was fitted for behind it. See midward guard fit."
        ),
    ] = None,
    served: Annotated[
        list[str] | None,
        typer.Option(help="An Inspect model that is served elsewhere (vllm/..., openai-api/...); one more row."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    quantize: Quantize = None,
    device_map: DeviceMap = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows per forward pass (32 on a CPU, 64 elsewhere).")
    ] = None,
    profile: Annotated[
        str, typer.Option(help="quick, mosa, mosa-adaptive, sri, harmbench or jbb; see --list.")
    ] = "quick",
    attacks: Annotated[
        str | None, typer.Option(help="Attacks by comma, at the profile's settings; the profile's own unless given.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="ATTACK.NAME=VALUE, a setting of one attack; may be given several times."),
    ] = None,
    goals: Annotated[
        str, typer.Option(help="Sets or .csv/.jsonl files, by comma; see midward goals.")
    ] = "sandbox,sandbox-contextual",
    harmless: Annotated[
        str | None,
        typer.Option(help="The same of harmless requests: asked plainly, and how many are refused is counted apart."),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Of a file: the column of the goals.")] = None,
    count: Annotated[
        int | None, typer.Option("--limit", "--count", min=1, help="Goals of each set, drawn by their ids (all).")
    ] = None,
    judges: Annotated[
        str | None, typer.Option(help="Judges by comma; oracle and harmfulness on the sandbox, else the profile's.")
    ] = None,
    attacker: Annotated[str | None, _role("attacker", "Writes the attacks")] = None,
    rewriter: Annotated[str | None, _role("rewriter", "Rewords and takes apart")] = None,
    translator: Annotated[str | None, _role("translator", "Translates")] = None,
    scorer: Annotated[str | None, _role("scorer", "Scores in the loop")] = None,
    guard_model: Annotated[str | None, _role("guard", "Says what is safe, for EPT")] = None,
    uncensored: Annotated[str | None, _role("uncensored", "Answers anything, for AdvPrefix")] = None,
    proxy: Annotated[
        str | None,
        typer.Option(
            help="Gives gradients, for PAL: midward/<model>; the model without adapter unless given.",
            rich_help_panel="Roles",
        ),
    ] = None,
    judge: Annotated[str | None, _role("judge", "Judges by rubric")] = None,
    budget: Annotated[
        int | None, typer.Option(min=1, help="Most queries to the target a goal, over every attack's own limit.")
    ] = None,
    no_replay: Annotated[
        bool, typer.Option("--no-replay", help="Don't put the winning prompt once more with fresh seeds.")
    ] = False,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of logs and tables.")] = Path("attack"),
    verdict: Annotated[
        Literal["reply", "replay", "authored"],
        typer.Option(
            help="Which verdicts the table shows: on the reply in the loop, on a fresh one, or on the tokens that the "
            "model wrote itself. summary.json holds all."
        ),
    ] = "reply",
    export: Annotated[
        Path | None, typer.Option(help="Write the winning prompts to this file, in JailbreakBench's artifact format.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what it would cost, at the measured rate, and run nothing.")
    ] = False,
    listing: Annotated[bool, typer.Option("--list", help="List attacks and profiles.")] = False,
) -> None:
    """Attack a model, and adapters of it, with published attacks; judge, count, compare.

    The same command again goes on where it stopped. inspect view --log-dir OUT/logs shows every conversation.
    Ends with status 1 where every sample of a row failed, or a judge scored nothing.
    """
    if listing:
        out(_listing())
        return
    run = run_folder(out_folder)
    say_harm(names_of(goals), column)
    for name in names_of(harmless or ""):
        says_harm(name, column)  # a wrong name or file is told at once
    from midward.attacks import matrix as room
    from midward.attacks import results
    from midward.attacks.profiles import profile_of
    from midward.attacks.solver import following
    from midward.judges import find, ranked
    from midward.models.loading import adapter_folder, checkpoint_folder
    from midward.world import ASSISTANT

    chosen = profile_of(profile)
    where = {"device": device, "dtype": dtype, "quantize": quantize, "device_map": device_map}
    arguments = {**_sampling(sampling), **{name: value for name, value in where.items() if value is not None}}
    arguments = {**chosen.sampling, **arguments} | ({"batch_size": batch_size} if batch_size else {})
    asked = room.load_sets(names_of(goals), count, column=column)
    calm = room.load_sets(names_of(harmless or ""), count, column=column, harmless=True)
    sets, plain = room.by_harm(asked, calm)
    names = ranked(names_of(judges) if judges else room.judges_for(sets, profile))
    of_attacks = [name for name in names if find(name).of_attacks]
    if export and not of_attacks:
        raise InputError(
            f"--export says which prompts jailbroke the model, and {', '.join(names)} only say who refused; give a "
            "judge of attack success too."
        )
    planned = room.plan_attacks(names_of(attacks) if attacks else [], profile, _settings(setting or []))
    given = {
        "attacker": attacker,
        "rewriter": rewriter,
        "translator": translator,
        "scorer": scorer,
        "guard": guard_model,
        "uncensored": uncensored,
        "proxy": proxy,
        "judge": judge,
    }
    standard = {role: f"midward/{model}" if role == "proxy" else ASSISTANT for role in given}
    roles = {role: given.get(role) or standard[role] for role in room.roles_needed(planned, names)}
    todo = room.Matrix(
        rows=_rows(model, adapter or [], guard or [], served or [], arguments),
        attacks=planned,
        sets=sets,
        judges=names,
        roles=roles,
        seed=sampling.seed,
        budget=budget,
        replay=not no_replay,
        harmless=plain,
    )
    for row in todo.rows:  # a wrong path is told before another row's model is loaded
        if not row.served:
            checkpoint_folder(row.model)
        if row.adapter:
            adapter_folder(row.adapter)
    _tell(todo, profile)
    if unused := [role for role, name in given.items() if name and role not in roles]:
        say(f"not asked {', '.join(unused)}: no attack and no judge here needs them")
    if plan:
        out(_cost(todo))
        return
    run.start()
    terminal = console().is_terminal
    display = os.environ.get("INSPECT_DISPLAY") or ("rich" if terminal else "none")
    progress = _Told(todo.samples)
    with following(progress if display == "none" else lambda: None):
        logs = room.run(todo, out_folder, display=display, tell=lambda text: say(f"warning   {text}"))
    progress.say()
    outcomes = results.read(logs)
    summary = results.summarise(
        outcomes,
        rows=[row.label for row in todo.rows],
        sets={name: len(chosen_goals) for name, chosen_goals in sets.items()},
        attacks=[one.info.name for one in planned],
        judges=names,
    ) | {"profile": profile, "roles": roles, "seed": sampling.seed, "warning": _no_evidence(todo)}
    if plain:
        summary["harmless"] = results.summarise(
            outcomes,
            rows=[row.label for row in todo.rows],
            sets={name: len(some) for name, some in plain.items()},
            attacks=["direct"],
            judges=todo.refusal_judges,
        )
    summary["models"] = {
        row.label: {"model": row.model, "adapter": row.adapter, "guard": row.guard} for row in todo.rows
    }
    results.write(out_folder, outcomes, summary, verdict)
    out(results.tables(summary, verdict))
    if export:
        say(f"{export}: {results.export(export, outcomes, of_attacks[0])} prompts, judged by {of_attacks[0]}")
    failed = [one for one in outcomes if one.error]
    if failed:
        say(
            f"{len(failed)} of {todo.samples} samples failed, e.g. {failed[0].goal}: {failed[0].error}\n"
            "The same command tries them again."
        )
    say(f"{out_folder}: table.md, summary.json, samples.csv; inspect view --log-dir {out_folder / 'logs'}")
    counted = {row.label: {bool(one.error) for one in outcomes if one.row == row.label} for row in todo.rows}
    if lost := [label for label, errors in counted.items() if errors == {True}]:
        say(f"error: every sample of {', '.join(lost)} failed: there is nothing to read off the table.")
    mute = [name for name in names if summary["unscored"][name].get(verdict) and not _scored(outcomes, name, verdict)]
    for name in mute:
        say(f"error: {name} scored nothing: {summary['unscored'][name][verdict]['why']}")
    if lost or mute:
        raise typer.Exit(1)


def _scored(outcomes: list[Outcome], judge: str, text: str) -> bool:
    """Whether the judge gave a verdict on a text that it was asked about; of an empty one nobody is asked."""
    return any(outcome.success(judge, text) is not None and not outcome.empty(judge, text) for outcome in outcomes)


class _Told:
    """Says on stderr how many samples were run, every so many seconds and at the end: progress without a terminal."""

    def __init__(self, samples: int, every: float = 15.0) -> None:
        self.samples, self.every = samples, every
        self.run, self.started = 0, time.monotonic()
        self.last = self.started

    def __call__(self) -> None:
        self.run += 1
        now = time.monotonic()
        if now - self.last >= self.every:
            self.last = now
            self.say()

    def say(self) -> None:
        """How far it is; nothing where nothing had to be run."""
        if self.run:
            say(f"run       {self.run} in {time.monotonic() - self.started:.0f} s, of a matrix of {self.samples}")


def _rows(
    model: str, adapters: list[str], guards: list[str], served: list[str], arguments: dict[str, Any]
) -> list[Row]:
    from midward.attacks.matrix import Row
    from midward.guards import describe, sampling_of

    files = [labelled("--guard", one, "a guard's file, or LABEL=FILE") for one in guards]
    fitted_for: dict[str, Any] = next(filter(None, (sampling_of(file) for _, file in files)), {})
    if fitted_for:
        say("sampling  what isn't given is as the guard was fitted, in every row")
    arguments = {**fitted_for, **arguments}
    rows = [Row("base", model, arguments=arguments)]
    for one in adapters:
        label, folder = labelled("--adapter", one, "a folder, or LABEL=FOLDER")
        rows.append(Row(label or Path(folder).name, model, folder, arguments))
    labels = {row.adapter: row.label for row in rows}
    for label, file in files:
        folder = describe(file)["bound"]["adapter"]
        behind = labels.get(folder) or Path(folder).name
        rows.append(Row(f"{behind}+{label or Path(file).stem}", model, folder, arguments, guard=file))
    config = {"temperature": arguments.get("temperature"), "max_tokens": arguments.get("length")}
    return rows + [Row(one.replace("/", "-"), one, None, config, served=True) for one in served]


def _sampling(options: SamplingOptions) -> dict[str, Any]:
    """What was given of the sampling settings; the seed is the attacks'."""
    return {name: value for name, value in options.values.items() if name != "seed"}


def _settings(given: list[str]) -> dict[str, dict[str, Any]]:
    """ATTACK.NAME=VALUE -> attack -> name -> value. Raises InputError for another form, and for an unknown attack."""
    from midward import attacks
    from midward._settings import read_value

    found: dict[str, dict[str, Any]] = {}
    for one in given:
        key, equals, value = one.partition("=")
        attack_name, dot, name = key.partition(".")
        if not (equals and dot and attack_name and name):
            raise InputError(f"--set takes ATTACK.NAME=VALUE, e.g. tap.width=5; received {one!r}.")
        kind = attacks.find(attack_name).settings
        found.setdefault(attack_name, {})[name] = read_value(kind, name, value, f"--set {key}")
    return found


def _tell(todo: Matrix, profile: str) -> None:
    """What was resolved, on stderr."""
    from midward.judges import find

    for row in todo.rows:
        adapter, guard = (f" + {row.adapter}" if row.adapter else "", f" behind {row.guard}" if row.guard else "")
        given = ", ".join(f"{name} {value}" for name, value in row.arguments.items())
        say(f"row       {row.label}: {row.model}{adapter}{guard} ({given})")
    say(f"attacks   {', '.join(one.info.name for one in todo.attacks)} (profile {profile})")
    say(f"goals     {', '.join(f'{name} ({len(chosen)})' for name, chosen in todo.sets.items())}")
    if todo.harmless:
        told = ", ".join(f"{name} ({len(chosen)})" for name, chosen in todo.harmless.items())
        say(f"harmless  {told}: asked plainly, refusals counted by {', '.join(todo.refusal_judges)}")
    say(f"judges    {', '.join(todo.judges)}")
    if not any(find(name).of_attacks for name in todo.judges):
        say(
            "note      these judges say who refused, and nothing of attack success: there will be refusal rates only. "
            "--judges harmfulness measures attack success."
        )
    if todo.roles:
        say(f"roles     {', '.join(f'{role} {name}' for role, name in todo.roles.items())}")
    if warning := _no_evidence(todo):
        say(f"warning   {warning}; bind real models (--attacker, --judge, ...).")


def _no_evidence(todo: Matrix) -> str | None:
    """What makes the figures worth nothing: roles that are played by a script which doesn't know the goals' world."""
    from midward.goals import on_sandbox
    from midward.world import ASSISTANT

    played = [role for role, name in todo.roles.items() if name == ASSISTANT]
    if not played or on_sandbox([goal for chosen in todo.sets.values() for goal in chosen]):
        return None
    return (
        f"{', '.join(played)}: played by the sandbox's scripted assistant, which understands its own world only. These "
        "figures are no evidence"
    )


def _cost(todo: Matrix) -> str:
    """Calls by role and time, at most, before anything runs."""
    from midward.attacks.matrix import measure_rate

    per_set = sum(len(chosen) for chosen in todo.sets.values())
    everyone = next(iter(todo.sets.values()))
    rates = {row.label: measure_rate(row, everyone) for row in todo.rows[:1]}
    speed, taken = next(iter(rates.values()))
    roles = list(dict.fromkeys(role for one in todo.attacks for role in one.calls if role != "target"))
    rows: list[tuple[str, ...]] = [("attack", "goals x rows", "queries a goal", "queries", *roles, "hours")]
    total = 0
    for one in todo.attacks:
        cells = per_set * len(todo.rows)
        queries = todo.most(one) * cells
        total += queries
        calls = (str(one.calls.get(role, 0) * cells) for role in roles)
        rows.append(
            (one.info.name, str(cells), str(todo.most(one)), str(queries), *calls, f"{queries / speed / 3600:.2f}")
        )
    judged = per_set * len(todo.rows) * len(todo.attacks) * len(todo.judges)
    tail = [
        "",
        f"measured: {speed:.1f} responses a second (32 of them in {taken:.1f} s); scored spans and "
        "gradients count as responses, and searches that succeed stop early: an upper limit",
        f"in all: at most {total} queries to the targets, {total / speed / 3600:.2f} hours, {judged} samples to judge "
        "(each text apart)",
    ]
    return "\n".join([*columns(rows), *tail])


def _listing() -> str:
    from midward.attacks import AttackInfo, every
    from midward.attacks.profiles import PROFILES, attacks_of

    rows: list[tuple[str, ...]] = [("attack", "version", "access", "needs", "roles", "queries", "about")]
    broken = []
    for name, info in every().items():
        if not isinstance(info, AttackInfo):
            broken.append(f"{name}: {info}")
            continue
        most = info.calls(info.configure({}))["target"]
        rows.append(
            (name, info.version, info.access, " ".join(info.needs), " ".join(info.roles) or "-", str(most), info.about)
        )
    lines = [*columns(rows), *broken, "", "queries: the most to the target a goal, at the reference settings", ""]
    lines += columns(
        [("profile", "about", "attacks")]
        + [(one.name, one.about, ", ".join(attacks_of(one))) for one in PROFILES.values()]
    )
    return "\n".join(lines)
