"""`midward guard eval` and `midward guard fit`: what each guard takes away and flags wrongly, ROC, and SRI signals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from midward.reports.blocks import (
    Block,
    Cell,
    Figure,
    Statement,
    Table,
    Tone,
    apart,
    by_chance,
    finite,
    percent,
    reading,
    text,
)
from midward.reports.chart import Chart, Point, Series
from midward.stats import Area, Paired

Record = Mapping[str, Any]
BANDS = "Read from hidden states at each denoising step: 0 refuses, 1 complies. Lines are medians, bands quartiles."


def evaluation(folder: Path, run: Record, summary: Any) -> list[Block]:
    """Guards side by side.

    summary: defences, the rows of `guards.compare.table` as records; roc, guard -> harmless set -> points (share of
    harmless flagged, share of jailbroken flagged); signals, name -> group -> n, and low, median, high [T].
    """
    rows = summary["defences"] if isinstance(summary, Mapping) else summary
    made: list[Block] = [*comparison(rows)]
    if isinstance(summary, Mapping):
        made += _roc(summary.get("roc") or {}, rows)
        charts = [band for name, groups in (summary.get("signals") or {}).items() if (band := bands(groups, name))]
        if charts:
            made.append(Figure("signals", "SRI signals of the guarded answers", charts, BANDS, apart_at(charts[0])))
    return made


def comparison(rows: Sequence[Record]) -> Iterator[Block]:
    """The table of defences, `none` first, and a sentence a guard."""
    harmless, attacked = list(rows[0]["flags"]), list(rows[0]["asr"])
    for key, title in (("asr", "Attack success"), ("rr", "Refused or stopped")):
        cells: list[list[Cell]] = [[row["defence"], *(row[key][name] for name in attacked)] for row in rows]
        heat = key == "asr"
        yield Table(
            f"guards-{key}", f"{title} behind each guard", ["guard", *attacked], cells, heat=heat, folded=not heat
        )
    lines: list[list[Cell]] = []
    for row in rows:
        areas = row.get("auroc") or {}
        lines.append(
            [
                row["defence"],
                row["asr"]["all"],
                row.get("gain"),
                *(row["flags"][name] for name in harmless),
                row["caught"],
                row.get("caught_at_1"),
                *(areas.get(name) for name in harmless),
                *(None if row.get(name) is None else f"{_percent(row[name])}" for name in ("overhead",)),
                None if row.get("saved") is None else f"{finite(row['saved']):.1f}",
            ]
        )
    heads = [
        "defence",
        "attack success, all",
        "taken away",
        *(f"flagged, {name}" for name in harmless),
        "jailbroken answers flagged",
        "the same at 1 % of harmless ones",
        *(f"AUROC against {name}" for name in harmless),
        "time added",
        "steps saved",
    ]
    family = max((gap.family for row in rows if isinstance(gap := _reading(row.get("gain")), Paired)), default=1)
    note = (
        "All guards judge the same answers. Flagged harmless requests are false positives. Taken away: paired by "
        "request, a goal in several sets counted once"
        + (f"; p corrected for {family} guards (Holm)" if family > 1 else "")
        + ". Steps saved: of a flagged generation."
    )
    yield Table("guards", "Guards side by side", heads, lines, note)
    for row in rows[1:]:
        yield verdict(row, rows[0], harmless)


def verdict(row: Record, none: Record, harmless: Sequence[str]) -> Statement:
    """What is said of a guard: whether it takes attack success away, and at what price.

    One whose AUROC against harmless answers may be one half, and that takes nothing away measurably, is useless.
    """
    name = row["defence"]
    gain = _reading(row.get("gain"))
    before, after = (reading(rates["asr"]["all"]).value for rates in (none, row))
    area = _reading((row.get("auroc") or {}).get(harmless[0])) if harmless else None
    guessing = isinstance(area, Area) and by_chance(area)
    flags = f"; it flags {text(row['flags'][harmless[0]])} of harmless requests ({harmless[0]})" if harmless else ""
    chance = "it tells jailbroken from harmless answers no better than chance"
    chance += f" (AUROC {area.text()})" if isinstance(area, Area) else ""
    tone: Tone = "unclear"
    if not isinstance(gain, Paired) or gain.value is None or before is None or after is None:
        sentence = f"The guard {name} can't be said to take anything away: no attack was scored"
    elif apart(gain):
        tone = "exposed" if gain.value < 0 else "unclear" if guessing else "held"
        amount = gain.text().replace("+", "")
        what = f"takes {amount} of attack success away" if gain.value > 0 else f"lets more through, {amount},"
        sentence = f"The guard {name} {what} ({percent(before)} to {percent(after)}, n {gain.n})"
        flags += f"; yet {chance}, so another threshold would hardly help" if guessing else ""
    elif guessing:
        tone, sentence = "exposed", f"The guard {name} is useless here: {chance}, and takes nothing away measurably"
    elif not (before or after):
        sentence = f"The guard {name} has nothing to take away: no attack of {gain.n} succeeds without it"
    else:
        why = gain.untold or "not told apart from no change"
        sentence = f"Behind the guard {name} attack success is {percent(after)}, without it {percent(before)}: {why} "
        sentence += f"({text(gain)})"
    return Statement(f"{sentence}{flags}.", tone)


def fitted(folder: Path, run: Record, summary: Record) -> list[Block]:
    """What each guard says of itself. summary: guards, each with file, guard, alpha and calibrated."""
    names = {"file": "file", "guard": "guard", "alpha": "false positives asked for", "calibrated": "calibrated on"}
    rows: list[list[Cell]] = [
        [percent(finite(guard[name])) if name == "alpha" else guard[name] for name in names]
        for guard in summary["guards"]
    ]
    return [Table("fitted", "Fitted guards", list(names.values()), rows)]


# --- figures -------------------------------------------------------------------------------------------------


def _roc(curves: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], rows: Sequence[Record]) -> Iterator[Figure]:
    """curves: guard -> harmless set -> points (share of harmless flagged, share of jailbroken flagged)."""
    lines = [
        Series(f"{guard}, against {name}", [Point(finite(x), finite(y)) for x, y in points], marks=False)
        for guard, by_set in curves.items()
        for name, points in by_set.items()
        if points
    ]
    if not lines:
        return
    areas = {
        row["defence"]: area
        for row in rows
        if isinstance(area := _reading(next(iter((row.get("auroc") or {}).values()), None)), Area)
    }
    finding = ""
    if areas:
        best = max(areas, key=lambda name: areas[name].value)
        finding = f"Best of them: {best}, AUROC {text(areas[best])}"
        finding += ", which is no better than chance." if by_chance(areas[best]) else "."
    chart = Chart("harmless requests flagged", "jailbroken answers flagged", lines, ylim=(-0.02, 1.02), diagonal=True)
    note = "Each guard at every threshold: up is better. On the dotted line it tells nothing."
    yield Figure("roc", "ROC", [chart], note, finding)


def bands(groups: Mapping[str, Record], title: str = "") -> Chart | None:
    """SRI signals by step. groups: name -> n, and low, median, high [T], the quartiles; steps may be None."""
    lines = []
    for name, band in groups.items():
        points = [
            Point(step, finite(middle), low, high)
            for step, (low, middle, high) in enumerate(zip(band["low"], band["median"], band["high"]), 1)
            if middle is not None and not math.isnan(middle)
        ]
        if points:
            lines.append(Series(f"{name} (n {band['n']})", points, marks=False))
    if not lines:
        return None
    ylabel = "SRI signal (0 refusing, 1 complying)"
    return Chart("denoising step", ylabel, lines, title=title, ylim=(-0.03, 1.03), interval="quartiles")


def apart_at(chart: Chart) -> str:
    """Whether the signals of jailbroken answers part from harmless ones, in a sentence; empty where either lacks."""
    jailbroken = next((line for line in chart.series if line.label.startswith("jailbroken")), None)
    harmless = next((line for line in chart.series if not line.label.startswith(("jailbroken", "refused"))), None)
    if not jailbroken or not harmless:
        return ""
    others = {point.x: point for point in harmless.points}
    parted = [
        int(point.x)
        for point in jailbroken.points
        if (other := others.get(point.x))
        and None not in (point.low, point.high, other.low, other.high)
        and ((point.high or 0) < (other.low or 0) or (point.low or 0) > (other.high or 0))
    ]
    pair = f"the quartiles of jailbroken and of {harmless.label.partition(' (')[0]} answers"
    if not parted:
        return f"At no step do {pair} part: read at one step alone, the signal doesn't tell them."
    return f"At {len(parted)} of {len(jailbroken.points)} steps {pair} part, first at step {parted[0]}."


def _reading(record: Any) -> Any:
    return None if record is None else reading(record)


def _percent(share: Any) -> str:
    return "-" if share is None or math.isnan(share) else f"{100 * share:.2f} %"
