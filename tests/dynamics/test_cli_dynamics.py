"""`midward probe order` and `midward dynamics`, run in this process."""

import csv
import json

import pytest
from typer.testing import CliRunner

from midward.cli import app
from midward.probes import recovery

TINY = ["--device", "cpu", "--length", "12", "--steps", "6"]


def midward(*args):
    """Run `midward ARGS`. A traceback fails the test."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("prompt\n" + "".join(f"t{n} t{n + 1}\n" for n in range(30, 36)))
    return path


def test_order(prompts, llada_folder, tmp_path):
    out = tmp_path / "order"
    command = ["probe", "order", "--model", llada_folder, *TINY, "--sets", f"{prompts},sums", "--count", 4]
    result = midward(*command, "--out", out, "--batch-size", 3)
    assert result.exit_code == 0, result.stderr
    assert "Over 8 prompts (12 tokens, 6 steps, one block) the rank correlation" in result.stdout
    with (out / "order.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["set"] for row in rows} == {"mine", "sums"} and len(rows) == 12
    names = {path.name for path in out.glob("[!.]*")}
    assert {"order.png", "order.svg", "order-heat.png", "correlation.csv", "summary.json"} <= names

    rows_file = out / "rows.jsonl"
    whole = rows_file.read_bytes()
    rows_file.write_bytes(b"".join(whole.splitlines(True)[:5]))
    again = midward(*command, "--out", out, "--batch-size", 3)
    assert again.stdout == result.stdout and rows_file.read_bytes() == whole


def test_order_of_what_has_none(prompts, llama_folder, llada_folder, tmp_path):
    result = midward("probe", "order", "--model", llama_folder, "--device", "cpu", "--sets", prompts, "--count", 2)
    assert result.exit_code == 2 and "autoregressive kind" in result.stderr
    for sets, told in (("sandbx", "no set of goals"), (" , ", "names no set"), (f"{prompts},mine", "no set of goals")):
        result = midward("probe", "order", "--model", tmp_path / "no model is read", "--sets", sets)
        assert result.exit_code == 2 and told in result.stderr


BAD = [
    (["--samplers", "native,gredy"], "Did you mean 'greedy'"),
    (["--attacked", "sums"], "is a task"),
    (["--attacked", "wrapers"], "no set of goals"),
    (["--reading", "genrated"], "genrated"),
    (["--judges", "orcle"], "orcle"),
    (["--judges", "refusal"], "never success"),
    (["--harmless", "missing.csv"], "missing.csv"),
]


@pytest.mark.parametrize(("flags", "told"), BAD, ids=[told for _, told in BAD])
def test_bad_input_comes_before_the_model(flags, told, monkeypatch):
    import midward as package

    monkeypatch.setattr(package, "load", lambda *args, **options: pytest.fail("the model was loaded"), raising=False)
    result = midward("dynamics", *flags)
    assert result.exit_code == 2 and told in result.stderr


def test_too_few_prompts_to_fit_on_are_told_before_the_model_is_loaded(tmp_path):
    few = tmp_path / "few.csv"
    few.write_text("prompt,harmful\na,0\nb,0\nc,0\n")
    result = midward(
        "dynamics",
        "--model",
        tmp_path / "none",
        "--attacked",
        "plain",
        "--harmless",
        "benign",
        "--fit-harmful",
        "plain",
        "--fit",
        2,
        "--count",
        2,
        "--fit-harmless",
        few,
    )
    assert result.exit_code == 2 and "gives 3 prompts; --fit 2 takes 4 or more" in result.stderr


def test_another_world_needs_its_prompts():
    result = midward("dynamics", "--model", "some/model")
    assert result.exit_code == 2 and "--attacked is needed" in result.stderr


def test_dynamics_on_the_sandbox(tmp_path, monkeypatch):
    monkeypatch.setattr(recovery, "SEEDS", range(2))
    out = tmp_path / "dynamics"
    command = [
        "dynamics",
        "--device",
        "cpu",
        "--count",
        2,
        "--fit",
        4,
        "--train",
        4,
        "--samplers",
        "native,dynamic",
        "--attacked",
        "wrappers,prefill:plain",
        "--harmless",
        "benign,banned",
        "--length",
        64,
        "--steps",
        12,
        "--out",
        out,
    ]
    result = midward(*command)
    assert result.exit_code == 0, result.stderr
    assert "Inner recovery" in result.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["cells"]["native"]) == {"wrappers", "prefill", "benign", "banned", "attacked"}
    assert summary["cells"]["dynamic"]["benign"]["right"]["n"] == 2
    native = [json.loads(line) for line in (out / "rows-native.jsonl").open()]
    assert {len(row["signals"]["last"]) for row in native} == {12} and len(native) == 12
    assert set(native[0]["signals"]) == {"first", "middle", "last", "last (generated)"}
    assert summary["cells"]["native"]["attacked"]["irr-0.5 (generated)"]["n"] == 4  # both readings, side by side

    files = {path: path.read_bytes() for path in out.rglob("*") if path.suffix in (".jsonl", ".safetensors")}
    files[out / "rows-dynamic.jsonl"] = b"".join(files[out / "rows-dynamic.jsonl"].splitlines(True)[:3])
    (out / "rows-dynamic.jsonl").write_bytes(files.pop(out / "rows-dynamic.jsonl"))
    again = midward(*command)
    assert again.exit_code == 0 and again.stdout == result.stdout
    assert all(path.read_bytes() == content for path, content in files.items())
