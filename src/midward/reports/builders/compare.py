"""`midward compare`: what changed from one run to another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from midward.reports.blocks import Block, Cell, Statement, Table, Tone, apart, reading, some, text
from midward.stats import Paired

_LABELS = ("model", "attack", "set", "sampler", "kind", "position", "word", "tokens", "subtask", "measure")


def blocks(folder: Path, run: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Block]:
    """Differences, a table for each other run. summary: what `reports.compare.between` gives."""
    made: list[Block] = []
    family = max((pair.get("family") or 1 for pair in summary["pairs"]), default=1)
    note = "First minus second, paired by what both were asked, 95 % intervals."
    note += f" Holm: p corrected for all {family} comparisons." if family > 1 else ""
    for place, other in enumerate(dict.fromkeys(pair["minus"] for pair in summary["pairs"])):
        pairs = [pair for pair in summary["pairs"] if pair["minus"] == other]
        names = [name for name in _LABELS if any(pair.get(name) is not None for pair in pairs)]
        rows: list[list[Cell]] = [[*(pair.get(name) for name in names), pair] for pair in pairs]
        title = f"{summary['first']} minus {other}"
        made.append(Table(f"compare-{place}", title, [*names, "difference"], rows, note))
        made.append(_sentence(title, names, pairs))
    return made


def _sentence(title: str, names: list[str], pairs: list[Mapping[str, Any]]) -> Statement:
    """What is measurable, and whether it is good news."""
    told = [(pair, number) for pair in pairs if isinstance(number := reading(pair), Paired) and apart(number)]
    if not told:
        return Statement(f"{title}: none of {some(len(pairs), 'difference')} is measurable.", "unclear")
    better = [(number.value or 0) * pair["better"] > 0 for pair, number in told if pair["better"]]
    tone: Tone = "note" if not better else "held" if all(better) else "exposed"
    pair, largest = max(told, key=lambda one: abs(one[1].value or 0))
    where = ", ".join(str(pair[name]) for name in names if pair.get(name) is not None)
    measurable = f"{len(told)} of {some(len(pairs), 'difference')} measurable"
    return Statement(f"{title}: {measurable}, the largest on {where}: {text(largest)}.", tone)
