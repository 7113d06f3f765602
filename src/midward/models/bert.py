"""BERT, RoBERTa and ModernBERT that were trained to chat as masked-diffusion models, in transformers' own classes.

Nothing about them is converted: they always filled masks. The last layers of their prediction head are part of `head`,
so that a hidden state is the body's. Positions of RoBERTa begin behind its padding id; the rows before are cut off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.nn import Parameter
from transformers import BertForMaskedLM, ModernBertForMaskedLM, RobertaForMaskedLM

from . import a2d
from .errors import ModelError
from .family import Family, info
from .reading import Placement, read_native

_LINEAR = ("query", "key", "value", "intermediate.dense", "output.dense")

#: Architecture -> class, and the linear layers of its body.
_BACKBONES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "BertForMaskedLM": (BertForMaskedLM, _LINEAR),
    "ModernBertForMaskedLM": (ModernBertForMaskedLM, ("Wqkv", "Wo", "Wi")),
    "RobertaForMaskedLM": (RobertaForMaskedLM, _LINEAR),
}

INFO = info("bert")


def family(raw: Mapping[str, Any], tokenizer: Any) -> Family:
    """Return the family record. The end of an answer is spelt out: it is no token of these vocabularies."""
    _, targets = _BACKBONES[raw["architectures"][0]]
    made = a2d.record(INFO, raw, tokenizer, turn_ends=("[/Answer]",), lora_targets=targets)
    return replace(made, end_texts=("[/Answer]",))


def read(folder: Path, raw: Mapping[str, Any], placement: Placement) -> Any:
    """Load the safetensors of a folder, without dropout. Raises ModelError as `read_native` does."""
    if raw.get("is_decoder"):
        raise ModelError(f"{folder}: is_decoder=true makes attention causal; only false can be loaded.")
    network_class, _ = _BACKBONES[raw["architectures"][0]]
    still: dict[str, Any] = {entry: 0.0 for entry in raw if "dropout" in entry and isinstance(raw[entry], int | float)}
    # What pretraining left besides (a pooler, a second head) has no place and no use. Eager attention is the published
    # arithmetic to the bit, and finite where a window holds padding alone.
    network = read_native(network_class, folder, placement, strict=False, attn_implementation="eager", **still)
    if network_class is RobertaForMaskedLM:
        table = network.roberta.embeddings.position_embeddings
        table.weight = Parameter(table.weight[table.padding_idx + 1 :].clone())
        network.config.max_position_embeddings = len(table.weight)
    return network
