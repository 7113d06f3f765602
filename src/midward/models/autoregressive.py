"""Any causal language model that transformers knows natively (Llama, Qwen, Gemma and others)."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .errors import ModelError
from .family import LLAMA_PROJECTIONS, Family, distinct, info
from .reading import Placement, read_native

INFO = info("autoregressive")


def architectures() -> set[str]:
    """The class names that transformers itself maps to a causal language model."""
    names: set[str] = set()
    for entry in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        names.update([entry] if isinstance(entry, str) else entry)
    return names


def family(folder: Path, raw: dict[str, Any], tokenizer: Any, network: Any) -> Family:
    """Return the family record: end ids from generation config, config and tokenizer, in that order."""
    ends = distinct(tokenizer.eos_token_id, network.generation_config.eos_token_id, raw.get("eos_token_id"))
    if not ends:
        raise ModelError(f"{folder}: neither config nor tokenizer names an end-of-sequence token; set eos_token_id.")
    pad = tokenizer.pad_token_id
    head = network.get_output_embeddings()
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    targets = tuple(name for name in LLAMA_PROJECTIONS if name in linear)
    return Family(
        name="autoregressive",
        kind="autoregressive",
        mask_id=None,
        end_ids=ends,
        pad_id=ends[0] if pad is None else pad,
        shift=True,
        attention=INFO.attention,
        lora_targets=targets or tuple(sorted(linear)),
        sampling=dict(INFO.sampling),
    )


def read(folder: Path, raw: dict[str, Any], placement: Placement) -> Any:
    """Load a causal model's safetensors. Raises ModelError when weights are missing or of another shape."""
    if raw.get("is_causal") is False:
        raise ModelError(
            f"{folder}: a causal architecture saved with is_causal=false is a converted diffusion model; "
            "load its original folder."
        )
    return read_native(AutoModelForCausalLM, folder, placement, strict=False)
