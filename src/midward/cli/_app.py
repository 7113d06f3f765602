"""The `midward` command: its verbs, and how errors and Ctrl-C end it."""

from __future__ import annotations

import ast
import errno
import os
import sys
import warnings
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from midward._flags import summary
from midward._process import settle_process
from midward._version import running_version
from midward.errors import InputError, MidwardError

#: Verb -> the function that does it, and the file beside this one that it is in.
VERBS = {
    "generate": "generate:generate",
    "chat": "chat:chat",
    "serve": "serve:serve",
    "audit": "audit:audit",
    "trace": "trace:trace",
    "align": "align:align",
    "attack": "attack:attack",
    "dynamics": "dynamics:dynamics",
    "utility": "utility:utility",
    "compare": "compare:compare",
    "gate": "gate:gate",
    "report": "report:report",
    "goals": "goals:goals",
    "models": "models:models",
    "judges": "judges:judges",
    "judges check": "judges:check",
    "probe prefill": "probe:prefill",
    "probe anchor": "probe:anchor",
    "probe mirror": "probe:mirror",
    "probe order": "probe:order",
    "probe gcg": "probe:gcg",
    "probe ask": "probe:ask",
    "guard fit": "guard:fit",
    "guard score": "guard:score",
    "guard eval": "guard:evaluate",
}
GROUPS = {
    "judges": "List the judges; `check` measures them on labelled responses.",
    "probe": "Where a model's safety sits in a response, and what an attacker can reach.",
    "guard": "Guards: fit them for a model, answer behind one, compare.",
}
#: Flags that had another name.
MOVED = {
    "recipe": "--recipe FILE is now --config FILE.",
    "objective": "--objective is now --recipe.",
    "chunk_rows": "--chunk-rows is gone: chunks are chosen by their bytes.",
}


class Group(TyperGroup):
    """A group whose verbs are imported when they run or their flags are asked for (click's LazyGroup).

    A list of verbs needs the first lines of their docstrings alone, which are read without importing them.
    """

    #: What stands before its verbs in `VERBS`.
    words = ""

    def list_commands(self, ctx: Any) -> list[str]:
        verbs = [verb.removeprefix(self.words) for verb in _behind(self.words)]
        return list(dict.fromkeys(verb.split()[0] for verb in verbs))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        verb = self.words + cmd_name
        return TyperCommand(name=cmd_name, help=GROUPS.get(verb) or _summary(verb))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        self.commands = {name: TyperCommand(name=name) for name in self.list_commands(ctx)}  # for "did you mean"
        self.callback = None  # a group that is a verb as well is none beside another word
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and load(self.words + str(name)), rest


def _behind(words: str) -> dict[str, str]:
    """The verbs behind these words, as `VERBS` has them; behind "probe " also the probes of other packages."""
    added = {}
    if words == "probe ":
        from midward._plugins import names

        added = {f"probe {name}": f"probe:{name}" for name in names("probe")}
    return added | {verb: function for verb, function in VERBS.items() if verb.startswith(words)}


def load(words: str) -> Any:
    """The command of a verb, its file imported; or a group, which runs without another word where it is a verb too."""
    return _group(words) if words in GROUPS else _verb(words)


def _group(name: str) -> Group:
    settings: dict[str, Any] = {"no_args_is_help": True}
    if name in VERBS:
        alone = _verb(name)
        settings = {"invoke_without_command": True, "params": alone.params, "callback": alone.callback}
    group = Group(name=name, help=GROUPS[name], **settings)
    group.words = f"{name} "
    if name == "probe":
        from midward._plugins import taken

        group.epilog = "\n\n".join(taken("probe", [verb.removeprefix("probe ") for verb in VERBS]))
    return group


class Verb(TyperCommand):
    """One verb. A flag that isn't known comes with what another library's, or another verb's, is here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # typer's NoSuchOption and BadParameter, which its releases keep elsewhere
            from midward._hints import kin

            option = str(getattr(error, "option_name", "")).lstrip("-").replace("-", "_")
            if getattr(getattr(error, "param", None), "name", "") == "recipe" and ".y" in str(error):
                option = "recipe"  # of align, which has a flag of that name
            if option in MOVED:
                raise typer.BadParameter(MOVED[option], param_hint=f"--{option.replace('_', '-')}") from None
            known = [spelling[2:].replace("-", "_") for parameter in self.params for spelling in parameter.opts]
            if ours := kin(option, known):
                vars(error)["possibilities"] = [f"--{name.replace('_', '-')}" for name in ours]
            raise


def _verb(verb: str) -> Any:
    from midward._plugins import checking
    from midward.cli._verb import verb as spread

    file, _, function = (VERBS.get(verb) or _behind("probe ")[verb]).partition(":")
    called, alone = getattr(import_module(f"midward.cli.{file}"), function), typer.Typer(add_completion=False)
    # only another package's probe may have flags that none can be made of
    with nullcontext() if verb in VERBS else checking("probe", function, InputError):
        alone.command(verb.split()[-1], cls=Verb)(spread(called, verb))
        command = typer.main.get_command(alone)
        spellings = [spelling for parameter in command.params for spelling in parameter.opts]
        if twice := [spelling for spelling in spellings if spellings.count(spelling) > 1]:
            raise InputError(f"has two flags that are spelled {twice[0]}.")
        return command


def _summary(verb: str) -> str:
    if verb not in VERBS:
        from midward.probes.registry import find

        try:
            return summary(find(verb.removeprefix("probe ")).config)
        except MidwardError as error:
            return str(error)
    file, _, name = VERBS[verb].partition(":")
    path = Path(__file__).with_name(f"{file}.py")
    if file == "probe":  # its verbs are made of configs
        path, name = path.parent.with_name("probes") / "configs.py", name.capitalize()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return (ast.get_docstring(node) or "").split("\n\n")[0]
    raise AssertionError(f"{path} has no {name}")


class _Midward(Group):
    """Bad input ends in one clear line and exit status 2, Ctrl-C in 130; MIDWARD_DEBUG=1 shows tracebacks."""

    def invoke(self, ctx: Any) -> Any:
        from midward._hints import printable
        from midward.cli._show import say

        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say(f"\nstopped. {_kept()}")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise
        except Exception as error:
            message = _message(error)
            if message is None or os.environ.get("MIDWARD_DEBUG") == "1":
                raise
            sys.stderr.write(f"error: {printable(message)}\n")  # by every process under torchrun
            raise typer.Exit(2) from None


def _kept() -> str:
    """What there is of the verb that was stopped, and what to do."""
    from midward.cli._verb import running

    verb, given = running.get(("", {}))
    out = next((value for option, value in given.values() if option.spellings[0] == "--out" and value), None)
    if out is None or not (Path(out, "run.json").exists() or Path(f"{out}.run.json").exists()):
        return "Nothing was written yet."
    if verb == "align":
        from midward.alignment.run import ABOUT, CHECKPOINTS, last_checkpoint

        if Path(out, ABOUT).exists():
            return f"The adapter in {out} is whole: there is nothing left to do."
        if (saved := last_checkpoint(Path(out, CHECKPOINTS))) is None:
            return f"No step is kept in {out} yet (--save-steps): the same command begins anew."
        return f"Step {saved.name.split('-')[1]} is kept in {out}: the same command goes on from there."
    return f"What was written to {out} is kept: the same command goes on from there."


def _message(error: Exception) -> str | None:
    """What to tell of bad input; None for what is a fault of ours."""
    if isinstance(error, NotADirectoryError | FileExistsError) and error.filename:
        return f"{error.filename} can't be made: a file stands where a folder is needed; give another path."
    if isinstance(error, MidwardError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":  # by name: torch isn't imported to tell
        return "the device is out of memory; use a smaller --batch-size, --length or model."
    from midward._plugins import failure

    if told := failure(error):
        return f"{told} MIDWARD_DEBUG=1 shows all of it. {_kept()}"
    if isinstance(error, OSError) and (error.filename or error.errno == errno.ENOSPC):
        return str(error)  # a path that can't be read or written, a full disk: nothing of ours is wrong
    return None


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"midward {running_version()}\n")
        raise typer.Exit()


#: The command line.
app = typer.Typer(
    cls=_Midward,
    no_args_is_help=True,
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


def main() -> None:
    """Entry point of the `midward` command."""
    settle_process()
    warnings.formatwarning = _line
    try:
        app()
    except KeyboardInterrupt:  # before a verb runs
        sys.exit(130)


_PYTHONS = warnings.formatwarning


def _line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning of ours as a line like an error's, any other as Python has it."""
    if category.__module__.startswith("midward"):
        return f"warning: {message}\n"
    return _PYTHONS(message, category, filename, lineno, line)
