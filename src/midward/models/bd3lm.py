"""Block diffusion of causal models (BD3LM, by ZHZisZZ/dllm's recipes): `a2d` with block-causal attention.

Weights and config are those of the fully masked siblings: neither says that attention goes by blocks, or how long they
are. So it is told here: by an entry `block_size` in config.json, or by "bd3lm" in the model's own name, which makes it
the recipes' 32. Blocks are counted from the response on, as the published sampler pads its prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import a2d
from .family import Family, info

INFO = info("bd3lm")


def named(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """The config, with `block_size` where the checkpoint's name alone says that there are blocks."""
    says = "bd3lm" in Path(name).name.lower() and (raw.get("architectures") or [None])[0] in INFO.architectures
    return {"block_size": INFO.sampling["block"], **raw} if says else raw


def family(raw: Mapping[str, Any], tokenizer: Any) -> Family:
    """Return the family record."""
    return replace(a2d.family(raw, tokenizer, INFO), blocks_from="response")


read = a2d.read
