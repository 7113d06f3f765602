"""`midward dynamics`: SRI signals by sampler, recovery from harm, and what the signals tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from midward._tables import grouped
from midward.reports.blocks import Block, Figure, Statement, Table, by_chance, reading_of, required, text
from midward.reports.builders.guards import signals
from midward.reports.builders.shared import Record, name_of, shares, table
from midward.reports.chart import Chart, Point, Series
from midward.stats import Area, Paired, Rate


def blocks(folder: Path, run: Record, summary: Record) -> list[Block]:
    """Samplers of the same weights.

    summary: cells, sampler -> set -> measure -> record of a rate; gains, records of differences, each with sampler,
    against, set and measure; auroc, records of areas, each with sampler, reading, detector, positive, negative and
    control; signals, sampler -> group -> n, and low, median, high [T]; maps, each with sampler, layer, kinds [N],
    points [N, 2], accuracy (a record of a rate), majority (another), and begun, kind ->
    record of the mean signal at the first step.
    """
    cells = summary["cells"]
    first = next(iter(cells))
    top = "attacked" if "attacked" in cells[first] else next(iter(cells[first]))
    made: list[Block] = [*signals(summary, "SRI signals by sampler")]
    made += _bars("recovery-inner", "Inner recovery: refusal, the signal below 0.5", cells, [("irr-0.5", "")])
    pairs = [("asr", "attack success"), ("right", "right answers")]
    made += _bars("samplers", "Attack success and right answers by sampler", cells, pairs)
    made.append(_recovery(cells))
    if summary.get("gains"):
        made.append(table("gains", "Samplers against each other, by prompt", summary["gains"]))
    made += _areas(summary.get("auroc") or [])
    made += _maps(summary.get("maps") or [])
    return [*made, *_findings(summary, first, top)]


def _bars(name: str, title: str, cells: Record, measures: Sequence[tuple[str, str]]) -> Iterator[Figure]:
    """Groups of bars, one a set and measure; a bar a sampler."""
    sets = list(dict.fromkeys(where for by_set in cells.values() for where in by_set))
    groups = [
        (where, measure, ", ".join(filter(None, (where, label))))
        for where in sets
        for measure, label in measures
        if any(measure in by_set.get(where, {}) for by_set in cells.values())
    ]
    series, best = [], []
    for sampler, by_set in cells.items():
        bars = []
        for x, (where, measure, label) in enumerate(groups):
            rate = reading_of(by_set.get(where, {}).get(measure), Rate)
            if rate and rate.value is not None:
                bars.append(Point(x, rate.value, rate.low, rate.high))
                best.append((rate.value, rate.text(), sampler, label))
        if bars:
            series.append(Series(sampler, bars, kind="bars"))
    if best:
        _, top, sampler, where = max(best, key=lambda bar: bar[0])
        charts = shares("", "share", series, groups=[label for *_, label in groups])
        yield Figure(name, title, charts, finding=f"Highest with {sampler} on {where}: {top}.")


def _recovery(cells: Record) -> Table:
    records = [
        {"sampler": name, "set": where, **rates} for name, sets in cells.items() for where, rates in sets.items()
    ]
    legend = {"hrr": "HRR and FRR: of the generations that did harm in some text before the last."}
    return table("recovery", "Recovery by sampler", records, legend=legend, folded=True)


def _areas(areas: Sequence[Record]) -> Iterator[Block]:
    if not areas:
        return
    asked = [(area, required(area, Area)) for area in areas if not area["control"]]
    finding = ""
    if asked:
        best, number = max(asked, key=lambda pair: pair[1].value or 0.0)
        chance = by_chance(number)
        finding = f"At best {'no ' if chance else ''}better than chance: {text(number)} ({best['reading']}, "
        finding += f"{best['detector']}, sampler {best['sampler']}, against {best['negative']})."
    legend = {"control": "Of a control 0.5 is right."}
    title = "Do the signals tell jailbroken answers?"
    yield table("auroc", title, areas, number="AUROC", legend=legend, finding=finding, folded=True)


def _maps(maps: Sequence[Record]) -> Iterator[Figure]:
    """Linear discriminant maps. A map: sampler, layer, kinds [N], points [N, 2]."""
    charts = []
    for each in maps:
        if each.get("points"):
            kinds = grouped(zip(each["kinds"], each["points"], strict=True), lambda pair: str(pair[0]))
            of_kinds = {kind: [Point(x, y) for _, (x, y, *_) in pairs] for kind, pairs in kinds.items()}
            series = [Series(kind, points, kind="points") for kind, points in of_kinds.items()]
            title = f"{each['sampler']}, {each['layer']} layer"
            charts.append(Chart("first discriminant", "second", series, title=title if len(maps) > 1 else ""))
    if charts:
        note = "A linear map of the signals, fitted to part the kinds; near points have similar signals."
        yield Figure("lda", "A map of generations by their signals", charts, note)


def _findings(summary: Record, first: str, top: str) -> Iterator[Statement]:
    """What was found, a sentence a question. SRI's claims S2 to S6."""
    cells, gains = summary["cells"], summary.get("gains") or []
    by_sampler: dict[str, dict[tuple[str, str], Paired]] = {}
    for gain in gains:
        if pair := reading_of(gain, Paired):
            by_sampler.setdefault(gain["sampler"], {})[gain["set"], gain["measure"]] = pair
    for name, pairs in by_sampler.items():
        changes = [
            f"{name_of(measure)} of {where} {pairs[where, measure].text()}"
            for where in dict.fromkeys(where for where, _ in pairs)
            for measure in ("success", "refused", "correct")
            if (where, measure) in pairs and (where == top or measure == "correct")
        ]
        yield Statement(f"{name} against left to right, one token a step (ar): {'; '.join(changes)}.")
    here = cells[first][top]
    if "hrr" in here:
        yield Statement(
            f"Did harm on the way: {text(here['harm-on-the-way'])}; of those, {text(here['hrr'])} revised it and "
            f"{text(here['frr'])} ended harmless ({first}, {top})."
        )
    for name in (name for name in ("paper", first) if name in cells):
        for measure in [measure for measure in cells[name][top] if measure.startswith("irr-0.5")]:
            beside = measure.removeprefix("irr-0.5")
            ends = ", ".join(
                f"{text(cells[name][top][f'irr-{at}{beside}'])} below {at}" for at in ("0.5", "0.25", "0.1")
            )
            yield Statement(f"Inner recovery of {name}{beside}: {ends}.")
    for each in summary.get("maps") or []:
        begun = ", ".join(f"{kind} {text(value)}" for kind, value in (each.get("begun") or {}).items())
        sentence = f"{each['sampler']}, {each['layer']} layer: mean signal at the first step {begun}"
        if each.get("accuracy"):
            sentence += f"; a linear map tells the kinds apart in {text(each['accuracy'])}, cross-validated, where the "
            sentence += f"commonest alone would give {text(each['majority'])}"
        yield Statement(f"{sentence}.")
