"""Causal models that were trained on as masked-diffusion models (AR-to-diffusion, by ZHZisZZ/dllm's recipes).

Their config.json is that of Qwen2, Qwen3 or Llama and so are the weights; the causal mask is gone, for layers with a
sliding window as well. What the recipes settle when they run stands in no config: whether logits are shifted (position
i predicted from the state at i - 1) is read from an entry `right_shift_logits`, which is off unless it is added, and
what the block-diffusion siblings need is in `bd3lm`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from .family import LLAMA_PROJECTIONS, Family, FamilyInfo, distinct, info
from .reading import Placement, SpecialToken, diffusion_family, read_native

_BACKBONES: dict[str, tuple[Any, Any]] = {
    "A2DQwen2LMHeadModel": (Qwen2Config, Qwen2ForCausalLM),
    "A2DQwen3LMHeadModel": (Qwen3Config, Qwen3ForCausalLM),
    "A2DLlamaLMHeadModel": (LlamaConfig, LlamaForCausalLM),
}

INFO = info("a2d")

#: What a published config says of its own class, and what must not reach transformers': attention is always full.
_NOT_THE_BACKBONES = {"architectures", "auto_map", "layer_types", "max_window_layers", "model_type", "sliding_window"}


def backbone_config(raw: Mapping[str, Any]) -> Any:
    """The published config as one of transformers' own, with full attention and without dropout."""
    config_class, _ = _BACKBONES[raw["architectures"][0]]
    own = {entry: value for entry, value in raw.items() if entry not in _NOT_THE_BACKBONES}
    config = config_class(**{**own, "use_sliding_window": False, "attention_dropout": 0.0})
    config.is_causal = False
    return config


def record(about: FamilyInfo, raw: Mapping[str, Any], tokenizer: Any, **more: Any) -> Family:
    """The record of a checkpoint of dllm's. Its special tokens are the tokenizer's, which the recipes add to; padding
    is trained to stand behind the end token, so it ends a response as well. more: as in `diffusion_family`."""
    ends = distinct(tokenizer.eos_token_id, tokenizer.pad_token_id, raw.get("eos_token_id"))
    own = {
        "mask_token_id": list(distinct(tokenizer.mask_token_id, raw.get("mask_token_id"))),
        "eos_token_id": list(ends),
        "pad_token_id": list(distinct(tokenizer.pad_token_id, raw.get("pad_token_id"), *ends)),
    }
    return diffusion_family(
        about,
        {**raw, **own},
        tokenizer,
        mask=SpecialToken("mask_token_id", ("<|mask|>",), None),
        end=SpecialToken("eos_token_id", (), None),
        shift=bool(raw.get("right_shift_logits")),
        **more,
    )


def family(raw: Mapping[str, Any], tokenizer: Any, about: FamilyInfo = INFO) -> Family:
    """Return the family record. A template that can think is told not to, as in training."""
    template = tokenizer.chat_template
    if isinstance(template, str) and "enable_thinking" in template:
        tokenizer.chat_template = "{%- set enable_thinking = false -%}" + template
    ends = ("<|im_end|>", "<|eot_id|>")
    return record(about, raw, tokenizer, turn_ends=ends, lora_targets=LLAMA_PROJECTIONS)


def read(folder: Path, raw: Mapping[str, Any], placement: Placement) -> Any:
    """Load the safetensors of a published folder. Raises ModelError as `read_native` does."""
    _, network_class = _BACKBONES[raw["architectures"][0]]
    return read_native(network_class, folder, placement, config=backbone_config(raw), attn_implementation="sdpa")
