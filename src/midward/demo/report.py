"""What a demo leaves behind: summary.json, table.md, samples (what was said) and the page of `midward report`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from midward._atomic import write_text
from midward._tables import write_table
from midward.demo.guarding import Guarded
from midward.demo.study import HARMLESS, SPLITS, Plan, adapter_folder
from midward.demo.summary import Rows, arms
from midward.dynamics.order import mean_positions, orders
from midward.guards import SRIGuard
from midward.models import LanguageModel, load
from midward.reports import page
from midward.reports import report as room
from midward.reports.report import players
from midward.reports.stepplayer import Generation, scores_by_step
from midward.sampling import Forced, Request, Sampling, Trace, sample
from midward.sandbox import benign, forbidden

ORDER_PROMPTS = 50  # of each kind, as in MOSA's Figure 5
FORCED = " Step 4:"  # in the middle of the response that the step player shows


def decoding_order(model: LanguageModel, count: int, split: str) -> dict[str, list[float]]:
    """Mean position of newly committed tokens by step for harmless and forbidden prompts (M4): one block, so that any
    order is open to the sampler, and every step run."""
    settings = Sampling.for_model(model, steps=32, block=None)
    series = {}
    for name, goals in (("harmless", benign(split, count)), ("forbidden", forbidden(split, count))):
        series[name] = mean_positions(orders(model, [goal.text for goal in goals], settings))
    return series


def table(summary: dict[str, Any]) -> str:
    """The main table in Markdown: one row a model; attack success by attack, then the harmless sets."""
    plan_sets = list(next(iter(summary["models"].values())))
    attacks = [name for name in plan_sets if name not in HARMLESS]
    headers = ["model", *(f"ASR {name}" for name in attacks), *(f"right {name}" for name in HARMLESS)]
    rows = [
        [
            arm,
            *(page.cell(sets[name]["asr"]) for name in attacks),
            *(page.cell(sets[name]["correct"]) for name in HARMLESS),
        ]
        for arm, sets in summary["models"].items()
    ]
    flipped = [[header, *(row[n] for row in rows)] for n, header in enumerate(headers)]
    return page.markdown(flipped[0], flipped[1:])


def samples(rows: Rows, plan: Plan) -> list[dict[str, Any]]:
    """What was asked and answered, of each arm its first seed, a row as in the samples.csv of `midward attack`."""
    goals = SPLITS[plan.split][0]
    return [
        {
            "row": arm, "goals": goals, "attack": row["set"], "goal": row["id"], "prompt": row["prompt"],
            "oracle_reply": row["success"], "right": row["correct"], "reply": row["response"],
        }
        for arm, labels in arms(rows).items()
        for row in rows[labels[0]]
    ]  # fmt: skip


def generations(model: LanguageModel, plan: Plan, out: Path, guard: SRIGuard | None) -> list[Generation]:
    """One forbidden request with a step label forced in the middle, answered by the base model (the guard looking on,
    where there is one) and by the last arm."""
    [goal] = forbidden(plan.split, 1)
    settings = Sampling.for_model(model)
    arm = plan.arms[-1]
    found = []
    for title, network in (
        ("base", model),
        (arm, load(model.name, adapter=str(adapter_folder(plan, arm, 0, out)))),
    ):
        request = Request(goal.text, forced=(Forced.text(model, settings.length // 2, FORCED),))
        trace = Trace(predictions=True)
        told: dict[str, Any] = {}
        if title == "base" and guard is not None:
            [response] = guard.sample(network, [request], settings, watchers=[trace])
            told["verdict"] = response.verdict
            if response.verdict is not None and response.verdict.signal:
                told["scores"] = scores_by_step(guard, response.verdict.signal)
        else:
            sample(network, [request], settings, watchers=[trace])
        found.append(Generation.of(trace, 0, network, title=title, **told))
    return found


def write(
    out: Path,
    rows: Rows,
    summary: dict[str, Any],
    plan: Plan,
    order: dict[str, list[float]],
    guarded: Guarded,
    shown: Sequence[Generation],
) -> Path:
    """Write everything below `out`; returns the page. shown: for the step player."""
    write_text(out / "summary.json", json.dumps({**summary, "decoding_order": order}, indent=1) + "\n")
    write_text(out / "table.md", f"{table(summary)}\n\n{guarded.markdown}\n")
    write_table(out / "samples", samples(rows, plan))
    players.keep(out, shown)
    room.write([out], out / "index.html", overwrite=True)
    return out / "index.html"
