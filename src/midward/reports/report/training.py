"""Alignment (`midward align`): the reward curve and what it was trained with."""

from __future__ import annotations

from collections.abc import Sequence

from midward.reports.report.chart import Chart, Point, Series
from midward.reports.report.find import Run
from midward.reports.report.parts import Built, Figure, Texts, number


def align(run: Run, texts: Texts) -> Built:
    """An adapter of `midward align`."""
    data = run.data
    found = Built(model=texts.path(data.get("model", "")))
    found.versions = {name: str(version) for name, version in (data.get("versions") or {}).items()}
    found.settings = {key: data[key] for key in ("config", "data", "benign", "sentences", "steps") if key in data}
    name = run.folder.name
    try:
        for column in ("reward", "positive"):
            spots = [
                Point(number(float(row["step"])), number(float(row[column])))
                for row in run.table("reward.csv")
                if row.get(column)
            ]
            if spots:
                found.curves.append(Series(f"{name}: {column}", spots, marks=False))
    except (ValueError, KeyError, OSError) as error:
        found.lacks.append(f"{run.label} has no reward curve{texts.because(error)}")
    if not data.get("finished", True):
        found.lacks.append(f"{run.label} isn't trained to its end: run the same midward align again")
    found.lacks += [f"{run.label}: {text}" for text in data.get("warnings") or []]
    return found


def figure(curves: Sequence[Series]) -> Figure | None:
    """All reward curves in one chart."""
    if not curves:
        return None
    chart = Chart("optimizer step", "nats", curves)
    about = "Reward: the safe sentence's score minus the harmful one's. Positive: the safe sentence's alone."
    return Figure("reward", "Reward curve", about, chart)
