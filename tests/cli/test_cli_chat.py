"""`midward chat`, over a pipe and as at a terminal."""

import sys

import pytest

from midward.guards import Verdict
from midward.reports.player import verdict_line
from midward.sampling import sample


def test_each_piped_line_is_answered_within_the_conversation(midward, tiny, llada):
    result = midward("chat", *tiny, stdin="t30\n\nt31\n/reset\nt31\n")
    assert result.exit_code == 0
    first = llada.generate("t30", length=12, steps=6)[0].text
    talk = [
        {"role": "user", "content": "t30"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "t31"},
    ]
    second = llada.generate(talk, length=12, steps=6)[0].text
    third = llada.generate("t31", length=12, steps=6)[0].text
    assert result.stdout.splitlines() == [first, second, third]


def test_quit_ends_it(midward, tiny, llada):
    result = midward("chat", *tiny, stdin="/quit\nt30\n")
    assert result.exit_code == 0 and result.stdout == ""


def test_commands_never_reach_the_model(midward, tiny, llada):
    result = midward("chat", *tiny, stdin="/help\n/rest\n//t30\n")
    assert "/reset forgets the conversation" in result.stderr
    assert "there is no command /rest. Did you mean '/reset'?" in result.stderr
    assert result.stdout.splitlines() == [llada.generate("/t30", length=12, steps=6)[0].text]


def test_too_long_a_line_is_told_and_the_talk_goes_on(midward, tiny, llada):
    result = midward("chat", *tiny, stdin="t30\n" + "t31 " * 5000 + "\n/reset\nt30\n")
    assert result.exit_code == 0 and "/reset begins a new conversation" in result.stderr
    answer = llada.generate("t30", length=12, steps=6)[0].text
    assert result.stdout.splitlines() == [answer, answer]


@pytest.fixture
def terminal(midward, tiny, monkeypatch):
    """Chat as at a terminal: what is typed (a text or an exception), and which samplings Ctrl-C stops."""

    def run(typed, flags=(), stopped=()):
        typed, calls = iter(typed), []

        def read(prompt=""):
            if not prompt:
                raise AssertionError("a terminal shows a prompt")
            line = next(typed)
            if isinstance(line, type):
                raise line
            return line

        def generate(*args, **kwargs):
            calls.append(args)
            if len(calls) in stopped:
                raise KeyboardInterrupt
            return sample(*args, **kwargs)

        class Terminal:
            def isatty(self):
                return True

        monkeypatch.setattr("builtins.input", read)
        monkeypatch.setattr("midward.chat.sample", generate)
        monkeypatch.setattr("midward.cli.chat.sys", type("Sys", (), {"stdin": Terminal(), "stdout": sys.stdout}))
        return midward("chat", *tiny, *flags)

    return run


def test_ctrl_c_stops_the_response_and_not_the_program(terminal, llada):
    result = terminal(["t30", "t31", EOFError], stopped=[1])
    assert result.exit_code == 0 and "Ctrl-C again leaves" in result.stderr
    # The stopped turn is not part of the conversation.
    assert result.stdout == llada.generate("t31", length=12, steps=6)[0].text + "\n"


def test_ctrl_c_twice_leaves(terminal):
    assert terminal(["t30", KeyboardInterrupt], stopped=[1]).exit_code == 130
    assert terminal([KeyboardInterrupt, KeyboardInterrupt]).exit_code == 130
    assert terminal([KeyboardInterrupt, "t30", KeyboardInterrupt, EOFError]).exit_code == 0


def test_a_signal_is_a_bar_a_step():
    verdict = Verdict("sri", "during", True, 2.0, 1.5, 2, (1.0, 0.5, 0.0))
    assert verdict_line(verdict) == "guard     flagged after step 3 (score 2, threshold 1.5); signal █▅▁ 0.00"


def test_a_terminal_hears_that_the_model_is_loading_and_may_pace_the_steps(terminal):
    result = terminal([EOFError])
    assert result.stderr.index("loading ") < result.stderr.index("model ")
    assert terminal([EOFError], ["--pace", ".2"]).exit_code == 0
    assert terminal([EOFError], ["--pace", "-1"]).exit_code == 2
