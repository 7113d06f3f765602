"""The demo's guards: SRI Guard as its paper scores it, at the end, and at every step.

Fitted on the base model and tried on harmless and attacked requests that they haven't seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midward.attacks.cases import Case, cases, requests
from midward.demo.study import Plan, Progress
from midward.guards import GuardError, SRIGuard, fit_guards, load
from midward.guards import compare as defences
from midward.judges.bench import bench, judging, reading
from midward.judges.phrases import refusal_in
from midward.models import LanguageModel
from midward.reports import guards as report
from midward.reports import page
from midward.sampling import Sampling

HARMLESS = ("benign", "benign-wrapped", "banned")
ATTACKED = ("wrappers", "prefill", "prefill-mid", "pad")


@dataclass(frozen=True)
class Guarded:
    """What came of it. headers, rows: a table, empty where no guard could be fitted, and then why says so. record: for
    summary.json. guard: `sri`."""

    headers: list[str]
    rows: list[list[str]]
    record: Any = None
    why: str = ""
    guard: SRIGuard | None = None

    @property
    def markdown(self) -> str:
        return page.markdown(self.headers, self.rows) if self.rows else f"no guard: {self.why}"


def run(model: LanguageModel, plan: Plan, out: Path, progress: Progress) -> Guarded:
    """Fit the guards and try them; generations already in `out` are used again."""
    sampling = Sampling.for_model(model)
    fitting = "tuning" if plan.split == "test" else "train"
    try:
        paths = fit_guards(
            model,
            {"sri-end": SRIGuard(early=False), "sri": SRIGuard()},
            requests(model, ["benign"], plan.guard.harmless, split=fitting),
            requests(model, ["plain"], plan.guard.anchors, split=fitting),
            out / "guard",
            refused=lambda text: refusal_in(text) is not None,
            sampling=sampling,
            alpha=plan.alpha,
            sizes=plan.guard,
            progress=lambda what, done, of: progress(f"guard: {what}", done, of),
        )
    except GuardError as error:
        return Guarded([], [], {"why": str(error)}, why=str(error))
    guards = {label: load(path, model, sampling) for label, path in paths.items()}
    todo = [case for name in (*HARMLESS, *ATTACKED) for case in cases(model, name, plan.goals, split=plan.split)]
    judge = bench([case.goal for case in todo], None, None)
    folder = out / "guard" / "tried"
    with judging(judge) as ask:

        def verdicts(some: Sequence[Case], texts: Sequence[str]) -> list[dict[str, Any]]:
            said = ask([case.goal for case in some], texts)
            return [reading(judge, one, text) for one, text in zip(said, texts, strict=True)]

        def told(what: str, done: int, of: int) -> None:
            progress(f"guard: {what}", done, of)

        rows = defences.answer(
            model, todo, guards, folder, sampling=sampling, judging=verdicts, judged_by=judge.key, progress=told
        )
        said = defences.judge_by(model, todo, guards, rows, folder, sampling=sampling, judging=verdicts, progress=told)
    found = defences.table(rows, said, {})
    report.write(folder, rows, said, found, {label: guard.alpha for label, guard in guards.items()})
    headers = [
        "defence",
        "ASR",
        *(f"ASR {name}" for name in ATTACKED),
        *(f"flagged {name}" for name in HARMLESS),
        "jailbroken flagged",
        "steps saved",
    ]
    lines = [
        [
            row["defence"],
            *(str(row["asr"][name]) for name in ("all", *ATTACKED)),
            *(str(row["flags"][name]) for name in HARMLESS),
            str(row["caught"]),
            "-" if row["saved"] is None else f"{row['saved']:.1f}",
        ]
        for row in found
    ]
    flipped = [list(column) for column in zip(headers, *lines, strict=True)]
    guard = guards["sri"]
    assert isinstance(guard, SRIGuard)
    return Guarded(flipped[0], flipped[1:], report.records(found), guard=guard)
