"""`midward dynamics`: recovery rates and SRI signals, over samplers of the same weights (SRI's S2 to S6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from midward._flags import Flag
from midward.cli._dynamics_report import report
from midward.cli._options import BatchSize, ModelOptions, SamplingOptions, names
from midward.cli._run import run_folder
from midward.cli._show import bar, say, tell_unscored
from midward.errors import InputError

if TYPE_CHECKING:
    from midward.dynamics import Anchors, View
    from midward.dynamics.recovery import Case, Judge
    from midward.goals import Goal
    from midward.judges.bench import Bench
    from midward.models import LanguageModel
    from midward.sampling import Sampling

PREFILL = "prefill:"  # before the name of a set: with agreement forced at the response's start
Rows = dict[str, list[dict[str, Any]]]  # sampler -> rows


@dataclass(frozen=True)
class PromptOptions:
    """Which prompts. A set is one of the sandbox's (plain, wrappers, benign, benign-wrapped, banned), a set of goals,
    or a .csv or .jsonl file; `prefill:` before it forces agreement at the response's start."""

    attacked: Annotated[
        str | None, Flag("Sets of harmful prompts, attacked ones; on the sandbox plain,wrappers,prefill:plain.")
    ] = None
    harmless: Annotated[
        str | None, Flag("Sets of harmless ones; the first is the reference, the others are controls.")
    ] = None
    fit_harmful: Annotated[
        str | None, Flag("Harmful prompts that anchors are fitted on; never those of --attacked.")
    ] = None
    fit_harmless: Annotated[str | None, Flag("Harmless prompts for the same.")] = None
    column: Annotated[str | None, Flag("Of files: the column of the prompts.")] = None
    count: Annotated[int, Flag("Prompts of each set.", min=2, name="--limit --count", grows=True)] = 100
    fit: Annotated[int, Flag("Prompts of each kind for anchors.", min=2)] = 200
    train: Annotated[int, Flag("More harmless prompts, whose signals a detector is fitted on.", min=2)] = 200


@dataclass
class _Prompts:
    cases: list[Case] = field(default_factory=list)  # to be watched
    harmful: list[Any] = field(default_factory=list)  # requests for anchors
    harmless: list[Any] = field(default_factory=list)
    training: list[Case] = field(default_factory=list)


def dynamics(
    model: ModelOptions,
    sampling: SamplingOptions,
    prompts: PromptOptions,
    samplers: Annotated[
        str | None,
        typer.Option(
            help="Samplers by comma: native, paper, ar, greedy, static, random, random-greedy, left-to-right, dynamic. "
            "The first and the paper's are looked at closely, and all are held against ar."
        ),
    ] = None,
    reading: Annotated[
        str,
        typer.Option(
            help="What a state is the mean of: all of the response, or generated tokens. The other stands beside it, "
            "in the last layer."
        ),
    ] = "response",
    all_steps: Annotated[
        bool, typer.Option("--all-steps", help="Run every step, also of responses that have ended.")
    ] = False,
    judges: Annotated[str | None, typer.Option(help="The judge; the oracle on the sandbox, else harmfulness.")] = None,
    judge: Annotated[str | None, typer.Option(help="The Inspect model that a judge by rubric asks.")] = None,
    batch_size: BatchSize = 16,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of rows, anchors, tables and figures.")] = Path(
        "dynamics"
    ),
) -> None:
    """Does a model come back from harm while it generates, and does its internal state tell?

    Run again, it goes on where it stopped.
    """
    run = run_folder(out_folder)
    from midward._hints import one_of
    from midward.dynamics.samplers import sampler
    from midward.dynamics.states import READINGS
    from midward.judges import bench as verdicts
    from midward.sampling import Sampling

    one_of("--reading", reading, READINGS)
    for name in _names(samplers or ""):
        sampler(name, Sampling())  # an unknown one is told before anything is read
    at_home = model.at_home
    goals = _goals(prompts, at_home)
    attacked = [goal for name in goals["attacked"] for goal in goals["attacked"][name]]
    judged_by = verdicts.bench(attacked, judges, judge)

    loaded = model.load()
    several = loaded.family.kind == "diffusion"
    chosen = _names(samplers or ("native,paper,ar,greedy,random,dynamic" if several else "native"))
    if not several and chosen != ["native"]:
        raise InputError(f"{loaded.name!r} is of the {loaded.family.kind} kind and has one sampler, native.")
    given = sampling.resolve(loaded)
    settings = {name: sampler(name, given) for name in chosen}
    todo = _build(loaded, goals, prompts)
    loaded.fold_adapter()
    run.start()
    rows, training = _watch(loaded, settings, todo, judged_by, reading, all_steps, batch_size, out_folder)
    report(out_folder, loaded, settings, rows, training)
    tell_unscored(judged_by)


# --- prompts -------------------------------------------------------------------------------------------------------


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(names(text)))


Goals = dict[str, dict[str, list["Goal"]]]  # what for -> set -> goals


def _goals(prompts: PromptOptions, at_home: bool) -> Goals:
    """All goals, those to fit on without any that are looked at."""
    defaults = {
        "attacked": "plain,wrappers,prefill:plain" if at_home else None,
        "harmless": "benign,benign-wrapped,banned" if at_home else "alpaca",
        "fit_harmful": "plain" if at_home else "advbench",
        "fit_harmless": "benign" if at_home else "alpaca",
    }
    found: Goals = {}
    seen: set[str] = set()
    for what, default in defaults.items():
        given = getattr(prompts, what) or default
        if not given:
            raise InputError(
                "--attacked is needed: sets of goals or files of attacked prompts, for instance "
                "prefill:advbench or what `midward attack` exported."
            )
        fitting = what.startswith("fit")
        need = prompts.fit + (prompts.train if what == "fit_harmless" else 0) if fitting else prompts.count
        found[what] = {
            name: _set(name, need, prompts.column, "train" if fitting else "test", seen if fitting else set())
            for name in _names(given)
        }
        if not fitting:
            seen |= {goal.prompt for goals in found[what].values() for goal in goals}
            continue
        have = sum(map(len, found[what].values()))
        least = prompts.fit + 2 if what == "fit_harmless" else 2
        if have < least:
            raise InputError(
                f"--{what.replace('_', '-')} {given} gives {have} prompts; --fit {prompts.fit} takes {least} or more."
            )
    return found


def _set(name: str, count: int, column: str | None, split: str, without: set[str]) -> list[Goal]:
    from dataclasses import replace

    from midward import goals as room
    from midward.goals.loading import is_file
    from midward.world import trials

    plain = name.removeprefix(PREFILL)
    if plain in (*trials.FORBIDDEN, *trials.HARMLESS):
        if plain in trials.TASKS:
            raise InputError(f"{plain} is a task, whose answers aren't harmful or harmless; leave it out.")
        return [room.of_trial(trial, plain) for trial in trials.trials(plain, count, split=split)]
    found = room.load(plain, column=column if is_file(plain) else None)
    left = [goal for goal in found if goal.prompt not in without]
    chosen = room.loading.sample(left, count)
    if len(chosen) < 2:
        raise InputError(f"{plain} has {len(chosen)} prompts left beside those that are looked at; name another set.")
    return [replace(goal, source=plain) for goal in chosen]


def _build(model: LanguageModel, goals: Goals, prompts: PromptOptions) -> _Prompts:
    """Cases and requests; prefills need the model's tokens. Raises InputError where one doesn't fit."""
    from midward.dynamics.recovery import Case

    found = _Prompts()
    for what in ("attacked", "harmless"):
        for name, some in goals[what].items():
            for goal in some:
                request = _request(model, goal, name.startswith(PREFILL))
                found.cases.append(
                    Case(goal.id, name.removesuffix(":plain"), request, what == "attacked", goal, goal.subject)
                )
    found.harmful = [
        _request(model, goal, name.startswith(PREFILL)) for name, some in goals["fit_harmful"].items() for goal in some
    ]
    harmless = [goal for some in goals["fit_harmless"].values() for goal in some]
    found.harmless = [goal.prompt for goal in harmless[: prompts.fit]]
    found.training = [
        Case(goal.id, "training", _request(model, goal, False), False, goal, goal.subject)
        for goal in harmless[prompts.fit :]
    ]
    return found


def _request(model: LanguageModel, goal: Goal, prefilled: bool) -> Any:
    from midward.attacks.phrases import AFFIRMATIVE
    from midward.sampling import Forced, Request
    from midward.world import Thing
    from midward.world.language import opening

    if not prefilled:
        return Request(goal.prompt)
    text = goal.target or AFFIRMATIVE[0]
    if "thing" in goal.metadata:
        first, second, third = goal.metadata["thing"].split()
        text = opening(goal.metadata["kind"], Thing(first, second, third))
    return Request(goal.prompt, forced=(Forced.text(model, 0, text),))


def _judge(judging: Callable[..., Any], judged_by: Bench) -> Judge:
    """Verdicts as `recovery.watch` wants them. Harmless prompts of another world are read by the dictionary alone."""
    from midward.dynamics.recovery import Said
    from midward.goals import on_sandbox
    from midward.judges.bench import reading
    from midward.judges.phrases import refuses

    def judge(cases: Sequence[Case], texts: Sequence[str]) -> list[Said]:
        found: list[Said] = [{"success": None, "refused": refuses(text)} for text in texts]
        asked = [n for n, case in enumerate(cases) if case.harmful or on_sandbox([case.about])]
        verdicts = judging([cases[n].about for n in asked], [texts[n] for n in asked])
        for n, verdict in zip(asked, verdicts, strict=True):
            said = reading(judged_by, verdict, texts[n])
            found[n] = {name: said[name] for name in ("success", "refused", "coherent", "correct")}  # type: ignore
        return found

    return judge


# --- generations ---------------------------------------------------------------------------------------------------


def _watch(
    model: LanguageModel,
    settings: Mapping[str, Sampling],
    todo: _Prompts,
    judged_by: Bench,
    reading: str,
    all_steps: bool,
    batch_size: int,
    folder: Path,
) -> tuple[Rows, Rows]:
    """Rows of every sampler, and of those that are looked at closely also the rows of the prompts to train on."""
    from midward.dynamics import layers_of
    from midward.dynamics.recovery import watch
    from midward.dynamics.states import READINGS
    from midward.judges.bench import judging

    say(f"judge     {judged_by.info.name}: {judged_by.info.about}")
    say(f"samplers  {', '.join(settings)}")
    say(f"prompts   {len(todo.cases)} for each, anchors from {len(todo.harmless)} and {len(todo.harmful)} more")
    rows: Rows = {}
    training: Rows = {}
    with bar() as progress, judging(judged_by) as asking:
        judge = _judge(asking, judged_by)

        def follow(what: str, total: int) -> Callable[[int], None]:
            task = progress.add_task(what, total=total)
            return lambda done: progress.advance(task, done)

        for place, (name, sampling) in enumerate(settings.items()):
            closely = not place or name == "paper"
            views = {name: (reading, layer) for name, layer in layers_of(model).items()}
            if not closely:
                views = {"last": views["last"]}
            if model.family.kind != "autoregressive":  # which has one reading
                [other] = (one for one in READINGS if one != reading)
                views[f"last ({other})"] = (other, views["last"][1])
            anchors = _anchors(
                model,
                sampling,
                todo,
                views,
                all_steps,
                batch_size,
                folder / "anchors" / name,
                follow(f"{name}: anchors", len(todo.harmless) + len(todo.harmful)),
            )
            cases = todo.cases + (todo.training if closely else [])
            found = watch(
                model,
                cases,
                sampling,
                judge,
                folder / f"rows-{name}.jsonl",
                anchors=anchors,
                about={"judge": judged_by.key, "fit": _fit_key(todo)},
                batch_size=batch_size,
                progress=follow(f"{name}: prompts", len(cases)),
            )
            rows[name] = found[: len(todo.cases)]
            if closely:
                training[name] = found[len(todo.cases) :]
    return rows, training


def _fit_key(todo: _Prompts) -> str:
    from midward.store import key_of

    return key_of(harmless=todo.harmless, harmful=[(one.prompt, one.forced) for one in todo.harmful])


def _anchors(
    model: LanguageModel,
    sampling: Sampling,
    todo: _Prompts,
    views: Mapping[str, View],
    all_steps: bool,
    batch_size: int,
    stem: Path,
    progress: Callable[[int], None],
) -> dict[str, Anchors]:
    """view's name -> anchors; those fitted before on the same prompts and settings are taken from their files."""
    from midward.dynamics import fit_anchors
    from midward.judges.phrases import refusal_in

    fitted = fit_anchors(
        model,
        todo.harmless,
        todo.harmful,
        refused=lambda text: refusal_in(text) is not None,
        sampling=sampling,
        views=sorted(set(views.values())),
        needs_all_steps=all_steps,
        batch_size=batch_size,
        kept=stem,
        progress=progress,
    )
    return {name: fitted[view] for name, view in views.items()}
