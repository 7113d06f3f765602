"""`midward compare`: what changed from one run to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from midward._flags import Flag
from midward.cli._run import Result, finish, run_folder
from midward.runs.run import Run


def compare(
    folders: Annotated[list[Path], Flag(argument=True, metavar="DIR")],
    out_folder: Annotated[Path | None, Flag(name="--out", free=True)] = None,
) -> Result:
    """Hold runs against each other: the first minus each other one, paired by what both were asked.

    Runs of attack, utility, guard eval, dynamics and the probes; p is corrected for the comparisons of a table (Holm).

    Args:
        folders: Folders of two runs or more of one verb; what the others are taken from first.
        out_folder: A folder for the tables, which midward report shows.
    """
    run = run_folder(out_folder) if out_folder else None
    for folder in folders:
        Run.load(folder)  # before torch is imported
    from midward.reports import compare as room
    from midward.reports import render
    from midward.reports.builders.compare import blocks

    summary = room.between(folders)
    if run is None:
        return Result(summary, render.terminal(blocks(Path(), {}, summary)))
    run.start()
    return finish(run, summary)
