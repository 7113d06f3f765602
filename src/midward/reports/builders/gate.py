"""`midward gate`: whether a release criterion is met, a sentence a criterion and a row a cell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from midward.reports.blocks import Block, Statement, reading, some, text
from midward.reports.builders.shared import TONE_OF, Record, name_of, table
from midward.stats import CHANCE, Paired

NOTE = (
    "Held: the whole 95 % interval is inside the bound, also if the unscored answers of a seed all hit, or none does. "
    "Broken: all of it is outside, likewise. Unclear: neither."
)
NOTE_OF_PAIRS = (
    "Paired by what both were asked. Broken: measurably worse, even with unscored answers all at their best. Unclear: "
    "at their worst they could make it so, there are too few goals, or it isn't measured now."
)
#: Of a cell's record, what isn't a place in its run.
_NUMBERS = {"run", "measure", "verdict", "needed", "better", "unscored", "warning", "gone"}


def blocks(folder: Path, run: Record, summary: Record) -> list[Block]:
    """The verdict on each criterion, and on each cell. summary: what `reports.gate.decide` gives."""
    made: list[Block] = [
        Statement(f"{pair}: not the model alone differs: {'; '.join(words)}.", "unclear")
        for pair, words in (summary.get("differs") or {}).items()
    ]
    made += [
        Statement(f"Not in the baseline, so not compared: {'; '.join(map(place, each['new']))}.", "unclear")
        for each in summary["criteria"]
        if each.get("new")
    ]
    made += [
        Statement(f"{each['criterion']} leaves out what stands behind a guard as well: {'; '.join(each['left_out'])}.")
        for each in summary["criteria"]
        if each.get("left_out")
    ]
    made += [Statement(f"{sentence(each)}.", TONE_OF[each["verdict"]]) for each in summary["criteria"]]
    for count, each in enumerate(summary["criteria"], 1):
        records = [
            {"verdict": cell["verdict"], **cell, "needed": more(cell), "warning": None, "gone": None}
            for cell in each["cells"]
        ]  # a name with a line break would begin a line, which GitHub's runner may obey
        records = [
            {key: " ".join(value.split()) if isinstance(value, str) else value for key, value in record.items()}
            for record in records
        ]
        if len(summary["runs"]) == 1:
            records = [{**record, "run": None} for record in records]
        first = count == 1 or "share" not in each
        note = (NOTE if "share" in each else NOTE_OF_PAIRS) if first else ""
        made.append(table(f"gate-{count}", each["criterion"], records, number="measured", note=note))
    return made


def sentence(criterion: Record) -> str:
    """The verdict on a criterion, without a full stop: the cell that decides, and what it takes where none does."""
    cells = criterion["cells"]
    decisive = [cell for cell in cells if cell["verdict"] == criterion["verdict"]]
    cell = max(decisive, key=lambda cell: _closeness(criterion, cell))
    of = f"in {len(decisive)} of {some(len(cells), 'cell')}" if len(cells) > 1 else ""
    which = f"{place(cell)}: " if len(cells) > 1 or not of else ""
    start = f"{criterion['criterion']}: {' '.join(filter(None, (criterion['verdict'], of)))}"
    return f"{start}; {which}{text(reading(cell))}" + (f"; {more(cell)}" if more(cell) else "")


def more(cell: Record) -> str:
    """What it takes to decide an unclear cell."""
    if cell["verdict"] != "unclear":
        return ""
    if cell.get("warning"):
        return f"warning: {cell['warning']}"
    if cell.get("gone"):
        return "not measured now"
    measured = reading(cell)
    if isinstance(measured, Paired):
        return "answers without a verdict could turn it" if cell["unscored"] else "too few goals to tell"
    if cell.get("needed") is None:
        return f"{some(cell['unscored'], 'answer')} without a verdict could turn it"
    steady, surely = cell["needed"]
    if surely is None:
        return "no number of goals decides it: too near the bound, or too few seeds"
    rate = text(measured).partition(" [")[0]
    surely_so = f"with a chance of {100 * CHANCE:.0f} %"
    if steady is None:
        return f"{surely} goals would do {surely_so}"
    return f"{steady} goals would do if it stays at {rate}, {surely} {surely_so}"


def place(cell: Record) -> str:
    """Which cell of which run it is, in words on one line."""
    return " ".join(", ".join(filter(None, _places(cell))).split())


def _places(cell: Record) -> Iterator[str]:
    own = {*(vars(reading(cell)) if "stat" in cell else ()), "stat", *_NUMBERS}
    yield name_of(str(cell["measure"]))
    yield from (str(value) for name, value in cell.items() if name not in own and value is not None)
    yield f"in {cell['run']}"


def _closeness(criterion: Record, cell: Record) -> float:
    """How near a cell's interval comes to the wrong side."""
    measured = reading(cell)
    if isinstance(measured, Paired):
        return -cell["better"] * (measured.value or 0.0)
    low, high = measured.low or 0.0, 1.0 if measured.high is None else measured.high
    return high if criterion["most"] else -low
