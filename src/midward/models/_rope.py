"""Rotary positions in float32 for half-precision LLaDA.

LLaDA rotates queries and keys in float32, Llama in the model's own dtype. In bfloat16 that moves logits by
up to 0.016 and an arg-max on about one position in a hundred; with this it is bit-exact.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "midward_float32_rope"


def keep_rope_in_float32(network: Any) -> None:
    """Make a loaded Llama network rotate in float32 and attend in its own dtype."""
    network.model.rotary_emb.register_forward_pre_hook(_as_float32, with_kwargs=True)
    network.set_attn_implementation(_NAME)


def _attend_in_value_dtype(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    return sdpa_attention_forward(module, query.to(value.dtype), key.to(value.dtype), value, *args, **kwargs)


def _as_float32(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # Only the dtype and the device of the first argument are read, so an empty tensor stands for it.
    return (torch.empty(0, device=args[0].device, dtype=torch.float32), *args[1:]), kwargs


# Here and not where it is used, so that it also stands in a process that such a network travels to: its hook brings
# this module.
AttentionInterface.register(_NAME, _attend_in_value_dtype)
AttentionMaskInterface.register(_NAME, sdpa_mask)
