"""Adapters as PEFT writes them: published module names, embeddings, whole configs, and bases that aren't theirs."""

import json
import re
import shutil

import pytest
import torch
from peft import LoraConfig, TrainableTokensConfig, get_peft_model
from safetensors.torch import load_file, save_file

import midward
from tools.world.layout import published_name

IDS = torch.arange(20, 40)[None]
FILE = "adapter_model.safetensors"


@torch.no_grad()
def logits(model):
    return model.head(model.hidden(IDS))


def adapter(base, folder, **config):
    """An adapter that PEFT makes and saves, with large random weights."""
    torch.manual_seed(0)
    wrapped = get_peft_model(midward.load(base, device="cpu").network, LoraConfig(r=8, lora_alpha=16, **config))
    for weight in wrapped.parameters():
        if weight.requires_grad:
            weight.data.normal_(std=0.2)
    wrapped.save_pretrained(folder)
    return folder


def configured(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def stored(folder, names, config, rank=4, seed=0):
    """A LoRA folder of these published modules, {name: (in, out)}, as PEFT would write it on the published code."""
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (width_in, width_out) in names.items():
        for part, shape in (("lora_A", (rank, width_in)), ("lora_B", (width_out, rank))):
            key = f"base_model.model.{name}.{part}.weight"
            tensors[key] = torch.randn(shape, generator=generator) * 0.2
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    LoraConfig(r=rank, lora_alpha=8, **config).save_pretrained(folder)
    return tensors


def merged(source, folder, tensors, alphas, rank=4):
    """A published checkpoint with the adapter's products added to its weights: what the adapter amounts to."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    for key in tensors:
        if ".lora_A." in key:
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            product = tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + alphas(name) / rank * product
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# --- names of the published modules -------------------------------------------------


def test_published_names_are_the_same_adapter(llada_folder, tmp_path):
    own = adapter(llada_folder, tmp_path / "own", target_modules=["q_proj", "v_proj"])
    theirs = tmp_path / "theirs"
    shutil.copytree(own, theirs)

    def rename(key):
        name, part = re.fullmatch(r"base_model\.model\.(.*)\.(lora_[AB]\.weight)", key).groups()
        return f"base_model.model.{published_name(f'{name}.weight')[:-7]}.{part}"

    tensors = load_file(own / FILE)
    save_file({rename(key): tensor for key, tensor in tensors.items()}, theirs / FILE)
    ours, published = (midward.load(llada_folder, adapter=folder, device="cpu") for folder in (own, theirs))
    assert torch.equal(logits(ours), logits(published))
    with ours.reference(), published.reference():
        assert torch.equal(logits(ours), logits(published))


def test_published_patterns_mean_published_modules(llada_folder, tmp_path):
    """`ff_out` is a projection in every block, and the output head; a pattern may name one block's."""
    names = {
        f"model.transformer.blocks.{n}.{name}": size
        for n in range(3)
        for name, size in (("q_proj", (128, 128)), ("attn_out", (128, 128)))
    }
    weights = load_file(llada_folder / "model.safetensors")
    for name in ("model.transformer.blocks.1.ff_out", "model.transformer.ff_out"):
        rows, columns = weights[f"{name}.weight"].shape
        names[name] = (columns, rows)
    patterns = {r"blocks\.1\.q_proj": 80, "transformer.ff_out": 2, "blocks.1.ff_out": 40}
    tensors = stored(
        tmp_path / "a", names, {"target_modules": ["q_proj", "attn_out", "ff_out"], "alpha_pattern": patterns}
    )

    def alpha(name):
        return {"blocks.1.q_proj": 80, "transformer.ff_out": 2, "blocks.1.ff_out": 40}.get(
            name.removeprefix("model.").removeprefix("transformer.") if "blocks" in name else "transformer.ff_out", 8
        )

    expected = midward.load(merged(llada_folder, tmp_path / "m", tensors, alpha), device="cpu")
    model = midward.load(llada_folder, adapter=tmp_path / "a", device="cpu")
    assert torch.allclose(logits(model), logits(expected), atol=1e-3)
    with model.reference():
        assert torch.equal(logits(model), logits(midward.load(llada_folder, device="cpu")))
    stranger = configured(tmp_path / "a", target_parameters=["mlp.weight"])
    with pytest.raises(midward.ModelError, match=r"only a LoRA of modules can be translated"):
        midward.load(llada_folder, adapter=stranger, device="cpu")


def test_a_fused_matrix_is_adapted_in_its_parts(folders, published, tmp_path):
    raw, weights = published("llada2")
    size = raw["hidden_size"]
    fused = "model.layers.0.attention.query_key_value"
    dense = "model.layers.1.attention.dense"
    shape = tuple(weights[f"{dense}.weight"].shape)
    names = {fused: (size, len(weights[f"{fused}.weight"])), dense: shape[::-1]}
    config = {"target_modules": ["query_key_value", "dense"], "alpha_pattern": {"dense": 40}}
    tensors = stored(tmp_path / "a", names, config)
    alphas = lambda name: 40 if "dense" in name else 8  # noqa: E731
    expected = midward.load(merged(folders["llada2"], tmp_path / "m", tensors, alphas), device="cpu")
    model = midward.load(folders["llada2"], adapter=tmp_path / "a", device="cpu")
    bare = midward.load(folders["llada2"], device="cpu")
    assert torch.allclose(logits(model), logits(expected), atol=1e-3)
    assert not torch.allclose(logits(model), logits(bare), atol=1e-2)


def test_single_experts_cannot_be_adapted(folders, tmp_path):
    stored(tmp_path / "a", {"model.layers.0.mlp.experts.1.gate_proj": (32, 16)}, {"target_modules": ["gate_proj"]})
    with pytest.raises(midward.ModelError, match=r"Single experts can't be adapted|doesn't fit"):
        midward.load(folders["llada-moe"], adapter=tmp_path / "a", device="cpu")


# --- embeddings and the head ---------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "use_dora": True, "use_rslora": True},
        {"target_modules": ["q_proj"], "lora_bias": True},
    ],
    ids=str,
)
def test_what_peft_writes_loads_folds_and_comes_off(llada, llada_folder, tmp_path, config):
    folder = adapter(llada_folder, tmp_path / "a", **config)
    model = midward.load(llada_folder, adapter=folder, device="cpu")
    changed, bare = logits(model), logits(llada)
    assert (changed - bare).abs().max() > 0.1 and model.adapter == str(folder)
    with model.reference():
        assert torch.equal(logits(model), bare)
    assert torch.equal(logits(model), changed)
    assert (model.vocab_size, model.dtype, model.hidden_size) == (512, torch.float32, 128)
    fingerprint = model.fingerprint
    assert model._base_hash == (llada.fingerprint and llada._base_hash)  # wrapping changes no base
    stored = [weight.clone() for weight in model.network.parameters()]
    with pytest.raises(ZeroDivisionError), model.folded():
        assert torch.allclose(logits(model), changed, atol=1e-3)
        1 / 0  # noqa: B018
    assert torch.equal(logits(model), changed)
    assert all(map(torch.equal, model.network.parameters(), stored))
    model.fold_adapter()
    assert torch.allclose(logits(model), changed, atol=1e-3)
    with model.folded():  # it is
        assert torch.allclose(logits(model), changed, atol=1e-3)
    with model.reference():
        assert torch.allclose(logits(model), bare, atol=1e-3)
    llada.fold_adapter()  # it has none
    assert torch.equal(logits(llada), bare)
    assert model.fingerprint == fingerprint == midward.load(llada_folder, adapter=folder, device="cpu").fingerprint


def test_trainable_tokens_change_no_base(llada, llada_folder):
    network = midward.load(llada_folder, device="cpu").network
    model = midward.load(llada_folder, device="cpu")
    model.network = get_peft_model(network, TrainableTokensConfig(token_indices=[5, 6]))
    assert model.fingerprint != llada.fingerprint and model._base_hash == llada._base_hash


# --- identity ------------------------------------------------------------------------


def test_the_whole_config_is_in_the_fingerprint(llada_folder, tmp_path):
    def fingerprint(**changes):
        configured(folder, **changes)
        return midward.load(llada_folder, adapter=folder, device="cpu").fingerprint

    folder = adapter(llada_folder, tmp_path / "a", target_modules=["q_proj", "v_proj"])
    first = fingerprint()
    assert fingerprint(lora_dropout=0.3, base_model_name_or_path="elsewhere", task_type="CAUSAL_LM") == first
    found = [
        fingerprint(**change)
        for change in (
            {"alpha_pattern": {"q_proj": 200}},
            {"use_rslora": True},
            {"lora_alpha": 17},
            {"alpha_pattern": {"v_proj": 200}},
        )
    ]
    assert len({first, *found}) == 5
    before = midward.load(llada_folder, adapter=folder, device="cpu").fingerprint
    tensors = load_file(folder / FILE)
    save_file({key: tensor + 1e-4 for key, tensor in tensors.items()}, folder / FILE)
    assert midward.load(llada_folder, adapter=folder, device="cpu").fingerprint != before


def test_an_adapter_of_other_weights_of_the_same_shape(llada_folder, tmp_path):
    folder = adapter(llada_folder, tmp_path / "a", target_modules=["q_proj"])
    other = tmp_path / "other"
    shutil.copytree(llada_folder, other)
    weights = load_file(other / "model.safetensors")
    weights["model.transformer.ln_f.weight"] += 0.1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    midward.load(other, adapter=folder, device="cpu")  # PEFT's own adapters don't know their base
    base = midward.load(llada_folder, device="cpu").stored
    (folder / "align.json").write_text(json.dumps({"model": "mine", "base": base}))
    for dtype in ("float32", "bfloat16"):
        assert midward.load(llada_folder, adapter=folder, device="cpu", dtype=dtype).stored == base
    with pytest.raises(midward.ModelError, match=r"was trained on other weights than those of .*on 'mine'"):
        midward.load(other, adapter=folder, device="cpu")
    (folder / "align.json").write_text(json.dumps({"model": "mine"}))  # of midward 0.1
    midward.load(other, adapter=folder, device="cpu")


def test_embeddings_that_are_not_the_base_s(llada_folder, tmp_path):
    folder = adapter(llada_folder, tmp_path / "a", target_modules=["q_proj", "embed_tokens"])
    tensors = load_file(folder / FILE)
    key = next(key for key in tensors if "base_layer" in key)
    save_file({**tensors, key: tensors[key].to(torch.bfloat16)}, folder / FILE)  # rounded is the same
    midward.load(llada_folder, adapter=folder, device="cpu")
    save_file({**tensors, key: tensors[key] * 1.1}, folder / FILE)
    with pytest.raises(midward.ModelError, match=r"made for another base model"):
        midward.load(llada_folder, adapter=folder, device="cpu")


def test_a_reference_is_the_base_or_an_error(folders, llada_folder, tmp_path):
    folder = adapter(folders["dream"], tmp_path / "a", target_modules=["q_proj"], bias="all")
    model = midward.load(folders["dream"], adapter=folder, device="cpu")
    with pytest.raises(midward.ModelError, match=r"bias='all'"), model.reference():
        pass
    folder = adapter(llada_folder, tmp_path / "b", target_modules=["q_proj"])
    configured(folder, init_lora_weights="pissa")
    with pytest.raises(midward.ModelError, match=r"changes the base's own weights"):
        midward.load(llada_folder, adapter=folder, device="cpu")


# --- numbers that aren't ---------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_adapters_that_are_not_finite(llada_folder, tmp_path, value):
    folder = adapter(llada_folder, tmp_path / "a", target_modules=["q_proj"])
    tensors = load_file(folder / FILE)
    key = sorted(tensors)[1]
    tensors[key][0, 0] = value
    save_file(tensors, folder / FILE)
    with pytest.raises(midward.ModelError, match=f"NaN or infinite numbers, in 1 of its 6 weights .{re.escape(key)}"):
        midward.load(llada_folder, adapter=folder, device="cpu")


def test_a_hub_adapter_is_looked_for_on_the_hub(llada_folder, tmp_path, monkeypatch):
    with pytest.raises(midward.ModelError, match=r"as a Hub id: the Hub can't be reached"):
        midward.load(llada_folder, adapter="no-such-org/adapter", device="cpu")
    with pytest.raises(midward.ModelError, match=r"no adapter '.*/adaptr': neither a folder nor a Hub id"):
        midward.load(llada_folder, adapter=tmp_path / "adaptr", device="cpu")
    folder = adapter(llada_folder, tmp_path / "a", target_modules=["q_proj"])
    asked = []

    def snapshot(name, allow_patterns):
        asked.append((name, FILE in allow_patterns))
        return str(folder)

    monkeypatch.setattr("midward.models.loading.snapshot_download", snapshot)
    model = midward.load(llada_folder, adapter="some/adapter", device="cpu")
    assert model.adapter == "some/adapter" and asked == [("some/adapter", True)]
