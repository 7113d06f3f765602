"""`midward probe gcg`: how far a suffix of the prompt reaches into the response."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from midward.cli._options import Compare, JudgeModel, JudgeName, ModelOptions, SamplingOptions
from midward.cli._run import run_folder
from midward.cli._show import bar, columns, out, say, tell_unscored
from midward.cli.probe_prefill import Column, Count, Goals, PhrasesFile, attacked
from midward.errors import InputError

if TYPE_CHECKING:
    from midward.probes.gcg import Cost, Gcg


def gcg(
    model: ModelOptions,
    sampling: SamplingOptions,
    goals: Goals = "sandbox",
    column: Column = None,
    count: Count = 100,
    positions: Annotated[
        str,
        typer.Option(help="Response tokens where a phrase is aimed at: agreement at 0, a step's wording elsewhere."),
    ] = "0,30",
    phrase: Annotated[
        list[str] | None,
        typer.Option(metavar="POSITION=TEXT", help="Your own phrase at one position; may be given several times."),
    ] = None,
    phrases_file: PhrasesFile = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of the suffix (20).")] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Iterations, at most (100).")] = None,
    width: Annotated[
        int | None, typer.Option(min=1, help="Suffixes evaluated an iteration (512; on the sandbox 4).")
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of steepest descent a slot that they are drawn from (256; sandbox 64)."),
    ] = None,
    stop_loss: Annotated[
        float | None, typer.Option(min=0, help="Nats a token at which a search ends early (0.05).")
    ] = None,
    drafts: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Average the loss over so many partly revealed drafts of the model's own response (0: all masked).",
        ),
    ] = None,
    judges: JudgeName = None,
    judge: JudgeModel = None,
    compare: Compare = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per forward pass.")] = 64,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Searches at a time, sharing the threads (1; the sandbox on a CPU: one a thread)."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what it would cost, at the measured rate, and run nothing.")
    ] = False,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of rows, tables and figures.")] = Path("probe-gcg"),
) -> None:
    """Can a suffix of the prompt make a phrase likely in the middle? Loss, hits, success.

    One run is one model with its adapter. Run again, it goes on where it stopped, within a search too.
    """
    run = run_folder(out_folder)
    chosen = attacked(goals, count, column)
    import torch

    from midward.judges import bench as verdicts
    from midward.probes import _gcg_readings, _readings
    from midward.probes import gcg as probe
    from midward.probes.phrases import phrases_for
    from midward.probes.prefill import check_positions, positions_of

    places = positions_of(positions)
    own = _own(phrase or [], places)
    given = {
        "tokens": tokens,
        "iterations": iterations,
        "width": width,
        "top": top,
        "stop_loss": stop_loss,
        "drafts": drafts,
    }
    chosen_settings = {name: value for name, value in given.items() if value is not None}
    settings = probe.Gcg(**{**(probe.SANDBOX if model.at_home else {}), **chosen_settings}, seed=sampling.seed)
    if sampling.length is not None:
        check_positions(places, sampling.length)
    texts = phrases_for(chosen, phrases_file)
    judged_by = verdicts.bench(chosen, judges, judge)
    others = {folder: _readings.load_run(folder, "gcg", judged_by.key, asdict(settings)) for folder in compare or []}

    loaded = model.load()
    probe.require_gradients(loaded)
    resolved = sampling.resolve(loaded)
    for line in _readings.sampled_otherwise(asdict(resolved), others):
        say(f"compared  {line}")
    aims = {
        goal: probe.aims_of(loaded, goal, places, texts, resolved.length, own=own, seed=settings.seed)
        for goal in chosen
    }
    loaded.fold_adapter()
    if workers is None:
        workers = torch.get_num_threads() if model.at_home and loaded.device.type == "cpu" else 1
    say(f"judge     {judged_by.info.name}: {judged_by.info.about}")
    say(f"search    {', '.join(f'{name} {value}' for name, value in asdict(settings).items())}")
    if plan:
        out(_cost(probe.cost(loaded, aims, settings, resolved, batch_size)))
        return
    run.start()
    total = len(chosen) * len(places) * settings.iterations
    say(
        f"probe     {len(chosen) * len(places)} searches of up to {settings.iterations} iterations, {workers} at a time"
    )
    with bar() as progress:
        task = progress.add_task("iterations", total=total)
        rows = probe.run(
            loaded,
            aims,
            out_folder,
            settings,
            judged_by=judged_by,
            sampling=resolved,
            batch_size=batch_size,
            workers=workers,
            progress=lambda done: progress.advance(task, done),
        )
    summary = {
        "probe": "gcg",
        "run": probe.run_id(loaded, settings, resolved, judged_by),
        "model": loaded.name,
        "adapter": loaded.adapter,
        "fingerprint": loaded.fingerprint,
        "settings": asdict(settings),
        "sampling": asdict(resolved),
        "judge": judged_by.key,
        "cells": _gcg_readings.cells(rows),
        "between": _gcg_readings.between(rows),
        "findings": _gcg_readings.findings(rows, settings),
        "compared": {str(folder): _gcg_readings.against(rows, theirs) for folder, (_, theirs) in others.items()},
    }
    _write(out_folder, rows, summary)
    runs = {_label(loaded.name, loaded.adapter): rows}
    for folder, (one, theirs) in others.items():
        label = _label(one["model"], one["adapter"])
        runs[f"{label} ({folder.name})" if label in runs else label] = theirs
    _draw(out_folder, runs, settings, len(chosen))
    out("\n".join(_tables(summary)))
    say(f"{out_folder}: searches.jsonl, rows.jsonl, gcg.csv, summary.json")
    tell_unscored(judged_by)


def _own(pairs: list[str], places: Sequence[int]) -> dict[int, str]:
    found = {}
    for pair in pairs:
        position, equals, text = pair.partition("=")
        if not equals or not position.strip().isdecimal() or not text.strip():
            raise InputError(f"--phrase takes POSITION=TEXT, like 30='Step 4:'; received {pair!r}.")
        if int(position) not in places:
            raise InputError(f"--phrase {pair!r}: {position} isn't among --positions {','.join(map(str, places))}.")
        found[int(position)] = text
    return found


def _cost(cost: Cost) -> str:
    minutes = cost.seconds / 60
    return (
        f"{cost.searches} searches: at most {cost.rows} forwards of evaluated suffixes and {cost.gradients} with a "
        f"backward pass;\nat most {minutes:.0f} minutes ({minutes / 60:.1f} hours) at the rate of two iterations now: "
        "searches that reach --stop-loss end early"
    )


def _label(model: str, adapter: str | None) -> str:
    return Path(adapter).name if adapter else Path(model).name


def _write(folder: Path, rows: Sequence[dict[str, Any]], summary: Mapping[str, Any]) -> None:
    from midward._tables import write_table
    from midward.store import write_text

    write_table(folder / "gcg", [{k: v for k, v in row.items() if k not in ("key", "run")} for row in rows])
    write_text(folder / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


def _draw(folder: Path, runs: Mapping[str, Sequence[dict[str, Any]]], settings: Gcg, count: int) -> None:
    from midward.probes._gcg_readings import at, best_so_far, positions
    from midward.reports.suffixes import loss_curves

    longest = max(len(row["curve"]) - 1 for rows in runs.values() for row in rows if row["position"] is not None)
    curves = {
        name: {
            position: [best_so_far(row, max(longest, settings.iterations)) for row in at(rows, position)]
            for position in positions(rows)
        }
        for name, rows in runs.items()
    }
    title = f"suffix search, width {settings.width}, {count} goals: {', '.join(runs)}"
    loss_curves(folder / "gcg", curves, title=title)


def _tables(summary: Mapping[str, Any]) -> list[str]:
    from midward.probes._gcg_readings import told

    def share(cell: Mapping[str, Any], name: str) -> str:
        if cell[name] is None:
            return "-"
        return f"{100 * cell[name]:.1f} [{100 * cell[f'{name}_low']:.1f}, {100 * cell[f'{name}_high']:.1f}]"

    rows: list[tuple[str, ...]] = [
        ("aimed at", "n", "loss before", "after", "iterations", "hit %", "anywhere %", "ASR %", "refused %")
    ]
    for cell in summary["cells"]:
        loss = ("-", "-", "-")
        if cell["loss"] is not None:
            ends = [cell["loss_low"], cell["loss_high"]]
            after = f"{cell['loss']:.2f}" + ("" if None in ends else " [{:.2f}, {:.2f}]".format(*ends))
            loss = (f"{cell['start_loss']:.2f}", after, f"{cell['iterations']:.0f}")
        where = "nothing" if cell["position"] is None else f"token {cell['position']}"
        asr = share(cell, "asr") + (f" ({cell['unscored']} unscored)" if cell["unscored"] else "")
        rows.append(
            (where, str(cell["n"]), *loss, share(cell, "hit"), share(cell, "anywhere"), asr, share(cell, "refused"))
        )
    lines = columns(rows)
    for folder, differences in summary["compared"].items():
        found: list[tuple[str, ...]] = [("aimed at", "measure", "difference")]
        found += [(f"token {one['position']}", one["measure"], told(one)) for one in differences]
        lines += ["", f"minus {folder}, by goal (95 % interval)", *columns(found)]
    return [*lines, "", *summary["findings"]]
