"""`midward report --board`: one static page of attack success, a row each model, defence and attack.

It reads `run.json` and `summary.json` of each folder. Nothing is pooled: what two runs measured stands twice.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import midward
from midward.errors import InputError
from midward.reports import html
from midward.reports.blocks import parts
from midward.reports.measured import READERS, Success, successes
from midward.reports.report.find import Found, RunFolder, at_home, find
from midward.reports.report.page import Texts, heat_step

KIND = "board"
#: What a row is told apart and filtered by: the column's head -> the field.
COLUMNS = {"model": "model", "defence": "defence", "attack": "attack", "goals": "goals", "judge": "judge"}


def write(folders: Sequence[str | Path], page: str | Path, *, redact: bool = False) -> Found:
    """Write the board of all runs below `folders`.

    Args:
        folders: what midward commands wrote, or folders above.
        page: the file; an earlier board is replaced.
        redact: for sharing: paths without the folders above them, texts in commands by length and hash, no links.

    Returns:
        The runs that are on it, and what isn't (`troubles`).

    Raises:
        MissingFile: a folder isn't there.
        InputError: no run has a rate of attack success, the page isn't called .html, or would replace something else.
    """
    page, texts = Path(page), Texts(redact)
    html.check(page, KIND)
    found = find([Path(folder) for folder in folders], without=(page,))
    measured = [(run, of_run) for run, of_run in found.read(successes) if of_run]
    rows = [row for _, of_run in measured for row in of_run]
    if not rows:
        why = "".join(f" {where} {what};" for where, what in found.troubles[:3])
        raise InputError(f"no run of {' or '.join(READERS)} below {', '.join(map(str, folders))} can be shown.{why}")
    others = sum(run.run.verb not in READERS for run in found.runs)
    found.runs = [run for run, _ in measured]
    rows.sort(key=lambda row: (row.model, row.attack, row.goals, row.judge, row.defence != "none", row.defence))
    markup = html.render(
        "board.html.j2",
        mark=html.mark(KIND),
        columns=list(COLUMNS),
        filters={name: sorted({_value(row, name) for row in rows}) for name in COLUMNS},
        rows=[_row(row, page, texts) for row in rows],
        runs=len(found.runs),
        others=others,
        sandbox=at_home(found.runs),
        redact=redact,
        troubles=[(where, texts(what)) for where, what in found.troubles],
        version=midward.__version__,
    )
    title = f"Attack success of {html.visible(_title(rows))}"
    html.write(page, title, [html.Part(markup, styles=("report.css", "board.css"), scripts=("board.js",))])
    return found


def _title(rows: Sequence[Success]) -> str:
    models = list(dict.fromkeys(row.model for row in rows))
    return models[0] if len(models) == 1 else f"{len(models)} models"


def _value(row: Success, column: str) -> str:
    return str(getattr(row, COLUMNS[column])) or "-"


def _row(row: Success, page: Path, texts: Texts) -> Mapping[str, Any]:
    """What the template needs of a row: names, the number in parts, where it lies on 0..100, its run."""
    value, interval, size = parts(replace(row.rate, unscored=0))
    fingerprint = row.of[0].fingerprint if len(row.of) == 1 else None
    return {
        "names": {column: _value(row, column) for column in COLUMNS},
        "rate": row.rate,
        "value": value,
        "interval": interval,
        "size": size.removeprefix("n "),
        "step": heat_step(row.rate),
        "at": [100 * (end or 0.0) for end in (row.rate.value, row.rate.low, row.rate.high)],
        "notes": list(_notes(row, texts)),
        "fingerprint": fingerprint,
        "run": row.run.label,
        "link": None if texts.redact else html.link(row.run.folder / "run.json", page),
        "command": _command(row.run, texts),
    }


def _notes(row: Success, texts: Texts) -> Iterator[str]:
    """What else belongs to a number."""
    yield f"unscored {row.rate.unscored}"
    if row.errors:
        yield f"failed {row.errors}"
    if row.text != "reply":
        yield {"replay": "fresh reply", "authored": "own tokens alone"}.get(row.text, row.text)
    if row.run.unfinished:
        yield row.run.unfinished
    if row.warning:
        yield texts(row.warning)


def _command(run: RunFolder, texts: Texts) -> str:
    """The command that measures it again; empty where no midward command did, or its record names another program."""
    words, verb = run.run.command, run.run.verb.split()
    known = words[: 1 + len(verb)] == ["midward", *verb]
    return shlex.join([*words[: 1 + len(verb)], *map(texts.setting, words[1 + len(verb) :])]) if known else ""
