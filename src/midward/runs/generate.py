"""A response for every row of a table, written as they come and resumed after a kill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from midward._tables import Row, require_column
from midward.errors import InputError
from midward.goals import Goal
from midward.models import LanguageModel
from midward.runs.measure import Case, Front, measure
from midward.runs.run import Measured, RunFolder
from midward.runs.workers import Workers
from midward.sampling import Request, Sampling, Watcher
from midward.store import RowFile

#: Fields of a row that a column of the table can't have.
OWN = ("key", "index", "prompt", "response", "ended", "nfe", "steps", "seconds", "guard", "error")


def generate(
    model: LanguageModel,
    rows: Sequence[Row],
    out: str | Path,
    *,
    column: str = "prompt",
    sampling: Sampling | None = None,
    guard: Front | None = None,
    batch_size: int = 8,
    limit: int | None = None,
    overwrite: bool = False,
    watchers: Sequence[Watcher] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
    workers: Workers = 1,
    command: Sequence[str] = (),
) -> list[Row]:
    """Sample a response to `column` of every row of a table.

    Called again it goes on where it stopped, and takes more rows of the same table. The record of the run (model,
    adapter, guard, sampling, versions) stands beside `out`, in `<out>.run.json`.

    Args:
        model: What answers.
        rows: The table. A prompt is a text, or a conversation (a list of {"role", "content"}); a row with another has
            an error in its response's place, and stops no other.
        out: File of JSON lines, one a row.
        column: Where the prompts are.
        sampling: The settings; None takes the guard's, or the model's own defaults.
        guard: Stands in front of the model; a flagged response is its stub.
        batch_size: Rows a forward, 1 or more.
        limit: Only the first rows of the table, 1 or more.
        overwrite: Start anew where `out` holds something already.
        watchers: See the steps.
        progress: Called with the rows that are there and those wanted.
        workers: How many processes share the rows, see `midward.runs.workers`; the file then has them as they come.
        command: Of the run's record: the command line that asks for it, if one does.

    Returns:
        The rows written, in the table's order: key, index (from 0), prompt, response, ended, nfe (forwards), steps,
        seconds (its share of its chunk's), error (None, or why there is no response), the guard's verdict, and the
        table's other columns; one named like these is written as source_<name>.

    Raises:
        InputError: The column is missing, or `out` holds rows of another run and `overwrite` is not set.
        ModelError: No row has a response.
    """
    out = Path(out)
    require_column(rows, column, "the table")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be 1 or more; received {limit}.")
    sampling = sampling or Sampling.for_model(model, **getattr(guard, "sampling", {}))
    digest = None if guard is None else guard.digest
    settings = {"column": column, "fingerprint": model.fingerprint, "guard_digest": digest, **asdict(sampling)}
    folder = RunFolder(out.parent, "generate", settings, anew=overwrite, file=out.name)
    folder.run.command = list(command)
    cases = [_case(row, column, index) for index, row in enumerate(rows)]
    there = {} if overwrite else RowFile(out).rows
    if strange := [row["index"] for row in there.values() if not _is_of(row, cases)]:
        raise InputError(
            f"{out} holds another run: row {strange[0]} there is not of this table. Give another --out, or --overwrite."
        )
    folder.start([Measured.of(model, digest=digest)], sampling=asdict(sampling), seed=sampling.seed)
    if overwrite:  # not before the lock: another process may be writing
        out.unlink(missing_ok=True)
    measured = measure(
        model,
        cases[:limit],
        out.parent,
        sampling=sampling,
        guard=guard,
        batch_size=batch_size,
        watchers=watchers,
        progress=progress,
        file=out.name,
        strict=False,
        workers=workers,
    )
    folder.finish()
    return measured


def _case(row: Row, column: str, index: int) -> Case:
    prompt: Any = row.get(column)
    error = None
    if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
        error = f"row {index} has an empty prompt"
    elif not isinstance(prompt, str | list):
        error = f"row {index}: a prompt is a text or a list of messages; received {prompt!r}"
    others = {_free(name, row): value for name, value in row.items() if name != column}
    about = {"index": index, "error": None, **others}
    goal = Goal(str(index), str(prompt), "table", harmful=False)  # nothing is known of it, so no row says anything
    return Case(goal, Request(prompt), about=about, error=error, bare=True)


def _free(name: str, row: Row) -> str:
    """A column's name in the rows that are written."""
    free = name
    while free in OWN or (free != name and free in row):
        free = f"source_{free}"
    return free


def _is_of(row: Row, cases: Sequence[Case]) -> bool:
    index = row.get("index", -1)
    if not 0 <= index < len(cases):
        return False
    case: Any = cases[index]
    asked = {**case.about, "prompt": case.request.prompt}
    return all(row.get(name) == value for name, value in asked.items() if name != "error")
