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
from transformers import PreTrainedTokenizerFast

ROWS = 96
SIZES = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": False,
}
CHATML = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
ROLES = (
    "{% for m in messages %}<role> {{ 'HUMAN' if m['role'] == 'user' else m['role'] | upper }} </role> "
    "{{ m['content'] }} <|role_end|> {% endfor %}{% if add_generation_prompt %}<role> ASSISTANT </role> {% endif %}"
)
QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LING_TOKENS = ["<|endoftext|>", "<role>", "<|role_end|>"]
LLADA_TOKENS = ["<|endoftext|>", "<|eot_id|>", "<|start_header_id|>"]

#: Family and variant -> config.json, special tokens (the mask last), chat template.
CHECKPOINTS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "dream": (
        {
            **SIZES,
            "architectures": ["DreamModel"],
            "model_type": "Dream",
            "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
            "rope_theta": 1e6,
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": 28,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
            "mask_token_id": 3,
        },
        [*QWEN_TOKENS, "<|mask|>"],
        CHATML,
    ),
    "llada-moe": (
        {
            **{key: value for key, value in SIZES.items() if key != "intermediate_size"},
            "architectures": ["LLaDAMoEModelLM"],
            "model_type": "llada",
            "auto_map": {"AutoModel": "modeling_lladamoe.LLaDAMoEModelLM"},
            "attention_bias": False,
            "clip_qkv": None,
            "dense_intermediate_size": 40,
            "expert_intermediate_size": 24,
            "moe_layer_freq": [0, 1],
            "moe_router_enable_expert_bias": False,
            "moe_router_score_function": "softmax",
            "norm_topk_prob": None,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "num_key_value_heads": 4,
            "partial_rotary_factor": 1,
            "qk_layernorm": True,
            "rope_theta": 50000,
            "routed_scaling_factor": 1,
            "router_num_group": None,
            "router_topk_group": None,
            "shared_expert_intermediate_size": None,
            "eos_token_id": 0,
            "pad_token_id": 0,
        },
        [*LING_TOKENS, "<|mask|>"],
        ROLES,
    ),
    "llada2": (
        {
            **SIZES,
            "architectures": ["LLaDA2MoeModelLM"],
            "model_type": "llada2_moe",
            "auto_map": {"AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM"},
            "head_dim": 12,  # not hidden_size / heads
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 24,
            "moe_router_enable_expert_bias": True,
            "n_group": 4,
            "norm_topk_prob": True,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "num_shared_experts": 1,
            "partial_rotary_factor": 0.5,
            "rope_theta": 600000,
            "rotary_dim": 6,
            "routed_scaling_factor": 2.5,
            "router_dtype": "fp32",
            "score_function": "sigmoid",
            "topk_group": 2,
            "use_bias": False,
            "use_qk_norm": True,
            "use_qkv_bias": False,
            "use_rmsnorm": True,
            "eos_token_id": 0,
            "pad_token_id": 0,
        },
        [*LING_TOKENS, "<|mask|>"],
        ROLES,
    ),
    "sdar": (
        {
            **SIZES,
            "architectures": ["SDARForCausalLM"],
            "model_type": "sdar",
            "auto_map": {"AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM"},
            "attention_bias": False,
            "block_size": 4,
            "head_dim": 12,
            "rope_theta": 1e6,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": None,
            "mask_token_id": None,
        },
        [*QWEN_TOKENS, "<|MASK|>"],
        CHATML,
    ),
    "mmada": (
        {
            "architectures": ["MMadaModelLM"],
            "model_type": "mmada",
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 4,
            "n_kv_heads": 4,
            "mlp_hidden_size": 40,
            "max_sequence_length": 256,
            "rope_theta": 5e5,
            "rms_norm_eps": 1e-5,
            "activation_type": "silu",
            "block_type": "llama",
            "weight_tying": False,
            "vocab_size": 64,  # of the words; the weights have rows for image codes as well
            "embedding_size": 64,
            "llm_vocab_size": 64,
            "new_vocab_size": ROWS,
            "codebook_size": 32,
            "mask_token_id": 3,
            "eos_token_id": 0,
            "pad_token_id": 0,
        },
        [*LLADA_TOKENS, "<|mdm_mask|>"],
        CHATML.replace("<|im_start|>", "<|start_header_id|>").replace("<|im_end|>", "<|eot_id|>"),
    ),
}
CHECKPOINTS["sdar-moe"] = (
    {
        **CHECKPOINTS["sdar"][0],
        "architectures": ["SDARMoeForCausalLM"],
        "model_type": "sdar_moe",
        "block_size": 8,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "tie_word_embeddings": False,
    },
    *CHECKPOINTS["sdar"][1:],
)
CHECKPOINTS["llada-1.5"] = (
    {
        **{key: value for key, value in CHECKPOINTS["mmada"][0].items() if "codebook" not in key},
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "vocab_size": ROWS,
        "embedding_size": ROWS,
        "block_group_size": 1,
        "alibi": False,
        "rope": True,
        "include_bias": False,
        "include_qkv_bias": False,
        "layer_norm_type": "rms",
        "input_emb_norm": False,
        "scale_logits": False,
    },
    *CHECKPOINTS["mmada"][1:],
)


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
                if kind == "DreamModel":
                    add(f"{at}.self_attn.{name}_proj.bias", rows * size)
            add(f"{at}.self_attn.o_proj.weight", d, heads * size)
            if kind != "DreamModel":
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
        pad_token=special[0],
        extra_special_tokens=[word for word in special if word not in (end, *named.values())],
        **named,
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder
