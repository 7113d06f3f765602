"""`midward align`: from files to an adapter."""

import html
import json
import signal

import pytest

import midward as library
from midward.errors import InputError
from midward.runs.run import Run


def words(*numbers):
    return " ".join(f"t{number}" for number in numbers)


SMALL = "length=24 window_start=6 window_end=14 lr=1e-3 log_steps=1 save_steps=1"


@pytest.fixture
def files(tmp_path):
    """Flags: prompts in AdvBench's format, instructions with answers, and sentences in the tiny vocabulary."""
    (tmp_path / "goals.csv").write_text(
        "goal,target\n" + "".join(f"{words(*range(100 + n, 106 + n))},x\n" for n in range(8))
    )
    (tmp_path / "calm.jsonl").write_text(
        "".join(
            json.dumps({"instruction": words(*range(200 + n, 206 + n)), "answer": words(300 + n) if n % 2 else None})
            + "\n"
            for n in range(4)
        )
    )
    (tmp_path / "sentences.yaml").write_text(
        f"safe: [{words(40, 41, 42)}, {words(50, 51)}]\nharmful: [{words(60, 61)}, {words(70, 71, 72)}]\n"
    )
    files = ["--data", tmp_path / "goals.csv", "--column", "goal", "--sentences", tmp_path / "sentences.yaml"]
    files += ["--benign", tmp_path / "calm.jsonl", "--benign-column", "instruction"]
    return [*files, *(word for each in SMALL.split() for word in ("--set", each))]


def test_files_become_an_adapter_and_a_finished_one_is_kept(midward, files, llada_folder, tmp_path):
    out = tmp_path / "adapter"
    command = ["align", "--model", llada_folder, "--device", "cpu", "--out", out, *files]
    result = midward(*command)
    assert result.exit_code == 0, result.stderr
    assert "8 harmful and 4 benign prompts" in result.stderr
    steps = [line for line in result.stderr.splitlines() if line.startswith("step ")]
    assert len(steps) == 2
    assert all(part in steps[-1] for part in ("reward", "safe", "harmful", "kl", "over-refusal"))
    record = json.loads((out / "align.json").read_text())
    assert record["config"]["lr"] == 0.001
    model = library.load(llada_folder, adapter=out, device="cpu")
    assert model.fingerprint != library.load(llada_folder, device="cpu").fingerprint

    before, run = (out / "adapter_model.safetensors").read_bytes(), Run.load(out)
    assert "is finished already (2 steps)" in midward(*command).stderr
    assert run.finished is not None and Run.load(out) == run
    page = tmp_path / "report.html"
    assert midward("report", out, "--out", page).exit_code == 0
    assert "isn't finished" not in html.unescape(page.read_text())
    refused = midward(*command, "--seed", 1)
    assert refused.exit_code == 2 and "seed 0 there, 1 here" in refused.stderr
    assert (out / "adapter_model.safetensors").read_bytes() == before
    assert midward(*command, "--seed", 1, "--overwrite").exit_code == 0
    assert (out / "adapter_model.safetensors").read_bytes() != before


@pytest.mark.parametrize("step, says", [(1, "No step is kept"), (2, "Step 1 is kept")])
def test_ctrl_c_names_the_step_that_the_same_command_goes_on_from(midward, files, llada_folder, tmp_path, step, says):
    def stop(bar, row):
        if row["step"] == step:
            raise KeyboardInterrupt

    command = ["align", "--model", llada_folder, "--device", "cpu", "--out", tmp_path / "adapter", *files]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("midward.cli.align.CurveBar.row", stop)
        stopped = midward(*command)
    assert stopped.exit_code == 130 and says in stopped.stderr
    [line] = [line for line in stopped.stderr.splitlines() if "all settings:" in line]
    assert "window_start 6" in line and "lora_rank" not in line  # what isn't the recipe's own
    recorded = Run.load(tmp_path / "adapter").command
    assert recorded[:2] == ["midward", "align"] and "--out" not in recorded
    again = midward(*recorded[1:], "--out", tmp_path / "adapter").stderr
    assert ("from step 1" in again) == (step == 2)


def test_ctrl_c_before_the_first_checkpoint_keeps_what_there_is(midward, files, llada_folder, tmp_path, request):
    """The adapter, the optimizer's state and the curve: it goes on to what an undisturbed run gives."""
    command = ["align", "--model", llada_folder, "--device", "cpu", *files, "--set", "save_steps=20"]
    command += ["--set", "batch_size=2"]

    def press(bar, row):
        if row["step"] == 1:  # in the middle of its end, so the next step is the last one
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("midward.cli.align.CurveBar.row", press)
        stopped = midward(*command, "--out", tmp_path / "stopped")
    assert stopped.exit_code == 130 and "Step 2 is kept" in stopped.stderr
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert "from step 2" in midward(*command, "--out", tmp_path / "stopped").stderr
    midward(*command, "--out", tmp_path / "whole")
    kept = [
        [(tmp_path / run / name).read_bytes() for name in ("adapter_model.safetensors", "reward.csv")]
        for run in ("stopped", "whole")
    ]
    assert kept[0] == kept[1]


def test_method_and_objective_reach_the_run_and_length_is_the_models(
    midward, files, llada_folder, tmp_path, monkeypatch
):
    seen = {}

    def run(model, data, out, **settings):
        seen.update(settings, data=data)
        raise InputError("enough")

    monkeypatch.setattr("midward.alignment.run.align", run)
    kept = files[: files.index("--set")]
    method = ["--method", "initial", "--recipe", "paper", "--seed", 3]
    result = midward("align", "--model", llada_folder, "--out", tmp_path / "o", *method, *kept)
    assert result.exit_code == 2 and result.stderr.endswith("error: enough\n")
    assert (seen["method"], seen["recipe"], seen["seed"], seen["length"]) == ("initial", "paper", 3, 128)
    assert seen["data"][0] == words(*range(100, 106))
    assert seen["benign"][:2] == [words(*range(200, 206)), (words(*range(201, 207)), words(301))]
    assert list(seen["sentences"].harmful) == [words(60, 61), words(70, 71, 72)]


def test_the_sandbox_model_brings_its_own_data(midward, llada, tmp_path, monkeypatch):
    from midward import world as sandbox

    seen = {}

    def run(model, data, out, **settings):
        seen.update(settings, data=data)
        raise InputError("enough")

    monkeypatch.setattr("midward.load", lambda name, **kwargs: llada, raising=False)
    monkeypatch.setattr("midward.alignment.run.align", run)
    result = midward("align", "--out", tmp_path / "o", "--set", "lr=0.5")
    assert result.exit_code == 2 and result.stderr.endswith("error: enough\n")
    assert seen["data"] == sandbox.alignment_prompts(3000)
    assert seen["benign"] == sandbox.instructions(3000)
    assert (seen["sentences"].safe, seen["sentences"].harmful) == sandbox.sentences(opening=False)
    assert seen["lr"] == 0.5


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("sft", "rt", "dpo", "ra")]  # each in tests/alignment


@pytest.mark.parametrize("method", ["a2d", *SLOW])
def test_every_method_trains_on_the_sandbox(midward, tmp_path, method):
    small = "--max-steps 2 --batch-size 2 --lora-rank 2 --log-steps 1 --save-steps 1 --length 96"
    small += " --group 2 --rollout-steps 2" if method == "ra" else ""
    out = tmp_path / "adapter"
    result = midward("align", "--device", "cpu", "--method", method, *small.split(), "--out", out)
    assert result.exit_code == 0, result.stderr
    record = json.loads((out / "align.json").read_text())
    assert (record["config"]["method"], record["steps"], record["config"]["lr"]) == (method, 2, 1e-3)
    assert {"dpo": "margin", "ra": "safety"}.get(method, "ce-harmful") in result.stderr
    assert library.load("sandbox", adapter=out, device="cpu").fingerprint != record["model_fingerprint"]


def test_answers_of_a_file_reach_the_method(midward, files, llada_folder, tmp_path):
    rows = [{"goal": words(100 + n, 7), "answer": words(300 + n), "safe_answer": words(340 + n)} for n in range(4)]
    (tmp_path / "goals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "calm.jsonl").write_text(json.dumps({"instruction": words(200), "answer": words(310)}) + "\n")
    small = "--length 24 --max-steps 1 --log-steps 1 --save-steps 1 --batch-size 2"
    changed = {"--data": tmp_path / "goals.jsonl", "--sentences": tmp_path / "sentences.yaml"}
    given = [word for pair in changed.items() for word in pair]
    given += ["--benign", tmp_path / "calm.jsonl", "--benign-column", "instruction", "--column", "goal"]
    for method in ("sft", "a2d"):
        command = ["align", "--model", llada_folder, "--device", "cpu", "--method", method, *small.split()]
        assert midward(*command, "--out", tmp_path / method, *given).exit_code == 0
    (tmp_path / "goals.jsonl").write_text(json.dumps({"goal": words(100)}) + "\n")
    result = midward(*command, "--out", tmp_path / "none", *given)
    assert result.exit_code == 2 and "give it in a column 'answer'" in result.stderr


def test_a_judge_that_cant_be_had_is_told_before_the_model_is_loaded(midward, files, llada_folder, tmp_path):
    for given, message in (([], "name one (--judge"), (["--judges", "oracle"], "knows goals of the sandbox only")):
        flags = [*files[:4], "--model", llada_folder, "--out", tmp_path / "out", "--method", "ra", *given]
        result = midward("align", *flags)
        assert result.exit_code == 2 and message in result.stderr and result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    "change, message",
    [
        (["--set", "lrr=1"], "no setting 'lrr'. Did you mean 'lr'?"),
        (["--set", "lr=-1"], "lr: "),
        (["--method", "a2d"], "'a2d' has no window_start"),
        (["--judges", "oracle"], "--judges and --judge are of --method ra; mosa asks no judge"),
        (["--reveal-text", "others"], "--reveal-text"),
        (["--set", "lr"], "--set takes KEY=VALUE; received 'lr'"),
        (["--pairs", "0"], "pairs: "),
        (["--reveal-rate", "0.1,x"], "two numbers by comma; received '0.1,x'"),
        (["--reveal-rate", "0.5,0.2"], "first bound is the lower one"),
        (["--lrr", "1"], "(Possible options: --lora-rank, --lr)"),
        (["--recipe", "publishd"], "publishd"),
        (["--recipe", "x.yaml"], "--recipe FILE is now --config FILE"),
        (["--objective", "paper"], "--objective is now --recipe"),
        (["--set", "lr=["], "--set lr: '[' is no value"),
        (["--column", "prompt"], "has no column 'prompt'"),
        (["--data", "nothing.csv"], "there is no file nothing.csv"),
        (["--sentences", "GOALS"], "must hold the lists `safe` and `harmful`"),
        (["--sentences", "nothing.yaml"], "No such file"),
    ],
)
def test_bad_settings_are_told_before_training(midward, files, llada_folder, tmp_path, change, message):
    change = [arg.replace("GOALS", str(tmp_path / "goals.csv")) for arg in change]
    result = midward("align", "--model", llada_folder, "--out", tmp_path / "adapter", *files, *change)
    assert result.exit_code == 2 and message in result.stderr
    assert not (tmp_path / "adapter").exists()


def test_data_must_be_given_for_other_models_and_hold_no_empty_prompt(midward, llada_folder, tmp_path):
    result = midward("align", "--model", llada_folder, "--out", tmp_path / "adapter")
    assert result.exit_code == 2 and "--data is needed" in result.stderr
    (tmp_path / "p.jsonl").write_text('{"prompt": "t30"}\n{"prompt": ""}\n')
    result = midward("align", "--model", llada_folder, "--out", tmp_path / "adapter", "--data", tmp_path / "p.jsonl")
    assert result.exit_code == 2 and "row 1 has an empty 'prompt'; remove it" in result.stderr


def test_a_config_holds_every_number(midward, files, llada_folder, tmp_path):
    path = tmp_path / "config.yaml"
    content = (
        f"model: {llada_folder}\ndata: {tmp_path / 'goals.csv'}\ncolumn: goal\nrecipe: paper\n"
        f"sentences: {tmp_path / 'sentences.yaml'}\nlength: 24\nwindow-start: 6\nwindow_end: 14\nlr: 1e-3\n"
        "max-steps: 1\nlog-steps: 1\nfit: true\n"
    )
    path.write_text(content + "set: {harmful_floor: null}\n")
    result = midward("align", "--config", path, "--out", tmp_path / "adapter", "--no-fit")
    assert result.exit_code == 0, result.stderr
    config = json.loads((tmp_path / "adapter" / "align.json").read_text())["config"]
    assert config["lr"] == 0.001 and config["harmful_floor"] is None and config["recipe"] == "paper"
    assert config["window_start"] == 6 and config["window_end"] == 14 and not config["fit"]
    path.write_text(content + "harmful_floor: null\n")  # null in a config is what isn't given
    result = midward("align", "--config", path, "--out", tmp_path / "other")
    assert result.exit_code == 2 and "set: {harmful_floor: null}" in result.stderr
