"""`midward report`: one page from any set of run folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from midward._flags import Flag
from midward.cli._run import Result
from midward.cli._show import say
from midward.errors import InputError

if TYPE_CHECKING:
    from midward.reports.report.find import Found


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
    if card and (page or board or redact or unfold or avid):
        raise InputError("--card writes no page; leave --out, --board, --redact, --unfold and --avid out beside it.")
    if board and (unfold or avid):
        raise InputError("--unfold and --avid are of the report; leave them out beside --board.")
    if card:
        from midward.reports import card as cards

        filled = cards.fill(folders, card)
        for label, why in filled.left_out:
            say(f"left out  {label} {why}")
        return Result({"card": filled.card, "runs": filled.runs}, files=f"runs      {len(filled.runs)}; {filled.card}")
    page = page or Path("board.html" if board else "report.html")
    if board:
        from midward.reports import board as boards

        return _page(page, boards.write(folders, page, redact=redact))
    from midward.reports import report as room

    found = room.write(folders, page, redact=redact, unfold=unfold).found
    if avid:
        from midward.reports import avid as vulnerabilities

        say(f"avid      {vulnerabilities.write(found, avid)} in {avid}, a report a line")
    return _page(page, found)


def _page(page: Path, found: Found) -> Result:
    """What is said of a page: which runs aren't on it, and how many are."""
    for label, why in dict.fromkeys(found.troubles):
        say(f"warning   {label} {why}")
    runs = len(found.runs)
    return Result({"page": page, "runs": runs}, files=f"runs      {runs}; open {page}")
