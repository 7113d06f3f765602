"""Runs of `midward attack` as reports in the layout of the AI Vulnerability Database (avidml.org).

One report a row of a run: what was attacked, each rate with its n and interval, and where the attacks that succeeded
stand in taxonomies. A report says what its run measured and no more: it is a Measurement, never a Detection, which AVID
reserves for what somebody's threshold calls critical.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from midward._tables import grouped
from midward.attacks.taxonomy import VERSIONS, by_taxonomy
from midward.errors import InputError
from midward.reports.blocks import listed, text
from midward.reports.builders.shared import short
from midward.reports.measured import Success, of_attack
from midward.reports.report.find import Found, RunFolder
from midward.store import write_text

#: Of the layout: avidtools 0.3.2 writes it, and calls it so.
DATA_VERSION = "0.3.1"
_DOMAINS = {"S": "Security", "E": "Ethics", "P": "Performance"}
_SCOPE = (
    "These figures are of this run alone: of these attacks at its settings, these goals and this judge. They say "
    "nothing of other attacks or goals."
)


def write(found: Found, path: Path) -> int:
    """Write the reports of runs as JSON lines.

    Args:
        found: runs; those of other verbs are left out, and one that isn't finished, or can't be read, is one of its
            troubles.
        path: of the file.

    Returns:
        How many reports there are.

    Raises:
        InputError: there is none, or the file can't be written.
    """
    lines = [line for _, of_run in found.read(_lines) for line in of_run]
    if not lines:
        why = "".join(f" {label} {trouble}." for label, trouble in found.troubles[:3])
        raise InputError(f"there is no finished run of midward attack, with a judge of attack success, to report.{why}")
    try:
        write_text(path, "".join(lines))
    except OSError as error:
        raise InputError(f"--avid {path} can't be written: {error.strerror}; give another path.") from None
    return len(lines)


def _lines(run: RunFolder) -> list[str]:
    if run.run.verb != "attack":
        return []
    run.check_finished()
    return [json.dumps(report, allow_nan=False) + "\n" for report in reports_of(run)]


def reports_of(run: RunFolder) -> Iterator[dict[str, Any]]:
    """A report for each row of a run, in avidtools' layout; none where no judge measured attack success.

    Who developed and deployed a model, and who is to be credited, no run knows: those are for whoever files the report.
    """
    summary = run.summary
    known, tagged = summary.get("sources") or {}, (summary.get("taxonomy") or {}).get("attacks") or {}
    for row, rates in grouped(of_attack(run, "reply"), lambda each: each.label).items():
        about = (summary.get("models") or {}).get(row) or {"model": row, "adapter": None, "guard": None}
        name = short(about["model"], about["adapter"], about["guard"])
        of_first = [each for each in rates if each.judge == rates[0].judge]
        open_to = dict.fromkeys(each.attack for each in of_first if each.rate.hits)
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
            "metrics": [_metric(summary, each, tagged.get(each.attack, ())) for each in rates],
            "references": list(_references(known.get(attack, "") for attack in summary["attacks"])),
            "description": _words(_description(run, name, of_first)),
            "impact": _impact([entry for attack in open_to for entry in tagged.get(attack, ())]),
            "credit": None,
            "reported_date": str(run.run.finished or "")[:10] or None,
        }


def _words(value: str) -> dict[str, str]:
    return {"lang": "eng", "value": value}


def _metric(summary: Mapping[str, Any], of: Success, entries: Sequence[str]) -> dict[str, Any]:
    """A judge's yes or no is a threshold on what it reads; AVID knows that and significance tests alone."""
    what = "full success" if summary["measures"][of.judge] == "full" else "attack success"
    place = {"row": of.label, "attack": of.attack, "goals": of.goals, "judge": of.judge}
    rate = of.rate
    number = {"value": rate.value, "low": rate.low, "high": rate.high, "level": 0.95, "n": rate.n, "hits": rate.hits}
    return {
        "name": f"{what}, {of.attack} on {of.goals}",
        "detection_method": {"type": "Static Threshold", "name": of.judge},
        "results": place | number | {"unscored": rate.unscored, "errors": of.errors, "taxonomy": list(entries)},
    }


def _references(citations: Iterator[str]) -> Iterator[dict[str, str]]:
    """The attacks' papers."""
    for citation in dict.fromkeys(citations):
        for number in re.findall(r"arXiv (\d{4}\.\d{5})\b", citation):
            yield {"type": "source", "label": citation, "url": f"https://arxiv.org/abs/{number}"}


def _description(run: RunFolder, name: str, rates: Sequence[Success]) -> str:
    summary, made_by = run.summary, f"midward {run.run.versions.get('midward', '')}".strip()
    sets = listed([f"{count} goals of {goals}" for goals, count in summary["goals"].items()])
    figures = [f"{each.attack} on {each.goals} {text(each.rate)}" for each in rates]
    sentences = [
        f"{made_by} put {listed(summary['attacks'])} to {name}, with {sets}.",
        f"Share of goals on which the reply in the loop did what was asked, judged by {rates[0].judge}, with 95 % "
        f"intervals: {'; '.join(figures)}.",
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
