"""Dream in its published checkpoint layout, on transformers' own Qwen2 backbone.

The published modules are Qwen2's under the same names, without the causal mask. Since Dream was made from an
autoregressive model, position i is predicted from the hidden state at i - 1 (the first keeps its own).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Qwen2Config, Qwen2ForCausalLM

from .family import LLAMA_PROJECTIONS, Family, info
from .reading import QWEN_SIZES, Placement, SpecialToken, backbone, diffusion_family, entries, read_native

INFO = info("dream")


def backbone_config(raw: dict[str, Any]) -> Qwen2Config:
    """Translate a published config into Qwen2's, with full attention. Raises ModelError where that can't be done."""
    sizes = entries(raw, QWEN_SIZES, "Dream")
    return backbone(Qwen2Config, raw, INFO, **sizes, use_sliding_window=False)


def family(raw: dict[str, Any], tokenizer: Any) -> Family:
    """Return the family record of a published config."""
    return diffusion_family(
        INFO,
        raw,
        tokenizer,
        mask=SpecialToken("mask_token_id", ("<|mask|>",), 151666),
        end=SpecialToken("eos_token_id", ("<|endoftext|>",), 151643),
        turn_ends=("<|im_end|>",),
        lora_targets=LLAMA_PROJECTIONS,
        shift=True,
    )


def read(folder: Path, raw: dict[str, Any], placement: Placement) -> Any:
    """Load the safetensors of a published folder. Raises ModelError as `read_native` does."""
    return read_native(Qwen2ForCausalLM, folder, placement, config=backbone_config(raw), attn_implementation="sdpa")
