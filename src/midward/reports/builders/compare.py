"""`midward compare`: what changed from one run to another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from midward.reports.blocks import Block, Statement, Table, Tone, apart, reading, some, text
from midward.reports.builders.shared import Record, table
from midward.stats import Paired


def blocks(folder: Path, run: Record, summary: Record) -> list[Block]:
    """Differences, a table for each other run. summary: what `reports.compare.between` gives."""
    made: list[Block] = []
    for place, other in enumerate(dict.fromkeys(record["minus"] for record in summary["pairs"])):
        records = [
            {key: value for key, value in record.items() if key != "minus"}
            for record in summary["pairs"]
            if record["minus"] == other
        ]
        title = f"{summary['first']} minus {other}"
        note = "First minus second, paired by what both were asked, 95 % intervals."
        shown = table(f"compare-{place}", title, records, note=note)
        made += [shown, _sentence(shown, records)]
    return made


def _sentence(shown: Table, records: Sequence[Record]) -> Statement:
    """What is measurable, and whether it is good news."""
    measurable = []
    for row, record in zip(shown.rows, records, strict=True):
        number = reading(record)
        if isinstance(number, Paired) and apart(number):
            measurable.append((abs(number.value or 0), (number.value or 0) * record["better"], row, number))
    if not measurable:
        return Statement(f"{shown.title}: none of {some(len(records), 'difference')} is measurable.", "unclear")
    news = [good for _, good, *_ in measurable if good]
    tone: Tone = "note" if not news else "held" if min(news) > 0 else "exposed"
    *_, row, largest = max(measurable, key=lambda change: change[0])
    where = ", ".join(text(cell) for cell in row[: shown.named_by] if cell is not None)
    count = f"{len(measurable)} of {some(len(records), 'difference')} measurable"
    return Statement(f"{shown.title}: {count}, the largest on {where}: {text(largest)}.", tone)
