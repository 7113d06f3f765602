"""A verb's folder, and how a verb ends."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midward.cli._show import columns as aligned
from midward.cli._show import say
from midward.cli._verb import Option, names, running

if TYPE_CHECKING:
    from midward.judges.bench import Bench
    from midward.runs.run import RunFolder


def run_folder(folder: Path, anew: bool | None = None, **read: Any) -> RunFolder:
    """The --out of the verb that is running, which knows the flags that decide its results.

    Args:
        anew: as for `RunFolder`.
        read: parameters whose value is recorded otherwise than it was given.

    Raises:
        InputError: the folder can't be written, or holds a run of other flags.
    """
    from midward.runs.run import RunFolder

    verb, given = running.get()
    given = {name: (each, read.get(name, value)) for name, (each, value) in given.items()}
    deciding = [(each.spellings[0], each.flag.grows, value) for each, value in given.values() if not each.flag.free]
    settings = {flag: _as_json(value, grows) for flag, grows, value in deciding}
    run = RunFolder(folder, verb, settings, grows=[flag for flag, grows, _ in deciding if grows], anew=anew)
    run.run.command = _command(verb, given)
    return run


def command_line() -> list[str]:
    """The verb that is running with what was given: the command that goes on with its run, without its --out."""
    return _command(*running.get())


def _command(verb: str, given: Mapping[str, tuple[Option, Any]]) -> list[str]:
    return ["midward", *verb.split(), *_words(given.values())]


def _words(given: Iterable[tuple[Option, Any]]) -> Iterator[str]:
    """What was given on the command line, but for where to and --overwrite: what is as by default is left out."""
    for option, value in given:
        default = ",".join(map(str, option.default)) if isinstance(option.default, tuple) else option.default
        flag = [] if option.flag.argument else [option.spellings[0]]
        if value is None or value is False or value == default or flag in (["--out"], ["--overwrite"]):
            continue
        for each in value if isinstance(value, list) else [value]:
            yield from flag if each is True else [*flag, str(each)]


def _as_json(value: Any, by_comma: bool) -> Any:
    """A flag's value; a file with a hash of what is in it."""
    if by_comma and isinstance(value, str):
        value = names(value)
    if isinstance(value, list | tuple):
        return [_as_json(each, False) for each in value]
    if isinstance(value, str | Path) and os.path.isfile(value):
        return f"{value} (sha256 {hashlib.sha256(Path(value).read_bytes()).hexdigest()[:12]})"
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True)
class Result:
    """What a verb found.

    Args:
        data: as JSON, for --json.
        text: the same for a person.
        files: what was written, told on stderr.
        failed: why it is no result, told on stderr; the exit status is then 1.
        then: the command that shows more of it, told on stderr where a person reads.
        status: the exit status of a result that is itself a verdict.
    """

    data: Any
    text: str = ""
    files: str = ""
    failed: str = ""
    then: str = ""
    status: int = 0

    def json(self) -> str:
        """The data on lines; numbers that aren't finite are null."""
        return json.dumps(_finite(self.data), indent=1, ensure_ascii=False, default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def listing(columns: Sequence[str], rows: Sequence[Sequence[Any]], text: str = "") -> Result:
    """A list: JSON records, or lines of aligned columns; text stands behind them."""
    lines = aligned([tuple(columns), *(tuple(str(cell) or "-" for cell in row) for row in rows)])
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    return Result(records, "\n".join([*lines, *(["", text] if text else [])]))


def plugins(found: Mapping[str, Any], kind: type, columns: Mapping[str, Callable[[Any], Any]]) -> Result:
    """A list of what the package and others offer. columns: name -> what of an info stands there. What can't be loaded
    stands below, with its reason."""
    rows = [
        [name, *(cell(info) for cell in columns.values())] for name, info in found.items() if isinstance(info, kind)
    ]
    broken = [f"{name}: {error}" for name, error in found.items() if not isinstance(error, kind)]
    return listing(["name", *columns], rows, "\n".join(broken))


def finish(
    run: RunFolder,
    summary: Mapping[str, Any],
    failed: str = "",
    files: str = "table.md, summary.json, rows.jsonl",
    judge: Bench | None = None,
) -> Result:
    """The end of a verb: summary.json, tables and figures in its folder, and what is shown of them.

    Args:
        run: the verb's folder.
        summary: its numbers, as JSON.
        failed: why there is no result, though there is a summary.
        files: what the folder holds, told on stderr.
        judge: what it gave no verdict on is told; where that is all that it was asked, there is no result.
    """
    from midward.reports import render
    from midward.reports.present import present

    if os.environ.get("RANK", "0") != "0":  # under torchrun the first process has the rows
        return Result(None)
    run.finish(summary)
    blocks = present(run.folder, run.run.model_dump(), summary)
    if judge is not None and judge.trouble:
        if judge.tally[None]:
            say(f"judge     {judge.trouble}")
        else:
            failed = judge.trouble
    then = f"midward report {shlex.quote(str(run.folder))}"
    return Result(summary, render.terminal(blocks), f"{run.folder}: {files}", failed, then)
