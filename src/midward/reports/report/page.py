"""From runs to one page and the folder of tables and figures beside it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

import midward
from midward._tables import csv_text
from midward.errors import InputError
from midward.reports import html
from midward.reports.report import attacks, chart, defences, players, probes, training, utility
from midward.reports.report.find import Found, Run, find
from midward.reports.report.parts import (
    Block,
    Built,
    Card,
    Figure,
    Gap,
    Heat,
    Said,
    Share,
    Texts,
    listed,
    percent,
    points,
    some,
)
from midward.store import write_text

#: What tells a page that may be written over from any other file: no text on a page can hold it unescaped.
MARK = Markup('data-page="midward report"')
#: The names of files beside a page.
OURS = re.compile(r"(samples\.csv|\d\d+-[a-z0-9-]*\.(csv|svg))(\.part)?")
BUILD: dict[str, Callable[[Run, Texts], Built]] = {
    "attack": attacks.attack,
    "demo": attacks.demo,
    "align": training.align,
    "prefill": probes.prefill,
    "mirror": probes.mirror,
    "ask": probes.ask,
    "gcg": probes.gcg,
    "order": probes.order,
    "dynamics": probes.dynamics,
    "guard": defences.guard,
    "utility": utility.utility,
    "guards": defences.fitted,
}
#: id -> title, what it shows, and in the order of the page
SECTIONS = {
    "attacks": ("Attack success", "How often each attack got the harm out of each model. Lower is safer."),
    "refusals": ("Refusals", "How often each model refused. It is no attack success: harm may stand beside a refusal."),
    "use": ("Use", "Whether harmless requests and tasks are still answered, and rightly. Higher is better."),
    "alignment": ("Alignment", "How training went."),
    "prefill": ("Forced phrases", "Where in the response does a phrase, if forced there, jailbreak?"),
    "mirror": ("Forced refusals", "Where in the response does a refusal, if forced there, save?"),
    "gcg": ("Optimised suffixes", "Can a suffix of the prompt make a phrase likely at a place of the response?"),
    "ask": ("Asking for a place", "Does a model follow when it is asked to put a phrase at a word?"),
    "order": ("Decoding order", "Which positions are committed when?"),
    "dynamics": ("SRI signals and recovery", "Does the inner state tell harm, and does the model come back from it?"),
    "guards": ("Guards", "What stands in front of a model, what it stops, and what it stops wrongly."),
}
#: What a whole evaluation has: what it is called -> (the kinds of run that hold it, the command that makes it)
WHOLE = {
    "measurement of attack success": (("attack", "demo"), "midward attack"),
    "reward curve of an alignment": (("align",), "midward align"),
    "probe of phrases forced along the response": (("prefill",), "midward probe prefill"),
    "probe of the decoding order": (("order", "demo"), "midward probe order"),
    "look at SRI signals by sampler": (("dynamics",), "midward dynamics"),
    "guard evaluation": (("guard",), "midward guard eval"),
    "comparison of utility": (("utility", "demo"), "midward utility"),
}
NAMES = {
    "attack": "attack",
    "demo": "demo",
    "align": "adapter",
    "prefill": "prefill probe",
    "mirror": "mirror probe",
    "ask": "ask probe",
    "gcg": "suffix probe",
    "order": "order probe",
    "dynamics": "dynamics",
    "utility": "utility run",
    "guard": "guard evaluation",
    "guards": "fitted guards",
    "player": "recorded generations",
    "unfinished": "unfinished run",
}
#: What makes a run of a kind, "midward" before it
VERBS = {
    "attack": "attack",
    "demo": "demo",
    "prefill": "probe prefill",
    "mirror": "probe mirror",
    "ask": "probe ask",
    "gcg": "probe gcg",
    "order": "probe order",
    "dynamics": "dynamics",
    "utility": "utility",
    "guard": "guard eval",
    "guards": "guard fit",
}


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    about: str
    blocks: list[Block]


@dataclass
class Report:
    """All that is on the page. built: label of a run -> what it gave. files: path in the folder beside it -> text."""

    found: Found
    texts: Texts
    built: dict[str, Built] = field(default_factory=dict)
    players: list[html.Part] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


def write(
    folders: Sequence[str | Path],
    page: str | Path,
    *,
    redact: bool = False,
    unfold: bool = False,
    overwrite: bool = False,
) -> Report:
    """Write the report of all runs below `folders` to the file `page`, its tables (CSV) and figures (SVG) to a folder
    beside it, `<page>_files`.

    redact: prompts, goals, responses and errors are replaced by length and hash in all of it. unfold: conversations
    are open from the start. A page of an earlier report is replaced, with its folder, and so is what a report that
    was stopped left of its folder; `overwrite` says that whatever is there may be.

    Raises FileNotFoundError and ValueError for a folder that isn't there, a page that isn't called .html, or one that
    would replace something else.
    """
    page = Path(page)
    beside = page.with_name(f"{page.stem}_files")
    _check(page, beside, overwrite)
    found = find([Path(folder) for folder in folders], without=(page, beside))
    report = Report(found, Texts(redact))
    _build(report)
    _collect(report)
    names = [Path(folder).resolve().name or "/" for folder in folders]
    where = listed(names) if len(names) <= 3 else some(len(names), "folder")
    for old in beside.glob("*"):  # all of an earlier page, which may not have been redacted
        if OURS.fullmatch(old.name):
            old.unlink()
    if report.files:
        beside.mkdir(parents=True, exist_ok=True)
        for name, text in report.files.items():
            write_text(beside / name, text.encode("utf-8", "replace").decode("utf-8"))
    models = list(dict.fromkeys(built.model for built in report.built.values() if built.model))
    what = listed(models) if 1 <= len(models) <= 3 else where
    html.write(page, f"Safety report: {html.visible(what)}", [_part(report, page, where, unfold)])
    return report


def _check(page: Path, beside: Path, overwrite: bool) -> None:
    if page.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {page} isn't called .html; give the name of a page, like report.html.")
    if page.is_dir():
        raise InputError(f"--out {page} is a folder; give the name of a page in it.")
    if page.exists():
        ours = MARK in page.read_text(encoding="utf-8", errors="replace")
    else:  # of a report that was stopped the folder is there and the page isn't
        ours = beside.is_dir() and all(OURS.fullmatch(path.name) for path in beside.iterdir())
    for path in (page, beside):
        if path.exists() and not (ours or overwrite):
            raise InputError(f"{path} is there and is no report of midward; give another --out, or remove it.")
    if beside.is_symlink() or (beside.exists() and not beside.is_dir()):
        raise InputError(f"{beside} is no folder; give another --out, or remove it.")


def _build(report: Report) -> None:
    """Each run apart: one that can't be read is told of and takes nothing else with it."""
    for run in report.found.runs:
        if run.kind == "unfinished":
            report.built[run.label] = Built(lacks=[_unfinished(run)])
            continue
        try:
            if run.kind == "player":
                name = f"player-{len(report.players)}"
                report.players.append(players.player(run, name, redact=report.texts.redact))
                continue
            report.built[run.label] = built = BUILD[run.kind](run, report.texts)
            built.model = built.model or " + ".join(map(report.texts.path, run.model))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError) as error:
            # Whatever a file holds that no command would have written.
            told = f"can't be read as {NAMES[run.kind]}{report.texts.because(error)}"
            report.found.troubles.append((run.label, told))


def _unfinished(run: Run) -> str:
    begun = f"midward {VERBS[run.data]} was begun there" if run.data else "it has rows or logs"
    return f"{run.label} isn't finished: {begun}, and there is no summary.json. The same command again finishes it"


def _collect(report: Report) -> None:
    """Sections, and the files of their tables and figures."""
    blocks: dict[str, list[Block]] = {name: [] for name in SECTIONS}
    for built in report.built.values():
        for name, some_ in built.blocks.items():
            blocks[name] += some_
    curve = training.figure([series for built in report.built.values() for series in built.curves])
    blocks["alignment"] += [curve] if curve else []
    scores = utility.table({name: one for built in report.built.values() for name, one in built.scores.items()})
    blocks["use"][:0] = [scores] if scores else []
    count = 0
    for name, some_ in blocks.items():
        named: list[Block] = []
        for block in some_:
            if isinstance(block, Said):
                named.append(block)
                continue
            count += 1
            slug = re.sub(r"[^a-z0-9]+", "-", block.name.lower()).strip("-")[:60]
            block = replace(block, name=f"{count:02d}-{slug}")
            report.files |= _files(block)
            named.append(block)
        if named:
            report.sections.append(Section(name, *SECTIONS[name], named))
    samples = [row for built in report.built.values() for row in built.samples]
    if samples:
        report.files["samples.csv"] = csv_text(list(samples[0]), [list(row.values()) for row in samples])


def _files(block: Any) -> dict[str, str]:
    """The CSV of a block's numbers, and a figure's SVG."""
    if isinstance(block, Heat):
        rows = [
            [attack, model, *_numbers(one), one.note.lstrip(", ")]
            for attack, row in block.cells.items()
            for model, one in row.items()
        ]
        return {f"{block.name}.csv": csv_text(["attack", "model", "value", "low", "high", "n", "note"], rows)}
    if isinstance(block, Figure):
        points_ = [
            [series.label, one.x, one.y, one.low, one.high] for series in block.chart.series for one in series.points
        ]
        return {
            f"{block.name}.csv": csv_text(["series", "x", "y", "low", "high"], points_),
            f"{block.name}.svg": chart.svg(block.chart, block.title, standalone=True),
        }
    heads: list[str] = []
    wide = [any(isinstance(row[place], Share | Gap) for row in block.rows) for place in range(len(block.headers))]
    for header, numbers in zip(block.headers, wide, strict=True):
        heads += [header, f"{header}: low", f"{header}: high", f"{header}: n"] if numbers else [header]
    rows = []
    for row in block.rows:
        line: list[Any] = []
        for value, numbers in zip(row, wide, strict=True):
            if isinstance(value, Share | Gap):
                line += _numbers(value)
            else:
                line += [value, "", "", ""] if numbers else [value]
        rows.append(line)
    return {f"{block.name}.csv": csv_text(heads, rows)}


def _numbers(one: Share | Gap) -> list[Any]:
    return ["", "", "", 0] if one.value is None else [one.value, one.low, one.high, one.n]


def _part(report: Report, page: Path, where: str, unfold: bool) -> html.Part:
    found, built = report.found, report.built
    files: dict[str, list[tuple[str, str]]] = {}
    for name in report.files:
        stem, _, kind = name.rpartition(".")
        files.setdefault(stem, []).append((kind.upper(), quote(f"{page.stem}_files/{name}")))
    begun = {run.label: run.data for run in found.runs if run.kind == "unfinished"}
    kinds = {run.kind for run in found.runs if run.label in built} | set(begun.values())
    talks = [talk for one in built.values() for talk in one.talks]
    contents = [("verdict", "Verdict"), ("missing", "What is missing")]
    contents += [(section.id, section.title) for section in report.sections]
    contents += [("steps", "Step by step")] if report.players else []
    contents += [("said", "What was said")] if talks else []
    markup = html.render(
        "report.html.j2",
        mark=MARK,
        contents=[*contents, ("settings", "Settings")],
        lead=_lead(found.runs, where),
        folders=where,
        sandbox=_at_home(built.values()),
        redact=report.texts.redact,
        unfold=unfold,
        cards=_titled([card for one in built.values() for card in one.cards]),
        begun=listed([label for label, kind in begun.items() if kind in ("attack", "demo")]),
        several=max(sum(run.kind in kinds for run in found.runs) for kinds in (("attack", "demo"), ("guard",))) > 1,
        claims=[(claim, label) for label, one in built.items() for claim in one.claims],
        marks={"exposed": "▲ Exposed", "held": "● Held", "unclear": "? Unclear"},
        signs={"exposed": "▲", "held": "●", "unclear": "?", "note": "i"},
        missing=[(what, verb) for what, (some_, verb) in WHOLE.items() if not kinds & set(some_)],
        lacks=[text for one in built.values() for text in one.lacks],
        troubles=found.troubles,
        strangers=found.strangers,
        sections=report.sections,
        svg=lambda block: chart.svg(block.chart, f"{block.title}. {block.about}"),
        files=files,
        players=[part.markup for part in report.players],
        talks=talks,
        shown=attacks.SHOWN,
        versions={name: version for one in built.values() for name, version in one.versions.items()},
        version=midward.__version__,
        runs=[
            {
                "label": run.label,
                "kind": NAMES[run.kind],
                "model": built[run.label].model,
                "settings": list(_flat(built[run.label].settings, report.texts)),
                "where": report.texts.path(run.folder / "logs"),
                "logs": [(path.name, quote(_relative(path, page))) for path in run.logs()],
            }
            for run in found.runs
            if run.label in built
        ],
        percent=percent,
        points=points,
        some=some,
    )
    styles = [name for part in report.players for name in part.styles]
    scripts = [name for part in report.players for name in part.scripts]
    return html.Part(markup, styles=(*styles, "report.css"), scripts=(*scripts, "report.js"))


def _titled(cards: Sequence[Card]) -> list[Card]:
    """Models that several runs hold are told apart by the run, in the card's title."""
    counts = Counter(card.model for card in cards)
    return [
        replace(card, model=f"{card.model} in {card.run}", run="") if counts[card.model] > 1 else card for card in cards
    ]


def _at_home(built: Iterable[Built]) -> str:
    """Whether "all" of the models are the sandbox's, "some", or none ("")."""
    told = [bool(re.search(r"(^|/)sandbox(-ar)?($| \+)", one.model)) for one in built if one.model]
    return "all" if told and all(told) else "some" if any(told) else ""


def _lead(runs: Sequence[Run], where: str) -> str:
    counts = Counter(NAMES[run.kind] for run in runs)
    kinds = [name if count == 1 or name.endswith("s") else some(count, name) for name, count in counts.items()]
    return f"{some(len(runs), 'run')} in {where}: {listed(kinds)}." if runs else f"No run in {where}."


def _flat(settings: Any, texts: Texts, name: str = "") -> Iterator[tuple[str, str]]:
    """name.of.a.setting -> its value as text."""
    if isinstance(settings, Mapping) and settings:
        for key, value in settings.items():
            yield from _flat(value, texts, f"{name}.{key}" if name else str(key))
        return
    values = settings if isinstance(settings, list) else [settings]
    yield name, ", ".join(texts.path(value) if "/" in str(value) else str(value) for value in values)


def _relative(path: Path, page: Path) -> str:
    return Path(os.path.relpath(path, page.resolve().parent)).as_posix()
