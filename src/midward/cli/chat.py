"""`midward chat`: a conversation, with the response filling up live."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from midward._hints import did_you_mean
from midward.cli._options import ModelOptions, SamplingOptions
from midward.cli._show import console, out, say

_COMMANDS = ("/help", "/reset", "/quit")
_HELP = (
    "/reset forgets the conversation, /quit or Ctrl-D leaves, Ctrl-C stops a response; a message that begins with a "
    "slash begins with two."
)


def chat(
    model: ModelOptions,
    sampling: SamplingOptions,
    guard: Annotated[
        Path | None, typer.Option(help="A fitted guard's file or folder; flagged responses become a stub.")
    ] = None,
    pace: Annotated[
        float, typer.Option(min=0, help="Seconds a step stays on the screen at least; .1 for fast models.")
    ] = 0.0,
) -> None:
    """Talk to a model and watch the denoising steps. /help lists the commands, /quit or Ctrl-D leaves."""
    if guard is not None:
        from midward.guards import describe

        describe(guard)  # a wrong file is told before the model is loaded
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        say(f"loading   {model.model} ...")
    loaded = model.load()
    chosen = sampling.resolve(loaded, [guard] if guard else [])
    if guard is not None:
        from midward.guards import load

        loaded.guard = load(guard, loaded, chosen)
        say(f"guard     {loaded.guard.name} (threshold {loaded.guard.threshold:.4g})")
    if at_terminal:
        say(_HELP)
    talk: list[dict[str, str]] = []
    stopped = False  # the last thing that happened was a Ctrl-C
    while True:
        try:
            line = input("> ") if at_terminal else input()
            line = line.strip()
            if line == "/quit":
                return
            if line == "/reset":
                talk = []
                say("a new conversation")
            elif line == "/help":
                say(_HELP)
            elif line.startswith("/") and not line.startswith("//"):
                name = line.split()[0]
                say(f"there is no command {name}.{did_you_mean(name, _COMMANDS)} {_HELP}")
            elif line:
                talk = _turn(loaded, chosen, talk, line.removeprefix("/") if line[:2] == "//" else line, pace)
            stopped = False
        except EOFError:
            return
        except KeyboardInterrupt:
            if stopped or not at_terminal:
                raise
            stopped = True
            say("\nstopped; Ctrl-C again leaves.")


def _turn(model: Any, sampling: Any, talk: list[dict[str, str]], line: str, pace: float) -> list[dict[str, str]]:
    """The conversation with the model's answer to `line`; unchanged where there can be none."""
    from midward.reports.player import Player
    from midward.sampling import sample

    asked = [*talk, {"role": "user", "content": line}]
    where = console()
    run = sample if model.guard is None else model.guard.sample
    try:
        if where.is_terminal:
            # The dual cache predicts a block alone.
            with Player(where, predictions=sampling.cache != "dual", pace=pace) as player:
                [response] = run(model, [asked], sampling, watchers=[player])
        else:
            [response] = run(model, [asked], sampling)
    except ValueError as error:
        say(f"error: {error} (/reset begins a new conversation)")
        return talk
    out(response.checked().text)
    if response.verdict is not None:
        say(_told(response.verdict))
    return [*asked, {"role": "assistant", "content": response.text}]


def _told(verdict: Any) -> str:
    """What the guard said, in a line."""
    score = "unscored" if verdict.score is None else f"score {verdict.score:.3g}"
    what = "flagged" if verdict.flagged else "passed"
    when = f" after step {verdict.step + 1}" if verdict.step is not None else ""
    signal = f"; signal {_bars(verdict.signal)} {verdict.signal[-1]:.2f}" if verdict.signal else ""
    return f"guard     {what}{when} ({score}, threshold {verdict.threshold:.3g}){signal}"


def _bars(signal: Sequence[float]) -> str:
    """A signal in 0..1 as a bar a step: low refuses, high complies."""
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * one))] for one in signal)
