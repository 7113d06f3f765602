"""LLaDA in its published checkpoint layout, on transformers' own Llama backbone.

The published modules are Llama with other names, without the causal mask; so the safetensors are renamed into
`LlamaForCausalLM` with `is_causal=False`. No remote code runs.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from ._files import Renaming, renaming
from ._rope import keep_rope_in_float32
from .family import LLAMA_PROJECTIONS, Family, info
from .reading import Placement, SpecialToken, backbone, diffusion_family, entries, read_native, rows

INFO = info("llada")

# Published module -> Llama's; {} is the layer's number.
_MODULES = {
    "model.transformer.wte.": "model.embed_tokens.",
    "model.transformer.ln_f.": "model.norm.",
    "model.transformer.ff_out.": "lm_head.",
    "model.transformer.blocks.{}.attn_norm.": "model.layers.{}.input_layernorm.",
    "model.transformer.blocks.{}.ff_norm.": "model.layers.{}.post_attention_layernorm.",
    "model.transformer.blocks.{}.q_proj.": "model.layers.{}.self_attn.q_proj.",
    "model.transformer.blocks.{}.k_proj.": "model.layers.{}.self_attn.k_proj.",
    "model.transformer.blocks.{}.v_proj.": "model.layers.{}.self_attn.v_proj.",
    "model.transformer.blocks.{}.attn_out.": "model.layers.{}.self_attn.o_proj.",
    "model.transformer.blocks.{}.ff_proj.": "model.layers.{}.mlp.gate_proj.",
    "model.transformer.blocks.{}.up_proj.": "model.layers.{}.mlp.up_proj.",
    "model.transformer.blocks.{}.ff_out.": "model.layers.{}.mlp.down_proj.",
}


def _by_pattern(modules: Mapping[str, str]) -> dict[str, str]:
    """As transformers' `key_mapping` has it, which allows one back-reference a rule."""
    numbered = {re.escape(name).replace(r"\{\}", r"(\d+)"): other for name, other in modules.items()}
    return {f"^{pattern}": other.replace("{}", r"\1") for pattern, other in numbered.items()}


KEY_MAPPING = _by_pattern(_MODULES)
#: The way back, for writing a checkpoint in the published layout.
PUBLISHED_MAPPING = _by_pattern({own: published for published, own in _MODULES.items()})


_SIZES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "max_position_embeddings": "max_sequence_length",
}


def backbone_config(raw: dict[str, Any]) -> LlamaConfig:
    """Translate a published config into Llama's, with full attention.

    Raises ModelError for a missing size, or for a switch that Llama has no counterpart of.
    """
    sizes = entries(raw, _SIZES, "LLaDA")
    shared = 1 if raw.get("multi_query_attention") else sizes["num_attention_heads"]
    return backbone(
        LlamaConfig,
        {**raw, "tie_word_embeddings": raw.get("weight_tying", False)},
        INFO,
        **sizes,
        vocab_size=rows(raw),
        intermediate_size=raw.get("mlp_hidden_size") or raw.get("mlp_ratio", 4) * raw["d_model"],
        num_key_value_heads=raw.get("n_kv_heads") or shared,
        rms_norm_eps=raw.get("rms_norm_eps", 1e-5),
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    )


def family(raw: dict[str, Any], tokenizer: Any) -> Family:
    """Return the family record of a published config."""
    return diffusion_family(
        INFO,
        raw,
        tokenizer,
        mask=SpecialToken("mask_token_id", (), 126336),
        end=SpecialToken("eos_token_id", (), 126081),
        turn_ends=("<|eot_id|>",),
        lora_targets=LLAMA_PROJECTIONS,
    )


def published(raw: dict[str, Any]) -> Renaming:
    """What published weights, and adapters of them, are called here."""
    return renaming(KEY_MAPPING)


def read(folder: Path, raw: dict[str, Any], placement: Placement) -> LlamaForCausalLM:
    """Load the safetensors of a published folder.

    Raises ModelError when a weight is missing, unexpected or of another shape.
    """
    network = read_native(
        LlamaForCausalLM,
        folder,
        placement,
        config=backbone_config(raw),
        key_mapping=KEY_MAPPING,
        attn_implementation="sdpa",
    )
    if placement.dtype.itemsize < 4:
        keep_rope_in_float32(network)
    return network
