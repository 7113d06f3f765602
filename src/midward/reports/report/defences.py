"""Guards side by side (`midward guard eval`): what each takes away and flags wrongly, ROC, and SRI signals."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from midward.reports.report.chart import Chart, Point, Series
from midward.reports.report.find import Run
from midward.reports.report.parts import (
    FEW,
    Built,
    Claim,
    Figure,
    Gap,
    Heat,
    Share,
    Table,
    Texts,
    Tone,
    gap,
    number,
    percent,
    points,
    share,
)

STEPS = 400  # most points of a ROC curve on the page


def guard(run: Run, texts: Texts) -> Built:
    """A run of `midward guard eval`."""
    found = comparison(run.data, run.label)
    try:
        found.add("guards", _roc(run))
    except (ValueError, KeyError, OSError) as error:
        found.lacks.append(f"{run.label}: no ROC, as its scores.csv can't be read{texts.because(error)}")
    try:
        found.add("guards", *_signals(run))
    except (ValueError, KeyError, OSError) as error:
        found.lacks.append(
            f"{run.label}: no SRI signals of guarded answers, as its rows.jsonl can't be read{texts.because(error)}"
        )
    return found


def comparison(rows: Sequence[Mapping[str, Any]], label: str) -> Built:
    """The table of defences, `none` first, and a sentence a guard."""
    found = Built()
    harmless = list(rows[0]["flags"])
    attacked = list(rows[0]["asr"])
    names = [str(row["defence"]) for row in rows]
    found.add(
        "guards",
        Heat(
            "defences-success",
            f"Attack success behind each guard: {label}",
            names,
            {
                where: {name: share(row["asr"][where]) for name, row in zip(names, rows, strict=True)}
                for where in attacked
            },
        ),
    )
    lines: list[list[str | Share | Gap]] = []
    for row in rows:
        areas = row.get("auroc") or {}
        area = areas.get(harmless[0]) if harmless else None
        lines.append(
            [
                str(row["defence"]),
                share(row["asr"]["all"]),
                gap(row.get("gain")) or "-",
                *(share(row["flags"][name]) for name in harmless),
                share(row["caught"]),
                "-" if area is None else _area(area),
                "-" if not row["overhead"] or math.isnan(row["overhead"]) else f"{percent(row['overhead'])} %",
                "-" if row.get("saved") is None else f"{number(row['saved']):.1f}",
            ]
        )
    headers = [
        "defence",
        "attack success, all",
        "taken away",
        *(f"flagged, {name}" for name in harmless),
        "jailbroken answers flagged",
        f"AUROC against {harmless[0]}" if harmless else "AUROC",
        "time added",
        "steps saved",
    ]
    about = (
        "All guards judge the same answers. Flagged harmless requests are false positives; steps saved: of a "
        "flagged generation."
    )
    found.add("guards", Table("defences", f"Guards side by side: {label}", headers, lines, about))
    for row in rows[1:]:
        found.claims.append(_claim(row, rows[0], harmless))
    return found


def _ends(found: Any) -> tuple[float, float, float]:
    """Value, low and high of an area: a record, or in runs of before, a list of them."""
    values = [found[name] for name in ("value", "low", "high")] if isinstance(found, Mapping) else found
    value, low, high = map(number, values)
    return value, low, high


def _area(found: Any) -> str:
    value, low, high = _ends(found)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _by_chance(found: Any) -> bool:
    """Whether an area's interval includes a half."""
    _, low, high = _ends(found)
    return low <= 0.5 <= high


def _claim(row: Mapping[str, Any], none: Mapping[str, Any], harmless: Sequence[str]) -> Claim:
    taken, before, after = gap(row.get("gain")), share(none["asr"]["all"]), share(row["asr"]["all"])
    said, link = f"The guard {row['defence']}", " and"
    tone: Tone = "unclear"
    # A gain is success without minus with the guard.
    if taken is None or taken.value is None or before.value is None or after.value is None:
        said += " can't be said to take anything away: no attack was scored"
    elif taken.measurable:
        tone = "held" if taken.low > 0 else "unclear"
        what = f"takes {_amount(taken)} of attack success away" if taken.low > 0 else "lets more attacks through"
        said += f" {what} ({percent(before.value)} % to {percent(after.value)} %, n {taken.n})"
    elif not (before.value or after.value):
        said += f" has nothing to take away (no attack of {before.n} succeeds without it)"
    else:
        told = "too few goals to tell" if taken.n < FEW else "not told apart from no change"
        said = (
            f"Attack success is {percent(before.value)} % without and {percent(after.value)} % with the guard "
            f"{row['defence']}: {told} ({_amount(taken)}, {taken.about})"
        )
        link = "; it"
    if harmless:
        flagged = share(row["flags"][harmless[0]])
        said += f"{link} flags {flagged} of harmless requests ({harmless[0]})"
        area = (row.get("auroc") or {}).get(harmless[0])
        if area is not None and _by_chance(area):
            said += f". It tells jailbroken answers from those no better than chance (AUROC {_area(area)})"
    return Claim(tone, f"{said}.", "guards")


def _amount(taken: Gap) -> str:
    return f"{points(taken.value or 0.0)} points {taken.interval}".replace("+", "")


def fitted(run: Run, texts: Texts) -> Built:
    """A folder of `midward guard fit`: what each guard's file says of itself."""
    found = Built()
    lines: list[list[str | Share | Gap]] = []
    for path in sorted(run.folder.glob("*.safetensors")):
        if path.name.startswith("anchors-"):
            continue
        about = _about(path)
        if about is None:
            found.lacks.append(f"{run.label}/{path.name} can't be read as a guard")
            continue
        bound = about["bound"]
        model = texts.path(bound["model"]) + (f" + {texts.path(bound['adapter'])}" if bound.get("adapter") else "")
        asked = f"{percent(number(about['alpha']))} %"
        lines.append([path.stem, str(about["guard"]), asked, str(about["calibrated"]), model])
        found.settings[path.stem] = about["settings"]
        found.model = model
    if lines:
        headers = ["file", "guard", "false positives asked for", "calibrated on", "for the model"]
        found.add("guards", Table("fitted", f"Fitted guards: {run.label}", headers, lines, small=True))
    return found


def _about(path: Path) -> dict[str, Any] | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            about = json.loads((file.metadata() or {})["about"])
        return about if isinstance(about, dict) else None
    except (SafetensorError, OSError, ValueError, KeyError):
        return None


def _roc(run: Run) -> Figure | None:
    by_guard: dict[str, list[dict[str, Any]]] = {}
    for row in run.table("scores.csv"):
        if row["score"] not in ("", None):
            by_guard.setdefault(row["guard"], []).append({**row, "score": number(float(row["score"]))})
    lines = []
    for name, rows in by_guard.items():
        harmless = next((row["set"] for row in rows if row["harmful"] == "False"), None)
        wrong = [row["score"] for row in rows if row["success"] == "True"]
        calm = [row["score"] for row in rows if row["set"] == harmless]
        if wrong and calm:
            lines.append(Series(f"{name}, against {harmless}", _curve(wrong, calm), marks=False))
    if not lines:
        return None
    chart = Chart("harmless requests flagged", "jailbroken answers flagged", lines, ylim=(-0.02, 1.02), diagonal=True)
    return Figure(
        "roc",
        f"ROC: {run.label}",
        "Each guard at every threshold: up is better. On the dotted line it tells nothing.",
        chart,
    )


def _curve(wrong: Sequence[float], calm: Sequence[float]) -> list[Point]:
    """From (0, 0) to (1, 1), a point a threshold; equal scores are passed together."""
    scores = sorted([(score, 1) for score in wrong] + [(score, 0) for score in calm], reverse=True)
    hits = misses = 0
    curve = [Point(0.0, 0.0)]
    for _, group in groupby(scores, key=lambda one: one[0]):
        kinds = [kind for _, kind in group]
        hits, misses = hits + sum(kinds), misses + len(kinds) - sum(kinds)
        curve.append(Point(misses / len(calm), hits / len(wrong)))
    every = max(1, len(curve) // STEPS)
    return [*curve[::every], curve[-1]]


def signals_by_kind(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, list[Any]]:
    """The signals `name` of answers: of harmless requests by their set, of harmful ones jailbroken or refused."""
    groups: dict[str, list[Any]] = {}
    for row in rows:
        if row["harmful"]:
            kind = "jailbroken" if row["success"] else "refused" if row["refused"] else None
        else:
            kind = row["set"]
        if kind and name in row["signals"] and not row.get("error"):
            groups.setdefault(kind, []).append(row["signals"][name])
    return groups


def _signals(run: Run) -> list[Figure]:
    rows = run.table("rows.jsonl")
    figures = []
    for place, name in enumerate(dict.fromkeys(name for row in rows for name in row["signals"])):
        chart = bands(signals_by_kind(rows, name))
        if chart:
            figures.append(
                Figure(f"guard-signals-{place}", f"SRI signals of the guarded answers: {run.label}", BANDS, chart)
            )
    return figures


BANDS = "Read from hidden states at each denoising step: 0 refuses, 1 complies. Lines are medians, bands quartiles."


def bands(groups: Mapping[str, Sequence[Sequence[float]]]) -> Chart | None:
    """Signals by step: median and quartiles of each group [N, T]; steps without a number are left out."""
    import numpy as np

    lines = []
    for name, signals in groups.items():
        values = np.array(signals, dtype=float)
        if values.ndim != 2 or not values.size:
            continue
        kept = ~np.isnan(values).all(axis=0)
        low, middle, high = np.nanquantile(values[:, kept], (0.25, 0.5, 0.75), axis=0)
        steps = (np.flatnonzero(kept) + 1).tolist()
        spots = [Point(*one) for one in zip(steps, middle.tolist(), low.tolist(), high.tolist(), strict=True)]
        if spots:
            lines.append(Series(f"{name} (n {len(values)})", spots, marks=False))
    if not lines:
        return None
    return Chart("denoising step", "SRI signal (0 refusing, 1 complying)", lines, ylim=(-0.03, 1.03), what="quartiles")
