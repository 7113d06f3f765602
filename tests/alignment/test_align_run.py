"""Whole runs: learning, reloading, resuming, accumulation, processes, refusals."""

import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from align_world import BENIGN, HARMFUL, SENTENCES, SMALL, TINY
from holding import held, in_a_fork
from peft import PeftModel
from safetensors.torch import load_file

import midward.models
from midward.alignment import AlignError, RewardWarning, align
from midward.alignment.card import base_of
from midward.alignment.mosa import METRICS, reward_warning
from midward.alignment.trainer import AlignTrainer, read_curve
from midward.errors import InputError


def run(model, out, **changes):
    settings = {**SMALL, "benign": BENIGN, "sentences": SENTENCES, "reveal": 0.3, **changes}
    return align(model, HARMFUL, out, **settings)


def weights(out):
    return load_file(Path(out) / "adapter_model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_learning_raises_reward_and_safe_score_and_the_adapter_reloads(model, tmp_path):
    seen = []
    before = model.network
    ids = torch.tensor([model.encode(HARMFUL[0]) + [model.family.mask_id] * 24])
    with torch.no_grad():
        plain = model.head(model.hidden(ids))
    random.seed(7)
    torch.manual_seed(7)
    expected = random.Random(7).random(), torch.rand(1, generator=torch.Generator().manual_seed(7))

    result = run(model, tmp_path / "a", max_steps=40, on_log=seen.append)

    first, last = result.history[0], result.history[-1]
    assert last["reward"] > first["reward"] + 5 and last["safe"] > first["safe"] + 5
    assert [row["step"] for row in result.history] == list(range(5, 45, 5))
    assert [row["reward"] for row in seen] == pytest.approx([row["reward"] for row in result.history])
    assert {"grad_norm", "kl_benign", "over_refusal", "harmful_gain"} <= last.keys()
    record = json.loads((tmp_path / "a" / "align.json").read_text())
    assert record["config"]["lr"] == 1e-3 and record["versions"]["torch"]
    assert not (tmp_path / "a" / "checkpoints").exists()

    # The caller's model and random numbers are as they were.
    assert model.network is before and not any(p.requires_grad for p in model.network.parameters())
    assert random.random() == expected[0] and torch.equal(torch.rand(1), expected[1])
    with torch.no_grad():
        assert torch.equal(model.head(model.hidden(ids)), plain)
        loaded = midward.models.load(TINY, adapter=result.adapter, device="cpu", dtype=torch.float32)
        adapted = loaded.head(loaded.hidden(ids))
        assert loaded.fingerprint == record["fingerprint"]  # so a run of it can be told
        with loaded.reference():
            assert torch.equal(loaded.head(loaded.hidden(ids)), plain)
        model.network = PeftModel.from_pretrained(model.network, str(result.adapter))
        assert torch.equal(model.head(model.hidden(ids)), adapted)
    assert (adapted - plain).abs().max() > 0.1
    assert not any(path.suffix in {".bin", ".pt", ".pth"} for path in (tmp_path / "a").rglob("*"))


def die_in_the_second_checkpoint(monkeypatch):
    """In the middle of it: its folder is then torn."""
    whole = torch.save

    def save(content, path, *args, **kwargs):
        whole(content, path, *args, **kwargs)
        if "checkpoint-10" in str(path):
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(torch, "save", save)


def test_killed_while_writing_a_checkpoint_then_run_again_is_the_uninterrupted_run(model, monkeypatch, tmp_path):
    out, last_words = tmp_path / "killed", tmp_path / "last_words.txt"
    with monkeypatch.context() as patch:
        die_in_the_second_checkpoint(patch)
        status = in_a_fork(lambda: run(model, out, max_steps=12), last_words)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, last_words.read_text()
    assert (out / "checkpoints" / "checkpoint-10").exists() and not (out / "adapter_model.safetensors").exists()
    assert read_curve(out / "reward.csv")[-1]["step"] == 10

    resumed = run(model, out, max_steps=12)
    whole = run(model, tmp_path / "whole", max_steps=12)

    assert (resumed.resumed_from, whole.resumed_from) == (5, None)
    assert same(weights(out), weights(tmp_path / "whole"))
    assert (out / "reward.csv").read_text() == (tmp_path / "whole" / "reward.csv").read_text()


def test_a_finished_run_is_returned_and_a_different_one_refused(model, tmp_path):
    out = tmp_path / "a"
    first = run(model, out, max_steps=5)
    stamp = (out / "adapter_model.safetensors").stat().st_mtime_ns
    again = run(model, out, max_steps=5)
    assert again.reused and again.history == first.history
    assert (out / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match=r"holds another run: lr 0.001 there, 0.01 here"):
        run(model, out, max_steps=5, lr=0.01)
    with pytest.raises(InputError, match=r"data .* there"):
        align(model, HARMFUL[:-1], out, benign=BENIGN, sentences=SENTENCES, **SMALL, reveal=0.3, max_steps=5)
    fresh = run(model, out, max_steps=5, lr=0.01, overwrite=True)
    assert not fresh.reused and (out / "adapter_model.safetensors").stat().st_mtime_ns != stamp


def test_a_folder_in_which_another_process_trains_is_left_alone(model, tmp_path):
    with held(tmp_path):
        with pytest.raises(ValueError, match="another process is writing to"):
            run(model, tmp_path, max_steps=5)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert run(model, tmp_path, max_steps=5).history


def test_a_folder_of_something_else_is_left_alone(model, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(AlignError, match=r"isn't empty and holds no run\.json"):
            run(model, tmp_path, max_steps=5, overwrite=overwrite)
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["thesis.txt"]


def close(first, second, tolerance=1e-7):
    return all(torch.allclose(first[k], second[k], rtol=tolerance, atol=tolerance) for k in first)


def test_accumulated_micro_batches_equal_one_batch(model64, tmp_path):
    for recipe, benign in (("stable", BENIGN), ("paper", None)):
        one = run(model64, tmp_path / f"{recipe}1", max_steps=5, recipe=recipe, benign=benign)
        four = run(model64, tmp_path / f"{recipe}4", max_steps=5, recipe=recipe, benign=benign, micro_batch=1)
        assert close(weights(one.adapter), weights(four.adapter))
        for name, value in one.history[-1].items():
            assert four.history[-1][name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


def test_gradient_checkpointing_changes_nothing_and_is_switched_off_again(model64, tmp_path):
    plain = run(model64, tmp_path / "a", max_steps=3, log_steps=1, save_steps=1)
    saving = run(model64, tmp_path / "b", max_steps=3, log_steps=1, save_steps=1, gradient_checkpointing=True)
    assert close(weights(plain.adapter), weights(saving.adapter))
    assert not any(getattr(m, "gradient_checkpointing", False) for m in model64.network.modules())


def rows(reward, safe):
    return [{"step": i, "reward": r, "safe": p} for i, (r, p) in enumerate(zip(reward, safe))]


def test_the_reward_warning_wants_a_rising_reward_and_a_falling_safe_score():
    up, down, flat = range(0, 20, 2), range(0, -20, -2), [0] * 10
    assert "reward rose by 10.0 nats" in reward_warning(rows(up, down))
    assert "Set harmful_floor (recipe='stable'), or lower lr" in reward_warning(rows(up, down))
    # The stable recipe sets it: nobody is told to set what is set.
    assert "Lower harmful_floor (now 10), or lower lr" in reward_warning(rows(up, down), floor=10.0)
    assert reward_warning(rows(up, up)) is None
    assert reward_warning(rows(down, down)) is None
    assert reward_warning(rows(up, flat)) is None
    assert reward_warning(rows(up, down)[:9]) is None
    assert reward_warning(rows(flat, flat) + rows(up, down)) is not None


def test_a_run_whose_reward_comes_from_the_harmful_term_alone_warns_once(model, tmp_path, monkeypatch):
    compute = AlignTrainer.compute_loss

    def diverging(self, net, inputs, return_outputs=False, num_items_in_batch=None):
        loss = compute(self, net, inputs)
        shift = torch.zeros_like(self._totals).view(-1, 2)
        shift[METRICS.index("reward"), 0] = 40.0 * self.state.global_step
        shift[METRICS.index("safe"), 0] = -40.0 * self.state.global_step
        self._totals = self._totals + shift.flatten()
        return loss

    monkeypatch.setattr(AlignTrainer, "compute_loss", diverging)
    with pytest.warns(RewardWarning, match="harmful_floor") as caught:
        result = run(model, tmp_path / "a", max_steps=13, log_steps=1, save_steps=13)
    assert len([w for w in caught if w.category is RewardWarning]) == 1
    assert len(result.warnings) == 1
    assert json.loads((tmp_path / "a" / "align.json").read_text())["warnings"] == result.warnings


def test_the_card_says_what_the_adapter_is_and_names_no_path(llada_folder, tmp_path):
    folder = tmp_path / "home of a user" / "tiny"
    shutil.copytree(llada_folder, folder)
    run(midward.load(folder, device="cpu", dtype="float32"), tmp_path / "a", max_steps=5)
    text = (tmp_path / "a" / "README.md").read_text()
    record = json.loads((tmp_path / "a" / "align.json").read_text())
    assert text.startswith("---\nlibrary_name: peft\nlicense: unknown\ntags:")
    for part in (
        "MOSA, arXiv 2508.12398",
        f"tiny, fingerprint `{record['model_fingerprint']}`",
        "stable, 5 steps",
        f"{len(HARMFUL)} harmful prompts",
        f"{len(BENIGN)} benign",
        "midward 0.1.0",
        "| lr | 0.001 |",
    ):
        assert part in text
    for path in (tmp_path / "a").iterdir():
        if path.suffix in (".md", ".json"):
            assert str(tmp_path) not in path.read_text() and "home of a user" not in path.read_text(), path.name
    midward.load(folder, adapter=tmp_path / "a", device="cpu")


def test_a_hub_id_stays_a_hub_id_on_the_card_and_a_path_does_not():
    assert base_of("GSAI-ML/LLaDA-8B-Instruct") == "GSAI-ML/LLaDA-8B-Instruct" and base_of("sandbox") == "sandbox"
    assert base_of("/models/of/me/llada") == "llada"


def test_a_loss_that_is_not_finite_stops_the_run(model, tmp_path):
    with torch.no_grad():
        model.network.get_output_embeddings().weight[3] = float("nan")
    with pytest.raises(AlignError, match="the loss is nan"):
        run(model, tmp_path / "a", max_steps=10)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"benign": None}, "pass benign="),
        ({"benign": [HARMFUL[0]]}, "stand in data and in benign"),
        ({"length": 256, "window_end": 60}, "leaves no room for a prompt"),
        ({"learning_rate": 1e-4}, "no setting 'learning_rate'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(model, tmp_path, changes, message):
    with pytest.raises(AlignError, match=message):
        run(model, tmp_path / "a", **changes)
    assert not (tmp_path / "a").exists()


def test_models_that_mosa_does_not_apply_to(model, tmp_path):
    from dataclasses import replace

    family = model.family
    model.family = replace(family, kind="autoregressive")
    with pytest.raises(AlignError, match="autoregressive kind"):
        run(model, tmp_path / "a")
    model.family = family
    adapter = run(model, tmp_path / "b", max_steps=5).adapter
    carrying = midward.models.load(TINY, adapter=adapter, device="cpu", dtype=torch.float32)
    with pytest.raises(AlignError, match="already carries the adapter"):
        run(carrying, tmp_path / "c")


def test_more_processes_launched_than_seen_is_an_error(model, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(AlignError, match="2 processes were launched and accelerate runs 1"):
        run(model, tmp_path / "a")
