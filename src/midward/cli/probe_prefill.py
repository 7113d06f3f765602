"""`midward probe prefill` and `midward probe mirror`: phrases forced along the response, to attack and to defend."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from midward.cli._options import (
    BatchSize,
    Compare,
    JudgeModel,
    JudgeName,
    ModelOptions,
    SamplingOptions,
    names,
    say_harm,
)
from midward.cli._run import run_folder
from midward.cli._show import StepBar, bar, columns, out, say, tell_unscored
from midward.errors import InputError

if TYPE_CHECKING:
    from midward.goals import Goal
    from midward.judges.bench import Bench
    from midward.models import LanguageModel
    from midward.probes._run import Case
    from midward.sampling import Sampling

Goals = Annotated[str, typer.Option(help="A set of harmful goals, or a .csv or .jsonl file; see midward goals.")]
Column = Annotated[str | None, typer.Option(help="Of a file: the column of the goals.")]
Count = Annotated[int, typer.Option("--limit", "--count", min=1, help="Goals.")]
PhrasesFile = Annotated[
    Path | None, typer.Option(help="Your own phrases: a .csv or .jsonl file with the columns kind and text.")
]
Tokens = Annotated[str | None, typer.Option(help="Force only a phrase's first k tokens: 1,2,4,8 (all of it).")]


def prefill(
    model: ModelOptions,
    sampling: SamplingOptions,
    goals: Goals = "sandbox",
    column: Column = None,
    count: Count = 100,
    positions: Annotated[
        str | None,
        typer.Option(help="Response tokens, 0,40,80, or sweeps start:stop:step; an even sweep unless given."),
    ] = None,
    phrases: Annotated[str, typer.Option(help="Kinds of phrase by comma.")] = "affirmative,procedural,neutral,refusal",
    phrases_file: PhrasesFile = None,
    tokens: Tokens = None,
    judges: JudgeName = None,
    judge: JudgeModel = None,
    benign: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Harmless goals, asked with neutral phrases, refusals and none; 50 on the sandbox or with "
            "--benign-goals, else none.",
        ),
    ] = None,
    benign_goals: Annotated[
        str | None, typer.Option(help="The set they are of; sandbox-benign on the sandbox.")
    ] = None,
    compare: Compare = None,
    batch_size: BatchSize = 16,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of rows, tables and figures.")] = Path(
        "probe-prefill"
    ),
) -> None:
    """Where does a forced phrase jailbreak? Attack success by position and kind of phrase.

    Run again, it goes on where it stopped.
    """
    run = run_folder(out_folder)
    chosen = attacked(goals, count, column)
    from midward.judges import bench as verdicts
    from midward.probes import _readings
    from midward.probes import prefill as probe
    from midward.probes.phrases import phrases_for

    settings = probe.Prefill(
        kinds=tuple(dict.fromkeys(names(phrases))),
        positions=probe.positions_of(positions) if positions is not None else (),
        tokens=_lengths(tokens),
        seed=sampling.seed,
    )
    if sampling.length is not None:
        probe.check_positions(settings.positions, sampling.length)
    calm = _harmless(chosen, benign, benign_goals)
    texts = phrases_for(chosen, phrases_file)
    judged_by = verdicts.bench(chosen, judges, judge)
    others = {folder: _readings.load_run(folder, "prefill", judged_by.key) for folder in compare or []}

    loaded = model.load()
    resolved = sampling.resolve(loaded)
    for line in _readings.sampled_otherwise(asdict(resolved), others):
        say(f"compared  {line}")
    wanted = probe.cases(loaded, chosen, calm, settings, texts, resolved.length)
    run.start()
    rows = _respond(loaded, wanted, out_folder, judged_by, resolved, batch_size, {"probe": "prefill"})
    cells, said = _readings.cells(rows), probe.findings(rows)
    compared = {str(folder): _readings.against(rows, theirs) for folder, (_, theirs) in others.items()}
    _write(out_folder, "prefill", cells, {"findings": said, "compared": compared})
    _draw_prefill(out_folder, cells, loaded, len(chosen))
    out("\n".join(columns(_table(cells))))
    for folder, pairs in compared.items():
        out("\n".join(["", f"minus {folder}, by goal (points, 95 % interval)", *columns(_pairs(pairs))]))
    out("\n".join(["", *said]))
    say(f"{out_folder}: rows.jsonl, prefill.csv, summary.json")
    tell_unscored(judged_by)


def mirror(
    model: ModelOptions,
    sampling: SamplingOptions,
    goals: Goals = "sandbox-tuning",
    column: Column = None,
    count: Count = 100,
    attack: Annotated[
        Literal["prefill", "wrapper"],
        typer.Option(
            help="What the refusal has to stop: an affirmative phrase at token 0, or a dressed-up request (sandbox)."
        ),
    ] = "prefill",
    starts: Annotated[
        str | None, typer.Option(help="Response tokens where a refusal is forced, as --positions of probe prefill.")
    ] = None,
    width: Annotated[int, typer.Option(min=1, help="Starts in the window that is looked for.")] = 40,
    phrases_file: PhrasesFile = None,
    tokens: Tokens = None,
    judges: JudgeName = None,
    judge: JudgeModel = None,
    batch_size: BatchSize = 16,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of rows, tables, figures and recipe.")] = Path(
        "probe-mirror"
    ),
) -> None:
    """Which tokens, if made safe, save the response? Writes MOSA's window on this model as a recipe.

    The window is a setting, so look for it on goals that no result is reported on. Run again, it goes on where it
    stopped.
    """
    run = run_folder(out_folder)
    chosen = attacked(goals, count, column)
    import yaml

    from midward.judges import bench as verdicts
    from midward.probes import _readings
    from midward.probes import mirror as probe
    from midward.probes.phrases import phrases_for
    from midward.probes.prefill import check_positions, positions_of
    from midward.store import write_text

    settings = probe.Mirror(
        attack=attack,
        starts=positions_of(starts) if starts is not None else (),
        tokens=_lengths(tokens),
        width=width,
        seed=sampling.seed,
    )
    if sampling.length is not None:
        check_positions(settings.starts, sampling.length)
    texts = phrases_for(chosen, phrases_file)
    judged_by = verdicts.bench(chosen, judges, judge)

    loaded = model.load()
    resolved = sampling.resolve(loaded)
    wanted = probe.cases(loaded, chosen, settings, texts, resolved.length)
    run.start()
    rows = _respond(loaded, wanted, out_folder, judged_by, resolved, batch_size, {"probe": "mirror"})
    found = probe.window(rows, width)
    said = probe.findings(rows, found)
    cells = _readings.cells(rows)
    _write(out_folder, "mirror", cells, {"findings": said, "window": asdict(found), "attack": attack})
    recipe = yaml.safe_dump(probe.recipe(found, resolved.length), sort_keys=False)
    write_text(out_folder / "recipe.yaml", recipe)
    _draw_mirror(out_folder, cells, (found.start, found.end), loaded, len(chosen))
    out("\n".join([*columns(_table(cells)), "", *said]))
    say(f"{out_folder}: rows.jsonl, mirror.csv, summary.json")
    say(f"midward align --model {model.model} --config {out_folder / 'recipe.yaml'} --out ... trains in this window")
    tell_unscored(judged_by)


def attacked(name: str, count: int, column: str | None) -> list[Goal]:
    """The goals of a probe, which measures attack success. Raises InputError where some are harmless."""
    from midward import goals

    chosen = goals.load(name, count=count, column=column)
    if calm := sum(not goal.harmful for goal in chosen):
        raise InputError(
            f"--goals {name}: {calm} of {len(chosen)} are harmless, and a probe attacks; give harmful ones "
            "(harmless ones are --benign-goals of probe prefill)."
        )
    say_harm([name], column)
    return chosen


def _lengths(text: str | None) -> tuple[int | None, ...]:
    """Numbers of tokens by comma; (None,), all of a phrase, where none are given. Raises InputError."""
    if text is None:
        return (None,)
    try:
        return tuple(dict.fromkeys(int(name) for name in text.split(",") if name.strip()))
    except ValueError:
        raise InputError(f"--tokens takes numbers by comma, like 1,2,4,8; received {text!r}.") from None


def _harmless(chosen: Sequence[Goal], count: int | None, name: str | None) -> list[Goal]:
    from midward import goals as room
    from midward.goals import on_sandbox

    if count is None:
        count = 50 if name is not None or on_sandbox(chosen) else 0
    if not count:
        return []
    if name is None:
        if not on_sandbox(chosen):
            raise InputError("--benign needs --benign-goals for goals like these: alpaca, xstest or a file; or 0.")
        name = "sandbox-benign"
    return room.load(name, count=count, harmless=True)


def _respond(
    model: LanguageModel,
    wanted: Sequence[Case],
    folder: Path,
    judged_by: Bench,
    sampling: Sampling,
    batch_size: int,
    about: dict[str, Any],
) -> list[dict[str, Any]]:
    from midward.probes._run import respond, run_id
    from midward.store import write_text

    model.fold_adapter()
    say(f"judge     {judged_by.info.name}: {judged_by.info.about}")
    calm = sum(not case.goal.harmful for case in wanted)
    apart = f", {calm} of them to harmless goals (--benign 0 leaves those out)" if calm else ""
    say(f"probe     {len(wanted)} responses{apart}")
    with bar() as progress:
        task = progress.add_task("responses", total=len(wanted))
        rows = respond(
            model,
            wanted,
            folder / "rows.jsonl",
            judged_by,
            sampling,
            batch_size=batch_size,
            watchers=[StepBar(progress)],
            progress=lambda done: progress.advance(task, done),
        )
    summary = about | {
        "run": run_id(model, sampling, judged_by),
        "model": model.name,
        "adapter": model.adapter,
        "fingerprint": model.fingerprint,
        "sampling": asdict(sampling),
        "judge": judged_by.key,
    }
    write_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    return rows


def _write(folder: Path, name: str, cells: Sequence[dict[str, Any]], more: dict[str, Any]) -> None:
    from midward._tables import write_table
    from midward.store import write_text

    write_table(folder / name, cells)
    path = folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    write_text(path, json.dumps({**summary, **more, "cells": list(cells)}, indent=1, ensure_ascii=False) + "\n")


def _table(cells: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    def share(cell: dict[str, Any], name: str) -> str:
        value = cell[name]
        if value is None:
            return "-"
        if f"{name}_low" not in cell:
            return f"{100 * value:.1f}"
        return f"{100 * value:.1f} [{100 * cell[f'{name}_low']:.1f}, {100 * cell[f'{name}_high']:.1f}]"

    names = ("asr", "own_refusal", "correct", "coherent", "landed")
    head = (
        "goals",
        "phrase",
        "at",
        "tokens",
        "n",
        "ASR %",
        "score",
        "own refusal %",
        "right %",
        "coherent %",
        "landed %",
    )
    rows: list[tuple[str, ...]] = [head]
    for cell in cells:
        score = "-"
        if cell["score"] is not None:
            score = f"{cell['score']:.2f}"
            if cell["score_low"] is not None:
                score += f" [{cell['score_low']:.2f}, {cell['score_high']:.2f}]"
        asr, *rest = (share(cell, name) for name in names)
        if cell["unscored"]:
            asr += f" ({cell['unscored']} unscored)"
        where = [str(cell[name]) if cell[name] is not None else "-" for name in ("position", "tokens")]
        rows.append((cell["set"], cell["kind"], *where, str(cell["n"]), asr, score, *rest))
    return rows


def _pairs(pairs: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("goals", "phrase", "at", "tokens", "measure", "difference", "p", "n")]
    for pair in pairs:
        where = [str(pair[name]) if pair[name] is not None else "-" for name in ("position", "tokens")]
        gap, p = "-", "-"
        if pair["value"] is not None:
            gap = f"{100 * pair['value']:+.1f} [{100 * pair['low']:+.1f}, {100 * pair['high']:+.1f}]"
            p = f"{pair['p']:.2g}"
        rows.append((pair["set"], pair["kind"], *where, pair["measure"], gap, p, str(pair["n"])))
    return rows


def _series(cells: Sequence[dict[str, Any]]) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any] | None]:
    """label -> points of the harmful goals, and the point without a phrase."""
    series: dict[str, list[dict[str, Any]]] = {}
    reference = None
    for cell in cells:
        if cell["set"] != "harmful" or cell["asr"] is None:
            continue
        point = {"position": cell["position"], "value": cell["asr"], "low": cell["asr_low"], "high": cell["asr_high"]}
        if cell["position"] is None:
            reference = point
        else:
            label = cell["kind"] if cell["tokens"] is None else f"{cell['kind']}, {cell['tokens']} tokens"
            series.setdefault(label, []).append(point)
    return series, reference


def _title(what: str, model: LanguageModel, count: int) -> str:
    adapter = f" + {Path(model.adapter).name}" if model.adapter else ""
    return f"{what}: {Path(model.name).name}{adapter}, {count} goals"


def _draw_prefill(folder: Path, cells: Sequence[dict[str, Any]], model: LanguageModel, count: int) -> None:
    from midward.reports import positions

    series, reference = _series(cells)
    if not series:
        return
    title = _title("forced phrases", model, count)
    positions.by_position(folder / "prefill", series, title=title, reference=reference)
    table = {label: {point["position"]: point["value"] for point in points} for label, points in series.items()}
    positions.heat(folder / "prefill-heat", table, title=f"{title} (ASR %)")


def _draw_mirror(
    folder: Path, cells: Sequence[dict[str, Any]], shaded: tuple[int, int], model: LanguageModel, count: int
) -> None:
    from midward.reports import positions

    series, reference = _series(cells)
    title = _title("a refusal forced under attack", model, count)
    positions.by_position(
        folder / "mirror",
        series,
        title=title,
        xlabel="response position of the refusal's first token",
        reference_label="attack alone",
        reference=reference,
        shaded=shaded,
    )
