"""`midward chat`: a conversation, with the response filling up live."""

from __future__ import annotations

import sys
from typing import Any

from midward.cli._options import ModelOptions, SamplingOptions
from midward.cli._show import console, out, say


def chat(model: ModelOptions, sampling: SamplingOptions) -> None:
    """Talk to a model and watch the denoising steps. /reset forgets the conversation, /quit or Ctrl-D leaves."""
    loaded = model.load()
    chosen = sampling.resolve(loaded)
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        say("/reset forgets the conversation, /quit or Ctrl-D leaves, Ctrl-C stops a response.")
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
            elif line:
                talk = _turn(loaded, chosen, talk, line)
            stopped = False
        except EOFError:
            return
        except KeyboardInterrupt:
            if stopped or not at_terminal:
                raise
            stopped = True
            say("\nstopped; Ctrl-C again leaves.")


def _turn(model: Any, sampling: Any, talk: list[dict[str, str]], line: str) -> list[dict[str, str]]:
    """The conversation with the model's answer to `line`; unchanged where there can be none."""
    from midward.reports.player import Player
    from midward.sampling import sample

    asked = [*talk, {"role": "user", "content": line}]
    where = console()
    try:
        if where.is_terminal:
            with Player(where) as player:
                [response] = sample(model, [asked], sampling, watchers=[player])
        else:
            [response] = sample(model, [asked], sampling)
    except ValueError as error:
        say(f"error: {error} (/reset begins a new conversation)")
        return talk
    out(response.text)
    return [*asked, {"role": "assistant", "content": response.text}]
