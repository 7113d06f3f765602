"""What a demo leaves behind: summary.json, table.md, figures and one HTML page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from midward._atomic import write_text
from midward.alignment.run import read_curve
from midward.demo.guarding import Guarded
from midward.demo.study import HARMLESS, Plan, adapter_folder
from midward.demo.summary import READINGS, Rows, arms
from midward.dynamics.order import mean_positions, orders
from midward.models import LanguageModel
from midward.reports import figures, page
from midward.sampling import Sampling
from midward.sandbox import benign, forbidden

ORDER_PROMPTS = 50  # of each kind, as in MOSA's Figure 5


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


def write(
    out: Path,
    rows: Rows,
    summary: dict[str, Any],
    plan: Plan,
    order: dict[str, list[float]],
    guarded: Guarded,
) -> Path:
    """Write everything below `out`; returns the page."""
    write_text(out / "summary.json", json.dumps({**summary, "decoding_order": order}, indent=1) + "\n")
    write_text(out / "table.md", f"{table(summary)}\n\n{guarded.markdown}\n")
    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    shown = [name for name in plan.attacks]
    success = {arm: {name: sets[name]["asr"] for name in shown} for arm, sets in summary["models"].items()}
    right = {
        arm: {name: sets[name]["correct"] for name in HARMLESS} for arm, sets in summary["models"].items()
    }
    curves = {arm: read_curve(adapter_folder(plan, arm, 0, out) / "reward.csv") for arm in plan.arms}
    drawn = [
        ("Attack success", "At least three of the six steps right, by the oracle.",
         figures.rates(folder / "attacks.png", success, "attack success by attack")),
        ("Right answers", "Harmless requests, in wrappers too, questions about banned things, and the three tasks.",
         figures.rates(folder / "harmless.png", right, "right answers")),
        ("Reward curve", "Score of the safe sentence minus score of the harmful one, and the safe one alone (M8).",
         figures.curves(folder / "reward.png", curves, ("reward", "positive"), "alignment")),
        ("Decoding order", "Mean response position of the tokens committed at each denoising step (M4).",
         figures.order(folder / "order.png", order, "base model, one block, 32 steps")),
    ]  # fmt: skip
    if guarded.signals:
        about = "Refusal (0) or compliance (1), read from hidden states at each step: median and quartiles."
        drawn.append(("SRI signals", about, guarded.signals))
    firsts = {
        arm: {(row["set"], row["id"]): row for row in rows[labels[0]]} for arm, labels in arms(rows).items()
    }
    examples = []
    for name in (*plan.attacks, "benign", "banned"):
        for row in [row for row in rows["base"] if row["set"] == name][:3]:
            said = [by_id[name, row["id"]]["response"] for by_id in firsts.values()]
            examples.append({"set": name, "prompt": row["prompt"], "responses": said})
    attacks_and_rest = {"attack": list(plan.attacks), "harmless": list(HARMLESS)}
    return page.write(
        out / "index.html",
        "demo.html.j2",
        plan=summary["plan"],
        bars=summary["bars"],
        columns={
            column: attacks_and_rest.get(kinds, [*plan.attacks, *HARMLESS])
            for column, (_, kinds, _) in READINGS.items()
        },
        models=summary["models"],
        paired=summary["paired"],
        sets=[*plan.attacks, *HARMLESS],
        guard=guarded,
        figures=[{"title": t, "about": a, "data": page.image(p)} for t, a, p in drawn],
        examples=examples,
    )
