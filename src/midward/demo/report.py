"""What a demo leaves behind: summary.json, table.md, samples (what was said), the page of `midward report`; and
clearing it away."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from midward._tables import write_table
from midward.demo.guarding import Guarded
from midward.demo.study import ARMS, HARMLESS, SPLITS, Plan, adapter_folder, titled
from midward.demo.summary import Rows, arms
from midward.dynamics.order import mean_positions, orders
from midward.guards import SRIGuard
from midward.models import LanguageModel, load
from midward.reports import page
from midward.reports import report as room
from midward.reports.report import players
from midward.reports.report.page import OURS
from midward.reports.stepplayer import Generation
from midward.sampling import Forced, Request, Sampling, Trace, sample
from midward.store import write_text
from midward.world import benign, forbidden

ORDER_PROMPTS = 50  # of each kind, as in MOSA's Figure 5
FORCED = " Step 4:"  # in the middle of the response that the step player shows

_ALIGNED = rf"({'|'.join(ARMS)})-\d+"
#: The files that a demo writes, by their path below its folder.
_OWN = re.compile(
    rf"""
      (summary\.json | table\.md | samples\.csv | generations\.json | index\.html) (\.part)?
    | samples\.parquet (\.part)?
    | index_files/ ({OURS.pattern})
    | rows/ \.?(base|{_ALIGNED}) \.jsonl (\.lock)?
    | adapters/ {_ALIGNED}-\d+-steps/ .+
    | guard/ \.rows\.jsonl\.lock
    | guard/ (rows\.jsonl | sri(-[a-z]+)?\.safetensors | anchors-[0-9a-z-]+\.(safetensors|unfinished) | tried/[^/]+)
    | logs/ ([^/]*_(base|{_ALIGNED})\.sandbox[^/]*\.eval | eval-set\.json | logs\.json | \.eval-set-id)
    """,
    re.VERBOSE,
)
_FOLDERS = ("index_files", "rows", "adapters", "guard", "logs")


def decoding_order(model: LanguageModel, count: int, split: str) -> dict[str, list[float]]:
    """Mean position of newly committed tokens by step for harmless and forbidden prompts (M4): one block, so that any
    order is open to the sampler, and every step run."""
    settings = Sampling.for_model(model, steps=32, block=None)
    series = {}
    for name, goals in (("harmless", benign(split, count)), ("forbidden", forbidden(split, count))):
        series[name] = mean_positions(orders(model, [goal.text for goal in goals], settings))
    return series


def table(summary: dict[str, Any]) -> str:
    """The main table in Markdown, a column a model: attack success and readable refusals by attack, then the harmless
    sets."""
    plan_sets = list(next(iter(summary["models"].values())))
    attacks = [name for name in plan_sets if name not in HARMLESS]
    headers = [
        "model",
        *(f"ASR {name}" for name in attacks),
        *(f"readable refusal {name}" for name in attacks),
        *(f"right {name}" for name in HARMLESS),
    ]
    rows = [
        [
            titled(arm),
            *(page.cell(sets[name]["asr"]) for name in attacks),
            *(page.cell(sets[name]["readable"]) for name in attacks),
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
            "row": arm,
            "goals": goals,
            "attack": row["set"],
            "goal": row["id"],
            "prompt": row["prompt"],
            "oracle_reply": row["success"],
            "right": row["correct"],
            "reply": row["response"],
        }
        for arm, labels in arms(rows).items()
        for row in rows[labels[0]]
    ]


def generations(model: LanguageModel, plan: Plan, out: Path, guard: SRIGuard | None) -> list[Generation]:
    """One forbidden request with a step label forced in the middle, answered by the base model (the guard looking on,
    where there is one) and by the last arm."""
    [goal] = forbidden(plan.split, 1)
    settings = Sampling.for_model(model)
    arm = plan.arms[-1]
    found = []
    for title, network in (
        ("base", model),
        (titled(arm), load(model.name, adapter=str(adapter_folder(plan, arm, 0, out)))),
    ):
        request = Request(goal.text, forced=(Forced.text(model, settings.length // 2, FORCED),))
        trace = Trace(predictions=True)
        told: dict[str, Any] = {}
        if title == "base" and guard is not None:
            [response] = guard.sample(network, [request], settings, watchers=[trace])
            told["verdict"] = response.verdict
            if response.verdict is not None and response.verdict.signal:
                told["scores"] = guard.scores_so_far(response.verdict.signal)
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


def clear(out: Path) -> list[str]:
    """Delete the files below `out` that a demo wrote, and its folders that are empty then; links aren't followed.

    Returns what else is there and was kept, as paths relative to `out`.
    """
    kept = []
    for here, folders, names in os.walk(out, topdown=False):
        folder = Path(here)
        for path in [folder / name for name in names] + [folder / name for name in folders]:
            relative = path.relative_to(out).as_posix()
            if path.is_dir() and not path.is_symlink():
                if relative.split("/")[0] in _FOLDERS and not any(path.iterdir()):
                    path.rmdir()
            elif _OWN.fullmatch(relative):
                path.unlink()
            else:
                kept.append(relative)
    return sorted(kept)
