"""LLaDA 2.x in its published checkpoint layout, on transformers' own GLM-4-MoE backbone.

The published architecture is GLM-4-MoE with other names: norms per head on queries and keys, half of each head rotated,
a sigmoid router with a bias per expert and experts chosen within groups, a shared expert, the first layers dense. Only
the fused query-key-value matrix has to be split. Attention is block-causal.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from ._files import Renaming, renaming
from .errors import ModelError
from .family import ATTENTION_PROJECTIONS, Family, info
from .llada_moe import END, MASK
from .reading import QWEN_SIZES, Placement, backbone, diffusion_family, entries, read_native, rope

INFO = info("llada2")

_SAME = (
    "moe_intermediate_size",
    "num_experts_per_tok",
    "n_group",
    "topk_group",
    "first_k_dense_replace",
    "routed_scaling_factor",
)
_SIZES = {
    **QWEN_SIZES,
    **{name: name for name in _SAME},
    "n_routed_experts": "num_experts",
    "n_shared_experts": "num_shared_experts",
}


# Published name -> GLM-4-MoE's.
_KEY_MAPPING = {
    r"^model\.word_embeddings\.": "model.embed_tokens.",
    r"\.attention\.dense\.": ".self_attn.o_proj.",
    r"\.attention\.query_layernorm\.": ".self_attn.q_norm.",
    r"\.attention\.key_layernorm\.": ".self_attn.k_norm.",
    r"\.mlp\.gate\.expert_bias$": ".mlp.gate.e_score_correction_bias",
}
_FUSED = ".attention.query_key_value."


class LLaDA2ForMaskedDiffusion(Glm4MoeForCausalLM):
    """GLM-4-MoE under a name of its own, which is what the conversion of the weights is registered by."""


def _register_conversion() -> None:
    """Register what `published` says, as transformers takes it."""
    try:
        from transformers.core_model_loading import Split, WeightConverter, WeightRenaming
    except ImportError:
        raise ModelError("LLaDA2 needs transformers 5.20 or newer (`pip install -U transformers`).") from None
    register_checkpoint_conversion_mapping(
        LLaDA2ForMaskedDiffusion.__name__,
        [
            *(WeightRenaming(published, own) for published, own in _KEY_MAPPING.items()),
            WeightConverter(
                source_patterns=f"{_FUSED}weight",
                target_patterns=[f".self_attn.{name}_proj.weight" for name in "qkv"],
                operations=[Split(dim=0)],
            ),
            *(get_checkpoint_conversion_mapping("glm4_moe") or []),
        ],
        overwrite=True,
    )


def published(raw: dict[str, Any]) -> Renaming:
    """What published weights, and adapters of them, are called here; the fused matrix becomes three."""
    config = backbone_config(raw)
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    sizes = [count * config.head_dim for count in (heads, shared, shared)]
    rename = renaming(_KEY_MAPPING)

    def split(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        if _FUSED not in name:
            yield from rename(name, tensor)
            return
        # What an adapter takes in is common to all three, what it puts out is split.
        parts = [tensor] * 3 if ".lora_A." in name else tensor.split(sizes)
        for letter, part in zip("qkv", parts, strict=True):
            yield name.replace(_FUSED, f".self_attn.{letter}_proj."), part.contiguous()

    return split


def backbone_config(raw: dict[str, Any]) -> Glm4MoeConfig:
    """Translate a published config into GLM-4-MoE's, for a mask by blocks. Raises ModelError where it can't be."""
    if raw.get("use_qk_norm") is not True:
        raise ModelError(f"unusual LLaDA2 config: use_qk_norm={raw.get('use_qk_norm')!r}; only True can be loaded.")
    sizes = entries(raw, _SIZES, "LLaDA2")
    head = raw.get("head_dim") or sizes["hidden_size"] // sizes["num_attention_heads"]
    share = raw.get("partial_rotary_factor", 1.0)
    if raw.get("rotary_dim") not in (None, int(head * share)):
        raise ModelError(
            f"unusual LLaDA2 config: rotary_dim={raw['rotary_dim']} with partial_rotary_factor={share} of heads of "
            f"{head}; only {int(head * share)} can be loaded."
        )
    return backbone(
        Glm4MoeConfig,
        raw,
        INFO,
        **{**sizes, "head_dim": head},
        use_qk_norm=True,
        attention_bias=False,
        norm_topk_prob=sizes["num_experts_per_tok"] > 1,
        num_mtp_layers=0,
        rope_parameters=rope(raw, "LLaDA2", partial_rotary_factor=share),
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
        lora_targets=ATTENTION_PROJECTIONS,  # PEFT takes feed-forward names to mean the fused experts
    )


def read(folder: Path, raw: dict[str, Any], placement: Placement) -> Any:
    """Load the safetensors of a published folder. Raises ModelError as `read_native` does."""
    config = backbone_config(raw)
    _register_conversion()
    return read_native(LLaDA2ForMaskedDiffusion, folder, placement, config=config, attn_implementation="sdpa")
