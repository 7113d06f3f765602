"""`midward compare`: what changed from one run to another."""

from __future__ import annotations

from pathlib import Path

from midward.reports.blocks import Block, Statement, reading_of, text
from midward.reports.builders.shared import Record, change, table
from midward.stats import Paired

NOTE = "First minus second, paired by what both were asked, 95 % intervals."


def blocks(folder: Path, run: Record, summary: Record) -> list[Block]:
    """Differences, a table for each other run. summary: what `reports.compare.between` gives."""
    made: list[Block] = []
    for place, other in enumerate(dict.fromkeys(record["minus"] for record in summary["pairs"])):
        records = [{**record, "minus": None} for record in summary["pairs"] if record["minus"] == other]
        title = f"{summary['first']} minus {other}"
        shown = table(f"compare-{place}", title, records, note=NOTE)
        names = [", ".join(text(cell) for cell in row[: shown.named_by] if cell is not None) for row in shown.rows]
        gaps = {name: pair for name, record in zip(names, records) if (pair := reading_of(record, Paired))}
        better = {name: record["better"] for name, record in zip(names, records)}
        if differs := (summary.get("differs") or {}).get(other):
            made.append(Statement(f"{title}: not the model alone differs: {'; '.join(differs)}.", "unclear"))
        made += [shown, change(title, gaps, better, what="results", of="difference")]
    return made
