"""Every command that the documentation shows is one that the CLI takes: verb, flags and values."""

from __future__ import annotations

import re

import pytest
import typer
from doc_blocks import REPOSITORY, SHELL, Command, blocks, commands, inline_commands, pages

from midward.cli import app
from midward.cli._app import GROUPS, VERBS, Group, load

ALL = [command for page in pages() for block in blocks(page) for command in commands(block)]


def verb_of(words: tuple[str, ...]) -> tuple[str, list[str]]:
    """The verb that the words after `midward` name, "" for none, and what is left of them."""
    for count in (2, 1):
        if (verb := " ".join(words[:count])) in {**VERBS, **GROUPS}:
            return verb, list(words[count:])
    return "", list(words)


def parse(words: tuple[str, ...]) -> None:
    """Raise what the CLI would raise over these words after `midward`, before anything runs."""
    verb, rest = verb_of(words)
    if "--config" in rest:  # its file needn't be there
        at = rest.index("--config")
        rest = rest[:at] + rest[at + 2 :]
    command = load(verb) if verb else typer.main.get_command(app)
    alone = not rest and verb not in VERBS
    if isinstance(command, Group) and (alone or (rest and not rest[0].startswith("-"))):
        raise ValueError(f"no verb {' '.join(words)!r}")
    with command.make_context(words[0] if words else "midward", rest):
        pass


def problem_of(words: tuple[str, ...]) -> str | None:
    try:
        parse(words)
    except typer.Exit:
        return None  # --help, --version
    except Exception as error:
        return getattr(error, "message", None) or str(error) or type(error).__name__
    return None


def test_there_are_commands():
    assert len(ALL) > 20


def test_every_midward_command_parses():
    texts = {page.name: page.read_text(encoding="utf-8") for page in pages()}
    wrong = {}
    for command in ALL:
        if "midward" not in command.words:
            continue
        words = command.words[command.words.index("midward") + 1 :]  # also behind torchrun -m
        if words[0] == "probe" and f'{words[1]} = "' in texts[command.block.page]:
            continue  # of the package that the page writes
        problem = problem_of(words)
        if problem and not (command.elided and problem.startswith("Missing")):
            wrong[command.where] = problem
    assert not wrong


@pytest.mark.parametrize("words", [("genrate",), ("align",), ("align", "--out", "x", "--method", "mosaic")])
def test_a_command_that_does_not_parse_is_found(words):
    assert problem_of(words)


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    wanted = {word for one in ALL if one.words[0] == "make" for word in one.words[1:]}
    assert wanted and wanted <= targets


def test_a_shell_block_holds_nothing_that_is_never_looked_at():
    """Other programs than ours are fine where a reason says why they aren't run."""
    known = ("midward", "make", "pip")  # the last two install, and are never run
    wrong = [one.where for one in ALL if one.words[0] not in known and not one.block.why]
    assert not wrong


def test_verbs_and_flags_named_in_the_text_exist():
    wrong = []
    for page in pages():
        for words in inline_commands(page):
            verb, rest = verb_of(words[1:])
            if not verb and rest and not rest[0].startswith("-") and rest[0].islower():
                wrong.append(f"{page.name}: {' '.join(words)}")
                continue
            command = load(verb) if verb else typer.main.get_command(app)
            flags = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
            flags |= {"--help", "-h"}
            for word in rest:
                flag = word.split("=")[0]
                if flag.startswith("-") and not re.fullmatch(r"-[\d.]+", flag) and flag not in flags:
                    wrong.append(f"{page.name}: {' '.join(words)}: no {flag}")
    assert not wrong


def test_blocks_that_are_not_run_say_why():
    whys = [block.why for page in pages() for block in blocks(page) if block.why]
    assert all(len(why.split()) >= 2 for why in whys)


def test_languages_are_known():
    """A misspelt language would hide a block's commands."""
    known = (*SHELL, "python", "toml", "yaml", "csv", "json", "jsonl", "text")
    wrong = [block.where for page in pages() for block in blocks(page) if block.language not in known]
    assert not wrong


def test_commands_are_split_as_a_shell_would():
    from doc_blocks import Block

    text = "midward goals; midward judges  # both\nmidward align --data a.csv \\\n    --out 'b c' ...\nother x\n"
    block = Block("x.md", 1, "", None, text, None)
    assert [one.words for one in commands(block)] == [
        ("midward", "goals"),
        ("midward", "judges"),
        ("midward", "align", "--data", "a.csv", "--out", "b c"),
    ]
    shown = Block("x.md", 1, "console", None, "$ midward models\nllada\n  midward is no command here\n", None)
    assert commands(shown) == [Command(shown, ("midward", "models"))]
