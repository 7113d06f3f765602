"""Guards side by side: the table in Markdown, ROC curves, and signals of harmless, refused and jailbroken answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from midward._extras import figure
from midward._tables import write_table
from midward.reports import page
from midward.reports.figures import COLOURS, _axes
from midward.stats import Area, family
from midward.store import write_text

Row = Mapping[str, Any]


def write(
    folder: Path,
    rows: Sequence[Row],
    said: Mapping[str, Sequence[Row]],
    table: Sequence[Row],
    alphas: Mapping[str, float | None],
) -> str:
    """Write tables, figures and sentences of a comparison of guards to `folder`; returns the text.

    rows, said, table: as `midward.guards.compare` makes them. alphas: label -> the false-positive rate asked for.
    """
    sentences = [sentence(row, alphas.get(row["defence"])) for row in table if row["defence"] != "none"]
    text = "\n\n".join([markdown(table), *sentences])
    write_text(folder / "table.md", text + "\n")
    plain = records(table)
    write_text(folder / "summary.json", json.dumps(plain, indent=1) + "\n")
    write_table(folder / "defences", plain)
    about = ("set", "id", "harmful", "success", "refused")
    scored = [
        {
            "guard": label,
            **{name: row[name] for name in about},
            **{name: value for name, value in one.items() if name != "seeds"},
        }
        for label, verdicts in said.items()
        for row, one in zip(rows, verdicts, strict=True)
    ]
    write_table(folder / "scores", scored)
    roc(folder / "roc.png", _curves(rows, said), "jailbroken answers against harmless ones")
    for name in dict.fromkeys(name for row in rows for name in row["signals"]):
        signals(folder / f"signals-{name[:8]}.png", _groups(rows, name), "SRI signals")
    return text


def records(table: Sequence[Row]) -> list[dict[str, Any]]:
    """The table's rows as JSON."""
    return [_plain(row) for row in table]


def markdown(table: Sequence[Row]) -> str:
    """Three tables: the paper's columns, what is flagged of harmless requests, and AUROCs with their controls."""
    sets = list(table[0]["asr"])
    harmless = list(table[0]["flags"])
    main = [
        [
            row["defence"],
            "-" if row["overhead"] is None else f"{100 * row['overhead']:.2f}",
            str(row["refused"][harmless[0]]) if harmless else "-",
            *(f"{_percent(row['rr'][name])} / {_percent(row['asr'][name])}" for name in sets),
            "-" if row["gain"] is None else str(row["gain"]),
            "-" if row["saved"] is None else f"{row['saved']:.1f}",
        ]
        for row in table
    ]
    first = f"refused or flagged {harmless[0]} %" if harmless else "refused or flagged"
    head = ["defence", "overhead %", first, *(f"RR / ASR {name}" for name in sets), "ASR taken away", "steps saved"]
    flags = [[row["defence"], *(str(row["flags"][name]) for name in harmless)] for row in table[1:]]
    areas = [
        [
            row["defence"],
            str(row["caught"]),
            str(row["caught_at_1"] or "-"),
            *(_area(row["auroc"].get(name)) for name in harmless),
        ]
        for row in table[1:]
    ]
    parts = [page.markdown(head, main)]
    if said := family(row["gain"].record() for row in table if row["gain"]):
        parts.append(f"ASR taken away: paired by request, a goal in several sets counted once; {said}.")
    if len(table) > 1 and harmless:
        parts.append(page.markdown(["flagged", *harmless], flags))
        parts.append(
            page.markdown(
                [
                    "jailbroken",
                    "flagged",
                    "flagged at 1 % of harmless ones, measured",
                    *(f"AUROC against {name}" for name in harmless),
                ],
                areas,
            )
        )
    return "\n\n".join(part.strip() for part in parts)


def sentence(row: Row, alpha: float | None) -> str:
    """What was found of one guard, in words, with intervals."""
    control = {name: _area(area) for name, area in row["auroc"].items()}
    harmless = next(iter(row["flags"]), None)
    asked = f" (asked for: {100 * alpha:g} %)" if alpha else ""
    parts = [f"{row['defence']} takes {row['gain']} of attack success away"]
    if harmless:
        parts.append(f"and flags {row['flags'][harmless]} of fresh harmless requests{asked}")
    if control:
        parts.append("; AUROC of jailbroken answers against " + ", ".join(f"{n} {a}" for n, a in control.items()))
    return " ".join(parts).replace(" ;", ";") + "."


@figure
def roc(path: Path, scores: Mapping[str, tuple[Sequence[float], Mapping[str, Sequence[float]]]], title: str) -> Path:
    """ROC curves, one panel colour a guard, one dash pattern a harmless set.

    scores: guard -> (scores of jailbroken answers, harmless set -> scores).
    """
    from sklearn.metrics import roc_curve

    dashes = ("-", "--", ":")
    with _axes(path, (5.4, 4.6)) as axes:
        for index, (name, (wrong, harmless)) in enumerate(scores.items()):
            for (other, values), dash in zip(harmless.items(), dashes, strict=False):
                if not len(wrong) or not len(values):
                    continue
                truth = np.r_[np.ones(len(wrong)), np.zeros(len(values))]
                false, true, _ = roc_curve(truth, np.r_[wrong, values])
                label = f"{name}, against {other}"
                axes.plot(false, true, dash, color=COLOURS[index % 7], label=label, lw=1.4)
        axes.plot([0, 1], [0, 1], color="0.8", lw=0.8, zorder=0)
        axes.set(xlabel="false positives", ylabel="jailbroken answers flagged", title=title)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=6.5, loc="lower right")
    return path


@figure
def signals(path: Path, groups: Mapping[str, Sequence[Sequence[float]]], title: str) -> Path:
    """SRI signals by step: median and quartiles of each group. groups: name -> signals [N, T]."""
    with _axes(path, (5.6, 3.6)) as axes:
        for index, (name, found) in enumerate(groups.items()):
            values = np.array(found, dtype=float)
            if not len(values):
                continue
            low, middle, high = np.nanquantile(values, (0.25, 0.5, 0.75), axis=0)
            steps = np.arange(1, values.shape[1] + 1)
            colour = COLOURS[index % 7]
            axes.plot(steps, middle, color=colour, label=f"{name} (n {len(values)})")
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
        axes.set(xlabel="denoising step", ylabel="SRI signal (1 compliant, 0 refusing)", ylim=(-0.02, 1.02))
        axes.set_title(title)
        axes.legend(frameon=False, fontsize=8)
    return path


def _percent(rate: Any) -> str:
    return f"{100 * rate.value:.0f}" if rate.n else "-"


def _area(found: Area | None) -> str:
    if found is None:
        return "-"
    return found.text() + (" (no better than chance)" if found.low <= 0.5 <= found.high else "")


def _plain(value: Any) -> Any:
    """A table's row as JSON."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if hasattr(value, "record"):
        return value.record()
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _curves(rows: Sequence[Row], said: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for label, verdicts in said.items():
        pairs = [pair for pair in zip(rows, verdicts, strict=True) if pair[1]["score"] is not None]
        harmless: dict[str, list[float]] = {}
        for row, one in pairs:
            if not row["harmful"]:
                harmless.setdefault(row["set"], []).append(one["score"])
        found[label] = ([one["score"] for row, one in pairs if row["success"]], harmless)
    return found


def _groups(rows: Sequence[Row], name: str) -> dict[str, list[Sequence[float]]]:
    groups: dict[str, list[Sequence[float]]] = {}
    for row in rows:
        kind = row["set"] if not row["harmful"] else "jailbroken" if row["success"] else "refused"
        if not row.get("error") and (not row["harmful"] or row["success"] or row["refused"]):
            groups.setdefault(kind, []).append(row["signals"][name])
    return groups
