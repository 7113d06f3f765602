"""Generations kept for the step player: `generations.json`, the fields of each `stepplayer.Generation`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from midward.reports import html, stepplayer
from midward.reports.report.find import PLAYED, Run
from midward.reports.stepplayer import Generation
from midward.store import write_text


def keep(folder: Path, generations: Sequence[Generation]) -> Path:
    """Write generations that are to be shown side by side; returns the file."""
    path = folder / PLAYED
    write_text(path, json.dumps({"generations": [asdict(one) for one in generations]}) + "\n")
    return path


def player(run: Run, name: str, *, redact: bool) -> html.Part:
    """The step player of a run's generations. name: an id of the page. Raises InputError or TypeError for fields that
    no generation has."""
    found = [Generation(**fields) for fields in run.data["generations"]]
    return stepplayer.fragment(found, name=name, redact=redact, heading=f"Generations of {run.label}")
