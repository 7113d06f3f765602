"""LLaDA's published checkpoint layout, written: a config.json of given sizes, a random network, and its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from midward.models import ModelError
from midward.models._files import renaming
from midward.models.llada import INFO, PUBLISHED_MAPPING, backbone_config


def llada_config(
    *,
    vocab_size: int,
    hidden_size: int,
    layers: int,
    heads: int,
    feed_forward: int,
    max_length: int,
    mask_id: int,
    end_id: int,
    pad_id: int | None = None,
    kv_heads: int | None = None,
    rope_theta: float = 500_000.0,
    rms_norm_eps: float = 1e-5,
    weight_tying: bool = False,
) -> dict[str, Any]:
    """Return a config.json in the published LLaDA layout.

    Sizes are counts (vocabulary rows, width, layers, heads, feed-forward width, positions); `kv_heads` is
    `heads` unless given, `pad_id` is `end_id` unless given, as in LLaDA-8B.
    """
    return {
        "architectures": list(INFO.architectures),
        "model_type": "llada",
        **INFO.usual,
        "vocab_size": vocab_size,
        "embedding_size": vocab_size,
        "d_model": hidden_size,
        "n_layers": layers,
        "n_heads": heads,
        "n_kv_heads": kv_heads or heads,
        "mlp_hidden_size": feed_forward,
        "max_sequence_length": max_length,
        "rope_theta": rope_theta,
        "rope_full_precision": True,
        "rms_norm_eps": rms_norm_eps,
        "weight_tying": weight_tying,
        "mask_token_id": mask_id,
        "eos_token_id": end_id,
        "pad_token_id": end_id if pad_id is None else pad_id,
    }


def build(config: dict[str, Any]) -> LlamaForCausalLM:
    """Return a randomly initialised float32 network for a published config (torch's current seed)."""
    backbone = backbone_config(config)
    backbone._attn_implementation = "sdpa"
    return LlamaForCausalLM(backbone).eval()


def save(
    network: LlamaForCausalLM, config: dict[str, Any], folder: str | Path, dtype: torch.dtype | None = None
) -> None:
    """Write config.json and model.safetensors in the published layout (tokenizer files are the caller's).

    dtype: what to store the weights in (they are widened again on loading); None keeps their own.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in network.state_dict().items():
        if name == "lm_head.weight" and config.get("weight_tying"):
            continue  # the same storage as the embedding
        tensors[published_name(name)] = tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def published_name(name: str) -> str:
    """Translate one Llama weight name into LLaDA's. Raises ModelError for one that has no place there."""
    [(published, _)] = renaming(PUBLISHED_MAPPING)(name, torch.empty(0))
    if published == name:
        raise ModelError(f"{name!r} has no place in the LLaDA layout; was the network made by `build`?")
    return published
