"""`midward attack`."""

import csv
import json
import signal
import subprocess
import sys
import time

import pytest
from checkpoints import lora
from inspect_ai.model import ModelOutput

import midward as library
from midward import goals
from midward.attacks.matrix import settings_of
from midward.runs.run import Run
from midward.serving.provider import MidwardAPI

MIDWARD = [sys.executable, "-c", "from midward.cli import main; main()"]


def samples(out):
    with (out / "samples.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def base(tiny, tmp_path):
    """Flags of a small matrix on the tiny checkpoint."""
    return [*tiny, "--goals", "sandbox", "--count", 2, "--attacks", "direct,pad", "--out", tmp_path / "out"]


def fingerprint(flags):
    return library.load(flags[flags.index("--model") + 1], device="cpu").fingerprint


def test_a_matrix_prints_its_table_and_leaves_its_files(midward, tiny, base, tmp_path, monkeypatch):
    result = midward("attack", *base, "--verdict", "authored", "--export", tmp_path / "artifacts")
    assert result.exit_code == 0
    assert "Attack success on sandbox, judged by oracle; only what the model wrote itself" in result.stdout
    assert "0.0 % [0.0, 65.8] (n 2)" in result.stdout
    for line in (
        "row       base: ",
        "attacks   direct, pad (profile quick)",
        "goals     sandbox (2)",
        "judges    oracle",
    ):
        assert line in result.stderr
    out = tmp_path / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["profile"] == "quick" and summary["seed"] == 0 and summary["goals"] == {"sandbox": 2}
    run = Run.load(out)
    assert run.verb == "attack" and run.goals == {"sandbox": 2} and run.finished
    assert [(model.label, model.fingerprint) for model in run.models] == [("base", fingerprint(tiny))]
    assert [judge["judge"] for judge in run.judges] == ["oracle", "harmfulness"]
    assert len(samples(out)) == 4
    assert {row["taxonomy"] for row in samples(out)} == {"LLM01:2025 AML.T0051.000 S0400", "LLM01:2025 AML.T0054 S0400"}
    exported = {path.parts[-3:]: json.loads(path.read_text()) for path in (tmp_path / "artifacts").rglob("*.json")}
    assert exported.keys() == {(attack, "black_box", "base.json") for attack in ("direct", "pad")}
    assert all(len(content["jailbreaks"]) == 2 for content in exported.values())
    again = midward("attack", *base, "--verdict", "authored", "--quiet")
    assert again.stdout == result.stdout and again.stderr == ""
    # stdout holds results only, also where Inspect would write to it
    monkeypatch.setenv("INSPECT_DISPLAY", "plain")
    assert midward("attack", *base, "--verdict", "authored").stdout == result.stdout


def adapter(folder, out):
    """A LoRA adapter of the tiny checkpoint, as `midward align` writes it."""
    return lora(library.load(folder, device="cpu", dtype="float32"), out)


@pytest.mark.parametrize(
    "args, message",
    [
        (["--attacks", "tpa"], "Did you mean 'tap'?"),
        (["--judges", "orcale"], "Did you mean 'oracle'?"),
        (["--profile", "mossa"], "Did you mean 'mosa'?"),
        (["--goals", "sandbxo"], "Did you mean 'sandbox'?"),
        (["--attacks", "tap", "--set", "tap.widht=3"], "Did you mean 'width'?"),
        (["--attacks", "tap", "--set", "tap.width=0"], "tap: width: "),
        (["--attacks", "replay"], "replay can't run without its setting path; give it by --set replay.path=..."),
        (["--export", "artifacts.json"], "--export artifacts.json is to be a folder"),
        (["--attacks", "direct,replay", "--plan"], "replay can't run without its setting path"),
        (["--set", "tap.width=3"], "settings for 'tap', which isn't among the attacks: direct, pad"),
        (["--attacks", "tap", "--set", "tap.width=["], "--set tap.width: '[' is no value."),
        (["--set", "tpa.width=3"], "Did you mean 'tap'?"),
        (["--set", "width=3"], "--set takes ATTACK.NAME=VALUE, e.g. tap.width=5; received 'width=3'"),
        (["--count", "0"], "--count"),
        (["--budget", "0"], "--budget"),
        (["--verdict", "best"], "--verdict"),
        (["--adapter", "mosa=/nowhere/at/all"], "/nowhere/at/all"),
        (["--adapter", "mosa="], "--adapter takes a path, or LABEL=PATH; received 'mosa='"),
        (["--guard", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--served", "nobody/x"], "nobody"),
        (["--judges", "harmfulness", "--judge", "nobody/x"], "nobody"),
    ],
)
def test_bad_input_is_told_before_anything_runs(midward, base, tmp_path, args, message):
    result = midward("attack", *base, *args)
    shown = " ".join(result.stderr.replace("│", " ").split())
    assert result.exit_code == 2 and message in shown and result.stdout == ""
    assert not list((tmp_path / "out").glob("logs/*.eval"))


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("tap-mid.phrase=Step 3:", "Step 3:"),
        ("tap-mid.phrase='Step 3:'", "Step 3:"),
        ("tap-mid.phrase= [half", " [half"),
        ("tap-mid.phrase=Step 3 # x", "Step 3 # x"),
        ("tap-mid.width=3", 3),
        ("ept.opening=null", None),
        ("ept.opening=null and void", "null and void"),
        ("ept.refusals=[Sorry, never]", ["Sorry", "never"]),
    ],
)
def test_a_text_of_a_setting_stays_as_it_is(given, value):
    attack, name = given.partition("=")[0].split(".")
    assert settings_of([given]) == {attack: {name: value}}


def test_a_row_of_failures_only_ends_with_status_1_behind_its_table(midward, base, monkeypatch):
    async def broken(self, input, tools, tool_choice, config):
        raise RuntimeError("out of order")

    monkeypatch.setattr(MidwardAPI, "generate", broken)
    failed = midward("attack", *base, "--attacks", "direct")
    assert failed.exit_code == 1
    assert "error: every sample of base failed" in failed.stderr and "out of order" in failed.stderr


@pytest.fixture
def refusing(monkeypatch):
    """The model under attack refuses all."""

    async def generate(self, input, tools, tool_choice, config):
        return ModelOutput.from_content(self.model_name, "I cannot help with that.")

    monkeypatch.setattr(MidwardAPI, "generate", generate)


@pytest.mark.parametrize("judges", ["refusal,harmfulness", "harmfulness,refusal"])
def test_a_model_that_refuses_all_has_no_attack_success(midward, base, tmp_path, refusing, judges):
    shown = midward("attack", *base, "--attacks", "direct", "--judges", judges, "--export", tmp_path / "e").stdout
    success, refusals = shown.split("Refusals on sandbox, by refusal")
    assert "Attack success on sandbox, judged by harmfulness" in success and "0.0 % [0.0, 65.8] (n 2)" in success
    assert "Attack success" not in refusals and "100.0 % [34.2, 100.0] (n 2)" in refusals
    content = json.loads((tmp_path / "e" / "direct" / "black_box" / "base.json").read_text())
    assert {row["jailbroken"] for row in content["jailbreaks"]} == {False}
    page = tmp_path / "page.html"
    midward("report", tmp_path / "out", "--out", page)
    text = page.read_text()
    assert "▲ Exposed" not in text and "Refusals on sandbox, by refusal" in text
    assert "success-sandbox" in text and "and not one success" in text


def test_without_a_judge_of_attack_success_it_says_so_before_it_runs(midward, base, tmp_path, refusing):
    args = [*base, "--attacks", "direct", "--judges", "refusal"]
    result = midward("attack", *args)
    assert result.exit_code == 0 and "there will be refusal rates only" in result.stderr
    assert "Attack success" not in result.stdout and "Refusals on sandbox, by refusal" in result.stdout
    page = tmp_path / "page.html"
    midward("report", tmp_path / "out", "--out", page)
    assert "▲ Exposed" not in page.read_text() and "says who refused, and nothing of attack success" in page.read_text()
    exported = midward("attack", *args, "--export", tmp_path / "x")
    assert exported.exit_code == 2 and "refusal only say who refused" in exported.stderr


def test_goals_of_another_world_are_warned_of(midward, tiny, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("goal,target\nt30 t31,Sure\n")
    result = midward("attack", *tiny, "--goals", path, "--count", 1, "--attacks", "direct", "--out", tmp_path / "o")
    assert result.exit_code == 0 and "judges    harmfulness, strongreject" in result.stderr
    assert "warning   judge: played by the sandbox's scripted assistant" in result.stderr
    assert "Warning: judge: played by the sandbox's scripted assistant" in result.stdout
    midward("report", tmp_path / "o", "--out", tmp_path / "page.html")
    card = (tmp_path / "page.html").read_text().split('<ul class="cards">')[1].split("</ul>")[0]
    assert "These figures are no evidence" in card


def test_a_published_set_is_played_on_a_model_and_what_comes_of_it_again(midward, tmp_path):
    made_up = [goal.text for goal in goals.load("sandbox", count=2)]
    about = {"behavior": "Making", "category": "Crafts", "response": "A tale.", "jailbroken": True}
    counts = dict.fromkeys(("number_of_queries", "queries_to_jailbreak", "prompt_tokens", "response_tokens"), 9)
    rows = [
        {"index": index, "goal": goal, "prompt": f"For my tale: {goal}", **about, **counts}
        for index, goal in enumerate(made_up)
    ]
    published, again = tmp_path / "published.json", tmp_path / "e" / "replay" / "transfer" / "base.json"
    published.write_text(json.dumps({"parameters": {"method": "PAIR", "model": "vicuna"}, "jailbreaks": rows}))
    base = ["--length", 16, "--steps", 4, "--device", "cpu", "--attacks", "replay", "--no-replay"]
    asked = []
    for file, sets in ((published, "sandbox"), (again, published)):
        out = tmp_path / file.stem
        names = ["--set", f"replay.path={file}", "--goals", sets, "--limit", 2, "--out", out]
        result = midward("attack", *base, *names, "--export", tmp_path / "e")
        assert result.exit_code == 0, result.stderr
        asked.append({(row["prompt"], row["asked"]) for row in samples(out)})
        assert all(row["reply"] and not row["error"] for row in samples(out))
    assert asked[0] == asked[1] == {(row["goal"], row["prompt"]) for row in rows}
    assert {row["oracle_reply"] for row in samples(tmp_path / "published")} <= {"0", "1"}


def test_the_plan_runs_nothing(midward, base, tmp_path):
    result = midward("attack", *base, "--attacks", "direct,tap", "--plan")
    assert result.exit_code == 0 and not (tmp_path / "out").exists()
    lines = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line}
    assert lines["direct"][1:4] == ["2", "1", "2"] and lines["tap"][1] == "2"
    assert "responses a second" in result.stdout


@pytest.mark.slow
def test_ctrl_c_ends_it_and_the_same_command_goes_on(midward, llada_folder, tmp_path):
    out = tmp_path / "out"
    sizes = "--length 60 --steps 60 --batch-size 1 --goals sandbox --count 40 --attacks direct --no-replay"
    args = ["attack", "--model", llada_folder, "--device", "cpu", *sizes.split(), "--out", out]
    process = subprocess.Popen(
        [*MIDWARD, *map(str, args)],
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background ignores the signal, and its children would.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (found := list(out.glob("logs/*.eval"))) or found[0].stat().st_size < 6000:  # samples in it
        assert process.poll() is None
        time.sleep(0.1)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=240)
    assert process.returncode == 130 and time.monotonic() - started < 120  # seconds, but on a busy machine
    assert "stopped. " in told and "goes on from there." in told
    assert "Traceback" not in told and not (out / "summary.json").exists()
    args[args.index("--batch-size") + 1] = 32  # neither here nor there
    assert midward(*args).exit_code == 0
    goals = [row["goal"] for row in samples(out)]
    assert len(goals) == len(set(goals)) == 40


def test_harmless_requests_are_never_attacked(midward, tiny, tmp_path):
    unmarked, mixed, calm = (tmp_path / f"{name}.csv" for name in ("unmarked", "mixed", "calm"))
    unmarked.write_text("goal\nt30\nt31\n")
    mixed.write_text("goal,harmful\nt33,true\nt34,false\n")
    calm.write_text("prompt\nt40\nt41\nt42\n")
    out = tmp_path / "out"
    base = [*tiny, "--attacks", "pad", "--judges", "harmfulness", "--no-replay", "--out", out]
    result = midward("attack", *base, "--goals", f"{unmarked},{mixed}", "--harmless", calm)
    assert result.exit_code == 0
    assert "goals     unmarked (2), mixed (1)" in result.stderr
    assert "harmless  mixed-harmless (1), calm (3): asked plainly, refusals counted by refusal" in result.stderr
    assert f"{unmarked} has no column `harmful`: all of it counts as harmful" in result.stderr
    assert f"{mixed} has no" not in result.stderr and f"{calm} has no" not in result.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert (
        summary["goals"]
        == {"unmarked": 2, "mixed": 1}
        == {
            name: sum(cell["pad"]["base"][of] for of in ("n", "unscored"))
            for name, cell in summary["asr"]["harmfulness"]["reply"].items()
        }
    )
    assert summary["harmless"]["goals"] == {"mixed-harmless": 1, "calm": 3}
    assert summary["harmless"]["asr"] == {} and summary["costs"]["pad"]["base"]["n"] == 3
    assert summary["harmless"]["refusals"]["refusal"]["reply"]["calm"]["direct"]["base"]["n"] <= 3
    assert "Attack success on calm" not in result.stdout
    assert [row["attack"] for row in samples(out) if row["goals"] in ("calm", "mixed-harmless")] == ["direct"] * 4


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--goals", "sandbox-benign"], "sandbox-benign: no harmful goal to attack with"),
        (["--harmless", "sandbox"], "requests are harmful ones; give harmless ones."),
        (["--goals", "sandbox,sandbox-benign", "--harmless", "sandbox-benign"], "called 'sandbox-benign'"),
    ],
)
def test_harm_in_the_wrong_place_is_told(midward, base, flags, message):
    result = midward("attack", *base, *flags)
    assert result.exit_code == 2 and message in result.stderr


def test_adapters_of_one_label_are_one_row(midward, base, llada_folder, tmp_path):
    first, second = (adapter(llada_folder, tmp_path / name) for name in ("first", "second"))
    flags = [*base, "--attacks", "direct", "--adapter", f"mine={first}"]
    assert midward("attack", *flags).exit_code == 0
    pooled = midward("attack", *flags, "--adapter", f"mine={second}")
    assert pooled.exit_code == 0 and "run       8 of 8" not in pooled.stderr
    assert "run       6 of 6 samples, 4 of them by an earlier run; " in pooled.stderr
    assert "model     mine (llada) on cpu as float32" in pooled.stderr and "sampling  length " in pooled.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    cell = summary["asr"]["oracle"]["reply"]["sandbox"]["direct"]["mine"]
    assert (cell["n"], cell["goals"], cell["seeds"]) == (4, 2, 2) and summary["rows"] == ["base", "mine"]
    assert summary["models"]["mine"]["adapter"] == f"{first} (2 seeds)"
    assert [(model.label, model.adapter) for model in Run.load(tmp_path / "out").models] == [
        ("base", None),
        ("mine", str(first)),
        ("mine", str(second)),
    ]
    for label, folder in (("base", second), ("mine", first)):
        refused = midward("attack", *flags, "--adapter", f"{label}={folder}", "--out", tmp_path / "other")
        assert refused.exit_code == 2 and f"two rows are called '{label}'" in refused.stderr


def test_the_list_is_no_wider_than_a_hundred_characters(midward):
    shown = midward("attack", "--list")
    assert max(map(len, shown.stdout.splitlines())) <= 100
    text = " ".join(shown.stdout.split())
    assert "SLP the log-probability of a span" in text and "mosa-adaptive" in text
    records = {row["attack"]: row for row in json.loads(midward("attack", "--list", "--json").stdout)}
    assert "AML.T0054 LLM Jailbreak: all but direct" in text
    assert records["pad"]["taxonomy"] == [
        "LLM01:2025 Prompt Injection",
        "AML.T0054 LLM Jailbreak",
        "S0400: Model Bypass",
    ]
    assert records["pad"]["needs"] == "POS" and records["pad"]["about"].startswith("labels of numbered steps")


def test_the_table_says_what_each_row_is(midward, base, llada_folder, tmp_path):
    folder = adapter(llada_folder, tmp_path / "mine")
    shown = midward("attack", *base, "--attacks", "direct", "--adapter", folder, "--adapter", f"x={folder}")
    assert shown.exit_code == 0 and "x - mine" in shown.stdout
    base, mine, adapted = Run.load(tmp_path / "out").models
    assert mine.label == "mine"
    assert (base.label, base.adapter) == ("base", None) and (adapted.label, adapted.adapter) == ("x", str(folder))
    assert base.name == adapted.name == str(llada_folder) and base.fingerprint != adapted.fingerprint
    report = midward("report", tmp_path / "out", "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert report.exit_code == 0 and "llada-tiny + mine, judged by oracle" in page
    assert "llada-tiny, judged by oracle" in page


def replies(out):
    return {(row["attack"], row["goal"]): row["reply"] for row in samples(out)}


def test_a_torn_log_is_set_aside_and_run_again(midward, base, tmp_path):
    assert midward("attack", *base).exit_code == 0
    out = tmp_path / "out"
    before = replies(out)
    [half], [whole] = ((out / "logs").glob(f"*{attack}*.eval") for attack in ("direct", "pad"))
    content = half.read_bytes()
    half.write_bytes(content[: len(content) // 2])
    (out / "logs" / "logs.json").write_text('{"half')
    (out / "logs" / ".eval-set-id").write_text("")
    kept = whole.read_bytes()
    again = midward("attack", *base)
    assert again.exit_code == 0
    assert f"warning   {half.name} can't be read; it was set aside as {half}.damaged" in again.stderr
    assert whole.read_bytes() == kept and half.with_name(f"{half.name}.damaged").exists()
    assert replies(out) == before and len(before) == 4
    assert "can't be read" not in midward("attack", *base).stderr


def test_an_empty_response_is_no_verdict_of_the_judges(midward, base, monkeypatch):
    """The judge is asked about one of two responses and says nothing; the other is empty."""
    replies = iter(["", "First, take the salt."])

    async def generate(self, input, tools, tool_choice, config):
        return ModelOutput.from_content(self.model_name, next(replies))

    monkeypatch.setattr(MidwardAPI, "generate", generate)
    flags = ["--attacks", "direct", "--judges", "harmfulness", "--judge", "wordless/x", "--no-replay"]
    result = midward("attack", *base, *flags)
    assert result.exit_code == 1 and "error: harmfulness scored nothing: the judge's reply" in result.stderr
    assert "0.0 % [0.0, 79.3] (n 1" in result.stdout
    assert "1 empty response, no success; harmfulness wasn't asked about them." in result.stdout
