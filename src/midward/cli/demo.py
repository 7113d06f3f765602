"""`midward demo`: the whole story on the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from midward.cli._show import bar, out, say


def demo(
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for the report.")] = Path("report"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Compute everything again, whatever is in --out.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Few goals and steps: a first look.")] = False,
) -> None:
    """Attack the sandbox model, align it at its opening and in its middle, attack all three, write a page."""
    from midward.demo import run

    with bar() as progress:
        tasks = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
                if progress.disable:
                    say(what)
            progress.update(tasks[what], completed=done, total=total)

        result = run(out_folder, fresh=fresh, quick=quick, progress=show)
    out(result.table)
    say(f"open {result.page}")
