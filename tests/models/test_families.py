"""Every diffusion family: parity with a plain statement, padding, and the chain from loading to a reloaded adapter."""

import json
import os
from itertools import cycle
from types import SimpleNamespace

import plain
import pytest
import torch
from published import CHECKPOINTS, ENCODERS, ROWS, write
from reference import llada_logits

import midward
from midward import Request, Sampling, Trace, sample
from midward.alignment import SentenceSet, align
from midward.chat import Conversation
from midward.goals import Goal
from midward.guards import GuardError, Sizes, SRIGuard, fit_guards
from midward.models import dream, families, llada2, llada_moe, loading, sdar
from midward.runs.measure import Case

NAMES = list(CHECKPOINTS)
FAMILY = {name: name.removesuffix("-moe") if name.startswith("sdar") else name for name in NAMES}
FAMILY["llada-1.5"] = "llada"
FAMILY |= {name: "a2d" for name in NAMES if name.startswith("a2d-")} | dict.fromkeys(ENCODERS, "bert")


def logits(model, ids, mask=None):
    with torch.no_grad():
        return model.head(model.hidden(ids, mask))


def random_ids(*shape, seed=1):
    return torch.randint(10, ROWS, shape, generator=torch.Generator().manual_seed(seed))


def words(*numbers):
    return " ".join(f"t{n}" for n in numbers)


# --- what the network computes --------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_plain_statement(name, folders, published):
    config, weights = published(name)
    model = midward.load(folders[name], device="cpu", dtype="float32")
    ids = random_ids(2, 40 if name == "llada2" else 15)
    for padding in (slice(0), slice(0, 5), slice(-6, None)):
        mask = torch.ones_like(ids)
        mask[0, padding] = 0
        if "d_model" in config:
            expected = llada_logits(weights, config, ids, mask)
        else:
            columns = model.family.blocks_from == "response"
            expected = plain.logits(weights, config, ids, mask, model.family.attention_block, columns)
        difference = (logits(model, ids, None if mask.all() else mask) - expected).abs()
        assert difference[mask.bool()].max() < 1e-4
        assert expected.std() > 1, "the model says too little for a comparison"


@pytest.mark.parametrize("name", [*NAMES, *ENCODERS])
def test_padding_changes_nothing(name, folders):
    model = midward.load(folders[name], device="cpu", dtype="float32")
    ids = random_ids(1, 13)
    pads = torch.full((1, 8), model.family.pad_id)
    ones, zeros = torch.ones_like(ids), torch.zeros_like(pads)
    bare = logits(model, ids)
    left = logits(model, torch.cat([pads, ids], 1), torch.cat([zeros, ones], 1))[:, 8:]
    right = logits(model, torch.cat([ids, pads], 1), torch.cat([ones, zeros], 1))[:, :13]
    assert (left - bare).abs().max() < 1e-4 and (right - bare).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["sdar", "sdar-moe", "bd3lm"])
def test_block_causal_attention(name, folders):
    """A token changes its own block and what follows, and nothing before."""
    model = midward.load(folders[name], device="cpu", dtype="float32")
    block = model.family.attention_block
    ids = random_ids(1, 3 * block)
    changed = ids.clone()
    changed[0, 2 * block - 1] = 9
    moved = (logits(model, ids) - logits(model, changed)).abs().amax(-1)[0]
    assert moved[:block].max() < 1e-5 and moved[block:].min() > 1e-3
    assert block == CHECKPOINTS[name][0]["block_size"]


def test_a_wrong_attention_mask_is_caught(folders, monkeypatch):
    read = sdar.read

    def causal(*args):
        network = read(*args)
        network.base_model.forward = lambda *_, attention_mask, forward=network.base_model.forward, **given: forward(
            *_, attention_mask=wrong(attention_mask), **given
        )
        return network

    monkeypatch.setattr(sdar, "read", causal)
    for wrong in (torch.Tensor.tril, torch.ones_like):  # noqa: B007
        with pytest.raises(midward.ModelError, match="must have block attention"):
            midward.load(folders["sdar"], device="cpu")


@pytest.mark.skipif(
    torch.cpu._is_amx_tile_supported() and os.environ.get("ATEN_CPU_CAPABILITY", "avx512") in ("default", "avx2"),
    reason="on a CPU with AMX torch packs bfloat16 for kernels that this ATEN_CPU_CAPABILITY forbids, and raises",
)
@pytest.mark.parametrize("name", ["dream", "llada2", "a2d-qwen3", *ENCODERS])
def test_bfloat16(name, folders):
    exact = midward.load(folders[name], device="cpu", dtype="float32")
    model = midward.load(folders[name], device="cpu", dtype="bfloat16")
    ids = random_ids(1, 12)
    difference = (logits(model, ids).float() - logits(exact, ids)).abs().mean()
    assert model.dtype == torch.bfloat16 and difference < 0.2 * logits(exact, ids).std()


# --- the chain ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, *ENCODERS])
def test_load_chat_trace_align_guard_reload(name, folders, tmp_path):
    model = midward.load(folders[name], device="cpu", dtype="float32")
    assert model.family.name == FAMILY[name]
    prompts = [words(20, 21, 22), words(30, 31), words(40, 41, 42, 43, 44)]
    settings = Sampling.for_model(model, length=10, steps=10, block=5, temperature=0.0, end="keep")
    trace = Trace()
    responses = sample(model, prompts, settings, watchers=[trace])
    for index, response in enumerate(responses):
        assert response.text or set(response.ids) <= set(model.tokenizer.all_special_ids)
        assert sorted(trace.commit_step[index].tolist()) == list(range(10)) or model.family.attention == "block"
    assert all((steps >= 0).all() for steps in trace.commit_step.values())
    # Alone or together: the same tokens.
    assert [sample(model, [prompt], settings)[0].raw_ids for prompt in prompts] == [r.raw_ids for r in responses]

    ids = torch.tensor([model.encode(prompts[0]) + [model.family.mask_id] * 10])
    before = logits(model, ids)
    result = align(
        model,
        [words(*range(50 + i, 54 + i)) for i in range(4)],
        tmp_path / "adapter",
        benign=[(words(70, 71), words(72, 73, 74))],
        sentences=SentenceSet(safe=[words(60, 61), words(62, 63)], harmful=[words(64, 65)]),
        length=10,
        window_start=2,
        window_end=6,
        lora_rank=4,
        max_steps=1,
        lr=1e-2,
    )
    loaded = midward.load(folders[name], adapter=result.adapter, device="cpu", dtype="float32")
    adapted = logits(loaded, ids)
    assert (adapted - before).abs().max() > 1e-3
    with loaded.reference():
        assert torch.equal(logits(loaded, ids), before)
    assert torch.equal(logits(model, ids), before)
    adapters = {
        key.split(".lora_")[0].rsplit(".", 1)[-1] for key, _ in loaded.network.named_parameters() if "lora_" in key
    }
    assert adapters == {target.rsplit(".", 1)[-1] for target in model.family.lora_targets}

    # A guard that was fitted on the adapted model stands in front of it, and of no other.
    cases = [Case(Goal(f"g{i}", words(i, i + 1), "made-up", i >= 24), Request(words(i, i + 1))) for i in range(10, 34)]
    turns = cycle((True, False))
    guards = fit_guards(
        loaded,
        {"sri": SRIGuard(epochs=2, seeds=1)},
        cases[:14],
        cases[14:],
        tmp_path / "guards",
        refused=lambda text: next(turns),
        sampling=settings,
        alpha=0.3,
        sizes=Sizes(6, 4, 4),
    )
    chat = midward.load(folders[name], adapter=result.adapter, device="cpu", dtype="float32", guard=guards["sri"])
    assert [answer.verdict.score for answer in chat.generate(prompts)] == pytest.approx(
        [answer.verdict.score for answer in chat.generate(prompts, batch_size=1)], rel=1e-3
    )
    talk = Conversation(chat, settings)
    first, second = talk.say(prompts[0]), talk.say(prompts[1])
    assert first.verdict is not None and len(second.prompt_ids) > len(first.prompt_ids) and len(talk.turns) == 4
    with pytest.raises(GuardError, match="fitted for"):
        midward.load(folders[name], device="cpu", dtype="float32", guard=guards["sri"])


# --- ids, templates, defaults ---------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_record(name, folders):
    """Ids come from the config, else from the tokenizer's texts; turn ends are ends; the template is the folder's."""
    model = midward.load(folders[name], device="cpu")
    special = CHECKPOINTS[name][1]
    turn_end = next(i for i, text in enumerate(special) if text in ("<|im_end|>", "<|role_end|>", "<|eot_id|>"))
    assert (model.family.mask_id, model.family.end_ids, model.family.pad_id) == (3, (0, turn_end), 0)
    ids = model.encode("t20 t21")
    assert [token for token in ids if token > 9] == [20, 21] and ids.count(turn_end) == 1
    assert model.encode(f"t20 {special[-1]}").count(model.family.mask_id) == 1
    Sampling.for_model(model, length=16)
    info = next(info for info in families() if info.name == model.family.name)
    assert {**info.sampling, "block": None} == {**model.family.sampling, "block": None}
    assert model.family.sampling.get("block") == model.family.attention_block or model.family.attention == "full"


@pytest.mark.parametrize(
    "module, texts, mask, ends, pad",
    [
        (dream, {"<|im_end|>": 151645}, 151666, (151643, 151645), 151643),
        (llada_moe, {}, 156895, (156892,), 156892),
        (llada2, {}, 156895, (156892,), 156892),
        (sdar, {"<|im_end|>": 151645}, 151669, (151643, 151645), 151643),
    ],
)
def test_published_ids_are_the_default(module, texts, mask, ends, pad):
    tokenizer = SimpleNamespace(get_vocab=lambda: texts)
    family = module.family({"vocab_size": 160_000}, tokenizer)
    assert (family.mask_id, family.end_ids, family.pad_id) == (mask, ends, pad)
    with pytest.raises(midward.ModelError, match=r"lies outside the vocabulary of 1000 rows"):
        module.family({"vocab_size": 1000}, tokenizer)
    listed = module.family({"vocab_size": 160_000, "eos_token_id": [7, 8]}, tokenizer).end_ids
    assert listed[:2] == (7, 8)


def test_a_given_order_or_steps_replace_a_default_threshold(folders):
    model = midward.load(folders["llada2"], device="cpu")
    assert Sampling.for_model(model, length=64).threshold == 0.95
    assert Sampling.for_model(model, length=64, order="random").threshold is None
    assert Sampling.for_model(model, length=64, steps=8).threshold is None
    assert Sampling.for_model(model, length=64, steps=8, threshold=0.5).threshold == 0.5


def test_tokenizer_of_vocabulary_and_merges(tmp_path):
    """Dream and SDAR are published without a tokenizer.json."""
    folder = write("dream", tmp_path, eos_token_id=12, pad_token_id=12, mask_token_id=15)
    (folder / "tokenizer.json").unlink()
    pieces = [*"abcdefgh", "ab", "cd", "abcd", "Ġ"]
    (folder / "vocab.json").write_text(json.dumps({piece: at for at, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\nc d\nab cd\n")
    special = {12: "<|endoftext|>", 13: "<|im_start|>", 14: "<|im_end|>", 15: "<|mask|>"}
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    config = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": {str(at): {**flags, "special": True, "content": text} for at, text in special.items()},
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    model = midward.load(folder, device="cpu")
    assert model.tokenizer("abcd<|mask|>ef").input_ids == [10, 15, 4, 5]
    assert model.decode([10, 4, 12, 5]) == "abcde"
    assert model.family.end_ids == (12, 14)

    config["added_tokens_decoder"]["90"] = config["added_tokens_decoder"].pop("15")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(midward.ModelError, match=r"<\|mask\|> is token 15 of vocab.json.*90"):
        midward.load(folder, device="cpu")
    (folder / "merges.txt").unlink()
    with pytest.raises(midward.ModelError, match=r"no tokenizer\.json"):
        midward.load(folder, device="cpu")


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, entry, value",
    [
        ("dream", "hidden_act", "gelu"),
        ("dream", "use_sliding_window", True),
        ("dream", "rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("llada-moe", "shared_expert_intermediate_size", 16),
        ("llada-moe", "clip_qkv", 8.0),
        ("llada-moe", "moe_router_score_function", "sigmoid"),
        ("llada-moe", "router_num_group", 2),
        ("llada-moe", "qk_layernorm", False),
        ("llada2", "score_function", "softmax"),
        ("llada2", "use_qkv_bias", True),
        ("llada2", "use_qk_norm", False),
        ("llada2", "rotary_dim", 12),
        ("sdar", "attention_bias", True),
        ("mmada", "alibi", True),
    ],
)
def test_unusual_config_is_refused(name, entry, value, folders, tmp_path):
    raw = {**CHECKPOINTS[name][0], entry: value}
    module = loading._FAMILIES[FAMILY[name]]
    with pytest.raises(midward.ModelError, match=f"unusual .*{entry}="):
        getattr(module, "backbone_config", loading.llada.backbone_config)(raw)


@pytest.mark.parametrize(
    "name, entry", [("dream", "hidden_size"), ("llada2", "n_group"), ("sdar-moe", "num_experts_per_tok")]
)
def test_incomplete_config_is_refused(name, entry):
    raw = {**CHECKPOINTS[name][0], entry: None}
    with pytest.raises(midward.ModelError, match=f"lacks '{entry}'"):
        loading._FAMILIES[FAMILY[name]].backbone_config(raw)
