"""Tiny random checkpoints in the published layout of each diffusion family: config.json, safetensors names, tokenizer.

Weights are made by their published names and shapes, not by any class of transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertForMaskedLM, ModernBertForMaskedLM, PreTrainedTokenizerFast, RobertaForMaskedLM

ROWS = 96
_LIKE_QWEN2 = ("DreamModel", "A2DQwen2LMHeadModel")  # biases, no norms per head
#: Encoders: transformers' class, entries of its config, special tokens (the mask last).
_SIZES = {"vocab_size": ROWS, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_BERT = {**_SIZES, "intermediate_size": 40, "max_position_embeddings": 128, "hidden_dropout_prob": 0.1}
ENCODERS: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "bert": (BertForMaskedLM, {**_BERT, "pad_token_id": 0}, ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]),
    "roberta": (
        RobertaForMaskedLM,
        {**_BERT, "max_position_embeddings": 130, "pad_token_id": 1},
        ["<s>", "<pad>", "</s>", "<mask>"],
    ),
    "modernbert": (
        ModernBertForMaskedLM,
        {
            **_SIZES,
            "intermediate_size": 24,
            "max_position_embeddings": 128,
            "local_attention": 6,
            "global_attn_every_n_layers": 2,
            **dict.fromkeys(("bos_token_id", "cls_token_id"), 1),
            **dict.fromkeys(("eos_token_id", "sep_token_id"), 2),
            "pad_token_id": 0,
        },
        ["[PAD]", "[CLS]", "[SEP]", "[MASK]"],
    ),
}
#: Family and variant -> config.json, special tokens (the mask last), chat template. llada2's heads are not hidden_size
#: / heads wide; mmada's vocab_size is that of the words, and its weights have rows for image codes as well.
CHECKPOINTS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    name: (entry["config"], entry["special"], entry["template"])
    for name, entry in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")).items()
}


def weights(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random float32 weights under the published names: large, so that every token depends on all the others."""
    generator = torch.Generator().manual_seed(seed)
    kind = config["architectures"][0]
    made: dict[str, torch.Tensor] = {}

    def add(name: str, *shape: int) -> None:
        drawn = torch.randn(shape, generator=generator)
        made[name] = 1 + 0.1 * drawn if "norm" in name or "ln_f" in name else 0.3 * drawn

    def feed_forward(prefix: str, width: int) -> None:
        for name in ("gate_proj", "up_proj"):
            add(f"{prefix}.{name}.weight", width, d)
        add(f"{prefix}.down_proj.weight", d, width)

    d = config.get("hidden_size") or config["d_model"]
    if "d_model" in config:
        add("model.transformer.wte.weight", ROWS, d)
        for n in range(config["n_layers"]):
            at = f"model.transformer.blocks.{n}"
            for name in ("q_proj", "k_proj", "v_proj", "attn_out"):
                add(f"{at}.{name}.weight", d, d)
            for name in ("ff_proj", "up_proj"):
                add(f"{at}.{name}.weight", config["mlp_hidden_size"], d)
            add(f"{at}.ff_out.weight", d, config["mlp_hidden_size"])
            add(f"{at}.attn_norm.weight", d)
            add(f"{at}.ff_norm.weight", d)
        add("model.transformer.ln_f.weight", d)
        add("model.transformer.ff_out.weight", ROWS, d)
        return made

    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or d // heads
    fused = kind == "LLaDA2MoeModelLM"
    add("model.word_embeddings.weight" if fused else "model.embed_tokens.weight", ROWS, d)
    for n in range(config["num_hidden_layers"]):
        at = f"model.layers.{n}"
        if fused:
            add(f"{at}.attention.query_key_value.weight", (heads + 2 * groups) * size, d)
            add(f"{at}.attention.dense.weight", d, heads * size)
            add(f"{at}.attention.query_layernorm.weight", size)
            add(f"{at}.attention.key_layernorm.weight", size)
        else:
            for name, rows in (("q", heads), ("k", groups), ("v", groups)):
                add(f"{at}.self_attn.{name}_proj.weight", rows * size, d)
                if kind in _LIKE_QWEN2:
                    add(f"{at}.self_attn.{name}_proj.bias", rows * size)
            add(f"{at}.self_attn.o_proj.weight", d, heads * size)
            if kind not in (*_LIKE_QWEN2, "A2DLlamaLMHeadModel"):
                add(f"{at}.self_attn.q_norm.weight", size)
                add(f"{at}.self_attn.k_norm.weight", size)
        add(f"{at}.input_layernorm.weight", d)
        add(f"{at}.post_attention_layernorm.weight", d)
        dense = n < config.get("first_k_dense_replace", 0) or not config.get("moe_layer_freq", [1] * 9)[n]
        if not config.get("num_experts") or dense:
            feed_forward(f"{at}.mlp", config.get("intermediate_size") or config["dense_intermediate_size"])
            continue
        width = config.get("moe_intermediate_size") or config["expert_intermediate_size"]
        add(f"{at}.mlp.gate.weight", config["num_experts"], d)
        for expert in range(config["num_experts"]):
            feed_forward(f"{at}.mlp.experts.{expert}", width)
        if fused:
            add(f"{at}.mlp.gate.expert_bias", config["num_experts"])
            feed_forward(f"{at}.mlp.shared_experts", width * config["num_shared_experts"])
    add("model.norm.weight", d)
    if not config["tie_word_embeddings"]:
        add("lm_head.weight", ROWS, d)
    return made


def write(name: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Make `folder` a checkpoint of `CHECKPOINTS`; changes: entries of its config.json."""
    config, special, template = CHECKPOINTS[name]
    config = {**config, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))

    return write_tokenizer(folder, special, template, end=special[0], mask_token=special[-1])


def write_encoder(name: str, folder: Path) -> Path:
    """Make `folder` a checkpoint of `ENCODERS` that dllm's recipe has trained: the end token is the padding."""
    network_class, sizes, special = ENCODERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = network_class(network_class.config_class(**sizes))
        for parameter in network.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    network.save_pretrained(folder)
    template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}assistant "
    pad = special[sizes["pad_token_id"]]
    return write_tokenizer(folder, special, template, end=pad, pad_token=pad, mask_token=special[-1])


def write_wide(name: str, folder: Path) -> Path:
    """`write`, as wide as 4 bits ask: blocks of 64 columns and, where a CPU multiplies in bfloat16, of 32 rows."""
    config = CHECKPOINTS[name][0]
    widths = {
        entry: 64
        for entry in config
        if config[entry] and entry.endswith(("hidden_size", "intermediate_size", "d_model"))
    }
    heads = {"head_dim": 16, "rotary_dim": 8} if "head_dim" in config else {}
    return write(name, folder, **widths, **heads)


def write_tokenizer(folder: Path, special: list[str], template: str, end: str, **named: str) -> Path:
    """Write a tokenizer of `ROWS` words: the special ones first, then t<id>."""
    words = [*special, "<unk>", "user", "assistant", "HUMAN", "ASSISTANT", "</role>"]
    words += [f"t{n}" for n in range(len(words), ROWS)]
    plain = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        unk_token="<unk>",
        eos_token=end,
        **{"pad_token": special[0], **named},
        extra_special_tokens=[word for word in special if word not in (end, *named.values())],
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder
