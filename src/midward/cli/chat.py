"""`midward chat`: a conversation, with the response filling up live."""

from __future__ import annotations

import sys
from typing import Annotated, Any

from midward._flags import Flag
from midward._hints import did_you_mean
from midward.cli._options import GuardFile, ModelOptions, SamplingOptions, load_behind
from midward.cli._show import console, out, say

_COMMANDS = ("/help", "/reset", "/quit")
_HELP = (
    "/reset forgets the conversation, /quit or Ctrl-D leaves, Ctrl-C stops a response; a message that begins with a "
    "slash begins with two."
)


def chat(
    model: ModelOptions, sampling: SamplingOptions, guard: GuardFile = None, pace: Annotated[float, Flag(min=0)] = 0.0
) -> None:
    """Talk to a model and watch the denoising steps. /help lists the commands, /quit or Ctrl-D leaves.

    Args:
        pace: Seconds a step stays on the screen at least; .1 for fast models.
    """
    from midward.chat import Conversation

    at_terminal = sys.stdin.isatty()
    if at_terminal:
        say(f"loading   {model.model} ...")
    talk = Conversation(*load_behind(model, sampling, guard))
    if at_terminal:
        say(_HELP)
    stopped = False  # the last thing that happened was a Ctrl-C
    while True:
        try:
            line = (input("> ") if at_terminal else input()).strip()
            if line == "/quit":
                return
            if line.startswith("/") and not line.startswith("//"):
                _obey(line.split()[0], talk)
            elif line:
                _turn(talk, line[line.startswith("//") :], pace)
            stopped = False
        except EOFError:
            return
        except KeyboardInterrupt:
            if stopped or not at_terminal:
                raise
            stopped = True
            say("\nstopped; Ctrl-C again leaves.")


def _obey(command: str, talk: Any) -> None:
    if command == "/reset":
        talk.turns = []
        say("a new conversation")
    else:
        unknown = f"there is no command {command}.{did_you_mean(command, _COMMANDS)} "
        say(f"{'' if command == '/help' else unknown}{_HELP}")


def _turn(talk: Any, line: str, pace: float) -> None:
    from midward.reports.player import playing, verdict_line

    try:
        with playing(console(), pace) as players:
            response = talk.say(line, players)
    except ValueError as error:
        say(f"error: {error} (/reset begins a new conversation)")
        return
    out(response.text)
    if response.verdict is not None:
        say(verdict_line(response.verdict))
