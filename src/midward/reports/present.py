"""One presentation of a result: a builder a verb makes blocks of its summary, for terminal, files and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from midward.reports import render
from midward.reports.blocks import Block
from midward.reports.builders import align, attack, compare, dynamics, gate, guards, probes, utility

#: verb -> what makes blocks of a folder, its run (run.json) and its summary (summary.json)
Builder = Callable[[Path, Mapping[str, Any], Any], list[Block]]
BUILDERS: dict[str, Builder] = {
    "attack": attack.blocks,
    "align": align.blocks,
    "probe prefill": probes.prefill,
    "probe anchor": probes.anchor,
    "probe mirror": probes.mirror,
    "probe ask": probes.ask,
    "probe gcg": probes.gcg,
    "probe order": probes.order,
    "dynamics": dynamics.blocks,
    "guard eval": guards.evaluation,
    "guard fit": guards.fitted,
    "utility": utility.blocks,
    "compare": compare.blocks,
    "gate": gate.blocks,
}


def builder_of(verb: str) -> Builder | None:
    """What makes blocks of this verb's results, also of a probe of another package; None where nothing does."""
    return BUILDERS.get(verb, probes.another if verb.startswith("probe ") else None)


def build(folder: Path, run: Mapping[str, Any], summary: Any) -> list[Block]:
    """The blocks of a result.

    Args:
        folder: of the run; figures may be made of the rows in it.
        run: what `run.json` holds: verb, models, judges, settings.
        summary: what `summary.json` holds.

    Raises:
        InputError: the summary isn't one that the verb writes.
    """
    builder = builder_of(run["verb"])
    assert builder is not None, run["verb"]
    return builder(folder, run, summary)


def present(folder: Path, run: Mapping[str, Any], summary: Any) -> list[Block]:
    """Write `table.md`, the tables (CSV) and the figures (SVG) of a result to its folder, and return its blocks.

    Args and errors are those of `build`.
    """
    blocks = build(folder, run, summary)
    render.write(folder, blocks)
    return blocks
