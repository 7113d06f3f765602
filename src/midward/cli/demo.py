"""`midward demo`: the whole story on the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from midward.cli._show import following, out, say


def demo(
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for the report.")] = Path("report"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute everything again, whatever is in --out.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Few goals and steps: a first look.")] = False,
    goals: Annotated[int | None, typer.Option(help="Goals a set of trials (60).")] = None,
    seeds: Annotated[int | None, typer.Option(help="Training seeds an arm (1).")] = None,
    arms: Annotated[
        str | None,
        typer.Option(
            help="What to compare with the base model, by comma: initial, mosa, and either with -published or -paper."
        ),
    ] = None,
) -> None:
    """Attack the sandbox model, align it at its opening and in its middle, attack all three, write a page."""
    from midward.demo import plan_of, run

    plan = plan_of(quick=quick, goals=goals, seeds=seeds, arms=arms)
    with following(aloud=True) as show:
        result = run(out_folder, plan=plan, fresh=fresh, progress=show)
    if result.kept:
        say(f"kept      what isn't a demo's: {', '.join(result.kept)}")
    out(result.table)
    say(f"open {result.page}")
