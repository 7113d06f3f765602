"""From runs to one page and the folder of tables and figures beside it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import midward
from midward._tables import csv_text, grouped
from midward.errors import InputError
from midward.reports import chart, html, present, render, stepplayer
from midward.reports.blocks import (
    Block,
    Card,
    Cell,
    Figure,
    Missing,
    Statement,
    Table,
    Talk,
    listed,
    parts,
    reading,
    some,
)
from midward.reports.builders.shared import short
from midward.reports.builders.utility import side_by_side
from midward.reports.report.find import Found, LeftOut, RunFolder, at_home, find
from midward.reports.report.next import steps
from midward.stats import Estimate, Paired, Rate
from midward.store import write_text

KIND = "report"
#: The names of files beside a page.
OURS = re.compile(r"(samples\.csv|\d\d+-[a-z0-9-]*\.(csv|svg))(\.part)?")
TONES = ("exposed", "unclear", "held", "note")  # the worst first
SHOWN = 3  # goals of an attack whose texts are on the page; samples.csv has all
LONG = 12  # rows of a table that is closed at first
MOST = 8  # sentences of the verdict that are open at first
#: id -> title, what it shows, and the verbs whose blocks stand there unless a block names another; in the page's order
SECTIONS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "gate": ("Release criterion", "What each measure may be, and whether it is.", ("gate",)),
    "attacks": ("Attack success", "How often each attack got the harm out of each model. Lower is safer.", ("attack",)),
    "refusals": ("Refusals", "How often each model refused. It is no attack success: harm may stand beside it.", ()),
    "use": ("Use", "Whether harmless requests are still answered, and rightly. Higher is better.", ("utility",)),
    "compare": ("Runs compared", "What changed from one run to another, over what both were asked.", ("compare",)),
    "alignment": ("Alignment", "How training went.", ("align",)),
    "prefill": ("Forced phrases", "Where in a response does a forced phrase jailbreak?", ("probe prefill",)),
    "anchor": ("Anchors", "How many forced tokens of a compliant text does it take?", ("probe anchor",)),
    "mirror": ("Forced refusals", "Where in a response does a forced refusal save?", ("probe mirror",)),
    "gcg": ("Optimised suffixes", "Can a suffix make a phrase likely at a place of the response?", ("probe gcg",)),
    "ask": ("Asking for a place", "Does a model put a phrase at a word when it is asked to?", ("probe ask",)),
    "order": ("Decoding order", "Which positions are committed when?", ("probe order",)),
    "dynamics": ("SRI signals and recovery", "Do inner states tell harm, and does a model recover?", ("dynamics",)),
    "guards": ("Guards", "What each guard stops, and what it stops wrongly.", ("guard eval", "guard fit")),
    "others": ("Other probes", "What probes of other packages measured.", ()),
}
SECTION_OF = {verb: name for name, (*_, verbs) in SECTIONS.items() for verb in verbs}


@dataclass(frozen=True)
class Texts:
    """How texts of prompts and models are shown: as they are, or, with `redact`, by length and hash."""

    redact: bool = False

    def __call__(self, text: str) -> str:
        """A prompt, a response, an error message."""
        if self.redact and text:
            return html.redacted(text)
        # Most lines are plain: looking at each character takes a hundred times longer.
        return "\n".join(line if line.isprintable() else html.visible(line) for line in text.split("\n"))

    def name(self, text: str) -> str:
        """A goal's id: redacted too, unless it is a plain one."""
        return self(text) if self.redact and not re.fullmatch(r"[\w.:-]{1,60}", text) else html.visible(text)

    def setting(self, value: Any) -> str:
        """A setting. Where the page is to be shared, a path is without the folders above it, and a text redacted."""
        text = str(value)
        if not self.redact:
            return text
        return Path(text).name if "/" in text and " " not in text else self(text) if " " in text else text

    def table(self, block: Block) -> Block:
        """A table, in which no path tells where on a disk something is; any other block stays."""
        if not self.redact or not isinstance(block, Table):
            return block
        rows = [
            [Path(cell).name if isinstance(cell, str) and Path(cell).is_absolute() else cell for cell in row]
            for row in block.rows
        ]
        return replace(block, rows=rows)

    def talk(self, talk: Talk) -> Talk:
        """A conversation."""
        turns = [replace(turn, asked=self(turn.asked), reply=self(turn.reply)) for turn in talk.turns]
        return replace(talk, goal=self.name(talk.goal), asked=self(talk.asked), turns=turns)


@dataclass
class Report:
    """All that is on the page. blocks: label of a run -> what is shown of it. files: name in the folder beside it ->
    text."""

    found: Found
    texts: Texts
    blocks: dict[str, list[Block]] = field(default_factory=dict)
    players: list[html.Part] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


def write(
    folders: Sequence[str | Path],
    page: str | Path,
    *,
    redact: bool = False,
    unfold: bool = False,
    overwrite: bool = False,
) -> Report:
    """Write the report of all runs below `folders`.

    Args:
        folders: what midward commands wrote, or folders above.
        page: the file; its tables (CSV) and figures (SVG) go to a folder beside it, `<page>_files`.
        redact: prompts, goals, responses and errors are replaced by length and hash in all of it.
        unfold: conversations are open from the start.
        overwrite: whatever is there may be replaced. A page of an earlier report is replaced anyway, with its folder,
            and so is what a report that was stopped left of its folder.

    Raises:
        MissingFile: a folder isn't there.
        InputError: there is no run, the page isn't called .html, or would replace something else.
    """
    page = Path(page)
    beside = page.with_name(f"{page.stem}_files")
    _check(page, beside, overwrite)
    report = Report(find([Path(folder) for folder in folders], without=(page, beside)), Texts(redact))
    if not report.found.runs and not report.found.troubles:
        raise InputError(
            f"there is no run below {', '.join(map(str, folders))}; give a folder that a verb wrote (--out)."
        )
    quoted: Callable[[str], str] = lambda why: "" if redact else f" ({html.visible(why)})"  # noqa: E731
    report.blocks = {run.label: shown for run, shown in report.found.read(lambda run: _shown(report, run), quoted)}
    sections = _sections(report)
    for old in beside.glob("*"):  # all of an earlier page, which may not have been redacted
        if OURS.fullmatch(old.name):
            old.unlink()
    for name, text in report.files.items():
        write_text(beside / name, text.encode("utf-8", "replace").decode("utf-8"))
    names = [Path(folder).resolve().name or "/" for folder in folders]
    where = listed(names) if len(names) <= 3 else some(len(names), "folder")
    measured = [model for run in report.found.runs for model in run.run.models]  # a guard in front makes no other model
    models = list(dict.fromkeys(short(model.name, model.adapter, None) for model in measured))
    title = f"Safety of {html.visible(_together(models))}"
    html.write(page, title, [_part(report, sections, page, where, unfold)])
    return report


def _together(models: Sequence[str]) -> str:
    """Models in a title: LLaDA-8B-Instruct, bare and with mosa."""
    bare = models[0] if models else ""
    if 2 <= len(models) <= 3 and all(name.startswith(f"{bare} + ") for name in models[1:]):
        return f"{bare}, bare and with {listed([name.removeprefix(f'{bare} + ') for name in models[1:]])}"
    return listed(models) if 1 <= len(models) <= 3 else some(len(models), "model") if models else "no model yet"


def _check(page: Path, beside: Path, overwrite: bool) -> None:
    html.check(page, KIND, overwrite)
    # Of a report that was stopped the folder is there and the page isn't.
    ours = page.exists() or (beside.is_dir() and all(OURS.fullmatch(path.name) for path in beside.iterdir()))
    if beside.exists() and not (ours or overwrite):
        raise InputError(f"{beside} is there and is no report of midward; give another --out, or remove it.")
    if beside.is_symlink() or (beside.exists() and not beside.is_dir()):
        raise InputError(f"{beside} is no folder; give another --out, or remove it.")


def _shown(report: Report, run: RunFolder) -> list[Block]:
    """What is shown of a run; a player beside. Raises LeftOut for a verb that has no part on the page."""
    if run.summary is None:
        return []
    if run.run.verb == "trace":
        generations = [stepplayer.Generation(**fields) for fields in run.summary["generations"]]
        name, heading = f"player-{len(report.players)}", f"Generations of {run.label}"
        redact = report.texts.redact
        report.players.append(stepplayer.fragment(generations, name=name, redact=redact, heading=heading))
        return []
    if not present.builder_of(run.run.verb):
        raise LeftOut(f"is a run of midward {run.run.verb}, which has no part here")
    blocks = present.build(run.folder, run.run.model_dump(), run.summary)
    for block in blocks:  # what can't be drawn is told here
        render.files(block)
        render.markdown([block])
    return [report.texts.table(block) for block in blocks]


@dataclass(frozen=True)
class _Section:
    """A part of the page. blocks: tables and figures with the run they are of. notes: sentences."""

    id: str
    title: str
    about: str
    blocks: list[tuple[Table | Figure, str]]
    notes: list[str]


def _sections(report: Report) -> list[_Section]:
    """The parts of the page, and the files of its tables and figures."""
    sections = {name: _Section(name, title, about, [], []) for name, (title, about, _) in SECTIONS.items()}
    utility = [run for run in report.found.runs if run.run.verb == "utility" and report.blocks.get(run.label)]
    scores = {run.label: run.summary for run in utility}
    tasks = [task for summary in scores.values() for task in {str(cell.get("task")) for cell in summary["cells"]}]
    if len(set(tasks)) < len(tasks):
        sections["use"].blocks.append((side_by_side(scores), ""))
    for run in report.found.runs:
        for block in report.blocks.get(run.label, ()):
            if isinstance(block, Table | Figure):
                sections[_section_of(block, run)].blocks.append((block, run.label))
            elif isinstance(block, Statement) and block.tone == "note":
                sections[_section_of(block, run)].notes.append(block.text)
    count = 0
    for section in sections.values():
        for place, (block, label) in enumerate(section.blocks):
            count += 1
            block = replace(block, name=f"{count:02d}-{render.slug(block.name)}")
            section.blocks[place] = block, label
            report.files |= {f"{block.name}.{ending}": text for ending, text in render.files(block).items()}
    rows = [
        [run, talk.title, talk.goal, turn.model, turn.verdict, talk.asked, turn.asked or talk.asked, turn.reply]
        for run, talk in _talks(report)
        for turn in talk.turns
    ]
    if rows:
        head = ["run", "attack", "goal", "model", "verdict", "prompt", "asked", "reply"]
        report.files["samples.csv"] = csv_text(head, rows)
    return [section for section in sections.values() if section.blocks or section.notes]


def _section_of(block: Table | Figure | Statement, run: RunFolder) -> str:
    return block.section or SECTION_OF.get(run.run.verb, "others")


def _talks(report: Report) -> Iterator[tuple[str, Talk]]:
    for label, blocks in report.blocks.items():
        yield from ((label, report.texts.talk(block)) for block in blocks if isinstance(block, Talk))


def _part(report: Report, sections: Sequence[_Section], page: Path, where: str, unfold: bool) -> html.Part:
    files = {
        stem: [(name.rpartition(".")[2].upper(), quote(f"{page.stem}_files/{name}")) for name in names]
        for stem, names in grouped(report.files, lambda name: name.rpartition(".")[0]).items()
    }
    runs = [run for run in report.found.runs if run.label in report.blocks]
    blocks = [(block, run.label, run.run.verb) for run in runs for block in report.blocks[run.label]]
    shown = grouped(_talks(report), lambda pair: (pair[0], pair[1].title))
    talks = [(f"{label}: {title}", talk) for (label, title), several in shown.items() for _, talk in several[:SHOWN]]
    contents = [("verdict", "Verdict"), ("next", "What next"), *((section.id, section.title) for section in sections)]
    contents += [("steps", "Step by step")] if report.players else []
    contents += [("said", "What was said")] if talks else []
    cards = _merged([(block, label) for block, label, _ in blocks if isinstance(block, Card)])
    markup = html.render(
        "report.html.j2",
        mark=html.mark(KIND),
        contents=[*contents, ("settings", "Settings")],
        lead=_lead(runs, where),
        folders=where,
        sandbox=at_home(runs),
        redact=report.texts.redact,
        unfold=unfold,
        cards=[(card, _words(card)) for card in cards],
        claims=_claims(report, runs),
        steps=steps(runs, cards, blocks, report.texts.setting),
        lacks=[
            f"{label}: {block.text}{f': {report.texts(block.quote)}' if block.quote else ''}"
            for block, label, _ in blocks
            if isinstance(block, Missing)
        ],
        troubles=report.found.troubles,
        strangers=report.found.strangers,
        sections=sections,
        several=len(runs) > 1,
        view=_view,
        long=LONG,
        most=MOST,
        svg=lambda figure: chart.svg(figure.charts, f"{figure.title}. {figure.note}"),
        files=files,
        players=[part.markup for part in report.players],
        talks=talks,
        shown=SHOWN,
        version=midward.__version__,
        runs=[
            {
                "label": run.label,
                "verb": run.run.verb,
                "models": listed(_models(run)),
                "settings": list(
                    _flat(run.run.model_dump(exclude={"schema_version", "verb", "command"}), report.texts)
                ),
                "where": report.texts.setting(run.folder / "logs"),
                "logs": [(path.name, html.link(path, page)) for path in run.logs()],
            }
            for run in runs
        ],
        some=some,
    )
    styles = [name for part in report.players for name in part.styles]
    scripts = [name for part in report.players for name in part.scripts]
    return html.Part(markup, styles=(*styles, "report.css"), scripts=(*scripts, "report.js"))


def _claims(report: Report, runs: Sequence[RunFolder]) -> list[tuple[Statement, str, str]]:
    """The verdict's sentences with their run and section: what is good or bad news, or each run's first note."""
    claims = []
    for run in runs:
        statements = [block for block in report.blocks[run.label] if isinstance(block, Statement)]
        news = [statement for statement in statements if statement.tone != "note"]
        claims += [(statement, run.label, _section_of(statement, run)) for statement in news or statements[:1]]
    return sorted(claims, key=lambda claim: TONES.index(claim[0].tone))


def _merged(cards: Sequence[tuple[Card, str]]) -> list[Card]:
    """A card for each model, adapter, guard and judge: of several runs the worst. Others of one name are told apart by
    their run, in the title."""
    alike = grouped(cards, lambda pair: tuple(pair[0].of.items()) or (pair[0].model, pair[1]))
    worst = [min(group, key=lambda pair: (TONES.index(pair[0].tone), -pair[0].share)) for group in alike.values()]
    counts = Counter(card.model for card, _ in worst)
    return [
        replace(
            card,
            model=f"{card.model} in {label}" if counts[card.model] > 1 else card.model,
            about=f"{card.about}; the worst of {len(group)} runs, {label}" if len(group) > 1 else card.about,
        )
        for (card, label), group in zip(worst, alike.values(), strict=True)
    ]


def _words(card: Card) -> str:
    """What a card is of: LLaDA-8B-Instruct + mosa behind sri, judged by oracle."""
    judge = f", judged by {card.of['judge']}" if "judge" in card.of else ""
    return short(*map(card.of.get, ("model", "adapter", "guard"))) + judge


def _view(cell: Cell) -> dict[str, Any]:
    """What the template needs of a cell: its text in parts, and of a number how it is drawn."""
    value, interval, size = parts(cell)
    view: dict[str, Any] = {"kind": "text", "value": value, "interval": interval, "size": size}
    if not isinstance(cell, Mapping | Estimate):
        return view
    number = reading(cell)
    if number.value is None:
        return view | {"kind": "none"}
    if isinstance(number, Paired):
        ends = [max(-1.0, min(1.0, 0.0 if end is None else end)) for end in (number.value, number.low, number.high)]
        return view | {"kind": "gap", "sure": number.apart(), "at": [60 + 58 * end for end in ends]}
    return view | {"kind": "number", "step": heat_step(number) or 0}


def heat_step(number: Estimate) -> int | None:
    """The colour of a rate, 0 to 10; None of any other number, and where nothing was scored."""
    if not isinstance(number, Rate) or number.value is None:
        return None
    return min(10, max(0, round(10 * number.value)))


def _models(run: RunFolder) -> list[str]:
    """The models of a run by short names: LLaDA-8B-Instruct + mosa behind sri."""
    return list(dict.fromkeys(short(model.name, model.adapter, model.guard) for model in run.run.models))


def _lead(runs: Sequence[RunFolder], where: str) -> str:
    counts = Counter(run.run.verb for run in runs)
    verbs = [f"{verb}{f' ({count})' if count > 1 else ''}" for verb, count in counts.items()]
    return f"{some(len(runs), 'run')} in {where}: {listed(verbs)}." if runs else f"No run in {where}."


def _flat(settings: Any, texts: Texts, name: str = "") -> Iterator[tuple[str, str]]:
    """name.of.a.setting -> its value as text; what isn't set is left out."""
    if isinstance(settings, Mapping) or (isinstance(settings, list) and any(isinstance(v, Mapping) for v in settings)):
        items = settings.items() if isinstance(settings, Mapping) else enumerate(settings, 1)
        for key, value in items:
            yield from _flat(value, texts, f"{name}.{key}" if name else str(key))
    elif settings not in (None, "", []):
        values = settings if isinstance(settings, list) else [settings]
        yield name, ", ".join(map(texts.setting, values))
