"""`midward probe ...`: where safety sits in a response. Forced phrases, refusals, asking, suffixes, decoding order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from midward.reports.blocks import Block, Figure, Statement, reading
from midward.reports.builders.shared import Record, ends, name_of, points, shares, table
from midward.reports.chart import Chart, Point, Series


def prefill(folder: Path, run: Record, summary: Record) -> list[Block]:
    """Phrases forced along the response, to attack.

    summary: cells, each with set, kind, position, tokens and records of rates (asr, own_refusal, correct, coherent,
    landed) and means (score); findings, sentences; compared, the folder of another run -> records of differences, each
    with what tells its cell and a measure.
    """
    note = "Attack success where a phrase is forced at a position. MOSA's claim is that the middle decides."
    charts = _by_position(summary["cells"], "response position of the phrase's first token", "no phrase")
    return _blocks("prefill", "Forced phrases along the response", summary, charts, note)


def anchor(folder: Path, run: Record, summary: Record) -> list[Block]:
    """Anchors, to attack: what the whole response does, its own tokens, and the anchors alone, with the ceiling.

    summary: as of `prefill`, a cell a set, source and number of anchors (none without a source), each with the
    fraction of the response and records of rates (asr, own_asr, alone_asr, no_room, correct, ...).
    """
    harmful = [cell for cell in summary["cells"] if cell["set"] == "harmful"]
    none, charts = [cell for cell in harmful if not cell["anchors"]], []
    for source in dict.fromkeys(cell["source"] for cell in harmful if cell["anchors"]):
        of_source = none + [cell for cell in harmful if cell["source"] == source]
        names = ("asr", "own_asr", "alone_asr", "no_room")
        lines = [Series(name_of(name), line) for name in names if (line := points(of_source, "fraction", name))]
        xlabel = "share of the response's tokens that are anchors"
        charts += shares(xlabel, "share", lines, title=f"anchors of the text: {source}")
    note = "Attack success where single tokens of a text stand from the start. The line of responses without "
    note += "room says where a refusal in a whole sentence can't stand."
    return _blocks("anchor", "Anchors in the response", summary, charts, note)


def mirror(folder: Path, run: Record, summary: Record) -> list[Block]:
    """Refusals forced along the response, under attack. summary: as of `prefill`, and window, its start and end."""
    start, end = (summary["window"][name] for name in ("start", "end"))
    shaded = (start, end, f"window {start} to {end}")
    note = "Attack success where a refusal is forced at a position: the lower, the more that place saves."
    xlabel = "response position of the refusal's first token"
    charts = _by_position(summary["cells"], xlabel, "attack alone", shaded=shaded)
    return _blocks("mirror", "A refusal forced under attack", summary, charts, note)


def ask(folder: Path, run: Record, summary: Record) -> list[Block]:
    """Phrases asked for at a word. summary: as of `prefill`, a cell a word (None: the plain goal)."""
    asked = [cell for cell in summary["cells"] if cell["word"] is not None]
    lines = [Series(name_of(name), line) for name in ("hit", "unasked", "asr") if (line := points(asked, "word", name))]
    charts = shares("word of the response, from 0", "share", lines)
    return _blocks("ask", "A phrase asked for at a word", summary, charts, "The prompt asks for a phrase at a word.")


def gcg(folder: Path, run: Record, summary: Record) -> list[Block]:
    """Suffixes of the prompt, optimised.

    summary: as of `prefill`, a cell a position (None: the start suffix) or an objective; between, their differences;
    curves, each with position or objective, the rows of forwards an iteration (every), and loss, a record of a mean for
    every iteration from 0.
    """
    lines = [
        Series(
            curve.get("objective") or f"token {curve['position']}",
            [Point(step * curve.get("every", 1), *ends(record)) for step, record in enumerate(curve["loss"])],
            marks=False,
        )
        for curve in summary.get("curves") or []
    ]
    of_objectives = any(curve.get("objective") for curve in summary.get("curves") or [])
    xlabel = "rows of forwards" if of_objectives else "iteration"
    charts = [Chart(xlabel, "least loss so far, nats a token", lines)] if lines else []
    note = "Suffixes of the prompt, optimised so that a phrase becomes likely at a place of the response."
    made = _blocks("gcg", "Suffix searches", summary, charts, note)
    if summary.get("between"):
        compared = "Objectives" if of_objectives else "Places"
        made.append(table("gcg-between", f"{compared} compared, by goal", summary["between"]))
    return made


def order(folder: Path, run: Record, summary: Record) -> list[Block]:
    """The order in which positions are committed.

    summary: sets, set -> measure -> record of a mean; steps, set -> a record of a mean for every step (None: nothing
    was committed); maps, set -> shares of prompts [positions, steps]; findings.
    """
    lines = []
    for name, steps in (summary.get("steps") or {}).items():
        line = [Point(step, *ends(mean)) for step, mean in enumerate(steps, 1) if mean and mean["value"] is not None]
        lines += [Series(name, line)] if line else []
    charts = [Chart("denoising step", "mean position of new tokens", lines)] if lines else []
    charts += [
        Chart("denoising step", "response position", title=f"{name}: share of prompts", grid=grid)
        for name, grid in (summary.get("maps") or {}).items()
    ]
    note = "Where the tokens lie that each denoising step commits, and what share of prompts have committed a position."
    cells = [{"set": name, **measures} for name, measures in summary["sets"].items()]
    legend = {
        "correlation": "A rank correlation of 1 is left to right, 0 is any order.",
        "part_text": "It is the sum of its three parts.",
    }
    return _blocks("order", "Decoding order", {**summary, "cells": cells}, charts, note, legend)


def another(folder: Path, run: Record, summary: Record) -> list[Block]:
    """A probe of another package. summary: as of `prefill`, with cells of its own."""
    name = str(run["verb"]).removeprefix("probe ")
    return _blocks(name, f"Probe {name}", summary, [], "")


def _blocks(
    name: str, title: str, summary: Record, charts: Sequence[Chart], note: str, legend: Any = None
) -> list[Block]:
    """A probe's figure, its cells, comparisons with other runs, and what was found."""
    findings = [str(line) for line in summary.get("findings") or [summary.get("finding")] if line]
    made: list[Block] = []
    if charts:
        made.append(Figure(name, title, charts, note, findings[0] if findings else ""))
    of_cells = "" if charts else note
    made.append(table(f"{name}-cells", f"{title}, cell by cell", summary["cells"], note=of_cells, legend=legend))
    for place, (other, records) in enumerate((summary.get("compared") or {}).items()):
        if records:
            made.append(table(f"compared-{place}", f"This run minus {Path(other).name}, by goal", records))
    return [*made, *map(Statement, findings)]


def _by_position(cells: Sequence[Record], xlabel: str, level: str, **more: Any) -> list[Chart]:
    """Attack success by position, a line a kind of phrase, and the level without one."""
    kinds: dict[str, list[Record]] = {}
    levels: list[tuple[str, float]] = []
    for cell in cells:
        asr = None if cell["asr"] is None else reading(cell["asr"])
        if cell["set"] != "harmful" or asr is None or asr.value is None:
            continue
        if cell["position"] is None:
            levels = [(f"{level}: {asr.text()}", asr.value)]
        else:
            label = cell["kind"] if cell["tokens"] is None else f"{cell['kind']}, {cell['tokens']} tokens"
            kinds.setdefault(label, []).append(cell)
    lines = [Series(label, points(some, "position", "asr")) for label, some in kinds.items()]
    return shares(xlabel, "attack success", lines, levels=levels, **more)
