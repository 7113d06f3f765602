"""The demo: attack the sandbox model, align its opening and its middle, attack all three, guard it, write one page.

Written directly on the rooms below; the same functions, with more goals and seeds, make the tables of docs/findings.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from midward.demo import guarding, report, study, summary
from midward.demo.study import Plan, Progress
from midward.errors import InputError
from midward.guards import Sizes

__all__ = ["DemoResult", "Plan", "plan_of", "run"]


@dataclass(frozen=True)
class DemoResult:
    """page: the HTML page. summary: what summary.json holds. table: the main table and the guard's, in Markdown.

    kept: files that lay in a folder which was to be cleared and aren't a demo's.
    """

    page: Path
    summary: dict[str, Any]
    table: str
    kept: list[str] = field(default_factory=list)


def plan_of(
    *, quick: bool = False, goals: int | None = None, seeds: int | None = None, arms: str | None = None
) -> Plan:
    """The demo's plan with what is given changed; `quick` is a look of a minute or two. Exercises follow the goals."""
    plan = Plan(goals=16, exercises=8, steps=20, guard=Sizes(20, 60, 40), alpha=0.05) if quick else Plan()
    if goals is not None:
        plan = replace(plan, goals=goals, exercises=max(1, goals // 2))
    if seeds is not None:
        plan = replace(plan, seeds=seeds)
    if arms is not None:
        plan = replace(plan, arms=tuple(arm.strip() for arm in arms.split(",") if arm.strip()))
    return plan


def run(
    out: str | Path = "report",
    *,
    plan: Plan | None = None,
    fresh: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> DemoResult:
    """Run the demo into the folder `out`; what an earlier run left there is used again, or with `fresh` deleted; other
    files are never touched. Raises InputError where `out` is a file, or a folder of other things.
    """
    out = Path(out)
    plan = plan or Plan()
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder.")
    mark = out / "rows"
    if out.exists() and any(out.iterdir()) and not mark.is_dir():
        raise InputError(f"{out} holds something other than a demo; remove it yourself or give another --out.")
    kept = report.clear(out) if fresh and out.exists() else []
    mark.mkdir(parents=True, exist_ok=True)
    model = study.load("sandbox")
    rows = study.run(plan, out, model=model, progress=progress)
    progress("decoding order", 0, 1)
    order = report.decoding_order(model, min(plan.goals, report.ORDER_PROMPTS), plan.split)
    progress("decoding order", 1, 1)
    guarded = guarding.run(model, plan, out, progress)
    found = {**summary.summarise(rows, plan), "guard": guarded.record}
    shown = report.generations(model, plan, out, guarded.guard)
    written = report.write(out, rows, found, plan, order, guarded, shown)
    return DemoResult(written, found, f"{report.table(found)}\n\nSRI Guard on the base model\n{guarded.markdown}", kept)
