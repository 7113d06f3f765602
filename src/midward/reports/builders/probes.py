"""`midward probe ...`: where safety sits in a response. Forced phrases, refusals, asking, suffixes, decoding order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from midward.reports.blocks import Block, Cell, Figure, Statement, Table, finite, reading
from midward.reports.chart import Chart, Point, Series
from midward.stats import Estimate

Record = Mapping[str, Any]
_PLACES = ("set", "kind", "position", "word", "tokens")  # what tells one cell from another
_NAMES = {
    "set": "goals",
    "kind": "phrase",
    "position": "at token",
    "word": "at word",
    "minus": "minus token",
    "asr": "attack success",
    "success": "attack success",
    "correct": "right answers",
    "landed": "phrase landed",
    "hit": "phrase at its place",
    "unasked": "the same for the plain goal",
    "elsewhere": "the same for another word",
    "placed": "placed by asking",
    "loss": "loss, nats a token",
    "start_loss": "loss before",
    "correlation": "rank correlation",
    "correlation_text": "text alone",
    "part_text": "= within text",
    "part_padding": "+ within padding",
    "part_between": "+ text first",
    "padding_share": "padding, share of response",
}


def prefill(folder: Path, run: Record, summary: Record) -> list[Block]:
    """Phrases forced along the response, to attack.

    summary: cells, each with set, kind, position, tokens and records of rates (asr, own_refusal, correct, coherent,
    landed) and means (score); findings, sentences; compared, the folder of another run -> records of differences, each
    with what tells its cell and a measure.
    """
    found = _findings(summary)
    lines, level = _by_position(summary["cells"])
    figures: list[Block] = []
    if lines:
        chart = Chart(
            "response position of the phrase's first token", "attack success", lines, "%", ylim=(0.0, 1.0), levels=level
        )
        note = "Attack success where a phrase is forced at a position. MOSA's claim is that the middle decides."
        figures.append(Figure("prefill", "Forced phrases along the response", [chart], note, _first(found)))
    return [*figures, _cells("prefill-cells", "Forced phrases, cell by cell", summary["cells"]), *_rest(summary, found)]


def mirror(folder: Path, run: Record, summary: Record) -> list[Block]:
    """Refusals forced along the response, under attack. summary: as of `prefill`, and window, its start and end."""
    found = _findings(summary)
    window = summary["window"]
    lines, level = _by_position(summary["cells"], "attack alone")
    figures: list[Block] = []
    if lines:
        shaded = (finite(window["start"]), finite(window["end"]), f"window {window['start']} to {window['end']}")
        xlabel = "response position of the refusal's first token"
        chart = Chart(xlabel, "attack success", lines, "%", ylim=(0.0, 1.0), levels=level, shaded=shaded)
        note = "Attack success where a refusal is forced at a position: the lower, the more that place saves."
        figures.append(Figure("mirror", "A refusal forced under attack", [chart], note, _first(found)))
    return [*figures, _cells("mirror-cells", "Forced refusals, cell by cell", summary["cells"]), *_rest(summary, found)]


def ask(folder: Path, run: Record, summary: Record) -> list[Block]:
    """Phrases asked for at a word. summary: as of `prefill`, a cell a word (None: the plain goal)."""
    found = _findings(summary)
    asked = [cell for cell in summary["cells"] if cell["word"] is not None]
    lines = [
        Series(_NAMES.get(name, name), points)
        for name in ("hit", "unasked", "asr")
        if (points := _points(asked, "word", name))
    ]
    figures: list[Block] = []
    if lines:
        chart = Chart("word of the response, from 0", "share", lines, "%", ylim=(0.0, 1.0))
        note = "The prompt asks for a phrase at a word of the response."
        figures.append(Figure("ask", "A phrase asked for at a word", [chart], note, _first(found)))
    return [*figures, _cells("ask-cells", "Asking, word by word", summary["cells"]), *_rest(summary, found)]


def gcg(folder: Path, run: Record, summary: Record) -> list[Block]:
    """Suffixes of the prompt, optimised.

    summary: as of `prefill`, a cell a position (None: the start suffix); between, differences of positions; curves,
    each with position and loss, a record of a mean for every iteration from 0.
    """
    found = _findings(summary)
    note = "Suffixes of the prompt, optimised so that a phrase becomes likely at a place of the response."
    made: list[Block] = []
    lines = []
    for curve in summary.get("curves") or []:
        points = [Point(step, *_ends(record)) for step, record in enumerate(curve["loss"])]
        lines.append(Series(f"token {curve['position']}", points, marks=False))
    if lines:
        chart = Chart("iteration", "least loss so far, nats a token", lines)
        made.append(Figure("gcg", "Suffix searches", [chart], note, _first(found)))
    made.append(_cells("gcg-cells", "Optimised suffixes", summary["cells"], note="" if made else note))
    if summary.get("between"):
        made.append(_pairs("gcg-between", "Places compared, by goal", summary["between"]))
    return [*made, *_rest(summary, found)]


def order(folder: Path, run: Record, summary: Record) -> list[Block]:
    """The order in which positions are committed.

    summary: sets, set -> measure -> record of a mean; steps, set -> a record of a mean for every step (None: nothing
    was committed); maps, set -> shares of prompts [positions, steps]; findings.
    """
    found = _findings(summary)
    lines = []
    for name, steps in (summary.get("steps") or {}).items():
        points = [Point(step, *_ends(mean)) for step, mean in enumerate(steps, 1) if mean and mean["value"] is not None]
        if points:
            lines.append(Series(name, points))
    made: list[Block] = []
    if lines:
        chart = Chart("denoising step", "mean position of new tokens", lines)
        note = "Mean response position of the tokens committed at each denoising step."
        made.append(Figure("order", "Decoding order", [chart], note, _first(found)))
    maps = [
        Chart("denoising step", "response position", title=name, grid=shares)
        for name, shares in (summary.get("maps") or {}).items()
    ]
    if maps:
        note = "Share of prompts that have committed a position at a step."
        made.append(Figure("order-heat", "Which position when", maps, note))
    measures = list(next(iter(summary["sets"].values())))
    rows = [[name, *(cells.get(measure) for measure in measures)] for name, cells in summary["sets"].items()]
    heads = ["prompts", *(_name(measure) for measure in measures)]
    note = "Of steps and positions: 1 is left to right, 0 is any order. It is the sum of the three parts."
    made.append(Table("correlation", "Does the order follow the position?", heads, rows, note))
    return [*made, *_rest(summary, found)]


# --- shared --------------------------------------------------------------------------------------------------


def _findings(summary: Record) -> list[Statement]:
    lines = summary.get("findings") or ([summary["finding"]] if summary.get("finding") else [])
    return [Statement(str(line)) for line in lines]


def _first(found: Sequence[Statement]) -> str:
    return found[0].text if found else ""


def another(folder: Path, run: Record, summary: Record) -> list[Block]:
    """A probe of another package. summary: as of `prefill`, with cells of its own."""
    name = str(run["verb"]).removeprefix("probe ")
    return [
        _cells(f"{name}-cells", f"Probe {name}, cell by cell", summary["cells"]),
        *_rest(summary, _findings(summary)),
    ]


def _rest(summary: Record, found: Sequence[Statement]) -> Iterator[Block]:
    """Comparisons with other runs, and the findings."""
    for place, (folder, pairs) in enumerate((summary.get("compared") or {}).items()):
        if pairs:
            yield _pairs(f"compared-{place}", f"This run minus {Path(folder).name}, by goal", pairs)
    yield from found


def _by_position(cells: Iterable[Record], level: str = "no phrase") -> tuple[list[Series], list[tuple[str, float]]]:
    """Attack success by position, a line a kind of phrase, and the level without one."""
    kinds: dict[str, list[Record]] = {}
    levels: list[tuple[str, float]] = []
    for cell in cells:
        rate = cell.get("asr")
        value = reading(rate).value if isinstance(rate, Mapping | Estimate) else None
        if cell["set"] != "harmful" or value is None:
            continue
        if cell["position"] is None:
            levels = [(f"{level}: {100 * value:.1f} %", value)]
        else:
            label = cell["kind"] if cell["tokens"] is None else f"{cell['kind']}, {cell['tokens']} tokens"
            kinds.setdefault(label, []).append(cell)
    return [Series(label, _points(found, "position", "asr")) for label, found in kinds.items()], levels


def _points(cells: Iterable[Record], at: str, name: str) -> list[Point]:
    rates = [(finite(cell[at]), cell.get(name)) for cell in cells]
    known = [(x, reading(rate)) for x, rate in rates if isinstance(rate, Mapping | Estimate)]
    return [Point(x, *_ends(rate)) for x, rate in sorted(known, key=lambda pair: pair[0]) if rate.value is not None]


def _ends(record: Any) -> tuple[float, float | None, float | None]:
    """Value, low and high."""
    found = reading(record)
    return found.value or 0.0, found.low, found.high


def _cells(name: str, title: str, cells: Sequence[Record], note: str = "") -> Table:
    """Cells as rows: first what tells them apart, then what was measured."""
    keys = list(dict.fromkeys(key for cell in cells for key in cell))
    keys = [key for key in keys if any(cell.get(key) is not None for cell in cells)]
    keys.sort(key=lambda key: key not in _PLACES)  # stable
    rows = [[cell.get(key) for key in keys] for cell in cells]
    return Table(name, title, [_name(key) for key in keys], rows, note)


def _pairs(name: str, title: str, pairs: Sequence[Record]) -> Table:
    own = [key for pair in pairs for key in list(pair)[: list(pair).index("measure")]]  # what tells its cell
    keys = list(dict.fromkeys((*_PLACES, *own, "minus", "measure")))
    keys = [key for key in keys if any(pair.get(key) is not None for pair in pairs)]
    rows: list[list[Cell]] = []
    for pair in pairs:
        labels = [_name(str(pair[key])) if key == "measure" else pair.get(key) for key in keys]
        rows.append([*labels, pair])
    family = max((pair.get("family", 1) for pair in pairs), default=1)
    note = f"Holm: p corrected for the {family} comparisons of this table." if family > 1 else ""
    return Table(name, title, [*map(_name, keys), "difference"], rows, note)


def _name(key: str) -> str:
    return _NAMES.get(key, key.replace("_", " "))
