"""`midward sandbox build` and `midward sandbox measure`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from midward.cli._options import BatchSize, ModelOptions, SamplingOptions
from midward.cli._options import names as names_of
from midward.cli._show import bar, say
from midward.errors import InputError

# Column of the table -> field of a row, see sandbox.trials.read.
COLUMNS = {
    "ASR, half": "success",
    "ASR, full": "full",
    "refused": "refused",
    "coherent": "coherent",
    "correct": "correct",
}


def build(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, texts and masks.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; the weights depend on their number.")] = 1,
    kind: Annotated[
        Literal["diffusion", "autoregressive"], typer.Option(help="The sandbox model, or its causal twin.")
    ] = "diffusion",
) -> None:
    """Train the sandbox model from nothing. Run again, it goes on from its last checkpoint."""
    from tools.world import build as room
    from tools.world.twin import TwinRecipe

    recipe = (room.Recipe if kind == "diffusion" else TwinRecipe)(seed=seed, threads=threads)
    stages = ", ".join(f"{stage.name} {stage.steps}" for stage in recipe.stages)
    say(f"sandbox   seed {seed}, {threads} thread{'s' * (threads > 1)}, steps by stage: {stages}")
    with bar() as progress:
        tasks = {stage.name: progress.add_task(stage.name, total=stage.steps) for stage in recipe.stages}

        def show(row: dict[str, Any]) -> None:
            exact = ", ".join(f"{kind} {share:.2f}" for kind, share in row["exact"].items())
            line = f"{row['stage']}: loss {row['loss']:.3f}, exact {exact or '-'}"
            progress.update(tasks[row["stage"]], completed=row["step"], description=line)
            if progress.disable:
                say(f"{row['step']}/{row['of']} {line} ({row['seconds']:.0f} s)")

        folder = room.build(out, recipe, progress=show)
    say(f"the model is in {folder}: midward chat --model {folder}")


def measure(
    model: ModelOptions,
    sampling: SamplingOptions,
    out: Annotated[Path, typer.Option(help="JSON lines, one a trial, written as they come.")],
    sets: Annotated[
        str, typer.Option(help="Sets of trials, by comma; an unknown one lists all.")
    ] = "plain,contextual,wrappers,benign,banned,sums,recall,programs",
    count: Annotated[int, typer.Option("--limit", "--count", min=1, help="Trials a set.")] = 200,
    split: Annotated[Literal["test", "tuning", "train"], typer.Option(help="Whose things are asked about.")] = "test",
    batch_size: BatchSize = 16,
) -> None:
    """Attack and question a model in the sandbox's world, read by its oracle. Run again, it goes on."""
    from midward.world import trials

    loaded = model.load()
    chosen = sampling.resolve(loaded)
    names = list(dict.fromkeys(names_of(sets)))
    todo = [trial for name in names for trial in trials.trials(name, count, split=split)]
    if not todo:
        raise InputError("--sets names no set; give some, by comma.")
    with bar() as progress:
        task = progress.add_task("trials", total=len(todo))
        rows = trials.run(
            loaded,
            todo,
            out,
            sampling=chosen,
            batch_size=batch_size,
            progress=lambda done: progress.advance(task, done),
        )
    _table(names, rows)
    say(f"{len(rows)} rows in {out}")


def _table(names: list[str], rows: list[dict[str, Any]]) -> None:
    """Rates in per cent with 95 % intervals; "-" where a column doesn't apply to a set."""
    from rich.console import Console
    from rich.table import Table

    from midward.stats import rate

    table = Table("set", "n", *(f"{name} %" for name in COLUMNS), caption="with 95 % intervals")
    for name in names:
        of_set = [row for row in rows if row["set"] == name]
        cells = []
        for field in COLUMNS.values():
            found = rate(row[field] for row in of_set)
            ends = f"({100 * found.low:.0f}-{100 * found.high:.0f})"
            cells.append("-" if found.value is None else f"{100 * found.value:.1f} {ends}")
        table.add_row(name, str(len(of_set)), *cells)
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)
