"""Loading: the autoregressive kind, adapters, text, fingerprints, and every clear error."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from checkpoints import lora, random_causal
from holding import in_a_fork
from published import CHECKPOINTS, write_wide
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import midward
from midward.models import loading, memory
from midward.models import names as naming

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.fixture
def copy(llada_folder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(llada_folder, folder)
    return folder


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def adapter(model, folder=None):
    return lora(model, folder, model.family.lora_targets, rank=4)


def fails(name, pattern, **options):
    with pytest.raises(midward.ModelError, match=pattern):
        midward.load(name, device="cpu", **options)


# --- the autoregressive kind -------------------------------------------------------


def test_causal_model(llama):
    assert (llama.family.kind, llama.family.attention, llama.family.mask_id) == ("autoregressive", "causal", None)
    assert llama.family.end_ids == (1,)
    with torch.no_grad():
        expected = llama.network(input_ids=IDS).logits
        assert torch.allclose(llama.head(llama.hidden(IDS)), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gemma2", "gemma3_text"])
def test_other_causal_families(kind, tmp_path, llada_folder):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    random_causal(tmp_path, kind, head_dim=16, max_position_embeddings=64, **sizes)
    network = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    model = midward.load(tmp_path, device="cpu")
    assert model.family.lora_targets == midward.load(llada_folder).family.lora_targets
    with torch.no_grad():
        expected = network(input_ids=IDS).logits
        assert torch.allclose(model.head(model.hidden(IDS)), expected, atol=1e-4)


def test_converted_diffusion_model_is_not_taken_for_causal(llama_folder, tmp_path):
    folder = tmp_path / "converted"
    shutil.copytree(llama_folder, folder)
    edit(folder, is_causal=False)
    fails(folder, "converted diffusion model")


# --- adapters ----------------------------------------------------------------------


def test_reference_needs_an_adapter(llada):
    with pytest.raises(midward.ModelError, match="has no adapter"), llada.reference():
        pass


def test_adapter_of_another_model(llada_folder, llama, tmp_path):
    fails(llada_folder, "made for another base model", adapter=adapter(llama, tmp_path / "other"))


def test_adapter_folder_errors(llada, llada_folder, tmp_path):
    fails(llada_folder, "no adapter_config.json", adapter=tmp_path)
    fails(llada_folder, "whole checkpoint", adapter=llada_folder)
    folder = adapter(llada, tmp_path / "adapter")
    weights = folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:50])
    fails(llada_folder, "no complete safetensors", adapter=folder)
    weights.rename(folder / "adapter_model.bin")
    fails(llada_folder, "pickle", adapter=folder)
    weights.write_bytes(content)
    tensors = load_file(weights)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, weights, metadata={"format": "pt"})
    fails(llada_folder, "shape None in the file", adapter=folder)


# --- identity and text -------------------------------------------------------------


def test_fingerprint(llada, llada_folder, copy, tmp_path):
    same = midward.load(copy, device="cpu")
    assert len(llada.fingerprint) == 16
    assert same.fingerprint == llada.fingerprint
    same.network.model.norm.weight.data[0] += 1e-3
    assert midward.load(copy, device="cpu").fingerprint == llada.fingerprint
    same._base_hash = None
    assert same.fingerprint != llada.fingerprint
    edit(copy, rope_theta=10_000.0)
    assert midward.load(copy, device="cpu").fingerprint != llada.fingerprint
    before = llada.fingerprint
    adapted = midward.load(llada_folder, adapter=adapter(llada, tmp_path / "a"), device="cpu")
    assert adapted.fingerprint == llada.fingerprint != before  # `llada` now carries the same adapter


def test_encode_and_decode(llada):
    ids = llada.encode("t10 t11")
    assert ids == llada.encode([{"role": "user", "content": "t10 t11"}])
    assert ids[0] == 0 and [t for t in ids if t in (10, 11)] == [10, 11]
    assert llada.encode("t10 <|mdm_mask|> t11").count(llada.family.mask_id) == 1
    assert llada.decode([10, 2, 11, 1, 12]) == llada.decode(torch.tensor([10, 11, 3])) == "t10 t11"


@pytest.mark.parametrize("bad, error", [([], ValueError), (["t1"], TypeError), ([{"role": "user"}], TypeError)])
def test_encode_refuses(llada, bad, error):
    with pytest.raises(error):
        llada.encode(bad)


def test_encode_without_template(copy):
    (copy / "chat_template.jinja").unlink()
    model = midward.load(copy, device="cpu")
    with pytest.raises(midward.ModelError, match="no chat template"):
        model.encode("t1")


# --- errors ------------------------------------------------------------------------


def test_unknown_names(tmp_path, monkeypatch, llada_folder):
    fails("sandbxo", "Did you mean 'sandbox'")
    fails(llada_folder.parent / "llada-tinny", "Did you mean .*llada-tiny")
    fails(llada_folder / "config.json", "is a file")
    fails("no-such-org/no-such-model", "as a Hub id")
    monkeypatch.setattr(naming, "files", lambda package: tmp_path)
    fails("sandbox", "reinstall midward")


def test_missing_and_torn_files(copy):
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config[: len(config) // 2])
    fails(copy, "no valid JSON")
    (copy / "config.json").write_text("[]")
    fails(copy, "not an object")
    (copy / "config.json").unlink()
    fails(copy, "has no config.json")
    (copy / "config.json").write_text(config)
    (copy / "tokenizer.json").unlink()
    fails(copy, "no tokenizer.json")


def test_torn_weights(copy):
    path = copy / "model.safetensors"
    content = path.read_bytes()
    for torn in (content[:-1], content[:100], content[:4], b"", b"version https://git-lfs.github.com/spec/v1\n"):
        path.write_bytes(torn)
        fails(copy, "no complete safetensors file")
    path.unlink()
    fails(copy, "no model.safetensors")


def test_pickle_is_never_read(copy):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"not even looked at")
    fails(copy, "only as pickle .pytorch_model.bin")


def shard(folder):
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[:15], "model-00002-of-00002.safetensors": names[15:]}
    for file, keys in parts.items():
        save_file({key: weights[key] for key in keys}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def test_shards(copy, llada):
    shard(copy)
    assert midward.load(copy, device="cpu").fingerprint == llada.fingerprint
    (copy / "model-00002-of-00002.safetensors").unlink()
    fails(copy, "model-00002-of-00002.safetensors")


def test_weights_that_do_not_fit_the_config(copy):
    edit(copy, n_layers=4)
    fails(copy, "missing weights")
    edit(copy, n_layers=2)
    fails(copy, "unexpected weights")
    edit(copy, n_layers=3, mlp_hidden_size=128)
    fails(copy, "mismatched weights")


def test_unknown_architectures(copy):
    edit(copy, architectures=["LLaDAModelLM"], num_experts=8)
    fails(copy, "the LLaDA-MoE config lacks")
    edit(copy, architectures=["LLaDAModelML"], num_experts=None)
    fails(copy, "unknown architecture.*Did you mean 'LLaDAModelLM'")
    edit(copy, architectures=[])
    fails(copy, "names no architecture")


def test_too_little_memory(copy, monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    fails(
        copy, r"the model needs about .* of weights \(float32\).* and cpu has 0.0 MB free; .*--quantize.*--device-map"
    )
    monkeypatch.setenv("MIDWARD_IGNORE_MEMORY", "1")
    assert midward.load(copy, device="cpu").vocab_size == 512
    (copy / "model.safetensors").unlink()  # the estimate comes first: nothing big was read
    fails(copy, "no model.safetensors")


def test_devices_and_dtypes(llada_folder):
    fails(llada_folder, "Did you mean 'bfloat16'", dtype="bfloat61")
    with pytest.raises(midward.ModelError, match="unknown device"):
        midward.load(llada_folder, device="gpu!")
    if not torch.cuda.is_available():
        with pytest.raises(midward.ModelError, match="no CUDA device"):
            midward.load(llada_folder, device="cuda")
    assert midward.load(llada_folder, dtype=torch.float64, device="cpu").dtype == torch.float64


def test_half_precision_is_the_default_on_a_gpu(monkeypatch):
    assert loading.placement("cpu").dtype == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading.placement().dtype == torch.bfloat16
    assert loading.placement(device_map="auto") == loading.Placement("auto", torch.bfloat16)
    assert loading.placement(device_map={"model": 0, "lm_head": 1}).dtype == torch.bfloat16


# --- numbers, files and templates that can't be used ---------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(copy, value):
    weights = load_file(copy / "model.safetensors")
    weights["model.transformer.blocks.1.up_proj.weight"][3, 4] = value
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    fails(copy, "NaN or infinite numbers, in 1 of its weights .model.layers.1.mlp.up_proj.weight.*damaged")


def test_float16_overflow_is_told_as_such(copy):
    weights = load_file(copy / "model.safetensors")
    up = weights["model.transformer.blocks.1.up_proj.weight"]
    weights["model.transformer.blocks.1.up_proj.weight"] = up * 1e5  # each fits, their products don't
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    midward.load(copy, device="cpu")
    fails(copy, "computes NaN or infinite numbers; float16 ends at 65504: use dtype='bfloat16'", dtype="float16")
    up[0, 0] = 1e6
    weights["model.transformer.blocks.1.up_proj.weight"] = up
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    fails(copy, "holds NaN or infinite numbers, in 1 of its weights .*float16 ends at 65504", dtype="float16")


def test_a_config_that_transformers_refuses_is_a_model_error(copy):
    edit(copy, d_model=99)
    fails(copy, r"config.json can't be used: .*hidden size \(99\)")


def test_a_byte_order_mark_is_told(copy):
    config = copy / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    fails(copy, "config.json begins with a byte-order mark; save it as UTF-8 without one")


def test_quantised_folders(copy, llama_folder, tmp_path):
    method = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    edit(copy, quantization_config=method)
    fails(copy, "weights that gptq has quantised.*--quantize")
    folder = tmp_path / "llama"
    shutil.copytree(llama_folder, folder)
    for name in ("gptq", "awq"):
        edit(folder, quantization_config={**method, "quant_method": name})
        fails(folder, "can't be read by transformers")


def test_a_mask_id_that_is_not_the_tokenizers(copy, caplog):
    tokenizer = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "mask_token": "<|mdm_mask|>"}))
    assert midward.load(copy, device="cpu").family.mask_id == 2
    edit(copy, mask_token_id=9)
    assert not caplog.records
    assert midward.load(copy, device="cpu").family.mask_id == 9
    assert "mask id is 9 ('t9'), and the tokenizer's mask token '<|mdm_mask|>' is 2" in caplog.text


def test_chat_templates_that_fail(copy):
    template = copy / "chat_template.jinja"
    template.write_text("{% for message in messages %}{{ message.content }")
    with pytest.raises(midward.ModelError, match=r"chat template of .* is broken \(line 1: .*\); mend"):
        midward.load(copy, device="cpu").encode("t1")
    template.write_text("{% if messages[0].role != 'user' %}{{ raise_exception('no system turns') }}{% endif %}t1")
    model = midward.load(copy, device="cpu")
    assert model.encode("t1")
    with pytest.raises(ValueError, match=r"can't follow this conversation .no system turns."):
        model.encode([{"role": "system", "content": "t1"}])


def test_the_tokenizer_is_in_the_fingerprint(copy, llada):
    state = json.loads((copy / "tokenizer.json").read_text())
    swapped = {"t10": "t11", "t11": "t10"}
    vocabulary = state["model"]["vocab"]
    state["model"]["vocab"] = {token: vocabulary[swapped.get(token, token)] for token in vocabulary}
    (copy / "tokenizer.json").write_text(json.dumps(state))
    assert midward.load(copy, device="cpu").fingerprint != llada.fingerprint
    before = llada.fingerprint
    llada.tokenizer(["t1", "t1 t2"], padding=True, truncation=True, max_length=4)
    llada._base_hash = None
    assert llada.fingerprint == before


# --- quantised ---------------------------------------------------------------------


def test_quantizing_without_the_package_says_what_to_install(llada_folder, monkeypatch):
    monkeypatch.setattr("midward.models.reading.is_bitsandbytes_available", lambda: False)
    fails(llada_folder, r"quantize='4bit' needs bitsandbytes: pip install -U bitsandbytes", quantize="4bit")
    fails(llada_folder, r"Did you mean '4bit'\? Available: 8bit, 4bit", quantize="4bits")


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_a_quantised_model_is_near_the_plain_one_and_its_adapter_learns(llada, llada_folder, quantize):
    pytest.importorskip("bitsandbytes")
    model = midward.load(llada_folder, device="cpu", quantize=quantize)
    layer, head = model.causal_lm.model.layers[0].mlp.up_proj, model.causal_lm.lm_head
    assert layer.weight.dtype in (torch.int8, torch.uint8) and head.weight.dtype == torch.float32
    assert (llada.quantized, model.quantized) == (None, quantize)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        plain, ours = llada.hidden(ids), model.hidden(ids)
    error = (ours - plain).norm() / plain.norm()
    assert 1e-3 < error < (0.1 if quantize == "8bit" else 0.4)

    other = midward.load(llada_folder, device="cpu", quantize="4bit" if quantize == "8bit" else "8bit")
    assert len({llada.fingerprint, model.fingerprint, other.fingerprint}) == 3
    assert midward.load(llada_folder, device="cpu", quantize=quantize).fingerprint == model.fingerprint
    need = memory.estimate(llada_folder, torch.float32, quantize).weights
    assert need == pytest.approx(model.causal_lm.get_memory_footprint(), rel=0.05)

    adapter(model)
    before = model.fingerprint
    model.fold_adapter()  # not into rounded weights
    assert model.fingerprint == before
    model.head(model.hidden(ids)).square().mean().backward()
    gradients = [p.grad for p in model.network.parameters() if p.requires_grad]
    assert len(gradients) == 2 * 7 * 3 and all(g is not None and g.abs().max() > 0 for g in gradients)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_family_can_be_quantised(name, tmp_path):
    pytest.importorskip("bitsandbytes")
    ids = torch.arange(5, 15)[None]
    folder = write_wide(name, tmp_path)
    plain = midward.load(folder, device="cpu", dtype="float32")
    model = midward.load(folder, device="cpu", dtype="float32", quantize="4bit")
    with torch.no_grad():
        ours, theirs = model.hidden(ids), plain.hidden(ids)
    assert ours.isfinite().all() and not torch.equal(ours, theirs)
    assert model.quantized == "4bit" and model.family == plain.family


# --- spread over devices -----------------------------------------------------------


def test_a_device_map_changes_no_result(llada, llada_folder):
    layers = {f"model.layers.{i}": "cpu" for i in range(3)}
    ends = dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], "cpu")
    for given in ("auto", {"": "cpu"}, {**layers, **ends}):
        model = midward.load(llada_folder, device_map=given)
        with torch.no_grad():
            assert torch.equal(model.hidden(IDS), llada.hidden(IDS))
        assert model.fingerprint == llada.fingerprint


def test_device_maps_that_cannot_be(llada_folder, monkeypatch):
    def refused(pattern, **options):
        with pytest.raises(midward.ModelError, match=pattern):
            midward.load(llada_folder, **options)

    refused("were both given", device="cpu", device_map="auto")
    refused("must be 'auto' or module names", device_map="balanced")
    refused("unknown device 'disk'", device_map={"model": "cpu", "lm_head": "disk"})
    refused("unknown device 'meta'", device_map={"": "meta"})
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused("2 processes were launched", device_map="auto")
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    refused("layers on the CPU beside a GPU", device_map={"model": 0, "lm_head": "cpu"})


def two_devices(folder):
    """Run in a fork, since it changes what torch takes for a device."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("pretend")  # tensors on it have a shape and a device, no numbers

    class Place(AlignDevicesHook):  # accelerate's own, but that weights are placed below
        def init_hook(self, module):
            return module

    model = midward.load(folder, device="cpu")
    network = model.network
    first, second = "pretend:0", "pretend:1"
    places = {"model.embed_tokens": first, "model.rotary_emb": first, "model.norm": second, "lm_head": second}
    places |= {f"model.layers.{i}": first if i < 2 else second for i in range(3)}
    with FakeTensorMode() as mode:
        for name, place in places.items():
            top = network.get_submodule(name)
            for part in top.modules():
                for key, value in part._parameters.items():
                    if value is not None:
                        moved = mode.from_tensor(value).detach().to(place)
                        part._parameters[key] = torch.nn.Parameter(moved, requires_grad=False)
                for key, value in part._buffers.items():
                    part._buffers[key] = mode.from_tensor(value).to(place)
            add_hook_to_module(top, Place(place))
        assert str(model.device) == second
        ids = torch.zeros(2, 9, dtype=torch.long, device=model.device)
        for mask in (None, torch.ones_like(ids)):
            hidden = model.hidden(ids, mask)
            logits = model.head(hidden)
            assert str(hidden.device) == str(logits.device) == second
    return "fine"


def test_inputs_follow_the_layers_over_two_devices(llada_folder, tmp_path):
    last_words = tmp_path / "last_words.txt"
    in_a_fork(lambda: two_devices(llada_folder), last_words)
    assert last_words.read_text() == "fine"


def test_bad_sampling_defaults(copy):
    (copy / "generation_config.json").write_text(json.dumps({"midward_sampling": [1]}))
    fails(copy, "must be an object")
