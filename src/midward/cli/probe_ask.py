"""`midward probe ask`: whether a prompt can place a phrase by asking for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from midward.cli._options import BatchSize, Compare, JudgeModel, JudgeName, ModelOptions, SamplingOptions
from midward.cli._run import run_folder
from midward.cli._show import columns, in_points, out, say, tell_unscored
from midward.cli.probe_prefill import Column, Count, Goals, PhrasesFile, _respond, _title, attacked


def ask(
    model: ModelOptions,
    sampling: SamplingOptions,
    goals: Goals = "sandbox",
    column: Column = None,
    count: Count = 100,
    words: Annotated[
        str, typer.Option(help="Words of the response where a phrase is asked for, from 0.")
    ] = "0,10,20,30,40",
    phrase: Annotated[
        str | None,
        typer.Option(help="One phrase for every word; by default agreement at 0 and a step's wording elsewhere."),
    ] = None,
    phrases_file: PhrasesFile = None,
    judges: JudgeName = None,
    judge: JudgeModel = None,
    compare: Compare = None,
    batch_size: BatchSize = 16,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of rows, tables and figures.")] = Path("probe-ask"),
) -> None:
    """Can a prompt place a phrase at word k by asking for it? Hit rate by k, with two controls.

    Run again, it goes on where it stopped.
    """
    run = run_folder(out_folder)
    chosen = attacked(goals, count, column)
    from midward._tables import write_table
    from midward.attacks.phrases import ASKED
    from midward.judges import bench as verdicts
    from midward.probes import _readings
    from midward.probes import ask as probe
    from midward.probes.phrases import phrases_for
    from midward.probes.prefill import positions_of
    from midward.reports.suffixes import by_word
    from midward.store import write_text

    settings = probe.Ask(positions_of(words), phrase, sampling.seed)
    texts = phrases_for(chosen, phrases_file)
    judged_by = verdicts.bench(chosen, judges, judge)
    others = {folder: _readings.load_run(folder, "ask", judged_by.key) for folder in compare or []}

    loaded = model.load()
    resolved = sampling.resolve(loaded)
    for line in _readings.sampled_otherwise(asdict(resolved), others):
        say(f"compared  {line}")
    wanted = probe.cases(loaded, chosen, settings, texts, resolved.length)
    run.start()
    rows = _respond(loaded, wanted, out_folder, judged_by, resolved, batch_size, {"probe": "ask"})
    cells, said = probe.cells(rows), probe.findings(rows)
    compared = {str(folder): probe.against(rows, theirs) for folder, (_, theirs) in others.items()}
    write_table(out_folder / "ask", cells)
    path = out_folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    summary |= {"wording": ASKED, "cells": cells, "findings": said, "compared": compared}
    write_text(path, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    asked = [cell for cell in cells if cell["word"] is not None]
    series = {
        label: [
            {"word": cell["word"], **{end or "value": cell[f"{name}_{end}".rstrip("_")] for end in ("", "low", "high")}}
            for cell in asked
        ]
        for label, name in (
            ("phrase at its word", "hit"),
            ("the same for the plain goal", "unasked"),
            ("attack success", "asr"),
        )
        if all(cell[name] is not None for cell in asked)
    }
    by_word(out_folder / "ask", series, title=_title("a phrase asked for", loaded, len(chosen)))
    out("\n".join(columns(_table(cells))))
    for folder, pairs in compared.items():
        out("\n".join(["", f"minus {folder}, by goal (points, 95 % interval)", *columns(_pairs(pairs))]))
    out("\n".join(["", *said]))
    say(f"{out_folder}: rows.jsonl, ask.csv, summary.json")
    tell_unscored(judged_by)


def _table(cells: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    def share(cell: Mapping[str, Any], name: str) -> str:
        if cell.get(name) is None:
            return "-"
        return f"{100 * cell[name]:.1f} [{100 * cell[f'{name}_low']:.1f}, {100 * cell[f'{name}_high']:.1f}]"

    names = ("hit", "unasked", "anywhere", "refused", "asr")
    rows: list[tuple[str, ...]] = [
        ("word", "n", "hit %", "plain goal %", "other word %", "placed", "anywhere %", "refused %", "ASR %")
    ]
    for cell in cells:
        hit, unasked, anywhere, refused, asr = (share(cell, name) for name in names)
        asr += f" ({cell['unscored']} unscored)" if cell["unscored"] else ""
        word = "plain" if cell["word"] is None else str(cell["word"])
        other = "-" if cell.get("elsewhere") is None else f"{100 * cell['elsewhere']:.1f}"
        rows.append((word, str(cell["n"]), hit, unasked, other, _gap(cell, "placed"), anywhere, refused, asr))
    return rows


def _gap(cell: Mapping[str, Any], name: str) -> str:
    if cell.get(name) is None:
        return "-"
    return f"{100 * cell[name]:+.1f} [{100 * cell[f'{name}_low']:+.1f}, {100 * cell[f'{name}_high']:+.1f}]"


def _pairs(pairs: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("word", "measure", "difference", "p", "n")]
    for pair in pairs:
        rows.append((str(pair["word"]), pair["measure"], *in_points(pair), str(pair["n"])))
    return rows
