"""What `midward dynamics` leaves behind: tables, figures, and a sentence a claim."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midward.cli._show import columns, out, say

if TYPE_CHECKING:
    import numpy as np

    from midward.models import LanguageModel
    from midward.sampling import Sampling

Rows = dict[str, list[dict[str, Any]]]  # sampler -> rows


def _autoencoder(signals: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """SRI Guard's reconstruction error."""
    from midward.guards.autoencoder import Autoencoder

    fitted = Autoencoder.fit(signals)
    return lambda others: fitted.error_at(others)


def report(
    folder: Path,
    model: LanguageModel,
    settings: Mapping[str, Sampling],
    rows: Rows,
    training: list[dict[str, Any]],
) -> None:
    """Write and print everything. training: rows of harmless prompts that the detector is fitted on."""
    from midward._tables import write_table
    from midward.dynamics import readings
    from midward.dynamics.separation import lda
    from midward.reports import dynamics as figures
    from midward.store import write_text

    first = next(iter(rows))
    cells = {
        name: {where: readings.measures(some) for where, some in readings.by_set(found).items()}
        for name, found in rows.items()
    }
    gains = readings.gains(rows)
    layers = list(rows[first][0]["signals"])
    separated = readings.separations(rows[first], training, _autoencoder, layers)
    kinds = [str(readings.kind(row)) for row in rows[first] if readings.kind(row) is not None]
    parted = lda(readings.signals([row for row in rows[first] if readings.kind(row) is not None]), kinds)

    write_table(
        folder / "recovery",
        [
            {"sampler": name, "set": where, "measure": measure, **record}
            for name, sets in cells.items()
            for where, measures in sets.items()
            for measure, record in measures.items()
        ],
    )
    if gains:
        write_table(folder / "gains", gains)
    if separated:
        write_table(folder / "auroc", separated)

    adapter = f" + {Path(model.adapter).name}" if model.adapter else ""
    title = f"{Path(model.name).name}{adapter}"
    figures.bands(
        folder / "signals",
        {name: readings.bands(found) for name, found in rows.items()},
        f"SRI signals, {title}",
    )
    top = "attacked" if "attacked" in cells[first] else next(iter(cells[first]))
    figures.bars(
        folder / "irr",
        {
            name: {where: measures["irr-0.5"] for where, measures in sets.items() if "irr-0.5" in measures}
            for name, sets in cells.items()
        },
        f"internal recovery (refusal below 0.5), {title}",
    )
    figures.bars(
        folder / "samplers",
        {
            name: {
                f"{where}\n{label}": sets[where][measure]
                for where in sets
                for measure, label in (("asr", "success"), ("right", "right"))
                if measure in sets[where]
            }
            for name, sets in cells.items()
        },
        f"attack success and right answers by sampler, {title}",
    )
    if parted is not None:
        figures.scatter(folder / "lda", parted.points, kinds, f"SRI signals, {title}")
    said = _sentences(cells, gains, separated, parted, top)
    summary = {
        "model": model.name, "adapter": model.adapter, "fingerprint": model.fingerprint,
        "samplers": {name: asdict(one) for name, one in settings.items()}, "cells": cells, "gains": gains,
        "auroc": separated, "findings": said,
    }  # fmt: skip
    write_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    out("\n".join([*columns(_table(cells)), "", *_aurocs(separated), "", *said]))
    say(
        f"{folder}: rows, anchors, recovery, gains and auroc (.csv, .parquet), figures (.png, .svg), summary.json"
    )


def _percent(record: Mapping[str, Any] | None) -> str:
    if not record or record["value"] is None:
        return "-"
    return f"{100 * record['value']:.1f} [{100 * record['low']:.1f}, {100 * record['high']:.1f}]"


def _table(cells: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]) -> list[tuple[str, ...]]:
    names = (
        "asr",
        "rr",
        "right",
        "coherent",
        "harm-on-the-way",
        "hrr",
        "frr",
        "irr-0.5",
        "irr-0.25",
        "irr-0.1",
    )
    rows: list[tuple[str, ...]] = [("sampler", "prompts", "n", *(f"{name} %" for name in names))]
    for sampler, sets in cells.items():
        for where, measures in sets.items():
            count = str(measures["rr"]["n"])
            rows.append((sampler, where, count, *(_percent(measures.get(name)) for name in names)))
    return rows


def _aurocs(separated: Sequence[Mapping[str, Any]]) -> list[str]:
    rows: list[tuple[str, ...]] = [("signal", "AUROC of", "against", "value", "")]
    for one in separated:
        value = f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
        rows.append(
            (one["reading"], one["positive"], one["negative"], value, "control" if one["control"] else "")
        )
    return columns(rows) if separated else []


def _points(gain: Mapping[str, Any]) -> str:
    if gain["difference"] is None:
        return "-"
    return f"{100 * gain['difference']:+.1f} points [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"


def _sentences(
    cells: Mapping[str, Any], gains: Sequence[Mapping[str, Any]], separated: Sequence[Mapping[str, Any]], parted: Any,
    top: str,
) -> list[str]:  # fmt: skip
    from midward.evaluation.rates import Rate

    first = next(iter(cells))
    said = []
    by_sampler: dict[str, dict[tuple[str, str], Mapping[str, Any]]] = {}
    for gain in gains:
        by_sampler.setdefault(gain["sampler"], {})[gain["set"], gain["measure"]] = gain
    for name, found in by_sampler.items():
        calm = next(where for where, measures in cells[name].items() if "right" in measures)
        success, refused, right = found[top, "success"], found[top, "refused"], found[calm, "correct"]
        said.append(
            f"S2: {name} against ar over {success['n']} attacked prompts: success {_points(success)}, refusals "
            f"{_points(refused)}; right answers of {calm} {_points(right)}."
        )
    here = cells[first][top]
    said.append(
        f"S3: of {here['hrr']['n']} generations that did harm on the way, {_percent(here['hrr'])} % revised it and "
        f"{_percent(here['frr'])} % ended harmless (all {here['rr']['n']} {top}; {_percent(here['harm-on-the-way'])} % "
        "did harm on the way)."
    )
    if "irr-0.5" in here:
        ends = ", ".join(f"{_percent(here[f'irr-{at}'])} % below {at}" for at in ("0.5", "0.25", "0.1"))
        line = f"S4: internal recovery of {first}: {ends}"
        if first in by_sampler:
            line += f"; against ar {_points(by_sampler[first][top, 'irr'])}"
        said.append(f"{line}.")
    for one in separated:
        if one["reading"] == "last":
            what = (
                "a control, 0.5 is right" if one["control"] else f"{one['positives']} and {one['negatives']}"
            )
            said.append(
                f"S5: AUROC of {one['positive']} against {one['negative']} {one['value']:.3f} [{one['low']:.3f}, "
                f"{one['high']:.3f}] ({what})."
            )
    if parted is not None:
        accuracy = Rate(parted.right, parted.n)
        said.append(
            f"S6: a linear map of the signals tells harmless, refused and jailbroken apart in {accuracy}, "
            f"cross-validated; the commonest alone would give {100 * parted.majority:.1f} %."
        )
    return said
