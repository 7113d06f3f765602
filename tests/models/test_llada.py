"""LLaDA-layout checkpoints: the official logits, and those of a plain statement of the architecture."""

import json
import subprocess
import sys

import pytest
import torch
from checkpoints import copy_tokenizer
from reference import llada_logits
from safetensors.torch import load_file

import midward
from midward.models import llada as llada_module
from tools.world import layout


def logits(model, ids, mask=None):
    with torch.no_grad():
        return model.head(model.hidden(ids, mask))


@pytest.fixture(scope="module")
def golden(llada_folder):
    return load_file(llada_folder / "golden.safetensors")


def checkpoint(folder, *, seed=0, dtype=None, **overrides):
    settings = dict(
        vocab_size=512, hidden_size=64, layers=2, heads=4, feed_forward=96, max_length=128, mask_id=2, end_id=1
    )
    config = layout.llada_config(**{**settings, **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = layout.build(config)
        for parameter in network.parameters():  # norms away from one, weights large enough to matter
            parameter.data += 0.1 * torch.randn_like(parameter)
    layout.save(network, config, folder, dtype)
    copy_tokenizer(folder)
    return config


@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_official_logits(llada, golden, padding):
    mask = golden.get(f"mask_{padding}")
    difference = (logits(llada, golden["ids"], mask) - golden[f"logits_{padding}"]).abs()
    kept = torch.ones_like(golden["ids"]) if mask is None else mask
    assert difference[kept.bool()].max() < 1e-4


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tying", [False, True])
def test_plain_statement(tmp_path, kv_heads, tying):
    config = checkpoint(tmp_path, kv_heads=kv_heads, weight_tying=tying)
    weights = load_file(tmp_path / "model.safetensors")
    ids = torch.randint(0, 512, (3, 17), generator=torch.Generator().manual_seed(1))
    model = midward.load(tmp_path, device="cpu")
    for first, last in ((slice(0), slice(0)), (slice(5), slice(1)), (slice(9, None), slice(16, None))):
        mask = torch.ones_like(ids)
        mask[0, first] = mask[2, last] = 0  # none, on the left, on the right
        difference = (logits(model, ids, mask) - llada_logits(weights, config, ids, mask)).abs()
        assert difference[mask.bool()].max() < 1e-4


def test_family_from_checkpoint(llada):
    family = llada.family
    assert (family.kind, family.attention, family.shift) == ("diffusion", "full", False)
    assert (family.mask_id, family.end_ids, family.pad_id) == (2, (1, 3), 1)
    linear = {n.rsplit(".", 1)[-1] for n, m in llada.network.model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert set(family.lora_targets) == linear


def test_published_ids_are_the_default(tmp_path):
    config = checkpoint(tmp_path)
    for key in ("mask_token_id", "eos_token_id", "pad_token_id"):
        del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(midward.ModelError, match=r"126336 lies outside the vocabulary of 512"):
        midward.load(tmp_path)


def test_own_sampling_defaults(tmp_path):
    checkpoint(tmp_path)
    own = {"midward_sampling": {"length": 24, "block": 8}}
    (tmp_path / "generation_config.json").write_text(json.dumps(own))
    sampling = midward.Sampling.for_model(midward.load(tmp_path))
    assert (sampling.length, sampling.block, sampling.steps) == (24, 8, 128)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_half_precision_storage_is_widened(tmp_path, stored):
    checkpoint(tmp_path, dtype=stored)
    assert load_file(tmp_path / "model.safetensors")["model.transformer.wte.weight"].dtype == stored
    model = midward.load(tmp_path, device="cpu")
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}


def test_save_writes_back_what_was_read(tmp_path, llada, llada_folder):
    config = json.loads((llada_folder / "config.json").read_text())
    layout.save(llada.network, config, tmp_path)
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(llada_folder / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    copy_tokenizer(tmp_path)
    assert midward.load(tmp_path).fingerprint == llada.fingerprint


def test_bfloat16_rotates_in_float32(llada_folder, golden):
    """In bfloat16 the rotation must equal one done in float32, as LLaDA's own."""
    model = midward.load(llada_folder, device="cpu", dtype="bfloat16")
    seen = {}
    rotary = model.network.model.rotary_emb
    rotary.register_forward_hook(lambda module, inputs, output: seen.update(cos=output[0]))
    out = logits(model, golden["ids"])
    assert seen["cos"].dtype == torch.float32 and out.dtype == torch.bfloat16
    exact = golden["logits_none"]
    assert (out.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_gradient_reaches_hidden_and_head(llada):
    llada.network.requires_grad_(True)
    llada.head(llada.hidden(torch.tensor([[5, 6, 2]]))).sum().backward()
    assert all(p.grad is not None for p in llada.network.parameters())


def test_causal_fallback_is_caught(llada_folder, monkeypatch):
    plain = llada_module.backbone_config

    def causal(raw):
        config = plain(raw)
        config.is_causal = True
        return config

    monkeypatch.setattr(llada_module, "backbone_config", causal)
    with pytest.raises(
        midward.ModelError, match="must have full attention, but the last token changes nothing before it"
    ):
        midward.load(llada_folder)


@pytest.mark.parametrize(
    "key, value",
    [
        ("alibi", True),
        ("block_type", "sequential"),
        ("input_emb_norm", True),
        ("scale_logits", True),
        ("attention_layer_norm", True),
        ("include_bias", True),
        ("include_qkv_bias", True),
        ("rope", False),
        ("activation_type", "gelu"),
        ("layer_norm_type", "low_precision"),
    ],
)
def test_unusual_or_incomplete_config_is_refused(key, value):
    raw = layout.llada_config(
        vocab_size=64, hidden_size=16, layers=1, heads=2, feed_forward=16, max_length=32, mask_id=2, end_id=1
    )
    with pytest.raises(midward.ModelError, match=f"{key}="):
        layout.backbone_config({**raw, key: value})
    with pytest.raises(midward.ModelError, match="lacks 'd_model'"):
        layout.backbone_config({name: raw[name] for name in raw if name != "d_model"})


def test_import_midward_is_light():
    code = "import sys, midward; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
