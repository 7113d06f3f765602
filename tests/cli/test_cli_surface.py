"""What holds for every verb: help, completion, --config, --quiet, --json, errors, Ctrl-C."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch

from midward.cli import _show
from midward.cli._app import VERBS, load
from midward.cli._show import printable
from midward.models import ModelError
from midward.runs.run import Run, RunFolder

MAIN = "import sys; from midward.cli import main; sys.argv[0] = 'midward'\n"


def alone(*args, **environment):
    """`midward ARGS` in a process of its own, which prints at last which modules it has imported."""
    code = f"{MAIN}try: main()\nfinally: print(*sys.modules)"
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def test_help_of_no_verb_imports_torch():
    code = f"""
from typer.testing import CliRunner
from midward.cli import app
import sys
for verb in {["", *VERBS]!r}:
    shown = CliRunner().invoke(app, [*verb.split(), "--help"])
    assert shown.exit_code == 0 and "Usage" in shown.output, (verb, shown.output)
assert not {{"torch", "transformers", "inspect_ai"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_wrong_name_is_told_before_torch_is_imported(tmp_path):
    """Of a model, an adapter, an attack, a judge, a set and a guard, by every verb that takes one."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "guard.safetensors").touch()
    verbs = ["generate x", "chat", "serve", "trace x --out t", "align --out a", "dynamics", "utility", "guard fit"]
    verbs += ["guard eval", "guard score --prompts p.csv --guard guard.safetensors", "probe prefill", "attack"]
    wrong = [f"{verb} {flag} empty" for verb in verbs for flag in ("--model", "--adapter") if "probe" not in verb]
    wrong += ["generate x --model strange", "generate x --adapter strange", "attack --endpoint e --attacks strange"]
    wrong += ["guard fit --guards strange", "guard fit --guards mine=strange:a=1", "guard fit --harmless strange"]
    wrong += [f"{verb} --guard {path}" for verb in ("guard eval", "chat", "attack") for path in ("strange", "empty")]
    wrong += [f"guard eval --guard guard.safetensors {flag} strange" for flag in ("--sets", "--harmless", "--goals")]
    wrong += [f"{verb} --judges strange" for verb in ("guard eval", "dynamics", "probe prefill", "attack", "align")]
    wrong += ["attack --goals strange", "probe prefill --goals strange", "trace x --out t --against strange"]
    wrong = [f"{words} --out a --method ra" if words.startswith("align --judges") else words for words in wrong]
    code = f"""
from typer.testing import CliRunner
from midward.cli import app
import sys
for words in {wrong!r}:
    shown = CliRunner().invoke(app, words.split())
    named = "empty" if "empty" in words else "strange"
    assert shown.exit_code == 2 and named in shown.output.splitlines()[-1], (words, shown.output)
    assert "torch" not in sys.modules, words
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", VERBS)
def test_every_flag_has_a_help_text(words):
    assert [param.name for param in load(words).params if not (param.help or "").strip()] == []


def test_what_needs_no_model_imports_no_torch(tmp_path):
    (tmp_path / "run.json").write_text(Run(verb="probe order").model_dump_json())  # what report finds
    verbs = ["goals", "goals sandbox", "judges", "report . --out r.html --redact"]
    code = f"""
from typer.testing import CliRunner
from midward.cli import app
import sys
for words in {verbs!r}:
    shown = CliRunner().invoke(app, words.split())
    assert shown.exit_code == 0, (words, shown.output)
    assert not {{"torch", "transformers"}} & set(sys.modules), words
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_list_of_verbs_imports_none_and_tells_what_each_does():
    done = alone("--help")
    lines = done.stdout.splitlines()
    assert {name for name in lines[-1].split() if name.startswith("midward.cli")} == {"midward.cli", "midward.cli._app"}
    told = dict(line.strip("│ ").split(maxsplit=1) for line in lines if line.startswith("│ ") and line[2:4].isalpha())
    assert {verb.split()[0] for verb in VERBS} <= told.keys()
    assert told["align"].startswith("Train a LoRA adapter")


@pytest.mark.parametrize(
    "words, offered",
    [
        ("midward pro", {"probe"}),
        ("midward probe ", {"prefill", "anchor", "mirror", "order", "gcg", "ask"}),
        ("midward align --lora-", {"--lora-rank", "--lora-alpha", "--lora-dropout"}),
        ("midward align --recipe ", {"stable", "published", "paper"}),
    ],
)
def test_the_shell_completes_verbs_flags_and_choices(words, offered):
    count = str(len(words.split(" ")) - 1)
    done = alone(_MIDWARD_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=count)
    assert set(done.stdout.splitlines()[:-1]) == offered


@pytest.mark.parametrize(
    "args, hint",
    [
        (["genrate"], "generate"),
        (["probe", "gcq"], "gcg"),
        (["chat", "--modle", "x"], "--model"),
        (["generate", "hi", "--max-new-tokens", "8"], "--length"),  # transformers' name of it
        (["generate", "hi", "--block_length", "8"], "--block"),  # LLaDA's script's
        (["generate", "hi", "--recipe", "x.yaml"], "--config"),
        (["align", "--out", "x", "--recipe", "x.yaml"], "--config"),
        (["align", "--per-device-train-batch-size", "8"], "--micro-batch"),
        (["align", "--limit", "8"], "--max-steps"),  # another verb's
        (["guard", "eval", "--attacks", "pad"], "--sets"),
    ],
)
def test_a_wrong_verb_or_flag_gets_the_nearest(midward, args, hint):
    shown = midward(*args)
    assert shown.exit_code == 2 and hint in shown.stderr and shown.stdout == ""


# --- what is said ----------------------------------------------------------------------------------------------


def test_json_is_all_of_stdout(midward):
    families = json.loads(midward("models", "--json").stdout)
    assert "llada" in [each["family"] for each in families]
    assert {each["name"] for each in json.loads(midward("goals", "--json").stdout)} > {"sandbox", "advbench"}
    checked = json.loads(midward("judges", "check", "--judges", "refusal", "--json").stdout)
    assert checked["judges"][0]["agreement"]["n"]


def test_quiet_leaves_the_result_and_errors(midward, tiny, tmp_path):
    shown = midward("generate", "t30", *tiny, "--quiet")
    assert shown.exit_code == 0 and shown.stdout and shown.stderr == ""
    assert midward("generate", "t30", "-q", "--model", tmp_path / "nothing").stderr.startswith("error: no model")


def test_what_was_resolved_is_told_on_stderr(midward, tiny, llada_folder):
    shown = midward("generate", "t30 t31", *tiny, "--temperature", 0.5, "--seed", 7)
    model, sampling = shown.stderr.splitlines()[:2]
    assert shown.exit_code == 0 and str(llada_folder) in model and "float32" in model
    for part in ("length 12", "steps 6", "order low_confidence", "temperature 0.5", "seed 7"):
        assert part in sampling


def test_what_a_terminal_would_obey_is_not_shown():
    assert printable("a\x1b[2Jb\rc\x9bd\n\te é 😀") == "a�[2Jb�c�d\n\te é 😀"


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


# --- errors ----------------------------------------------------------------------------------------------------


def test_debug_shows_the_traceback(midward, tmp_path, monkeypatch):
    monkeypatch.setenv("MIDWARD_DEBUG", "1")
    with pytest.raises(ModelError):
        midward("generate", "t30", "--model", tmp_path / "nothing")


@pytest.mark.parametrize("begun", [False, True])
def test_ctrl_c_is_130_and_says_what_there_is(midward, monkeypatch, tmp_path, begun):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    if begun:
        RunFolder(tmp_path / "out", "utility", {}).start()
        (tmp_path / "out" / "rows.jsonl").touch()
        monkeypatch.setattr("midward.cli.utility.run_folder", lambda folder: None)
    monkeypatch.setattr("midward.load", stopped, raising=False)
    shown = midward("utility", "--tasks", "sums", "--out", tmp_path / "out")
    assert shown.exit_code == 130 and ("goes on from there" in shown.stderr) is begun
    assert ("Nothing was written yet" in shown.stderr) is not begun


def test_out_of_memory_is_told(midward, tiny, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("midward.chat.sample", full)
    shown = midward("generate", "t30", *tiny)
    assert shown.exit_code == 2 and "use a smaller --batch-size" in shown.stderr


def test_a_checkpoints_own_bad_sampling_is_told(midward, llada_folder, tmp_path):
    shutil.copytree(llada_folder, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"midward_sampling": {"lenght": 8}}))
    shown = midward("generate", "t30", "--model", tmp_path / "model")
    assert shown.exit_code == 2 and "Did you mean 'length'?" in shown.stderr


# --- --config --------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_config_holds_any_option_and_flags_override_it(midward, config, tiny):
    path = config(
        f"model: {tiny[1]}\ndevice: cpu\nlength: 12\nsteps: 3\ntemperature: 1e-3\nadapter: null\norder: random\n"
    )
    shown = midward("generate", "t30", "--config", path, "--steps", 6)
    given = midward("generate", "t30", *tiny, "--temperature", 0.001, "--order", "random")
    assert shown.exit_code == 0
    assert (shown.stdout, shown.stderr) == (given.stdout, given.stderr)


@pytest.mark.parametrize(
    "content, message",
    [
        ("stpes: 3", "no option 'stpes'. Did you mean 'steps'? Available: "),
        ("goals: x.csv", "no option 'goals'"),
        ("config: other.yaml", "no option 'config'"),
        ("steps: 3.7", "steps: input should be a valid integer; received 3.7"),
        ("steps: '3'", "steps: input should be a valid integer; received '3'"),
        ("steps: true", "steps: input should be a valid integer; received True"),
        ("steps: 0", "Invalid value for '--steps': "),
        ("overwrite: 'no'", "overwrite: input should be a valid boolean; received 'no'"),
        ("order: sideways", "order: input should be 'low_confidence', 'random', "),
        ("temperature: hot", "temperature: "),
        ("model: 3", "model: input should be a valid string; received 3"),
        ("- steps", "must hold options as `name: value`"),
        ("steps: [", "is no YAML"),
        ("", "must hold options"),
    ],
)
def test_a_bad_config_is_told_before_anything_is_loaded(midward, config, content, message):
    shown = midward("generate", "t30", "--config", config(content))
    assert shown.exit_code == 2 and message in " ".join(shown.stderr.replace("│", " ").split())
    assert "model  " not in shown.stderr


def test_options_that_may_be_given_several_times_are_lists_in_a_config(midward, config, tmp_path):
    path = config("tasks: sums\ncompare: [runs/nowhere]")
    shown = midward("utility", "--config", path, "--out", tmp_path / "out")
    assert shown.exit_code == 2 and "runs/nowhere" in shown.stderr
    shown = midward("utility", "--config", config("compare: [1]"))
    assert shown.exit_code == 2 and "compare: input should be a valid string" in shown.stderr


def test_texts_of_set_stay_texts_in_a_config(midward, config, tmp_path):
    path = config("attacks: direct\nset: {tap-mid.phrase: 'Step 3: x', tap-mid.width: 2}")
    shown = midward("attack", "--config", path, "--out", tmp_path / "out")
    assert shown.exit_code == 2 and "settings for 'tap-mid', which isn't among" in shown.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["generate", "t30", "--config", "runs.yml"],
        ["generate", "--prompts", "goal.csv", "--out", "x.jsonl"],
        ["attack", "--goals", "goal.csv"],
        ["generate", "t30", "--model", "modle"],
        ["generate", "t30", "--adapter", "modle"],
        ["generate", "t30", "--model", "./modle"],
        ["chat", "--guard", "guards.safetensors"],
        ["utility", "--tasks", "sums", "--compare", "modle"],
        ["trace", "--html", "x.html", "--load", "guards.safetensors"],
        ["report", "modle"],
    ],
    ids=" ".join,
)
def test_a_file_that_isnt_there_comes_with_the_nearest_that_is(midward, tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    for name in ("runs.yaml", "goals.csv", "guard.safetensors", "modle.csv"):
        (tmp_path / name).touch()
    (tmp_path / "goal").mkdir()  # no file, which is wanted
    (tmp_path / "model").mkdir()
    shown = midward(*args)
    near = {
        "runs.yml": "runs.yaml",
        "goal.csv": "goals.csv",
        "modle": "model",
        "./modle": "model",
        "guards.safetensors": "guard.",
    }
    assert shown.exit_code == 2 and f"Did you mean '{near[args[-1] if args[-1] in near else args[2]]}" in shown.stderr


@pytest.mark.parametrize("terminal", [True, False])
def test_a_list_folds_on_a_terminal_alone(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    lines = _show.columns([("name", "about"), ("one", "a long sentence " * 5), ("two", "short")])
    assert (max(map(len, lines)) <= 40) is terminal and (len(lines) > 3) is terminal
    assert "".join(lines).count("sentence") == 5


def test_no_name_of_a_set_is_cut_in_the_help(midward, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    words = midward("guard", "eval", "--help").stdout.replace("│", " ").replace(",", " ").split()
    assert {"benign-wrapped", "prefill-mid", "wrappers", "dija"} <= set(words)
