"""LLaDA-MoE in its published checkpoint layout, on transformers' own Qwen3-MoE backbone.

The published modules have Qwen3-MoE's names and arithmetic (norms per head on queries and keys, softmax router whose
top weights are not normalised), without the causal mask; transformers fuses the experts' weights while it reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from .errors import ModelError
from .family import ATTENTION_PROJECTIONS, Family, info
from .reading import QWEN_SIZES, Placement, SpecialToken, backbone, diffusion_family, entries, read_native

INFO = info("llada-moe")

#: Of LLaDA-MoE and LLaDA 2.
MASK = SpecialToken("mask_token_id", ("<|mask|>",), 156895)
END = SpecialToken("eos_token_id", ("<|endoftext|>", "<|role_end|>"), 156892)

_SIZES = {name: name for name in (*QWEN_SIZES, "num_experts", "num_experts_per_tok") if name != "intermediate_size"}
_SIZES["moe_intermediate_size"] = "expert_intermediate_size"


def backbone_config(raw: dict[str, Any]) -> Qwen3MoeConfig:
    """Translate a published config into Qwen3-MoE's, with full attention. Raises ModelError where that can't be."""
    for key in ("clip_qkv", "shared_expert_intermediate_size", "router_num_group", "router_topk_group"):
        if raw.get(key):
            raise ModelError(f"unusual LLaDA-MoE config: {key}={raw[key]!r}; only None can be loaded.")
    if raw.get("qk_layernorm") is None:
        raise ModelError("the LLaDA-MoE config lacks 'qk_layernorm'; is config.json complete?")
    sizes = entries(raw, _SIZES, "LLaDA-MoE")
    sparse = raw.get("moe_layer_freq") or [1] * sizes["num_hidden_layers"]
    return backbone(
        Qwen3MoeConfig,
        raw,
        INFO,
        **sizes,
        head_dim=sizes["hidden_size"] // sizes["num_attention_heads"],
        intermediate_size=raw.get("dense_intermediate_size") or sizes["moe_intermediate_size"],
        mlp_only_layers=[layer for layer, is_sparse in enumerate(sparse) if not is_sparse],
        norm_topk_prob=bool(raw.get("norm_topk_prob")),
    )


def family(raw: dict[str, Any], tokenizer: Any) -> Family:
    """Return the family record of a published config."""
    return diffusion_family(
        INFO,
        raw,
        tokenizer,
        mask=MASK,
        end=END,
        turn_ends=END.texts,
        lora_targets=ATTENTION_PROJECTIONS,  # the experts are fused tensors, the router stays as it is
    )


def read(folder: Path, raw: dict[str, Any], placement: Placement) -> Any:
    """Load the safetensors of a published folder. Raises ModelError as `read_native` does."""
    return read_native(Qwen3MoeForCausalLM, folder, placement, config=backbone_config(raw), attn_implementation="sdpa")
