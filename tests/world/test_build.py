"""The build: resumable to the bit, refuses what is not its own, says when a stage has not learned."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_build import TINY

from tools.world import build as command
from tools.world.curriculum import STAGES, Stage
from tools.world.muon import Muon, orthogonalise
from tools.world.train import BuildError, Recipe, build

SCRIPT = """
import sys
from tiny_build import TINY
from tools.world.train import build
build(sys.argv[1], TINY, progress=lambda row: print(row["step"], flush=True))
"""


def test_a_killed_build_goes_on_to_the_same_weights(tiny_sandbox, tmp_path):
    out = tmp_path / "model"
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), *sys.path]),
    }
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(out)], stdout=subprocess.PIPE, env=env, text=True)
    for _ in range(3):  # three checkpoints in: the middle of the first stage
        assert process.stdout is not None and process.stdout.readline()
    time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "model.safetensors").exists() and (out / "build" / "checkpoint.safetensors").exists()
    rows = []
    build(out, TINY, progress=rows.append)
    assert rows[0]["step"] > 12 or rows[0]["stage"] == "words"
    first, second = load_file(tiny_sandbox / "model.safetensors"), load_file(out / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tiny_sandbox / "tokenizer.json").read_bytes() == (out / "tokenizer.json").read_bytes()
    assert not (out / "build").exists()


def test_a_finished_build_is_returned_and_another_recipe_refused(tiny_sandbox):
    before = (tiny_sandbox / "model.safetensors").stat().st_mtime_ns
    assert build(tiny_sandbox, TINY) == tiny_sandbox
    assert (tiny_sandbox / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(BuildError, match="another recipe"):
        build(tiny_sandbox, replace(TINY, seed=1))


def test_a_build_loads_like_any_llada_folder(tiny_sandbox):
    import midward
    from tools.world.train import SAMPLING

    model = midward.load(str(tiny_sandbox), device="cpu")
    assert model.family.name == "llada" and model.family.sampling["length"] == SAMPLING["length"]
    text = 'emoji 🦎, "quotes",\n\ttabs, \x00 and ' + "noise " * 400
    assert model.tokenizer.decode(model.tokenizer.encode(text, add_special_tokens=False)) == text
    ids = model.encode("Make a velvet feather skreel.")
    shown = model.tokenizer.decode(ids)
    assert shown.startswith("<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nMake")
    assert shown.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")


@pytest.mark.slow
def test_a_build_of_about_a_minute_learns_the_first_stage(tmp_path):
    """Six steps from three words, for things never trained on, all of them right in one forward: chance is nil."""
    stage = replace(STAGES[0], steps=260, gate={"steps": 0.5})
    recipe = replace(Recipe(), stages=(stage,), threads=1, check_every=130)
    rows = []
    build(tmp_path / "model", recipe, progress=rows.append)
    assert rows[-1]["step"] == 260 and rows[-1]["exact"]["steps"] >= 0.5
    assert rows[-1]["seconds"] < 240  # one thread of a busy machine


def test_a_missed_gate_is_an_error_that_names_the_stage(tmp_path):
    stage = Stage("steps", 2, {"steps": 1.0}, {24: 1.0}, {"steps": 0.99})
    recipe = replace(TINY, stages=(stage,), check_every=1)
    with pytest.raises(BuildError, match="stage 'steps' did not learn steps"):
        build(tmp_path / "model", recipe)


def test_a_damaged_checkpoint_is_told(tmp_path):
    out = tmp_path / "model"
    (out / "build").mkdir(parents=True)
    (out / "build" / "checkpoint.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(BuildError, match=r"checkpoint.safetensors cannot be read"):
        build(out, TINY)


def test_orthogonalise_brings_singular_values_near_one():
    matrices = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.6 and values.max() < 1.3


def test_muon_fits_a_linear_map_and_batches_equal_shapes():
    generator = torch.Generator().manual_seed(0)
    target, x = torch.randn(6, 4, generator=generator), torch.randn(50, 4, generator=generator)
    together = [torch.zeros(6, 4, requires_grad=True), torch.zeros(6, 4, requires_grad=True)]
    alone = torch.zeros(6, 4, requires_grad=True)
    both, one = Muon(together, lr=0.05), Muon([alone], lr=0.05)
    losses = []
    for _ in range(120):
        for optimizer, weights in ((both, together), (one, [alone])):
            optimizer.zero_grad()
            loss = sum(((x @ (weight - target).T) ** 2).mean() for weight in weights)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    torch.testing.assert_close(together[0], together[1])
    torch.testing.assert_close(together[0], alone)


def test_the_command_line_builds_and_says_what_is_missed(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(command.RECIPES, "diffusion", lambda **given: replace(TINY, **given))
    assert command.main(["--out", str(tmp_path / "model")]) == 0
    shown = capsys.readouterr().err
    assert "24/24 steps: loss" in shown and f"midward chat --model {tmp_path / 'model'}" in shown
    assert command.main(["--out", str(tmp_path / "model"), "--seed", "4"]) == 2
    assert "holds a model of another recipe" in capsys.readouterr().err
