"""`midward report`: one page from any set of run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from midward._flags import Flag
from midward.cli._run import Result
from midward.cli._show import say


def report(
    folders: Annotated[list[Path], Flag(argument=True, metavar="DIR")],
    page: Annotated[Path, Flag(name="--out")] = Path("report.html"),
    redact: Annotated[bool, Flag()] = False,
    unfold: Annotated[bool, Flag()] = False,
    avid: Annotated[Path | None, Flag()] = None,
) -> Result:
    """Make one self-contained HTML page of what other commands computed: verdict, figures, tables, settings.

    What is missing is named. Nothing is computed and no model is loaded.

    Args:
        folders: Folders that midward commands wrote, or above them.
        page: The page; tables and figures go to a folder beside it.
        redact: Prompts, goals and responses by length and hash only, for sharing.
        unfold: Show what was said at once; it may hold harmful text.
        avid: Also write this file, a report in the layout of the AI Vulnerability Database a line, of each row of
            midward attack.
    """
    from midward.reports import report as room

    made = room.write(folders, page, redact=redact, unfold=unfold)
    for where, what in made.found.troubles:
        say(f"warning   {where} {what}")
    if avid:
        from midward.reports import avid as vulnerabilities

        say(f"avid      {vulnerabilities.write(made.found.runs, avid)} in {avid}, a report a line")
    runs = len(made.found.runs)
    return Result({"page": page, "runs": runs}, files=f"runs      {runs}; open {page}")
