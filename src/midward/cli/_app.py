"""The `midward` command: its verbs, and how errors and Ctrl-C end it."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import midward
from midward.cli import (
    align,
    attack,
    chat,
    demo,
    dynamics,
    generate,
    goals,
    guard,
    judges,
    models,
    probe_ask,
    probe_gcg,
    probe_order,
    probe_prefill,
    report,
    sandbox,
    trace,
    utility,
)
from midward.cli._options import verb
from midward.cli._show import printable, say

STOPPED = "\nstopped. What was written is kept: the same command goes on from there."


class _Verbs(TyperGroup):
    """Bad input ends in one clear line and exit status 2, Ctrl-C in 130; MIDWARD_DEBUG=1 shows tracebacks."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say(STOPPED)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise
        except Exception as error:
            message = _message(error)
            if message is None or os.environ.get("MIDWARD_DEBUG") == "1":
                raise
            sys.stderr.write(f"error: {printable(message)}\n")  # by every process under torchrun
            raise typer.Exit(2) from None


def _message(error: Exception) -> str | None:
    """What to tell of bad input; None for what is a fault of ours."""
    # Errors of midward and torch are known by name: importing them here would import torch.
    kind = type(error)
    if isinstance(error, NotADirectoryError | FileExistsError) and error.filename:
        return f"{error.filename} can't be made: a file stands where a folder is needed; give another path."
    if isinstance(error, ValueError | OSError) or kind.__module__.startswith("midward."):
        return str(error)
    if kind.__name__ == "OutOfMemoryError":
        return "the device is out of memory; use a smaller --batch-size, --length or model."
    return None


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"midward {midward.__version__}\n")
        raise typer.Exit()


#: The command line: every verb is registered below.
app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _midward(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version.")
    ] = False,
) -> None:
    """Measure, align and guard diffusion language models."""


app.command("demo")(verb(demo.demo))
app.command("generate")(verb(generate.generate))
app.command("chat")(verb(chat.chat))
app.command("trace")(verb(trace.trace))
app.command("align")(verb(align.align))
app.command("attack")(verb(attack.attack))
app.command("dynamics")(verb(dynamics.dynamics))
app.command("utility")(verb(utility.utility))
app.command("report")(verb(report.report))
app.command("goals")(verb(goals.goals))
judges_verbs = typer.Typer(invoke_without_command=True, callback=judges.judges)
judges_verbs.command("check")(verb(judges.check))
app.add_typer(judges_verbs, name="judges")
app.command("models")(verb(models.models))
probe_verbs = typer.Typer(
    no_args_is_help=True, help="Where a model's safety sits in a response, and what an attacker can reach."
)
probe_verbs.command("prefill")(verb(probe_prefill.prefill))
probe_verbs.command("mirror")(verb(probe_prefill.mirror))
probe_verbs.command("order")(verb(probe_order.order))
probe_verbs.command("gcg")(verb(probe_gcg.gcg))
probe_verbs.command("ask")(verb(probe_ask.ask))
app.add_typer(probe_verbs, name="probe")
guard_verbs = typer.Typer(
    no_args_is_help=True, help="Guards: fit them for a model, answer behind one, compare."
)
guard_verbs.command("fit")(verb(guard.fit))
guard_verbs.command("score")(verb(guard.score))
guard_verbs.command("eval")(verb(guard.evaluate))
app.add_typer(guard_verbs, name="guard")
sandbox_verbs = typer.Typer(no_args_is_help=True, help="The embedded model: train it, measure it.")
sandbox_verbs.command("build")(verb(sandbox.build))
sandbox_verbs.command("measure")(verb(sandbox.measure))
app.add_typer(sandbox_verbs, name="sandbox")


def main() -> None:
    """Entry point of the `midward` command."""
    app()
