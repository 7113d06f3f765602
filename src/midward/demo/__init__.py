"""The demo: attack the sandbox model, align its opening and its middle, attack all three, write one page.

Written directly on the rooms below; the same functions, with more goals and seeds, make the tables of docs/findings.md.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midward.demo import report, study, summary
from midward.demo.study import Plan, Progress

__all__ = ["DemoResult", "Plan", "run"]


@dataclass(frozen=True)
class DemoResult:
    """page: the HTML page. summary: what summary.json holds. table: the main table in Markdown."""

    page: Path
    summary: dict[str, Any]
    table: str


def run(
    out: str | Path = "report",
    *,
    plan: Plan | None = None,
    fresh: bool = False,
    quick: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> DemoResult:
    """Run the demo into the folder `out`; what an earlier run left there is used again unless `fresh`.

    quick: a plan of a minute or two, for a first look. Raises ValueError where `out` is a file, or a folder of other
    things that `fresh` would delete.
    """
    out = Path(out)
    plan = plan or (Plan(goals=16, exercises=8, steps=20) if quick else Plan())
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder.")
    mark = out / "rows"
    if fresh and out.exists():
        if any(out.iterdir()) and not mark.is_dir():
            raise ValueError(
                f"{out} holds something other than a demo; remove it yourself or give another --out."
            )
        shutil.rmtree(out)
    mark.mkdir(parents=True, exist_ok=True)
    model = study.load("sandbox")
    rows = study.run(plan, out, model=model, progress=progress)
    progress("decoding order", 0, 1)
    order = report.decoding_order(model, min(plan.goals, report.ORDER_PROMPTS), plan.split)
    progress("decoding order", 1, 1)
    found = summary.summarise(rows, plan)
    return DemoResult(report.write(out, rows, found, plan, order), found, report.table(found))
