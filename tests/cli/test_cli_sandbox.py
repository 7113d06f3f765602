"""`midward sandbox build` and `midward sandbox measure`."""

import json

from midward.world import trials
from tools.world.build import BuildError


def test_build_shows_its_stages(midward, tmp_path, monkeypatch):
    seen = {}

    def build(out, recipe, *, progress):
        seen.update(out=out, seed=recipe.seed, threads=recipe.threads)
        progress(
            {
                "stage": recipe.stages[0].name,
                "step": 100,
                "of": 900,
                "loss": 1.5,
                "seconds": 7.0,
                "exact": {"card": 0.5},
            }
        )
        return out

    monkeypatch.setattr("build.build", build)
    result = midward("sandbox", "build", "--out", tmp_path / "model", "--seed", 4, "--threads", 2)
    assert result.exit_code == 0
    assert seen == {"out": tmp_path / "model", "seed": 4, "threads": 2}
    assert "loss 1.500, exact card 0.50 (7 s)" in result.stderr
    assert f"midward chat --model {tmp_path / 'model'}" in result.stderr


def test_a_missed_gate_is_told(midward, tmp_path, monkeypatch):
    def build(*args, **kwargs):
        raise BuildError("stage 'words' did not learn card")

    monkeypatch.setattr("build.build", build)
    result = midward("sandbox", "build", "--out", tmp_path / "model")
    assert result.exit_code == 2 and result.stderr.endswith("error: stage 'words' did not learn card\n")


def test_measure_prints_rates_and_goes_on_where_it_stopped(midward, llada_folder, tmp_path, monkeypatch):
    out = tmp_path / "rows.jsonl"
    command = [
        "sandbox",
        "measure",
        "--model",
        llada_folder,
        "--device",
        "cpu",
        "--length",
        64,
        "--steps",
        2,
        "--sets",
        "plain, benign,sums",
        "--count",
        4,
        "--out",
        out,
    ]
    first = midward(*command)
    assert first.exit_code == 0, first.stderr
    lines = [line.replace("│", " ").split() for line in first.stdout.splitlines()]
    assert ["plain", "4", *["0.0", "(0-49)"] * 4, "-"] in lines
    assert ["sums", "4", "-", "-", *["0.0", "(0-49)"] * 3] in lines
    whole = out.read_bytes()
    assert [json.loads(line)["set"] for line in whole.splitlines()] == ["plain"] * 4 + ["benign"] * 4 + ["sums"] * 4

    out.write_bytes(whole[:-5])
    sampled = []

    def sample(model, requests, *args, **kwargs):
        sampled.extend(requests)
        return real(model, requests, *args, **kwargs)

    real = trials.sample
    monkeypatch.setattr(trials, "sample", sample)
    second = midward(*command)
    assert second.stdout == first.stdout and out.read_bytes() == whole and len(sampled) == 1


def test_an_unknown_set_lists_the_known(midward, llada_folder, tmp_path):
    for sets, message in [("plian", "no such set of trials: 'plian'; known: plain"), (",", "--sets names no set")]:
        result = midward("sandbox", "measure", "--model", llada_folder, "--sets", sets, "--out", tmp_path / "r.jsonl")
        assert result.exit_code == 2 and message in result.stderr
