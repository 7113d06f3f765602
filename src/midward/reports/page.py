"""Rates, differences and tables as text, for documents and terminals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def cell(reading: Mapping[str, Any] | None) -> str:
    """A rate as text: per cent, 95 % interval, n, and the unscored count where there is one."""
    if not reading or reading.get("value") is None:
        return "-"
    text = f"{100 * reading['value']:.1f} [{100 * reading['low']:.1f}, {100 * reading['high']:.1f}]"
    unscored = f", {reading['unscored']} unscored" if reading.get("unscored") else ""
    return f"{text} n={reading['n']}{unscored}"


def difference(pair: Mapping[str, Any]) -> str:
    """A paired difference as text: points, 95 % interval, p, and p corrected for its table."""
    if pair["value"] is None:
        return "-"
    ends = f"[{100 * pair['low']:+.1f}, {100 * pair['high']:+.1f}]"
    return f"{100 * pair['value']:+.1f} {ends} {p_values(pair)}"


def p_values(pair: Mapping[str, Any]) -> str:
    """p of a comparison, and where its table has several, p corrected for them."""
    holm = f" Holm={pair['holm']:.2g}" if pair.get("family", 1) > 1 else ""
    return f"p={pair['p']:.2g}{holm}"


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, for documents and terminals."""
    widths = [max(len(str(row[n])) for row in [headers, *rows]) for n in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(c).ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(headers), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(line, rows)])
