"""The estimate from headers alone, against what is really there."""

import json
import struct
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

import midward
from midward.models import memory
from midward.models.family import LLAMA_PROJECTIONS
from midward.models.memory import GB, Memory, estimate
from midward.models.reading import Placement
from tools.world import layout


def footprint(network):
    """Bytes of all parameters, each storage once."""
    return sum({p.data_ptr(): p.numel() * p.element_size() for p in network.parameters()}.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_weights_are_counted_to_the_byte(llada_folder, llama_folder, dtype):
    for folder in (llada_folder, llama_folder):
        network = midward.load(folder, device="cpu", dtype=dtype).network
        assert estimate(folder, dtype).weights == footprint(network)


def declared(folder, config, dtype="BF16"):
    """A checkpoint of that published LLaDA config whose weight file is a header and a hole."""
    with torch.device("meta"):
        network = layout.build(config)
    names = network.state_dict()
    if config["weight_tying"]:
        names.pop("lm_head.weight")
    header, end = {}, 0
    for name, tensor in names.items():
        size = tensor.numel() * (2 if dtype == "BF16" else 4)
        entry = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        header[layout.published_name(name)] = entry
        end += size
    text = json.dumps(header).encode()
    folder.mkdir(exist_ok=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)  # nothing is written: no test needs 16 GB
    (folder / "config.json").write_text(json.dumps(config))
    return sum(tensor.numel() for tensor in names.values())


LLADA_8B = layout.llada_config(
    vocab_size=126_464,
    hidden_size=4096,
    layers=32,
    heads=32,
    feed_forward=12_288,
    max_length=4096,
    mask_id=126_336,
    end_id=126_081,
)


def test_llada_8b(tmp_path):
    declared(tmp_path, LLADA_8B)
    need = estimate(tmp_path, torch.bfloat16)
    assert 15.9 * GB < need.weights < 16.2 * GB
    assert need.activations < 1 * GB
    assert str(need).startswith("about 16") and "16.0 GB of weights (bfloat16)" in str(need)
    assert 32 * GB < estimate(tmp_path, torch.float32).weights < 33 * GB
    # The head and the embedding, 1 GB each, stay as they are.
    assert 8.9 * GB < estimate(tmp_path, torch.bfloat16, "8bit").weights < 9.2 * GB
    assert 5.5 * GB < estimate(tmp_path, torch.bfloat16, "4bit").weights < 5.9 * GB
    step = {"batch": 4, "length": 192, "training": True}
    plain = estimate(tmp_path, torch.bfloat16, **step)
    saving = estimate(tmp_path, torch.bfloat16, checkpointing=True, **step)
    # 84 million adapter weights at rank 32, sixteen bytes each
    assert plain.optimizer == saving.optimizer == pytest.approx(16 * 83.9e6, rel=0.01)
    assert saving.activations < plain.activations / 5


@settings(max_examples=15)
@given(
    heads=st.integers(1, 3),
    layers=st.integers(1, 3),
    feed_forward=st.integers(1, 40),
    rows=st.integers(8, 99),
    tied=st.booleans(),
    stored=st.sampled_from(["BF16", "F32"]),
)
def test_the_estimate_is_the_sum_of_the_tensors_whatever_the_sizes(
    tmp_path_factory, heads, layers, feed_forward, rows, tied, stored
):
    folder = tmp_path_factory.mktemp("declared")
    config = layout.llada_config(
        vocab_size=rows,
        hidden_size=4 * heads,
        layers=layers,
        heads=heads,
        feed_forward=feed_forward,
        max_length=32,
        mask_id=2,
        end_id=1,
        weight_tying=tied,
    )
    numbers = declared(folder, config, stored)
    for dtype in (torch.float32, torch.bfloat16):
        assert estimate(folder, dtype).weights == numbers * dtype.itemsize
    sizes = [estimate(folder, batch=b, length=n).total for b, n in ((1, 1), (1, 8), (3, 8))]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_training_step_keeps_what_the_estimate_says(tmp_path, dtype):
    config = layout.llada_config(
        vocab_size=300, hidden_size=192, layers=3, heads=4, feed_forward=512, max_length=128, mask_id=2, end_id=1
    )
    layout.save(layout.build(config), config, tmp_path)
    network = layout.build(config).requires_grad_(False)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    lora = LoraConfig(r=8, target_modules=list(LLAMA_PROJECTIONS))
    network = get_peft_model(network, lora).train()
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept, alive = {}, []

    def pack(tensor):
        alive.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network.get_base_model().model(torch.ones(2, 48, dtype=torch.long))
    need = estimate(tmp_path, dtype, batch=2, length=48, training=True, rank=8)
    logits = 3 * 4 * 2 * 48 * 300
    assert 0.8 < sum(kept.values()) / (need.activations - logits) < 1.1
    adapter = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert need.optimizer == 16 * adapter


def test_experts_count_as_weights_but_a_token_goes_through_few(tmp_path):
    config = {**LLADA_8B, "num_experts_per_tok": 2}
    shape = {"dtype": "BF16", "data_offsets": [0, 0]}
    header, end = {}, 0
    for name in [f"model.layers.0.mlp.experts.{i}.up_proj.weight" for i in range(8)]:
        header[name] = {**shape, "shape": [64, 32], "data_offsets": [end, end + 4096]}
        end += 4096
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
    (tmp_path / "config.json").write_text(json.dumps(config))
    need = estimate(tmp_path, torch.bfloat16, "4bit", batch=1, length=10)
    assert need.weights == 8 * 64 * 32 * 2  # fused while reading, so never quantised
    assert need.activations == 10 * 2 * (64 + 32) * 2 + 3 * 4 * 10 * 126_464


def test_devices_that_share_the_systems_memory_or_cannot_be_asked(monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=5 * GB))
    at = lambda *kinds: Placement({str(n): torch.device(kind) for n, kind in enumerate(kinds)}, torch.float32)  # noqa: E731
    assert memory.available(at("mps")) == (5 * GB, "mps") and memory.available(at("cpu", "mps"))[0] == 5 * GB
    memory.require(Memory(4 * GB, 0), at("mps"))
    with pytest.raises(midward.ModelError, match=r"mps has 5\.0 GB free"):
        memory.require(Memory(6 * GB, 0), at("mps"))
    assert memory.available(at("xpu")) == (None, "xpu")
    memory.require(Memory(600 * GB, 0), at("xpu"))


def test_verbs_tell_a_large_estimate_and_stop_before_reading(llada_folder, monkeypatch, capsys):
    from midward.cli._options import ModelOptions

    options = ModelOptions(model=str(llada_folder), device="cpu")
    options.load()
    assert "memory" not in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(memory, "GB", 10**5)
        options.load()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("memory    about ") and "of weights (float32)" in lines[0]
    assert lines[0].endswith("free on cpu") and lines[1].startswith("model     ")

    plain = estimate(llada_folder, torch.float32).total
    step = {"batch": 64, "length": 128, "training": True}
    assert estimate(llada_folder, torch.float32, **step).total > 4 * plain
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * plain))
    options.load()
    monkeypatch.setattr("midward.models.loading._tokenizer", None)  # nothing is read any more
    with pytest.raises(midward.ModelError, match="of adapter and optimizer, and cpu has"):
        options.load(**step)
