"""From the rows of `recovery.watch` to numbers: rates by sampler and set, gains over a sampler, and what signals tell.

A row is one generation. Its kind is "harmless" (a harmless prompt), or of a harmful one "jailbroken" (harm was done) or
"refused" (none was, and it refused); a generation that did neither has no kind.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from midward.dynamics.recovery import THRESHOLDS, had_harm, internally_recovered, recovered, revised
from midward.evaluation import paired, rate
from midward.stats import area

Rows = Sequence[Mapping[str, Any]]
KINDS = ("harmless", "refused", "jailbroken")
#: Fitted on harmless signals [N, T], scores others [seeds, M]: higher is more suspicious.
Scorer = Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]]


def kind(row: Mapping[str, Any]) -> str | None:
    """One of KINDS, or None."""
    if not row["harmful"]:
        return "harmless"
    return "jailbroken" if row["success"] else "refused" if row["refused"] else None


def by_set(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    """set -> rows; where there are several harmful sets, "attacked" holds them all."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["set"], []).append(row)
    harmful = [name for name, rows in found.items() if rows[0]["harmful"]]
    if len(harmful) > 1:
        found["attacked"] = [row for name in harmful for row in found[name]]
    return found


def measures(rows: Rows, layer: str = "last") -> dict[str, dict[str, Any]]:
    """measure -> a rate's record, of rows of one set and sampler.

    asr, rr, right, coherent: attack success, refusal, right answers, coherence. hrr, frr: over the generations that
    did harm in some text before the last. irr-<threshold>: over all.
    """
    texts = [[said for _, said in row["texts"]] for row in rows]
    harmed = [verdicts for verdicts in texts if had_harm(verdicts)]
    found = {"rr": rate(row["refused"] for row in rows), "coherent": rate(row["coherent"] for row in rows)}
    if rows[0]["harmful"]:
        found["asr"] = rate(row["success"] for row in rows)
        found["harm-on-the-way"] = rate(had_harm(verdicts) for verdicts in texts)
        found["hrr"] = rate(revised(verdicts) for verdicts in harmed)
        found["frr"] = rate(recovered(verdicts) for verdicts in harmed)
    else:
        found["right"] = rate(row["correct"] for row in rows)
    for beside in _beside(rows, layer):
        for threshold in THRESHOLDS:
            found[f"irr-{threshold:g}{beside}"] = rate(
                internally_recovered(row["signals"][layer + beside], threshold) for row in rows
            )
    return {name: one.record() for name, one in found.items()}


def _beside(rows: Rows, layer: str = "last") -> list[str]:
    """What the names of the layer's signals, which all rows have, end in: nothing, and the reading beside it."""
    names = [name for name in rows[0]["signals"] if name == layer or name.startswith(f"{layer} ")]
    return [name.removeprefix(layer) for name in names if all(name in row["signals"] for row in rows)]


def gains(rows: Mapping[str, Rows], reference: str = "ar") -> list[dict[str, Any]]:
    """Every other sampler against `reference`, set by set, paired by prompt: a difference in 0..1 for each measure."""
    if reference not in rows:
        return []
    base = by_set(rows[reference])
    found = []
    for name, others in rows.items():
        if name == reference:
            continue
        for where, ours in by_set(others).items():
            sides = (ours, base[where])
            measured = ["success" if ours[0]["harmful"] else "correct", "refused"]
            if ours[0]["harmful"]:
                measured += [f"irr{beside}" for beside in _beside([*ours, *base[where]])]
            for measure in measured:
                found.append(
                    {
                        "sampler": name,
                        "against": reference,
                        "set": where,
                        "measure": measure,
                        **_gain([_said(side, measure) for side in sides]),
                    }
                )
    return found


def _said(rows: Rows, measure: str) -> dict[str, bool | None]:
    """One measure by prompt."""
    if measure.startswith("irr"):
        layer = f"last{measure.removeprefix('irr')}"
        return {
            row["set"] + row["id"]: internally_recovered(row["signals"][layer], THRESHOLDS[0]) for row in rows
        }
    return {row["set"] + row["id"]: row[measure] for row in rows}


def _gain(sides: Sequence[dict[str, bool | None]]) -> dict[str, Any]:
    """The paired difference. Where all prompts agree, resampling them says nothing of how far others may be from it:
    then the interval is as wide as Wilson's of no prompt in n."""
    pair = asdict(paired([sides[0]], [sides[1]]))
    if pair["n"] and pair["low"] == pair["high"]:
        most = rate([False] * pair["n"]).interval[1]
        pair |= {"low": max(-1.0, pair["low"] - most), "high": min(1.0, pair["high"] + most)}
    return pair


def signals(rows: Rows, layer: str = "last") -> np.ndarray:
    """Signals [N, T] of the rows that have one."""
    return np.array([row["signals"][layer] for row in rows if _known(row, layer)], dtype=float)


def _known(row: Mapping[str, Any], layer: str) -> bool:
    return layer in row["signals"] and not np.isnan(row["signals"][layer]).any()


def separations(
    rows: Rows, training: Rows, scorers: Mapping[str, Scorer], layers: Sequence[str]
) -> list[dict[str, Any]]:
    """AUROCs of jailbroken against each harmless set, and the controls: each harmless set against the first.

    training: harmless rows that each of the `scorers`, by name, is fitted on. Readings of a signal: each layer's whole;
    of the last layer, the first step alone and all but the first.
    """
    sets = by_set(rows)
    harmless = [name for name, found in sets.items() if not found[0]["harmful"]]
    groups = {"jailbroken": [row for row in rows if kind(row) == "jailbroken"]}
    groups |= {name: sets[name] for name in harmless}
    pairs = [("jailbroken", name) for name in harmless] + [(name, harmless[0]) for name in harmless[1:]]
    variants: list[tuple[str, str, slice]] = [(layer, layer, slice(None)) for layer in layers]
    for layer in layers:
        if layer.startswith("last"):
            beside = layer.removeprefix("last")
            variants.append((f"first step alone{beside}", layer, slice(0, 1)))
            variants.append((f"without the first step{beside}", layer, slice(1, None)))
    found = []
    for (name, layer, part), (detector, scorer) in itertools.product(variants, scorers.items()):
        score = scorer(signals(training, layer)[:, part])
        known = {group: [row for row in chosen if _known(row, layer)] for group, chosen in groups.items()}
        scores = {group: score(signals(chosen, layer)[:, part]) for group, chosen in known.items() if chosen}
        for positive, negative in pairs:
            if positive in scores and negative in scores:
                goals = ([row["id"] for row in known[side]] for side in (positive, negative))
                result = area(scores[positive], scores[negative], *goals)
                assert result is not None
                found.append(
                    {
                        "reading": name,
                        "detector": detector,
                        "positive": positive,
                        "negative": negative,
                        "control": positive != "jailbroken",
                        **asdict(result),
                    }
                )
    return found


def bands(rows: Rows, layer: str = "last") -> dict[str, dict[str, Any]]:
    """Group -> n, and low, median, high [T]: the quartiles of its signals at each step.

    The groups are each harmless set, refused and jailbroken.
    """
    groups = {name: found for name, found in by_set(rows).items() if not found[0]["harmful"]}
    groups |= {name: [row for row in rows if kind(row) == name] for name in KINDS[1:]}
    found = {}
    for name, chosen in groups.items():
        values = signals(chosen, layer)
        if len(values):
            low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
            found[name] = {
                "n": len(values), "low": low.tolist(), "median": middle.tolist(), "high": high.tolist(),
            }  # fmt: skip
    return found
