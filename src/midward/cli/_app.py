"""The `midward` command: its verbs, and how errors and Ctrl-C end it."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import midward
from midward.errors import MidwardError

STOPPED = "\nstopped. What was written is kept: the same command goes on from there."


class _Verbs(TyperGroup):
    """Bad input ends in one clear line and exit status 2, Ctrl-C in 130; MIDWARD_DEBUG=1 shows tracebacks."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        from midward.cli._show import printable, say

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


#: Flags that had another name.
_MOVED = {"recipe": "--recipe FILE is now --config FILE.", "objective": "--objective is now --recipe."}


class _Verb(TyperCommand):
    """A function in a file of its own, imported when the verb runs or its flags are asked for.

    `midward --help` lists two dozen verbs; it takes their summaries from the table below and imports none of them.
    """

    _LATER = ("params", "callback", "help")

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._source: str = vars(self.callback)["source"]
        for name in self._LATER:
            delattr(self, name)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # typer's NoSuchOption, which each of its releases keeps elsewhere
            from midward._hints import ELSEWHERE

            option = str(getattr(error, "option_name", "")).lstrip("-").replace("-", "_")
            name = getattr(getattr(error, "param", None), "name", "")
            if name == "recipe" and ".y" in str(error):  # align has a flag of that name
                option = "recipe"
            if option in _MOVED:
                raise typer.BadParameter(_MOVED[option], param_hint=f"--{option}") from None
            ours = f"--{ELSEWHERE.get(option)}"
            if any(ours in parameter.opts for parameter in self.params):
                vars(error)["possibilities"] = [ours]
            raise

    def __getattr__(self, name: str) -> Any:
        if name not in self._LATER:
            raise AttributeError(name)
        from midward.cli._options import verb

        file, _, function = self._source.partition(":")
        alone = typer.Typer(add_completion=False)
        alone.command(self.name)(verb(getattr(import_module(f"midward.cli.{file}"), function)))
        whole = typer.main.get_command(alone)
        for attribute in self._LATER:
            setattr(self, attribute, getattr(whole, attribute))
        return getattr(self, name)


def _message(error: Exception) -> str | None:
    """What to tell of bad input; None for what is a fault of ours."""
    if isinstance(error, NotADirectoryError | FileExistsError) and error.filename:
        return f"{error.filename} can't be made: a file stands where a folder is needed; give another path."
    if isinstance(error, MidwardError):
        return str(error)
    if isinstance(error, OSError) and (error.filename or error.errno == errno.ENOSPC):
        return str(error)  # a path that can't be read or written, a full disk: nothing of ours is wrong
    if type(error).__name__ == "OutOfMemoryError":  # by name: torch isn't imported to tell
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


def _stand_in(source: str) -> Callable[[], None]:
    def later() -> None: ...

    vars(later)["source"] = source
    return later


#: Group ("" is midward itself) -> verb -> the function that does it, and its summary: the first lines of its docstring.
_VERBS = {
    "": {
        "generate": (
            "generate:generate",
            "Answer one prompt, or every row of a file. Run again, it goes on where it stopped.",
        ),
        "chat": (
            "chat:chat",
            "Talk to a model and watch the denoising steps. /help lists the commands, /quit or Ctrl-D leaves.",
        ),
        "trace": (
            "trace:trace",
            "Write a page that plays a generation: its canvas, the SRI signal and the guard's verdict at every step.",
        ),
        "align": (
            "align:align",
            "Train a LoRA adapter with the MOSA objective. Run again, it goes on where it stopped.",
        ),
        "attack": (
            "attack:attack",
            "Attack a model, and adapters of it, with published attacks; judge, count, compare.",
        ),
        "dynamics": (
            "dynamics:dynamics",
            "Does a model come back from harm while it generates, and does its internal state tell?",
        ),
        "utility": (
            "utility:utility",
            "What can a model do? Exact scores of tasks, for any adapter and guard, against other runs.",
        ),
        "report": (
            "report:report",
            "Make one self-contained HTML page of what other commands computed: verdict, figures, tables, settings.",
        ),
        "goals": (
            "goals:goals",
            "List the sets of goals; with NAME, everything about one. Goals themselves are printed by --show only.",
        ),
        "models": (
            "models:models",
            "List the families of models: checkpoints, how they are loaded and sampled, how that was verified.",
        ),
    },
    "judges": {
        "check": (
            "judges:check",
            "Ask judges about labelled responses in the sandbox's world: agreement, unscored, and the rows they miss.",
        )
    },
    "probe": {
        "prefill": (
            "probe_prefill:prefill",
            "Where does a forced phrase jailbreak? Attack success by position and kind of phrase.",
        ),
        "mirror": (
            "probe_prefill:mirror",
            "Which tokens, if made safe, save the response? Writes MOSA's window on this model as a recipe.",
        ),
        "order": (
            "probe_order:order",
            "Mean position of newly committed tokens by step, with padding told apart. Run again, it goes on.",
        ),
        "gcg": ("probe_gcg:gcg", "Can a suffix of the prompt make a phrase likely in the middle? Loss, hits, success."),
        "ask": (
            "probe_ask:ask",
            "Can a prompt place a phrase at word k by asking for it? Hit rate by k, with two controls.",
        ),
    },
    "guard": {
        "fit": (
            "guard:fit",
            "Fit guards for a model and its sampling, all calibrated on the same held-out harmless prompts.",
        ),
        "score": (
            "guard:score",
            "Answer prompts behind a guard: response, score, flag, signal. Run again, it goes on where it stopped.",
        ),
        "eval": (
            "guard:evaluate",
            "Compare fitted guards on the same answers: false positives, refusals, attack success, cost, AUROC.",
        ),
    },
}
_GROUPS = {
    "judges": "List the judges; `check` measures them on labelled responses.",
    "probe": "Where a model's safety sits in a response, and what an attacker can reach.",
    "guard": "Guards: fit them for a model, answer behind one, compare.",
}


def _judges(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        from midward.cli.judges import judges

        judges()


for _group, _verbs in _VERBS.items():
    _into = app
    if _group == "judges":  # alone, it lists them
        _into = typer.Typer(invoke_without_command=True, callback=_judges)
    elif _group:
        _into = typer.Typer(no_args_is_help=True)
    if _group:
        app.add_typer(_into, name=_group, help=_GROUPS[_group])
    for _name, (_source, _summary) in _verbs.items():
        _into.command(_name, cls=_Verb, short_help=_summary)(_stand_in(_source))


def main() -> None:
    """Entry point of the `midward` command."""
    # Read when torch is loaded. OpenMP's threads then sleep while they wait; on a busy machine or under a quota of CPU
    # time spinning ones keep a small model's next product from being computed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.formatwarning = _line
    app()


_PYTHONS = warnings.formatwarning


def _line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning of ours as a line like an error's, any other as Python has it."""
    if category.__module__.startswith("midward"):
        return f"warning: {message}\n"
    return _PYTHONS(message, category, filename, lineno, line)
