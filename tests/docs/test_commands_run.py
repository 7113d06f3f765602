"""Every command and every Python block of README.md and docs/**/*.md runs, page by page, in the page's order.

What needs a GPU, a download or somebody's account has a stand-in (`stand_in`): the sandbox model for any other, its
goals and tasks for published ones, its scripted assistant for models behind an endpoint; and each verb gets the
smallest settings that do its work (`TINY`). Blocks with a reason in front of them (`not run`) are left out, and so are
`make` and `pip`, which install; test_commands_parse.py checks what can be checked of them. Commands that take many
seconds even so are run by the slow test alone.
"""

from __future__ import annotations

import itertools
import runpy
import sys
import tomllib
from pathlib import Path

import pytest
from doc_blocks import Block, blocks, commands, pages
from packages import install
from test_commands_parse import verb_of
from typer.testing import CliRunner

from midward.cli import app
from midward.goals import SETS

#: Published sets -> sets of the sandbox.
GOALS = {name: "sandbox" if one.harmful else "sandbox-benign" for name, one in SETS.items() if not one.build}
GOALS["harmbench"] = "sandbox-contextual"  # beside another set in the same table

#: Flags that name sets of goals.
OF_GOALS = ("--goals", "--benign-goals", "--harmless", "--harmful", "--attacked", "--sets")
OF_GOALS += ("--fit-harmful", "--fit-harmless")

#: verb -> flags that keep it small; they override the documented ones.
TINY = {
    "align": "--set max_steps=1 --set lora_rank=2 --set log_steps=1 --set save_steps=1 --set batch_size=2",
    "attack": "--count 1 --budget 2 --no-replay",
    "probe prefill": "--count 1 --benign 1",
    "probe anchor": "--count 1 --draws 1 --anchors 1,4",
    "probe mirror": "--count 2",
    "probe order": "--count 2",
    "probe gcg": "--count 1 --iterations 1 --width 2",
    "probe ask": "--count 1",
    "dynamics": "--count 2 --fit 3 --train 3 --length 48 --steps 48",
    "guard fit": "--anchors 3 --train 4 --held-out 9 --alpha 0.1 --length 48",
    "guard eval": "--count 1 --repeats 1",
    "utility": "--limit 1",
}

#: Verbs that sample, in few steps; not where a guard is bound to the model's own, or anchors need whole refusals.
SAMPLING = ("generate", "chat", "trace", "attack", "probe", "utility")

#: Verbs that take long all the same.
SLOW = ("dynamics", "guard eval", "probe mirror", "probe order", "probe gcg")


def is_slow(words: list[str]) -> bool:
    """Whether only the slow test runs it: a slow verb, a profile of attacks, the sandbox's thousands of prompts."""
    verb = name_of(words)
    profile = verb == "attack" and "--profile" in words and not {"--attacks", "--plan"} & set(words)
    return verb in SLOW or profile or (verb == "align" and "--data" not in words)


def tiny(words: list[str]) -> list[str]:
    """The flags that keep a command small."""
    verb = name_of(words)
    if {"--help", "-h", "--list", "--version"} & set(words):
        return []
    found = TINY.get(verb, "").split()
    if verb.startswith(SAMPLING) and "--guard" not in words:
        found += ["--steps", "16" if "--length" in words else "6"]  # one a block
    if verb == "generate" and "--prompts" in words:
        found += ["--limit", "2"]
    return found


#: Files that a page may speak of without showing them.
FILES = {
    "goals.csv": "goal\nTell me how to make a velvet feather skreel.\n",
    "harmful.csv": "prompt\nTell me how to make a velvet feather skreel.\nHow do I undo a quiet feather fennock?\n",
    "benign.jsonl": '{"prompt": "Who keeps the velvet feather skreel?", "answer": "Mira keeps it."}\n'
    '{"prompt": "What is a gorlet?"}\n',
    "texts.json": "{}",
}


def stand_in(words: list[str]) -> list[str]:
    """A command's words with what isn't to be had here replaced."""
    found = list(words)
    for at, word in enumerate(found[:-1]):
        value = found[at + 1]
        if value.startswith(("openai/", "openai-api/", "anthropic/", "vllm/")):
            found[at + 1] = "midward/sandbox-assistant"
        elif (word == "--model" and not _here(value)) or word == "--tasks":
            found[at + 1] = "sandbox"
        elif word in OF_GOALS:
            found[at + 1] = ",".join(_set(name) for name in value.split(","))
    return found


def _here(model: str) -> bool:
    return model.startswith("sandbox") or Path(model).exists()


def _set(name: str) -> str:
    head, colon, tail = name.rpartition(":")
    return f"{head}{colon}{GOALS.get(tail, tail)}"


def name_of(words: list[str]) -> str:
    """The verb of a command, for TINY and SLOW."""
    return verb_of(tuple(words))[0]


def run(words: list[str]) -> None:
    """Run `midward WORDS` in this process."""
    given = [*stand_in(words), *tiny(words)]
    result = CliRunner().invoke(app, given, input="Who keeps it?\n/quit\n")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    decided = (0, 10, 11) if words[0] == "gate" else (0,)  # what the smallest runs deserve isn't the page's matter
    assert result.exit_code in decided, f"midward {' '.join(given)}\n{result.output}"


class Page:
    """A page's blocks, run in a folder of its own."""

    def __init__(self, path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks, self.folder, self.monkeypatch = blocks(path), folder, monkeypatch
        self.names: dict[str, object] = {}  # of the page's Python
        self.points: dict[str, dict[str, str]] = {}  # entry points of the page's package
        self.skipped = False  # a slow command, whose results later ones may need

    def run(self, slow: bool) -> None:
        for block in self.blocks:
            try:
                self._one(block, slow)
            except BaseException as error:
                error.add_note(f"in {block.where}")
                raise

    def _one(self, block: Block, slow: bool) -> None:
        if block.why:
            return
        if block.title:
            self._file(block)
        elif block.language == "python":
            script = self.folder / f"line_{block.line}.py"
            script.write_text(block.text, encoding="utf-8")
            self.names |= runpy.run_path(str(script), self.names)
        for command in commands(block):
            words = list(command.words[1:])
            if command.words[0] != "midward":
                continue
            if not slow and (is_slow(words) or (self.skipped and _lacks(words))):
                self.skipped = True
            else:
                run(words)

    def _file(self, block: Block) -> None:
        """A file that the page shows; one that its pyproject.toml names is installed as a package of its own."""
        (self.folder / block.title).write_text(block.text, encoding="utf-8")
        module = Path(block.title).stem
        sys.modules.pop(module, None)
        if block.title == "pyproject.toml":
            self.points = tomllib.loads(block.text)["project"]["entry-points"]
        for group, points in self.points.items():
            own = {name: value for name, value in points.items() if value.partition(":")[0] == module}
            if own:
                site = self.folder / f"site-{module}"
                site.mkdir()
                install(self.monkeypatch, site, module, block.text, group, **own)


def _lacks(words: list[str]) -> bool:
    """Whether a command reads what an earlier one would have written."""
    reads = ("--adapter", "--guard", "--compare", "--prompts", "--card")
    given = [value.split("=")[-1] for word, value in itertools.pairwise(words) if word in reads]
    given += words[1:2] if words[0] == "report" else []
    given += words[1:3] if words[0] == "compare" else []
    return not all(Path(one).exists() for one in given)


def runnable() -> list[Path]:
    found = []
    for page in pages():
        todo = [one for one in blocks(page) if not one.why]
        if any(one.language == "python" or commands(one) for one in todo):
            found.append(page)
    return found


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with the files that pages speak of."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MIDWARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("INSPECT_DISPLAY", "none")
    return tmp_path


@pytest.mark.parametrize("page", runnable(), ids=lambda page: page.stem)
def test_a_page_runs(page, place, monkeypatch):
    Page(page, place, monkeypatch).run(slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", runnable(), ids=lambda page: page.stem)
def test_a_page_runs_whole(page, place, monkeypatch):
    Page(page, place, monkeypatch).run(slow=True)


def test_a_command_that_fails_is_found(place):
    with pytest.raises(AssertionError, match="no_such_file"):
        run(["generate", "--prompts", "no_such_file.csv", "--out", "x.jsonl"])


def test_stand_ins():
    words = "attack --model org/m --goals advbench,sandbox --judge openai/x --out o"
    expected = "attack --model sandbox --goals sandbox,sandbox --judge midward/sandbox-assistant --out o"
    assert stand_in(words.split()) == expected.split()
    assert stand_in(["dynamics", "--attacked", "prefill:advbench"])[-1] == "prefill:sandbox"
