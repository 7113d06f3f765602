"""What holds for every verb: help, recipes, errors, Ctrl-C."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer

from midward import demo
from midward.cli import _show, app
from midward.cli._show import printable
from midward.models import ModelError

HELP_WITHOUT_TORCH = """
import sys
from typer.testing import CliRunner
from midward.cli import app

for verb in (
    "", "demo", "generate", "chat", "trace", "align", "attack", "dynamics", "guard fit", "utility", "report", "goals",
    "judges", "models", "probe gcg",
):
    result = CliRunner().invoke(app, [*verb.split(), "--help"])
    assert result.exit_code == 0 and "Usage" in result.output, (verb, result.output)
assert CliRunner().invoke(app, ["--version"]).output.startswith("midward ")
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""


def test_help_and_version_import_no_torch():
    done = subprocess.run([sys.executable, "-c", HELP_WITHOUT_TORCH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_help_of_midward_imports_no_verb_and_tells_the_summary_of_each():
    listed = "import sys; from midward.cli import main\ntry: main()\nexcept SystemExit: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", listed, "--help"], capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.splitlines()[-1].split() if name.startswith("midward.")}
    assert loaded == {"midward.cli", "midward.cli._app", "midward.errors"}

    def verbs(command):
        for one in command.commands.values():
            yield from verbs(one) if hasattr(one, "commands") else [one]

    found = list(verbs(typer.main.get_command(app)))
    assert len(found) == 22
    for verb in found:
        assert " ".join(verb.help.split("\n\n")[0].split()) == verb.short_help, verb.name


def test_version(midward):
    assert midward("--version").stdout == "midward 0.1.0\n"


def test_a_wrong_verb_or_flag_gets_the_nearest(midward):
    for args, hint in [
        (["genrate"], "generate"),
        (["sandbox", "biuld"], "build"),
        (["chat", "--modle", "x"], "--model"),
        (["generate", "hi", "--max-new-tokens", "8"], "--length"),  # transformers' name of it
        (["generate", "hi", "--block_length", "8"], "--block"),  # LLaDA's script's
    ]:
        result = midward(*args)
        assert result.exit_code == 2 and hint in result.stderr and result.stdout == ""


# --- errors ----------------------------------------------------------------------------------------------------


def test_bad_input_is_one_line_and_status_2(midward, tmp_path):
    result = midward("generate", "t30", "--model", tmp_path / "nothing")
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("error: no model") and result.stderr.count("\n") == 1


def test_debug_shows_the_traceback(midward, tmp_path, monkeypatch):
    monkeypatch.setenv("MIDWARD_DEBUG", "1")
    with pytest.raises(ModelError):
        midward("generate", "t30", "--model", tmp_path / "nothing")


def test_a_fault_of_ours_keeps_its_traceback(midward, monkeypatch):
    def broken(*args, **kwargs):
        raise KeyError("ours")

    monkeypatch.setattr("midward.load", broken, raising=False)
    with pytest.raises(KeyError):
        midward("generate", "t30")


def test_ctrl_c_is_130_and_says_how_to_go_on(midward, tmp_path, monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("build.build", stopped)
    result = midward("sandbox", "build", "--out", tmp_path / "model")
    assert result.exit_code == 130 and "the same command goes on from there" in result.stderr


def test_out_of_memory_is_told(midward, tiny, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("midward.sampling.sample", full)
    result = midward("generate", "t30", *tiny)
    assert result.exit_code == 2 and "use a smaller --batch-size" in result.stderr


def test_a_checkpoints_own_bad_sampling_is_told(midward, llada_folder, tmp_path):
    shutil.copytree(llada_folder, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"midward_sampling": {"lenght": 8}}))
    result = midward("generate", "t30", "--model", tmp_path / "model")
    assert result.exit_code == 2 and "Did you mean 'length'?" in result.stderr


# --- what was resolved -----------------------------------------------------------------------------------------


def test_what_was_resolved_is_told_on_stderr(midward, tiny, llada_folder):
    result = midward("generate", "t30 t31", *tiny, "--temperature", 0.5, "--seed", 7)
    assert result.exit_code == 0
    told, sampling = result.stderr.splitlines()[:2]
    assert told == f"model     {llada_folder} (llada, diffusion) on cpu (as asked) as float32"
    for part in ("length 12", "steps 6", "order low_confidence", "temperature 0.5", "seed 7"):
        assert part in sampling.split(", ") or f"sampling  {part}" in sampling
    auto = midward("generate", "t30", "--model", llada_folder, "--length", 4).stderr
    assert "auto: " in auto.splitlines()[0]


def test_what_a_terminal_would_obey_is_not_shown():
    assert printable("a\x1b[2Jb\rc\x9bd\n\te é 😀") == "a�[2Jb�c�d\n\te é 😀"


# --- --recipe --------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def lines(path):
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")


def test_a_recipe_holds_any_option_and_flags_override_it(midward, recipe, advbench, llada_folder, tmp_path):
    out = tmp_path / "out.jsonl"
    path = recipe(
        f"model: {llada_folder}\nprompts: {advbench}\nout: {out}\ncolumn: goal\nbatch-size: 2\n"
        "length: 12\nsteps: 3\ntemperature: 1e-3\nadapter: null\norder: random\noverwrite: true\n"
    )
    assert midward("generate", "--config", path, "--steps", 6).exit_code == 0
    sampling = json.loads((tmp_path / "out.jsonl.settings.json").read_text())["sampling"]
    assert sampling["steps"] == 6 and sampling["length"] == 12
    assert sampling["order"] == "random" and sampling["temperature"] == 0.001
    assert len(lines(out)) == 5
    plain = tmp_path / "plain.jsonl"
    midward(
        "generate",
        "--model",
        llada_folder,
        "--prompts",
        advbench,
        "--column",
        "goal",
        "--out",
        plain,
        "--batch-size",
        2,
        "--length",
        12,
        "--steps",
        6,
        "--temperature",
        0.001,
        "--order",
        "random",
    )
    assert [json.loads(line)["response"] for line in lines(plain)] == [
        json.loads(line)["response"] for line in lines(out)
    ]


@pytest.mark.parametrize(
    "content, message",
    [
        ("stpes: 3", "no option 'stpes'. Did you mean 'steps'? Available: model,"),
        ("goals: x.csv", "no option 'goals'"),
        ("recipe: other.yaml", "no option 'recipe'"),
        ("steps: 3.7", "steps: input should be a valid integer; received 3.7"),
        ("steps: '3'", "steps: input should be a valid integer; received '3'"),
        ("steps: true", "steps: input should be a valid integer; received True"),
        ("steps: 0", "Invalid value for '--steps': "),
        ("overwrite: 'no'", "overwrite: input should be a valid boolean; received 'no'"),
        (
            "order: sideways",
            "order: input should be 'low_confidence', 'random', 'left_to_right', 'entropy', 'margin' or 'annealed'; "
            "received 'sideways'",
        ),
        ("temperature: hot", "temperature: "),
        ("model: 3", "model: input should be a valid string; received 3"),
        ("- steps", "must hold options as `name: value`"),
        ("steps: [", "is no YAML"),
        ("", "must hold options"),
    ],
)
def test_a_bad_recipe_is_told_before_anything_is_loaded(midward, recipe, content, message):
    result = midward("generate", "t30", "--config", recipe(content))
    shown = " ".join(result.stderr.replace("│", " ").split())
    assert result.exit_code == 2 and message in shown
    assert "model  " not in result.stderr


def test_options_that_may_be_given_several_times_are_lists_in_a_recipe(midward, recipe, tmp_path):
    path = recipe("tasks: sums\ncompare: [runs/nowhere]")
    result = midward("utility", "--config", path, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "runs/nowhere holds no finished run of midward utility" in result.stderr
    result = midward("utility", "--config", recipe("compare: [1]"))
    assert result.exit_code == 2 and "compare: input should be a valid string" in result.stderr


def test_texts_of_set_stay_texts_in_a_recipe(midward, recipe, tmp_path):
    path = recipe("attacks: direct\nset: {tap-mid.phrase: 'Step 3: x', tap-mid.width: 2}")
    result = midward("attack", "--config", path, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "settings for 'tap-mid', which isn't among" in result.stderr


def test_no_such_recipe(midward, tmp_path):
    result = midward("generate", "t30", "--config", tmp_path / "none.yaml")
    assert result.exit_code == 2 and "can't be read" in result.stderr


# --- demo ------------------------------------------------------------------------------------------------------


def test_demo_hands_its_flags_on(midward, tmp_path, monkeypatch):
    seen = {}

    def run(out, *, plan, fresh, progress):
        seen.update(out=out, plan=plan, fresh=fresh)
        progress("aligning", 0, 2)
        progress("aligning", 2, 2)
        return SimpleNamespace(page=Path("report/index.html"), table="| a | b |", kept=["thesis.txt"])

    monkeypatch.setattr(demo, "run", run)
    result = midward("demo", "--out", tmp_path / "report", "--goals", 8, "--arms", "mosa, mosa-paper", "--fresh")
    assert result.exit_code == 0 and result.stdout == "| a | b |\n"
    assert "aligning" in result.stderr and "open report/index.html" in result.stderr
    assert "kept      what isn't a demo's: thesis.txt" in result.stderr
    assert seen["out"] == tmp_path / "report" and seen["fresh"]
    assert seen["plan"] == demo.plan_of(goals=8, arms="mosa,mosa-paper")
    refused = midward("demo", "--arms", "mossa")
    assert refused.exit_code == 2 and "no such arm: 'mossa'" in refused.stderr


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(_show, "LINES_EVERY", 0.02)
    with _show.bar() as progress:
        done = progress.add_task("prompts", total=7, completed=3)
        progress.add_task("step", total=24, brief=True)
        progress.add_task("finished", total=2, completed=2)
        while "prompts" not in (told := capsys.readouterr().err):
            time.sleep(0.01)
        progress.update(done, completed=7)
    assert told.splitlines()[0].startswith("prompts: 3 of 7 after 0 s")
    assert "step" not in told and "finished" not in told
