"""SDAR in its published checkpoint layout, on transformers' own Qwen3 and Qwen3-MoE backbones.

Names and arithmetic are Qwen3's; attention is block-causal, in blocks of four unless the config says otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from .family import ATTENTION_PROJECTIONS, LLAMA_PROJECTIONS, Family, info
from .reading import QWEN_SIZES, Placement, SpecialToken, backbone, diffusion_family, entries, read_native

INFO = info("sdar")

_MOE_SIZES = {name: name for name in ("moe_intermediate_size", "num_experts", "num_experts_per_tok")}


def _is_sparse(raw: dict[str, Any]) -> bool:
    return bool(raw.get("num_experts"))


def backbone_config(raw: dict[str, Any]) -> Qwen3Config | Qwen3MoeConfig:
    """Translate a published config into Qwen3's, for a mask by blocks. Raises ModelError where that can't be done."""
    sizes = entries(raw, QWEN_SIZES, "SDAR")
    sizes["head_dim"] = raw.get("head_dim") or sizes["hidden_size"] // sizes["num_attention_heads"]
    if not _is_sparse(raw):
        return backbone(Qwen3Config, raw, INFO, **sizes, use_sliding_window=False)
    return backbone(
        Qwen3MoeConfig,
        raw,
        INFO,
        **sizes,
        **entries(raw, _MOE_SIZES, "SDAR"),
        use_sliding_window=False,
        norm_topk_prob=bool(raw.get("norm_topk_prob")),
        mlp_only_layers=raw.get("mlp_only_layers"),
        decoder_sparse_step=raw.get("decoder_sparse_step", 1),
    )


def family(raw: dict[str, Any], tokenizer: Any) -> Family:
    """Return the family record of a published config."""
    return diffusion_family(
        INFO,
        raw,
        tokenizer,
        mask=SpecialToken("mask_token_id", ("<|MASK|>", "<|mask|>"), 151669),
        end=SpecialToken("eos_token_id", ("<|endoftext|>",), 151643),
        turn_ends=("<|im_end|>",),
        lora_targets=ATTENTION_PROJECTIONS if _is_sparse(raw) else LLAMA_PROJECTIONS,
    )


def read(folder: Path, raw: dict[str, Any], placement: Placement) -> Any:
    """Load the safetensors of a published folder. Raises ModelError as `read_native` does."""
    network_class = Qwen3MoeForCausalLM if _is_sparse(raw) else Qwen3ForCausalLM
    return read_native(network_class, folder, placement, config=backbone_config(raw), attn_implementation="sdpa")
