"""`midward audit`: what an endpoint lets in."""

from __future__ import annotations

from typing import Annotated

from midward._flags import Flag
from midward.audit.config import AuditConfig
from midward.cli._run import Result
from midward.cli._show import following

#: Exit status by verdict.
STATUS = {"closed": 0, "open": 10, "unclear": 11}


def audit(url: Annotated[str, Flag(argument=True, metavar="URL")], config: AuditConfig) -> Result:
    """Ask an endpoint, by harmless requests alone, what it lets in that chat doesn't need, and which attacks that makes
    possible.

    Ends with status 10 where it lets something in, 11 where nothing shows but some checks can't tell, 2 where nobody
    answers.

    Args:
        url: Its address, with or without /v1.
    """
    from midward.audit import audit as room
    from midward.reports import render
    from midward.reports.builders.audit import blocks

    with following() as show:
        summary = room.audit(url, config, lambda done, of: show("checks", done, of))
    return Result(summary, render.terminal(blocks(summary)), status=STATUS[summary["verdict"]])
