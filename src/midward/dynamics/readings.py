"""From the rows of `recovery.watch` to numbers: rates by sampler and set, gains over a sampler, and what signals tell.

A row is one generation. Its kind is "harmless" (a harmless prompt), or of a harmful one "jailbroken" (harm was done) or
"refused" (none was, and it refused); a generation that did neither has no kind.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from midward.dynamics.sri import THRESHOLDS, had_harm, internally_recovered, recovered, revised
from midward.stats import Rate, area, corrected, paired, rate

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

    def rated(verdict: Callable[[Mapping[str, Any]], bool | None], of: Rows = rows) -> Rate:
        return rate([verdict(row) for row in of], [row["subject"] for row in of])

    texts = {id(row): [said for _, said in row["texts"]] for row in rows}
    harmed = [row for row in rows if had_harm(texts[id(row)])]
    found = {"rr": rated(lambda row: row["refused"]), "coherent": rated(lambda row: row["coherent"])}
    if rows[0]["harmful"]:
        found["asr"] = rated(lambda row: row["success"])
        found["harm-on-the-way"] = rated(lambda row: had_harm(texts[id(row)]))
        found["hrr"] = rated(lambda row: revised(texts[id(row)]), harmed)
        found["frr"] = rated(lambda row: recovered(texts[id(row)]), harmed)
    else:
        found["right"] = rated(lambda row: row["correct"])
    for beside in _beside(rows, layer):
        for threshold in THRESHOLDS:
            found[f"irr-{threshold:g}{beside}"] = rated(
                lambda row, of=layer + beside, at=threshold: internally_recovered(row["signals"][of], at)  # type: ignore[misc]
            )
    return {name: one.record() for name, one in found.items()}


def _beside(rows: Rows, layer: str = "last") -> list[str]:
    """What the names of the layer's signals, which all rows have, end in: nothing, and the reading beside it."""
    names = [name for name in rows[0]["signals"] if name == layer or name.startswith(f"{layer} ")]
    return [name.removeprefix(layer) for name in names if all(name in row["signals"] for row in rows)]


def gains(rows: Mapping[str, Rows], reference: str = "ar") -> list[dict[str, Any]]:
    """Every other sampler against `reference`, set by set, paired by prompt: a difference in 0..1 for each measure.

    Their p values are corrected for all of them together.
    """
    if reference not in rows:
        return []
    base = by_set(rows[reference])
    labels, pairs = [], []
    for name, others in rows.items():
        if name == reference:
            continue
        for where, ours in by_set(others).items():
            sides = (ours, base[where])
            measured = ["success" if ours[0]["harmful"] else "correct", "refused"]
            if ours[0]["harmful"]:
                measured += [f"irr{beside}" for beside in _beside([*ours, *base[where]])]
            subjects = {(row["set"], row["id"]): row["subject"] for row in ours}
            for measure in measured:
                labels.append({"sampler": name, "against": reference, "set": where, "measure": measure})
                first, second = (_verdicts(side, measure) for side in sides)
                pairs.append(paired([first], [second], subjects.__getitem__))
    return [label | pair.record() for label, pair in zip(labels, corrected(pairs), strict=True)]


def _verdicts(rows: Rows, measure: str) -> dict[tuple[str, str], bool | None]:
    """One measure by set and prompt."""
    if measure.startswith("irr"):
        layer = f"last{measure.removeprefix('irr')}"
        return {(row["set"], row["id"]): internally_recovered(row["signals"][layer], THRESHOLDS[0]) for row in rows}
    return {(row["set"], row["id"]): row[measure] for row in rows}


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
                goals = ([row["subject"] for row in known[side]] for side in (positive, negative))
                result = area(scores[positive], scores[negative], *goals)
                assert result is not None
                found.append(
                    {
                        "reading": name,
                        "detector": detector,
                        "positive": positive,
                        "negative": negative,
                        "control": positive != "jailbroken",
                        **result.record(),
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
            found[name] = {"n": len(values), "low": low.tolist(), "median": middle.tolist(), "high": high.tolist()}
    return found
