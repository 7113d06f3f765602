"""What several builders do alike: records as tables, records as points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from midward.reports.blocks import Cell, Statement, Table, Tone, reading, some, text
from midward.reports.chart import Chart, Point, Series
from midward.stats import FEW, Area, Mean, Paired, Rate, Standing, family

Record = Mapping[str, Any]
#: Words for a record's keys, and for the names of measures.
NAMES = {
    "alpha": "false positives asked for",
    "calibrated": "calibrated on",
    "set": "prompts",
    "kind": "phrase",
    "position": "at token",
    "word": "at word",
    "minus": "minus",
    "reading": "signal",
    "positive": "AUROC of",
    "negative": "against",
    "asr": "attack success",
    "success": "attack success",
    "own_asr": "by own tokens alone",
    "own_success": "by own tokens alone",
    "alone_asr": "by the anchors alone",
    "own_refused": "refused in own tokens",
    "own_correct": "right by own tokens alone",
    "alone_correct": "right by the anchors alone",
    "no_room": "no room for a refusal",
    "no_room_in_window": "none begins in tokens 20-60",
    "rr": "refused",
    "right": "right answers",
    "correct": "right answers",
    "landed": "phrase landed",
    "hit": "phrase at its place",
    "matched": "tokens in place",
    "passed": "does harm, unflagged",
    "forwards": "rows of forwards",
    "unasked": "the same for the plain goal",
    "elsewhere": "the same for another word",
    "placed": "placed by asking",
    "nfe": "forwards",
    "loss": "loss, nats a token",
    "start_loss": "loss before",
    "correlation": "rank correlation",
    "correlation_text": "text alone",
    "part_text": "= within text",
    "part_padding": "+ within padding",
    "part_between": "+ text first",
    "padding_share": "padding, share of response",
    "harm-on-the-way": "harm on the way",
    "hrr": "revised it (HRR)",
    "frr": "ended harmless (FRR)",
    "needed": "what would decide it",
}
#: How a verdict is shown.
TONE_OF: Mapping[Standing, Tone] = {"held": "held", "broken": "exposed", "unclear": "unclear"}
#: What belongs to a record's number, and to no column of its own.
_OWN = {"stat", "better", *(field.name for kind in (Rate, Mean, Area, Paired) for field in fields(kind))}


def name_of(key: str) -> str:
    """A key or a measure in words."""
    if key.startswith("irr"):  # irr, irr-0.25, irr (generated), ...
        number, _, beside = key.removeprefix("irr").partition(" ")
        return f"inner recovery below {number.removeprefix('-') or '0.5'} {beside}".strip()
    return NAMES.get(key, key.replace("_", " "))


def table(
    name: str,
    title: str,
    records: Sequence[Record],
    *,
    number: str = "difference",
    note: str = "",
    finding: str = "",
    folded: bool = False,
    legend: Mapping[str, str] | None = None,
) -> Table:
    """Records as rows: first what tells them apart, then the numbers in them, and last the number that each is.

    What no record has (None or "") is no column.

    Args:
        name, title, note, finding, folded: as of `Table`.
        records: as of a summary; a value that is a mapping is a record of `stats`, and so may be the record itself.
        number: head of the column of that number.
        legend: key -> what its column is, in a sentence; only those that are shown are explained, behind the note.
    """
    keys = list(dict.fromkeys(key for record in records for key in record if key not in _OWN))
    keys = [key for key in keys if any(record.get(key) not in (None, "") for record in records)]
    labels = [key for key in keys if not any(isinstance(record.get(key), Mapping | float) for record in records)]
    keys = [*labels, *(key for key in keys if key not in labels)]
    itself = any("stat" in record for record in records)
    rows: list[list[Cell]] = [
        [name_of(str(record[key])) if key == "measure" else record.get(key) for key in keys]
        + ([record] if itself else [])
        for record in records
    ]
    sentences = [note, *(sentence for key, sentence in (legend or {}).items() if key in keys)]
    sentences += [f"{several}."] if (several := family(records)) else []
    heads = [*map(name_of, keys), *([number] if itself else [])]
    return Table(
        name,
        title,
        heads,
        rows,
        " ".join(filter(None, sentences)),
        finding,
        folded=folded,
        named_by=max(1, len(labels)),
    )


def ends(record: Any) -> tuple[float, float | None, float | None]:
    """Value, low and high of a record, for a point."""
    number = reading(record)
    return number.value or 0.0, number.low, number.high


def points(records: Sequence[Record], at: str, name: str) -> list[Point]:
    """The numbers `name` of records by their place `at`."""
    known = [record for record in records if record.get(name) and reading(record[name]).value is not None]
    return sorted((Point(record[at], *ends(record[name])) for record in known), key=lambda point: point.x)


def shares(xlabel: str, ylabel: str, series: Sequence[Series], **more: Any) -> list[Chart]:
    """A chart of shares in per cent; none without series."""
    return [Chart(xlabel, ylabel, series, "%", ylim=(0.0, 1.0), **more)] if series else []


def change(
    sides: str, gaps: Mapping[str, Paired], better: Mapping[str, int], *, what: str, of: str, still: Tone = "unclear"
) -> Statement:
    """What changed from one side to another, in a sentence, and whether that is good news.

    Args:
        sides: how the sentence begins.
        gaps: what was measured -> the difference.
        better: the same -> whether more of it is better (1), worse (-1) or neither (0).
        what: the differences are of.
        of: what one of them is: an attack, a task.
        still: the tone where nothing changed, measured on goals enough.
    """
    gaps = {name: pair for name, pair in gaps.items() if pair.value is not None}
    if not gaps:
        return Statement(f"{sides}: nothing was scored on both sides.", "unclear")

    def most(names: Sequence[str]) -> str:
        return max(names, key=lambda name: abs(gaps[name].value or 0))

    count, sizes = some(len(gaps), of), [pair.goals for pair in gaps.values()]
    moved = [name for name, pair in gaps.items() if pair.apart()]
    if not moved:
        name = most(list(gaps))
        sentence = "too few goals to tell a" if max(sizes) < FEW else "no measurable"
        sentence += f" change of {what} on {count}"
        sentence += f"; the largest is {name}: {text(gaps[name])}" if gaps[name].value else ""
        return Statement(f"{sides}: {sentence}.", "unclear" if min(sizes) < FEW else still)
    sentences = []
    for word, sign in (("lower", -1), ("higher", 1)):
        names = [name for name in moved if sign * (gaps[name].value or 0) > 0]
        if names:
            top = most(names)
            where = f"{len(names)} of {count}, {'most on ' if len(names) > 1 else ''}{top}"
            sentences.append(f"measurably {word} on {where}: {gaps[top].text()}")
    news = [better[name] * (gaps[name].value or 0) for name in moved if better[name]]
    tone: Tone = "note" if not news else "held" if min(news) > 0 else "exposed"
    return Statement(f"{sides}: {what} {'; '.join(sentences)}.", tone)


def short(model: Any, adapter: Any, guard: Any) -> str:
    """A model, its adapter and its guard by the ends of their paths: LLaDA-8B-Instruct + mosa behind sri."""
    model, adapter, guard = (Path(str(part or "").rstrip("/")).name for part in (model, adapter, guard))
    guard = guard.removesuffix(".safetensors")
    return model + (f" + {adapter}" if adapter else "") + (f" behind {guard}" if guard else "")
