"""`midward report`: one page from any set of run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from midward._flags import Flag
from midward.cli._run import Result
from midward.cli._show import say
from midward.errors import InputError


def report(
    folders: Annotated[list[Path], Flag(argument=True, metavar="DIR")],
    page: Annotated[Path | None, Flag(name="--out")] = None,
    board: Annotated[bool, Flag()] = False,
    card: Annotated[Path | None, Flag(metavar="DIR")] = None,
    redact: Annotated[bool, Flag()] = False,
    unfold: Annotated[bool, Flag()] = False,
    avid: Annotated[Path | None, Flag()] = None,
) -> Result:
    """Make one self-contained HTML page of what other commands computed: verdict, figures, tables, settings.

    What is missing is named. Nothing is computed and no model is loaded.

    Args:
        folders: Folders that midward commands wrote, or above them.
        page: The page, by default report.html, of a board board.html; a report's tables go to a folder beside it.
        board: A page of attack success alone: every model, defence and attack of all runs, to be sorted and filtered.
        card: An adapter's folder: no page, but its model card is filled from the runs that are of it.
        redact: Prompts, goals and responses by length and hash only, for sharing.
        unfold: Show what was said at once; it may hold harmful text.
        avid: Also write this file, a report in the layout of the AI Vulnerability Database a line, of each row of
            midward attack.
    """
    if card is not None and (page or board or redact or unfold):
        raise InputError("--card writes no page; leave --out, --board, --redact and --unfold out beside it.")
    if board and unfold:
        raise InputError("--unfold is of the report: a board shows nothing that was said.")
    if card is not None:
        from midward.reports import card as cards

        filled = cards.fill(folders, card)
        for label, why in filled.left_out:
            say(f"left out  {label} {why}")
        return Result({"card": filled.card, "runs": filled.runs}, files=f"runs      {len(filled.runs)}; {filled.card}")
    if board:
        from midward.reports import board as boards

        page = page or Path("board.html")
        found = boards.write(folders, page, redact=redact)
        for label, why in found.troubles:
            say(f"warning   {label} {why}")
        return Result({"page": page, "runs": len(found.runs)}, files=f"runs      {len(found.runs)}; open {page}")
    from midward.reports import report as room

    page = page or Path("report.html")

    made = room.write(folders, page, redact=redact, unfold=unfold)
    for where, what in made.found.troubles:
        say(f"warning   {where} {what}")
    if avid:
        from midward.reports import avid as vulnerabilities

        say(f"avid      {vulnerabilities.write(made.found.runs, avid)} in {avid}, a report a line")
    runs = len(made.found.runs)
    return Result({"page": page, "runs": runs}, files=f"runs      {runs}; open {page}")
