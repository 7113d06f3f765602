"""What a model can still do (`midward utility`): scores by task, and differences to other runs by sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from midward.reports.report.find import Run
from midward.reports.report.parts import (
    FEW,
    Built,
    Claim,
    Gap,
    Share,
    Table,
    Texts,
    gap,
    listed,
    number,
    points,
    share,
    some,
)

Scores = Mapping[str, Mapping[str, Share | str]]  # column -> task -> score


def utility(run: Run, texts: Texts) -> Built:
    """A run of `midward utility`."""
    data = run.data
    found = Built(
        model=texts.path(data["model"]) + (f" + {texts.path(data['adapter'])}" if data.get("adapter") else "")
    )
    found.settings = {
        name: data[name] for name in ("sampling", "guard", "limit", "fewshot", "draws", "fingerprint") if data.get(name)
    }
    if data.get("lm_eval"):
        found.versions["lm_eval"] = str(data["lm_eval"])
    behind = f" behind {data['guard']['name']}" if data.get("guard") else ""
    found.scores = {f"{_short(data)}{behind} ({run.label})": {_task(cell): _score(cell) for cell in data["cells"]}}
    for place, (folder, pairs) in enumerate((data.get("compared") or {}).items()):
        gaps = {_task(pair): gap(pair) for pair in pairs}
        told = {task: one for task, one in gaps.items() if one}
        rows: list[list[str | Share | Gap]] = [[task, one] for task, one in told.items()]
        if rows:
            other = Path(folder).name
            title = f"{_short(data)}{behind} minus {other}, by sample"
            found.add("use", Table(f"utility-compared-{place}", title, ["task", "difference"], rows))
            found.claims.append(_claim(f"{_short(data)}{behind}", other, told))
    return found


def table(scores: Scores) -> Table | None:
    """The runs side by side."""
    tasks = list(dict.fromkeys(task for column in scores.values() for task in column))
    if not tasks:
        return None
    rows = [[task, *(column.get(task, "-") for column in scores.values())] for task in tasks]
    return Table("utility", "Scores by task", ["task", *scores], rows, "Per cent, with 95 % intervals.")


def _claim(model: str, other: str, gaps: Mapping[str, Gap]) -> Claim:
    scored = {task: one for task, one in gaps.items() if one.value is not None}
    lost = [task for task, one in scored.items() if one.apart and (one.value or 0) < 0]
    if not scored:
        return Claim("unclear", f"{model} and {other} share no scored sample of any task.", "use")
    name, worst = min(scored.items(), key=lambda item: item[1].value or 0.0)
    ends = f"{name} {points(worst.value or 0)} points {worst.interval}"
    if lost:
        return Claim("exposed", f"{model} does measurably worse than {other} on {listed(lost)}; most: {ends}.", "use")
    few = min(one.n for one in scored.values())
    if few < FEW:
        said = f"{model} against {other}: {few} pairs are too few to say whether it does worse; {ends}."
        return Claim("unclear", said, "use")
    said = f"{model} against {other}: no measurable loss on {some(len(scored), 'task')}; the least favourable: {ends}."
    return Claim("held", said, "use")


def _task(cell: Mapping[str, Any]) -> str:
    return ", ".join(str(cell[name]) for name in ("task", "subtask", "measure") if cell.get(name))


def _score(cell: Mapping[str, Any]) -> Share | str:
    """A share where it is one; other measures (a perplexity, say) as they are."""
    if cell["value"] is None or 0 <= number(cell["value"]) <= 1:
        flagged = cell.get("flagged") or 0
        return share(cell, note=f", {flagged} flagged" if flagged else "")
    return f"{number(cell['value']):.4g} [{number(cell['low']):.4g}, {number(cell['high']):.4g}] (n {cell['n']})"


def _short(data: Mapping[str, Any]) -> str:
    model = Path(str(data["model"])).name
    return f"{model} + {Path(str(data['adapter'])).name}" if data.get("adapter") else model
