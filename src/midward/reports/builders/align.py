"""`midward align`: how training went."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from midward._tables import read_table
from midward.reports.blocks import Block, Figure, Missing, finite
from midward.reports.chart import Chart, Point, Series

_CHARTS = (
    ("score, nats", ("reward", "safe", "harmful")),
    ("against the reference, nats", ("safe_gain", "harmful_gain", "margin", "over_refusal")),
    ("worth of responses", ("safety", "useful", "spread")),
    ("cross-entropy, nats a token", ("ce_harmful", "ce_benign")),
    ("log-probability of the end token, nats", ("end_harmful", "end_benign")),
    ("KL, nats a token", ("kl", "kl_benign")),
)


def blocks(folder: Path, run: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Block]:
    """The reward curve, of `reward.csv`. summary: finished, warnings."""
    made: list[Block] = []
    try:
        made.append(reward(read_table(folder / "reward.csv")))
    except (ValueError, KeyError, OSError) as error:
        why = str(error) if (folder / "reward.csv").exists() else "no step was logged; --log-steps says how often"
        made.append(Missing("there is no reward curve", why))
    if not summary.get("finished", True):
        made.append(Missing("it isn't trained to its end: run the same midward align again"))
    return made + [Missing(str(warning).rstrip(".")) for warning in summary.get("warnings") or []]


def reward(history: list[dict[str, Any]]) -> Figure:
    """The reward curve with its parts and the drift, by optimizer step. history: rows of reward.csv."""
    charts = []
    for ylabel, names in _CHARTS:
        lines = []
        for name in names:
            points = [
                Point(finite(float(row["step"])), finite(float(row[name])))
                for row in history
                if row.get(name) not in (None, "")
            ]
            if points:
                lines.append(Series(name.replace("_", " "), points, marks=False))
        if lines:
            charts.append(Chart("optimizer step", ylabel, lines))
    rewards = [float(row["reward"]) for row in history if row.get("reward") not in (None, "")]
    finding = ""
    if rewards:
        tail = rewards[-max(1, len(rewards) // 10) :]
        ends = f"from {rewards[0]:.1f} to {sum(tail) / len(tail):.1f} nats over {len(rewards)} logged rows"
        finding = (
            f"The reward went {ends}." if len(rewards) > 1 else f"One row was logged: reward {rewards[0]:.1f} nats."
        )
    note = "Reward: the safe sentence's score minus the harmful one's (safe, harmful)." if rewards else ""
    if any(row.get(name) not in (None, "") for row in history for name in ("kl", "kl_benign")):
        note += " KL: how far the model drifted from where it began, on attacked prompts and on harmless ones."
    title = "Reward curve" if rewards else "Training curve"
    return Figure("reward-curve", title, charts, note.strip(), finding)
