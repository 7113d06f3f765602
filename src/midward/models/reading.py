"""Safetensors into one of transformers' own classes, with every weight accounted for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

from .errors import ModelError
from .family import Family, FamilyInfo, distinct

#: Sizes that Qwen's backbones and the families made from them call the same.
QWEN_SIZES = {
    name: name
    for name in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "rms_norm_eps",
        "max_position_embeddings",
    )
}


@dataclass(frozen=True)
class Placement:
    """Where a network's weights go, and as what.

    devices: one device, or the backbone's module names -> devices ("auto": over all that are there). dtype: of what
    isn't quantised. quantize: "8bit" (LLM.int8) or "4bit" (NF4, scales quantised as well) for the linear layers of the
    body; embeddings, output head, norms and fused experts keep the dtype.
    """

    devices: torch.device | dict[str, Any] | Literal["auto"]
    dtype: torch.dtype
    quantize: Literal["8bit", "4bit"] | None = None

    def options(self) -> dict[str, Any]:
        """What `from_pretrained` is given. Raises ModelError where a package is missing."""
        spread = {"": self.devices} if isinstance(self.devices, torch.device) else self.devices
        options: dict[str, Any] = {"dtype": self.dtype, "device_map": spread}
        if self.quantize is None:
            return options
        if not is_bitsandbytes_available():  # or too old for transformers
            raise ModelError(f"quantize={self.quantize!r} needs bitsandbytes: pip install -U bitsandbytes")

        # It remarks at every layer of every forward that it casts to float16, and asks for a package to be faster.
        for name in ("autograd._functions", "backends.cpu.ops"):
            logging.getLogger(f"bitsandbytes.{name}").setLevel(logging.ERROR)
        if self.quantize == "8bit":
            options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
        else:
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=self.dtype,
            )
        return options


def read_native(
    network_class: Any,
    folder: Path,
    placement: Placement,
    *,
    config: Any | None = None,
    key_mapping: dict[str, str] | None = None,
    strict: bool = True,
    **options: Any,
) -> Any:
    """Return the network of `folder`, in evaluation mode.

    config: the backbone's config; None reads the folder's own. key_mapping: published name -> the class's, as regular
    expressions with at most one back-reference each. strict: also refuse weights that the class has no place for.
    Raises ModelError when weights are missing, of another shape, or (strict) too many, and where transformers fails.
    """
    if config is not None:
        options["config"] = config
    if key_mapping is not None:
        options["key_mapping"] = key_mapping
    given = placement.options()
    try:
        network, info = network_class.from_pretrained(
            folder,
            **given,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # so that they are reported here, by name
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # transformers' own and its quantisers', of any kind
        raise ModelError(f"{folder} can't be read by transformers ({type(error).__name__}: {error}).") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind] and (strict or kind != "unexpected_keys"):
            names = ", ".join(str(key) for key in sorted(info[kind], key=str)[:3])
            raise ModelError(
                f"{folder}: {len(info[kind])} {kind.replace('_keys', '')} weights ({names}); "
                "the files don't belong to this config.json."
            )
    return network.eval()


def require(raw: Mapping[str, Any], usual: Mapping[str, Any], family: str) -> None:
    """Raise ModelError where a published config has another value than the one that the backbone implements.

    usual: entry -> its value; a tuple lists several. An entry that is absent or null is taken to be usual.
    """
    for key, value in usual.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if raw.get(key) is not None and raw[key] not in allowed:
            raise ModelError(
                f"unusual {family} config: {key}={raw[key]!r}; only {' or '.join(map(repr, allowed))} can be loaded."
            )


def entries(raw: Mapping[str, Any], names: Mapping[str, str], family: str) -> dict[str, Any]:
    """Return the backbone's entries (names: backbone's -> published); ModelError for one that is missing."""
    missing = [published for published in names.values() if raw.get(published) is None]
    if missing:
        raise ModelError(f"the {family} config lacks {missing[0]!r}; is config.json complete?")
    return {own: raw[published] for own, published in names.items()}


def rows(raw: Mapping[str, Any]) -> int:
    """Rows of the vocabulary, which may be more than it has words; ModelError where the config doesn't say."""
    return raw.get("embedding_size") or entries(raw, {"rows": "vocab_size"}, "model's")["rows"]


def rope(raw: Mapping[str, Any], family: str, **more: Any) -> dict[str, Any]:
    """Return transformers' `rope_parameters` of a published config; ModelError for a scaled rotary embedding."""
    scaling = raw.get("rope_scaling")
    if scaling and scaling.get("rope_type", scaling.get("type", "default")) != "default":
        raise ModelError(f"unusual {family} config: rope_scaling={scaling!r}; only None can be loaded.")
    theta = raw.get("rope_theta") or (raw.get("rope_parameters") or {}).get("rope_theta")
    if theta is None:
        raise ModelError(f"the {family} config lacks 'rope_theta'; is config.json complete?")
    return {"rope_type": "default", "rope_theta": theta, **more}


def backbone(config_class: Any, raw: Mapping[str, Any], info: FamilyInfo, **entries: Any) -> Any:
    """Return a backbone's config that has its causal mask off, of these entries and what the families share: the plain
    rotary embedding and the tied output head. ModelError for a scaled rotary embedding, or what isn't `info.usual`."""
    require(raw, info.usual, info.name)
    shared = {"rope_parameters": rope(raw, info.name), "tie_word_embeddings": raw.get("tie_word_embeddings", False)}
    config = config_class(**{**shared, **entries})
    config.is_causal = False
    return config


@dataclass(frozen=True)
class SpecialToken:
    """Where a special token's id comes from: the config's own entry, else the first of `texts` that the tokenizer
    knows, else the id in the published checkpoints, if they have one in common."""

    entry: str
    texts: tuple[str, ...]
    published: int | None

    def id(self, raw: Mapping[str, Any], tokenizer: Any) -> int:
        """Raises ModelError where nothing says it, or it lies outside the vocabulary."""
        value, count = raw.get(self.entry), rows(raw)
        if isinstance(value, list):
            value = value[0] if value else None
        if value is None:
            known = tokenizer.get_vocab()
            value = next((known[text] for text in self.texts if text in known), self.published)
        if value is None:
            raise ModelError(
                f"neither config.json nor the tokenizer names the {self.entry.removesuffix('_id').replace('_', ' ')}; "
                f"set {self.entry} in config.json."
            )
        if not 0 <= value < count:
            raise ModelError(
                f"{self.entry}={value} lies outside the vocabulary of {count} rows; set it in config.json."
            )
        return value


def diffusion_family(
    info: FamilyInfo,
    raw: Mapping[str, Any],
    tokenizer: Any,
    *,
    mask: SpecialToken,
    end: SpecialToken,
    turn_ends: tuple[str, ...],
    lora_targets: tuple[str, ...],
    shift: bool = False,
) -> Family:
    """The record of a masked-diffusion family.

    Args:
        info: What its checkpoints share.
        raw: The published config.
        tokenizer: Knows what the config doesn't say.
        mask: The mask token.
        end: The end-of-sequence token; padding is the same unless the config's pad_token_id says otherwise. A response
            also ends at the config's other end tokens and at `turn_ends`, where the tokenizer knows those.
        turn_ends: Texts.
        lora_targets: As in `Family`.
        shift: As in `Family`.
    """
    known = tokenizer.get_vocab()
    block = None
    if info.attention == "block":  # the published length, unless the config has another
        block = raw.get("block_size") or raw.get("block_length") or info.sampling["block"]
    return Family(
        name=info.name,
        kind="diffusion",
        mask_id=mask.id(raw, tokenizer),
        end_ids=distinct(end.id(raw, tokenizer), raw.get("eos_token_id"), [known.get(text) for text in turn_ends]),
        pad_id=replace(end, entry="pad_token_id").id(raw, tokenizer),
        shift=shift,
        attention=info.attention,
        attention_block=block,
        lora_targets=lora_targets,
        sampling=dict(info.sampling) if block is None else {**info.sampling, "block": block},
    )
