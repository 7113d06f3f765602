"""`midward gate`: do runs meet a release criterion?"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from midward._flags import Flag
from midward.cli._run import Result, finish, run_folder
from midward.store import write_text

#: Exit status by verdict.
STATUS = {"held": 0, "broken": 10, "unclear": 11}


def gate(
    folders: Annotated[list[Path], Flag(argument=True, metavar="DIR")],
    most: Annotated[list[str] | None, Flag(name="--max", metavar="NAME=SHARE")] = None,
    least: Annotated[list[str] | None, Flag(name="--min", metavar="NAME=SHARE")] = None,
    baseline: Annotated[list[Path] | None, Flag(metavar="DIR")] = None,
    unclear: Annotated[Literal["fail", "ok"], Flag(free=True)] = "fail",
    junit: Annotated[Path | None, Flag(free=True)] = None,
    sarif: Annotated[Path | None, Flag(free=True)] = None,
    github: Annotated[bool, Flag(free=True)] = False,
    out_folder: Annotated[Path | None, Flag(name="--out", free=True)] = None,
) -> Result:
    """Decide whether runs meet a release criterion, by the ends of 95 % intervals: held, broken or unclear.

    Ends with status 0 where all of it is held, 10 where some is broken, else 11: more goals are needed, or verdicts.

    Args:
        folders: Folders of runs, or above them: attack, guard eval, utility, dynamics, probes.
        most: What a measure may be at most, e.g. asr=0.1, asr.pad=0.2 or flagged.benign=0.02; may be given several
            times.
        least: What a measure must be at least, e.g. right.sums=0.95; may be given several times.
        baseline: Folder of earlier runs, than which nothing may be measurably worse, paired by goal; may be given
            several times.
        unclear: Whether an unclear criterion fails (status 11) or passes (0).
        junit: A file for the criteria as JUnit's tests.
        sarif: A file for what is broken as SARIF 2.1.0.
        github: A Markdown summary, to the file that GITHUB_STEP_SUMMARY names, else to stdout.
        out_folder: A folder for the tables, which midward report shows.
    """
    run = run_folder(out_folder) if out_folder else None
    from midward.reports import checks, render
    from midward.reports import gate as room
    from midward.reports.builders.gate import blocks

    summary = room.decide(folders, room.thresholds(most or (), least or ()), baseline or ())
    verdict, page = summary["verdict"], os.environ.get("GITHUB_STEP_SUMMARY")
    if junit:
        write_text(junit, checks.junit(summary, unclear_fails=unclear == "fail"))
    if sarif:
        write_text(sarif, checks.sarif(summary))
    if github and page:
        with Path(page).open("a", encoding="utf-8") as file:
            file.write(checks.markdown(summary))
    if run is None:
        shown = Result(summary, render.terminal(blocks(Path(), {}, summary)))
    else:
        run.start()
        shown = finish(run, summary, files="table.md, summary.json")
    if github and not page:
        shown = replace(shown, text=checks.markdown(summary))
    return replace(shown, status=0 if (verdict, unclear) == ("unclear", "ok") else STATUS[verdict])
