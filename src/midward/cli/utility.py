"""`midward utility`: what a model can do, before and after it was aligned or guarded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from midward.cli._options import BatchSize, Compare, ModelOptions, SamplingOptions, names
from midward.cli._run import run_folder
from midward.cli._show import columns, following, in_points, out, say
from midward.errors import InputError

if TYPE_CHECKING:
    from midward.models import LanguageModel
    from midward.sampling import Sampling
    from midward.utility import Answers

_SANDBOX = ("sums", "recall", "programs")


def utility(
    model: ModelOptions,
    sampling: SamplingOptions,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="By comma: sandbox (or sums, recall, programs), gsm8k, mmlu, humaneval, any other task of "
            "lm-evaluation-harness. The sandbox's by default for the models in the package."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Samples of each task; the sandbox's have 200, the others all.")
    ] = None,
    fewshot: Annotated[
        int | None, typer.Option(min=0, help="Solved examples before each sample; the task's own number by default.")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="No chat template around the prompts, as for a base model.")
    ] = False,
    include_path: Annotated[Path | None, typer.Option(help="Folder of your own harness tasks (YAML).")] = None,
    guard: Annotated[
        Path | None, typer.Option(help="A fitted guard's file or folder; flagged responses become a stub.")
    ] = None,
    draws: Annotated[
        int, typer.Option(min=2, help="Masks of a diffusion model's likelihood, where it isn't exact.")
    ] = 128,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run the programs that the model writes (HumanEval).")
    ] = False,
    compare: Compare = None,
    batch_size: BatchSize = 16,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of answers, samples and tables.")] = Path("utility"),
) -> None:
    """What can a model do? Exact scores of tasks, for any adapter and guard, against other runs.

    Without --length, a response has the length that its task asks for. Run again, it goes on where it stopped; works
    under torchrun.
    """
    run = run_folder(out_folder)
    own, others = _split(model, tasks)
    if guard is not None:
        from midward.guards import describe

        describe(guard)  # a wrong file is told before anything big is loaded
    loaded_tasks: Mapping[str, Mapping[str, Any]] = {}
    if others:
        from midward.utility import harness

        loaded_tasks = harness.load(
            others,
            include=include_path,
            fewshot=fewshot,
            allow_code=allow_code_execution,
            say=lambda text: say(f"tasks     {text}"),
        )
    from midward.utility import Answers, load_run, processes, protections, readings

    runs = {folder: load_run(folder)[1] for folder in compare or []}
    if allow_code_execution:
        say(f"programs  {'; '.join(protections())}")

    processes.start()
    first = processes.rank() == 0
    try:
        network = model.load()
        network.fold_adapter()
        resolved = sampling.resolve(network, [guard] if guard else [])
        if guard is not None:
            from midward.guards import load as load_guard

            network.guard = load_guard(guard, network, resolved)
            say(f"guard     {network.guard.name} (threshold {network.guard.threshold:.4g})")
        run.start()
        with following() if first else nullcontext(lambda what, done, of: None) as show:
            answers = Answers(
                network, folder=out_folder, batch_size=batch_size, draws=draws, seed=sampling.seed, progress=show
            )
            rows = _sandbox(answers, own, resolved, limit)
            found, reports = _harness(answers, loaded_tasks, sampling, limit, plain)
        rows += found
    finally:
        processes.stop()
    if not first:
        return
    from importlib.metadata import version

    about = {
        "verb": "utility",
        "model": network.name,
        "adapter": network.adapter,
        "fingerprint": network.fingerprint,
        "guard": network.guard and {"name": network.guard.name, "digest": network.guard.digest},
        "tasks": [*own, *others],
        "limit": limit,
        "fewshot": fewshot,
        "plain": plain,
        "draws": draws,
        "sampling": asdict(resolved),
        "length_given": sampling.length is not None,
        "lm_eval": version("lm_eval") if others else None,
        "harness": reports,
    }
    compared = {str(folder): readings.against([rows], [theirs]) for folder, theirs in runs.items() if rows}
    _write(out_folder, rows, about, compared)


def _split(model: ModelOptions, tasks: str | None) -> tuple[list[str], list[str]]:
    """The sandbox's tasks among those named, and the others."""
    if tasks is None and not model.at_home:
        raise InputError("give --tasks: gsm8k,mmlu,humaneval, other tasks of lm-evaluation-harness, or sandbox.")
    named = list(dict.fromkeys(names("sandbox" if tasks is None else tasks)))
    if not named:
        raise InputError(f"--tasks names no task; received {tasks!r}.")
    own = [name for name in _SANDBOX if name in named or "sandbox" in named]
    return own, [name for name in named if name not in (*_SANDBOX, "sandbox")]


def _sandbox(answers: Answers, own: Sequence[str], resolved: Sampling, limit: int | None) -> list[dict[str, Any]]:
    from midward.utility import sandbox

    if not own:
        return []
    return sandbox.run(answers, own, resolved, count=limit or sandbox.COUNT)


def _harness(
    answers: Answers, tasks: Mapping[str, Mapping[str, Any]], sampling: SamplingOptions, limit: int | None, plain: bool
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    if not tasks:
        return [], {}
    from midward.utility import MidwardLM, harness

    chat = not plain and _has_template(answers.model)
    say(f"prompts   {'through the chat template' if chat else 'as they are'}")
    if chat and "humaneval" in tasks:
        say("humaneval asks for a function's continuation; of a chat model ask humaneval_instruct, or give --plain")
    lm = MidwardLM(
        answers.model,
        sampling={**(guard.sampling if (guard := getattr(answers.model, "guard", None)) else {}), **sampling.values},
        answers=answers,
        greedy=harness.needs_greedy(tasks),
        say=lambda text: say(f"harness   {text}"),
    )
    return harness.run(lm, tasks, limit=limit, chat=chat)


def _has_template(model: LanguageModel) -> bool:
    return bool(getattr(model.tokenizer, "chat_template", None))


def _write(
    folder: Path, rows: Sequence[dict[str, Any]], about: dict[str, Any], compared: Mapping[str, list[dict[str, Any]]]
) -> None:
    from midward._tables import write_table
    from midward.stats import family
    from midward.store import write_text
    from midward.utility import cells

    found = cells(rows)
    if rows:
        write_table(folder / "samples", rows)
        write_table(folder / "utility", found)
    pairs = [{"minus": other, **pair} for other, some in compared.items() for pair in some]
    if pairs:
        write_table(folder / "compared", pairs)
    summary = about | {"cells": found, "compared": compared}
    write_text(folder / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False, default=str) + "\n")
    if not rows:
        say(f"{folder}: answers-*.jsonl, and summary.json with the tasks' own values: none is a share of samples")
        return
    out("\n".join(columns(_table(found))))
    for other, some in compared.items():
        said = f"minus {other}, by sample ({'; '.join(['points, 95 % interval', *filter(None, [family(some)])])})"
        out("\n".join(["", said, *columns(_pairs(some))]))
    more = ", compared.csv" if pairs else ""
    say(f"{folder}: answers-*.jsonl, samples.csv, utility.csv{more}, summary.json")


def _table(found: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("task", "measure", "score %", "n", "unscored", "flagged")]
    for cell in found:
        score = "-"
        if cell["value"] is not None:
            score = f"{100 * cell['value']:.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"
        counts = (str(cell[name]) for name in ("n", "unscored", "flagged"))
        rows.append((_name(cell), cell["measure"], score, *counts))
    return rows


def _pairs(pairs: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("task", "measure", "difference", "p", "n")]
    for pair in pairs:
        rows.append((_name(pair), pair["measure"], *in_points(pair), str(pair["n"])))
    return rows


def _name(cell: Mapping[str, Any]) -> str:
    return f"  {cell['subtask']}" if cell["subtask"] else cell["task"]
