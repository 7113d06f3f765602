"""`midward guard fit|score|eval`: guards fitted for a model, put in front of it, and compared."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from midward._flags import Flag
from midward._tables import write_table
from midward.attacks.sets import check_set
from midward.cli._options import (
    BatchSize,
    JudgeModel,
    JudgeName,
    ModelOptions,
    Overwrite,
    SamplingOptions,
    SharedBy,
    answer,
    load_behind,
    say_harm,
)
from midward.cli._run import Result, finish, plugins, run_folder
from midward.cli._show import following, say
from midward.dynamics.samplers import PAPER
from midward.errors import InputError
from midward.goals.columns import prompts_of
from midward.goals.loading import is_file, says_harm
from midward.guards.config import FITTED, EvalConfig, FitConfig, Sizes, conformal_order, guard_file, guard_files
from midward.runs.run import Measured

if TYPE_CHECKING:
    from midward.models import LanguageModel


def fit(
    model: ModelOptions,
    sampling: SamplingOptions,
    fitting: FitConfig,
    sizes: Sizes,
    out_folder: Annotated[Path, Flag(name="--out", free=True)] = FITTED,
    listed: Annotated[bool, Flag(name="--list", free=True)] = False,
) -> Result:
    """Fit guards for a model and its sampling, all calibrated on the same held-out harmless prompts.

    The same command again goes on where it stopped. A folder of guards stands elsewhere for its
    hesitate.safetensors, or sri.safetensors.

    Args:
        out_folder: Folder of the guards' files.
        listed: List the guards.
    """
    if listed:
        return _listing()
    conformal_order(sizes.held_out, fitting.alpha, fitting.certain)  # this and the names before torch is imported
    fitting.check_names()
    calm = fitting.harmless or (("benign",) if model.at_home else ("alpaca",))
    attacked = fitting.harmful or (("plain",) if model.at_home else ("advbench",))
    for name in (*calm, *attacked):
        check_set(name, shapes=False)
    from midward.attacks.cases import mixed
    from midward.guards import fit_guards, make
    from midward.guards.fitting import answers_of, harmless_of, require_prompts
    from midward.judges.phrases import refusal_in

    planned = {label: make(spec) for label, spec in fitting.specs(model.at_home).items()}
    run = run_folder(out_folder)
    needs_harmful = any(guard.trains or guard.reads_labels for guard in planned.values())
    draw = lambda sets, count: mixed(sets, count * (fitting.draw + 1), split=fitting.split)[count * fitting.draw :]  # noqa: E731
    harmless = draw(calm, harmless_of(planned, sizes))
    refusing = draw(attacked, sizes.anchors) if needs_harmful else []
    require_prompts(planned, harmless, refusing, sizes, fitting.alpha, fitting.certain)  # before the model is loaded
    loaded = _load(model)
    useful = fitting.specs(model.at_home, loaded.family.mask_id is not None)
    planned = {label: guard for label, guard in planned.items() if label in useful}
    chosen = sampling.resolve(loaded, **(PAPER if fitting.paper else {}))
    asked = answers_of(loaded, planned, harmless, refusing, sizes)
    parts = ", ".join(f"{count} for {what}" for what, count in asked.items())
    say(f"answers   {sum(asked.values())} are sampled in all ({parts}), and what a guard samples by itself")
    counts = {"harmless": len(harmless), "harmful": len(refusing)}
    run.start([Measured.of(loaded)], sampling=asdict(chosen), goals=counts, seed=chosen.seed)
    with following() as progress:
        paths = fit_guards(
            loaded,
            planned,
            harmless,
            refusing,
            out_folder,
            refused=lambda text: refusal_in(text) is not None,
            sampling=chosen,
            alpha=fitting.alpha,
            certain=fitting.certain,
            sizes=sizes,
            batch_size=fitting.batch_size,
            progress=progress,
        )
    about = ("name", "looks", "threshold", "alpha", "calibrated")
    rows = [
        {"file": str(path), "guard": label} | {name: getattr(planned[label], name) for name in about}
        for label, path in paths.items()
    ]
    for row in rows:  # harmful prompts that weren't refused are in no anchor
        if anchors := getattr(planned[row["guard"]], "anchors", None):
            row["anchors"] = f"{anchors.counts[0]} answered, {anchors.counts[1]} refused"
    then = f"midward guard eval --guard {shlex.quote(str(run.folder))}  # on attacks and harmless prompts"
    return replace(finish(run, {"guards": rows}), then=then)


def score(
    model: ModelOptions,
    sampling: SamplingOptions,
    guard: Annotated[Path, Flag(read=guard_file)],
    prompts: Annotated[Path, Flag()],
    column: Annotated[str | None, Flag()] = None,
    batch_size: BatchSize = 16,
    out_file: Annotated[Path, Flag(name="--out", free=True)] = Path("scores.jsonl"),
    overwrite: Overwrite = False,
    workers: SharedBy = "1",
) -> Result:
    """Answer prompts behind a guard: response, score, flag, signal. Run again, it goes on where it stopped.

    Args:
        guard: A guard's file, or the folder that guard fit wrote.
        prompts: A .csv or .jsonl file of prompts.
        column: The column that holds them (prompt, goal or behavior).
        out_file: JSON lines; .csv beside it.
    """
    from midward.stats import rate

    table, column = prompts_of(prompts, column)
    if out_file.suffix != ".jsonl":
        raise InputError(f"--out takes a file that ends in .jsonl; received {out_file}.")
    if prompts.resolve() in {out_file.with_suffix(end).resolve() for end in (".jsonl", ".csv")}:
        raise InputError(f"--out {out_file} would write over the prompts in {prompts}; give another file.")
    loaded, chosen = load_behind(model, sampling, guard)
    loaded.fold_adapter()
    fitted: Any = loaded.guard
    how: dict[str, Any] = {"batch_size": batch_size, "overwrite": overwrite, "workers": workers}
    rows = answer(loaded, chosen, table, out_file, column=column, **how)
    flat = [{**row, "guard": fitted.name, **(row.get("guard") or {})} for row in rows]
    path = write_table(out_file.with_suffix(""), [{name: row[name] for name in row if name != "key"} for row in flat])
    answered = [row for row in flat if not row["error"]]
    flagged = rate([bool(row.get("flagged")) for row in answered], [str(row["prompt"]) for row in answered])
    if errors := [row for row in rows if row["error"]]:
        say(f"{len(errors)} rows without a response; the first: {errors[0]['error']}")
    data = {"flagged": flagged.hits, "of": len(rows), "errors": len(errors), "threshold": fitted.threshold}
    data |= {"share": flagged.record()}
    text = f"{flagged.hits} of {flagged.n} flagged, {flagged.text()} (threshold {fitted.threshold:.4g}); {out_file}"
    return Result(data, text, f"{out_file}, {path}")


def evaluate(
    model: ModelOptions,
    sampling: SamplingOptions,
    trial: EvalConfig,
    judges: JudgeName = None,
    judge: JudgeModel = None,
    out_folder: Annotated[Path, Flag(name="--out", free=True)] = Path("guard-eval"),
    workers: SharedBy = "1",
) -> Result:
    """Compare fitted guards on the same answers: false positives, refusals, attack success, cost, AUROC.

    The same command again goes on where it stopped.

    Args:
        out_folder: Folder of rows, tables and figures.
    """
    if trial.behind and workers != 1:
        raise InputError("--workers don't go with --behind: this process alone asks the other model.")
    run = run_folder(out_folder)
    files = guard_files(trial.guard)
    for name in trial.sets:
        check_set(name)
    for name in trial.harmless:
        check_set(name, shapes=False)
    says_harm(trial.goals)  # a wrong name or file is told at once
    say_harm([name for name in (*trial.sets, trial.goals) if is_file(name)])
    from midward.attacks.cases import cases
    from midward.guards import compare, describe, load
    from midward.judges.bench import bench

    for file in files.values():
        describe(file)  # one that is no guard is told before the model is loaded
    loaded = _load(model)
    chosen = sampling.resolve(loaded, files.values())
    guards = {label: load(path, loaded, chosen) for label, path in files.items()}
    used = {prompt for guard in guards.values() for prompt in guard.fitted_on}
    how: dict[str, Any] = {"split": trial.split, "goals": trial.goals, "without": used, "length": chosen.length}
    sets = {
        name: cases(loaded, name, trial.count, harmless=name in trial.harmless, **how)
        for name in (*trial.names(loaded.family.mask_id is not None), *trial.harmless)
    }
    asked = [case for some in sets.values() for case in some]
    judged_by = bench([case.goal for case in asked], judges, judge)
    run.start(
        [Measured.of(loaded, label=label, guard=str(files[label]), digest=guards[label].digest) for label in guards],
        sampling=asdict(chosen),
        judges=[judged_by.key],
        goals={name: len(some) for name, some in sets.items()},
        seed=chosen.seed,
    )
    with following() as progress, compare.behind(trial.behind) if trial.behind else nullcontext() as other:
        comparison = compare.Comparison(
            loaded, asked, guards, out_folder, chosen, judged_by, other, trial.batch_size, progress, workers
        )
        summary = comparison.run(trial.repeats)
    return finish(run, summary, judge=judged_by)


def _listing() -> Result:
    from midward.guards import GuardInfo, every

    columns: dict[str, Any] = {name: attrgetter(f"kind.{name}") for name in ("version", "looks")}
    columns["settings"] = lambda info: " ".join(field.name for field in fields(info.kind.Settings))
    columns["about"] = attrgetter("kind.about")
    return plugins(every(), GuardInfo, columns)


def _load(model: ModelOptions) -> LanguageModel:
    loaded = model.load()
    loaded.fold_adapter()
    return loaded
