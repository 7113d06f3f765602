"""One run a folder: what is there is never replaced by another run's, and a run goes on with more of the same."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from holding import held
from typer.testing import CliRunner

from midward._flags import Flag
from midward.cli._run import Result, finish, run_folder
from midward.cli._verb import Given, verb


@dataclass(frozen=True)
class Sets:
    """What is asked.

    Args:
        sets: Sets, by
            comma. The first is looked at closely.
        count: Prompts.
    """

    sets: Annotated[tuple[str, ...], Flag(grows=True)] = ("plain",)
    count: Annotated[int, Flag(min=1, name="--limit --count", grows=True)] = 10


@dataclass(frozen=True)
class Config(Sets):
    """What the toy verb is about.

    Args:
        count: Goals, e.g. 5.

    Raises:
        InputError: never.
    """

    width: Annotated[float, Flag("Width.")] = 1.0
    inside: int = 3


@pytest.fixture
def toy(tmp_path):
    """A verb of flags of every kind; what it was given last is in `toy.given`."""

    def measure(
        config: Config,
        words: Given[Config],
        goals: Annotated[str, Flag("A file.", argument=True)] = "none",
        batch_size: Annotated[int, Flag(free=True)] = 8,
        out: Annotated[Path, Flag("Folder.", name="--out", free=True)] = tmp_path / "out",
    ) -> Result:
        """Do nothing.

        Args:
            batch_size: Rows [ours].
        """
        run.given = config
        folder = run_folder(out)
        folder.start()
        (out / "rows.jsonl").touch()
        return Result({"words": words.values})

    app = typer.Typer()
    app.command()(verb(measure, "toy"))

    def run(*args):
        return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})

    return run


def test_a_config_is_filled_from_flags_of_its_types(toy):
    assert toy("--sets", "plain, benign,plain", "--count", 5).exit_code == 0
    assert toy.given == Config(("plain", "benign"), 5)
    assert toy("--count", 0).exit_code == 2 and toy("--inside", 1).exit_code == 2


def test_help_says_the_first_sentence_that_the_docstring_says(toy):
    shown = " ".join(toy("--help").stdout.split())
    for help in ("Do nothing.", "Sets, by comma. [", "Goals, e.g. 5.", "Width.", "Rows [ours].", "A file.", "Folder."):
        assert help in shown
    assert "closely" not in shown and "Args" not in shown and "Prompts" not in shown


def test_given_holds_what_was_given(toy):
    shown = toy("--width", 2, "--json")
    assert json.loads(shown.stdout)["words"] == {"sets": ["plain"], "count": 10, "width": 2.0}


@pytest.mark.parametrize("flags", [["--sets", "plain"], ["--limit", 4], ["--width", 2], ["other.csv"]], ids=str)
def test_a_run_that_is_smaller_or_another_is_refused(toy, flags):
    given = ["--sets", "plain,benign", "--limit", 5]
    assert toy(*given).exit_code == 0
    shown = toy(*given, *flags)
    assert shown.exit_code == 1 and "Give another --out." in str(shown.exception)


def test_a_run_goes_on_with_more_and_with_what_changes_no_result(toy):
    assert toy("--limit", 5).exit_code == 0
    assert toy("--limit", 6, "--sets", "benign,plain", "--batch-size", 1).exit_code == 0


def test_a_file_that_was_changed_is_another_one(toy, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("goal\nt30\n")
    assert toy(path).exit_code == 0 and toy(path).exit_code == 0
    path.write_text("goal\nt31\n")
    assert "sha256" in str(toy(path).exception)


def test_a_folder_says_how_its_run_ended(tmp_path, midward):
    out = tmp_path / "out"
    folder = ["--limit", 2, "--goals", "sandbox", "--attacks", "direct", "--judges", "oracle", "--no-replay"]
    shown = midward("attack", "--length", 8, "--steps", 2, *folder, "--out", out)
    assert shown.exit_code == 0, shown.stderr
    tables = {path.name: path.read_bytes() for path in out.glob("*.csv")}
    record = json.loads((out / "run.json").read_text())
    assert record["verb"] == "attack" and record["started"] and record["settings"]["--attacks"] == ["direct"]
    given = ["--length", "8", "--steps", "2", "--attacks", "direct", "--goals", "sandbox", "--limit", "2"]
    given += ["--judges", "oracle", "--no-replay"]
    assert record["command"] == ["midward", "attack", *given]
    shown = midward("attack", "--length", 8, "--steps", 2, *folder, "--seed", 1, "--out", out)
    assert shown.exit_code == 2 and "--seed 0 there, 1 here" in shown.stderr
    shown = midward("utility", "--tasks", "sums", "--limit", 2, "--out", out)
    assert shown.exit_code == 2 and "holds a run of midward attack" in shown.stderr
    assert {path.name: path.read_bytes() for path in out.glob("*.csv")} == tables


def test_two_processes_dont_share_a_folder(toy, tmp_path):
    (tmp_path / "out").mkdir()
    with held(tmp_path / "out"):
        shown = toy()
    assert "another process is writing to" in str(shown.exception)
    assert not list((tmp_path / "out").glob("[!.]*"))


PROBES = [f"probe {name}" for name in ("prefill", "anchor", "mirror", "ask", "gcg", "order")]
BEFORE_TORCH = f"""
import sys
from typer.testing import CliRunner
from midward.cli import app

for verb in {["attack", *PROBES, "dynamics", "guard eval", "utility --tasks sums"]!r}:
    shown = CliRunner().invoke(app, [*verb.split(), "--model", "org/nowhere", "--out", sys.argv[1] + "/out"])
    assert shown.exit_code == 2 and "is a file; give another path" in shown.stderr, (verb, shown.stderr)
    assert "torch" not in sys.modules, verb
for flags, message in [(["--attacks", "tpa"], "'tap'?"), (["--judges", "orcale"], "'oracle'?")]:
    shown = CliRunner().invoke(app, ["attack", *flags, "--out", "out"])
    assert shown.exit_code == 2 and message in shown.stderr, (flags, shown.stderr)
    assert "torch" not in sys.modules, flags
for near, name in [("bening", "benign"), ("sandbox,programms", "programs"), ("sandbx", "sandbox")]:
    shown = CliRunner().invoke(app, ["utility", "--tasks", near, "--out", "out"])
    assert shown.exit_code == 2 and repr(name) in shown.stderr, (near, shown.stderr)
    assert not {{"torch", "lm_eval"}} & set(sys.modules), near
for verb in ("attack", "probe ask"):
    shown = CliRunner().invoke(app, [*verb.split(), "--goals", "gaols.csv", "--out", "out"])
    assert shown.exit_code == 2 and "Did you mean 'goals.csv'?" in shown.stderr, (verb, shown.stderr)
    assert "torch" not in sys.modules, verb
GUARDED = ["chat", "generate t30", "trace t30 --html x.html", "utility --tasks sums --out out", "attack --out out"]
GUARDED += ["guard score --prompts goals.csv", "guard eval --out out"]
for verb in GUARDED:
    shown = CliRunner().invoke(app, [*verb.split(), "--guard", "absent"])
    assert shown.exit_code == 2 and "there is no guard at absent" in shown.stderr, (verb, shown.stderr)
    assert "torch" not in sys.modules, verb
PLACES = ["generate t30 --model ./absent", "attack --model ./absent --out out", "compare absent other"]
PLACES += ["utility --tasks sums --compare absent --out out", "utility --tasks sums --adapter ./absent --out out"]
for words in (*PLACES, "probe prefill --compare absent --out out"):
    shown = CliRunner().invoke(app, words.split())
    assert shown.exit_code == 2 and "absent" in shown.stderr, (words, shown.stderr)
    assert "torch" not in sys.modules, words
"""


def test_a_wrong_out_or_file_is_told_before_torch_is_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "goals.csv").write_text("goal\nt30\n")
    done = subprocess.run([sys.executable, "-c", BEFORE_TORCH, tmp_path / "file"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out").exists()


def test_the_end_of_a_verb_writes_and_shows_its_summary(tmp_path):
    from midward.runs.run import RunFolder

    folder = RunFolder(tmp_path / "out", "utility")
    folder.start()
    shown = finish(folder, {"cells": [], "compared": {}}, "nothing was scored")
    assert json.loads(shown.json()) == {"cells": [], "compared": {}}
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == shown.data
    assert (tmp_path / "out" / "table.md").exists() and shown.failed == "nothing was scored"
