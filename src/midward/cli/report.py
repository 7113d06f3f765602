"""`midward report`: one page from any set of run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from midward.cli._show import say


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR", help="Folders that midward commands wrote, or above them.")
    ],
    page: Annotated[Path, typer.Option("--out", help="The page; tables and figures go to a folder beside it.")] = Path(
        "report.html"
    ),
    redact: Annotated[
        bool, typer.Option("--redact", help="Prompts, goals and responses by length and hash only, for sharing.")
    ] = False,
    unfold: Annotated[
        bool, typer.Option("--unfold", help="Show what was said at once; it may hold harmful text.")
    ] = False,
) -> None:
    """Make one self-contained HTML page of what other commands computed: verdict, figures, tables, settings.

    What is missing is named. Nothing is computed and no model is loaded.
    """
    from midward.reports import report as room

    made = room.write(folders, page, redact=redact, unfold=unfold)
    for where, what in made.found.troubles:
        say(f"warning   {where} {what}")
    say(f"runs      {len(made.found.runs)}; open {page}")
