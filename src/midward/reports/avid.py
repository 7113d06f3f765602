"""Runs of `midward attack` as reports in the layout of the AI Vulnerability Database (avidml.org).

One report a row of a run: what was attacked, each rate with its n and interval, and where the attacks that succeeded
stand in taxonomies. A report says what its run measured and no more: it is a Measurement, never a Detection, which AVID
reserves for what somebody's threshold calls critical.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from midward.attacks.taxonomy import VERSIONS, by_taxonomy
from midward.errors import InputError
from midward.reports.blocks import listed, required, text, whole
from midward.reports.builders.shared import short
from midward.reports.report.find import RunFolder
from midward.stats import Rate
from midward.store import write_text

#: Of the layout: avidtools 0.3.2 writes it, and calls it so.
DATA_VERSION = "0.3.1"
_DOMAINS = {"S": "Security", "E": "Ethics", "P": "Performance"}
_SCOPE = (
    "These figures are of this run alone: of these attacks at its settings, these goals and this judge. They say "
    "nothing of other attacks or goals."
)


def write(runs: Sequence[RunFolder], path: Path) -> int:
    """Write the reports of runs as JSON lines.

    Args:
        runs: those of other verbs, and those that aren't finished, are left out.
        path: of the file.

    Returns:
        How many reports there are.

    Raises:
        InputError: there is none, a run isn't one that the verb writes, or the file can't be written.
    """
    lines = []
    for run in runs:
        if run.run.verb == "attack" and run.summary is not None and run.run.finished is not None:
            try:
                lines += [json.dumps(report, allow_nan=False) + "\n" for report in reports_of(run)]
            except (InputError, KeyError, TypeError, AttributeError, ValueError) as error:
                why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
                raise InputError(f"{run.label} can't be read as a run of midward attack ({why}).") from None
    if not lines:
        raise InputError("there is no finished run of midward attack, with a judge of attack success, to report.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(lines))
    except OSError as error:
        raise InputError(f"--avid {path} can't be written: {error.strerror}; give another path.") from None
    return len(lines)


def reports_of(run: RunFolder) -> Iterator[dict[str, Any]]:
    """A report for each row of a run, in avidtools' layout; none where no judge measured attack success.

    Who developed and deployed a model, and who is to be credited, no run knows: those are for whoever files the report.
    """
    summary = run.summary
    judges = [judge for judge in summary["judges"] if summary["measures"][judge] != "refused"]
    cells = list(product(summary["attacks"], summary["goals"]))
    known, tagged = summary.get("sources") or {}, (summary.get("taxonomy") or {}).get("attacks") or {}
    for row in summary["rows"] if judges else ():
        about = (summary.get("models") or {}).get(row) or {"model": row, "adapter": None, "guard": None}
        name = short(about["model"], about["adapter"], about["guard"])
        rates = {
            (judge, attack, goals): required(summary["asr"][judge]["reply"][goals][attack][row], Rate)
            for judge in judges
            for attack, goals in cells
        }
        open_to = dict.fromkeys(
            attack for (judge, attack, _), rate in rates.items() if judge == judges[0] and rate.hits
        )
        yield {
            "data_type": "AVID",
            "data_version": DATA_VERSION,
            "metadata": None,
            "affects": {
                "developer": [],
                "deployer": [],
                "artifacts": [{"type": "System" if about["guard"] else "Model", "name": name}],
            },
            "problemtype": {
                "classof": "LLM Evaluation",
                "type": "Measurement",
                "description": _words(f"How often {name} does what it should refuse, under attack"),
            },
            "metrics": [_metric(summary, row, *cell, rate, tagged.get(cell[1], ())) for cell, rate in rates.items()],
            "references": list(_references(known.get(attack, "") for attack in summary["attacks"])),
            "description": _words(_description(run, name, judges[0], rates)),
            "impact": _impact([entry for attack in open_to for entry in tagged.get(attack, ())]),
            "credit": None,
            "reported_date": str(run.run.finished or "")[:10] or None,
        }


def _words(value: str) -> dict[str, str]:
    return {"lang": "eng", "value": value}


def _metric(
    summary: Mapping[str, Any], row: str, judge: str, attack: str, goals: str, rate: Rate, entries: Sequence[str]
) -> dict[str, Any]:
    """A judge's yes or no is a threshold on what it reads; AVID knows that and significance tests alone."""
    what = "full success" if summary["measures"][judge] == "full" else "attack success"
    record = summary["asr"][judge]["reply"][goals][attack][row]
    place = {"row": row, "attack": attack, "goals": goals, "judge": judge}
    number = {"value": rate.value, "low": rate.low, "high": rate.high, "level": 0.95, "n": rate.n, "hits": rate.hits}
    counts = {"unscored": rate.unscored, "errors": None if (errors := record.get("errors")) is None else whole(errors)}
    return {
        "name": f"{what}, {attack} on {goals}",
        "detection_method": {"type": "Static Threshold", "name": judge},
        "results": {**place, **number, **counts, "taxonomy": list(entries)},
    }


def _references(citations: Iterator[str]) -> Iterator[dict[str, str]]:
    """The attacks' papers."""
    for citation in dict.fromkeys(citations):
        for number in re.findall(r"arXiv (\d{4}\.\d{5})\b", citation):
            yield {"type": "source", "label": citation, "url": f"https://arxiv.org/abs/{number}"}


def _description(run: RunFolder, name: str, judge: str, rates: Mapping[tuple[str, str, str], Rate]) -> str:
    summary, made_by = run.summary, f"midward {run.run.versions.get('midward', '')}".strip()
    sets = listed([f"{count} goals of {goals}" for goals, count in summary["goals"].items()])
    figures = [f"{attack} on {goals} {text(rate)}" for (of, attack, goals), rate in rates.items() if of == judge]
    sentences = [
        f"{made_by} put {listed(summary['attacks'])} to {name}, with {sets}.",
        f"Share of goals on which the reply in the loop did what was asked, judged by {judge}, with 95 % intervals: "
        f"{'; '.join(figures)}.",
        _SCOPE,
    ]
    if warning := summary.get("warning"):
        sentences.append(f"Warning: {warning}.")
    return " ".join(sentences)


def _impact(entries: Sequence[str]) -> dict[str, Any] | None:
    """Of the attacks that succeeded at least once, as the first judge says; None where none did: nothing was shown."""
    stand = by_taxonomy(dict.fromkeys(entries))
    if not entries:
        return None
    domains = dict.fromkeys(_DOMAINS[entry[0]] for entry in stand["AVID"])
    return {
        "avid": {
            "vuln_id": None,
            "risk_domain": list(domains),
            "sep_view": stand["AVID"],
            "lifecycle_view": ["L05: Evaluation"],
            "taxonomy_version": VERSIONS["AVID"].split()[-1],
        },
        "atlas": [{"tactic": None, "technique": entry, "description": None} for entry in stand["ATLAS"]],
    }
