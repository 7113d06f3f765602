"""DiffusionGemma, which transformers has natively: an encoder of the text so far, and a decoder that denoises a canvas.

There is no mask token: a canvas starts as uniformly random tokens, each step draws all of them anew, keeps those it is
sure of and randomises the rest. So it is sampled by its own `generate` (see `midward.sampling.canvases`), and what
needs masks (infilling, forced spans, likelihoods, alignment) is refused. The decoder's weights are the encoder's as
well: never merge an adapter into them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from .errors import ModelError
from .family import ATTENTION_PROJECTIONS, Family, distinct, info
from .reading import Placement, read_native

INFO = info("diffusion-gemma")


def family(raw: dict[str, Any], tokenizer: Any) -> Family:
    """Return the family record of a native config. Raises ModelError where the config lacks its text half."""
    text = raw.get("text_config")
    if not isinstance(text, dict):
        raise ModelError("the DiffusionGemma config lacks 'text_config'; is config.json complete?")
    own = raw.get("eos_token_id", text.get("eos_token_id", 1))
    turn_ends = [tokenizer.get_vocab().get(turn) for turn in ("<turn|>", "<end_of_turn>")]
    pad = text.get("pad_token_id")
    return Family(
        name=INFO.name,
        kind="canvas",
        mask_id=None,
        end_ids=distinct(own, turn_ends),
        pad_id=0 if pad is None else pad,
        shift=False,
        attention=INFO.attention,
        attention_block=raw.get("canvas_length") or 256,
        lora_targets=ATTENTION_PROJECTIONS,
        sampling=dict(INFO.sampling),
    )


def read(folder: Path, raw: dict[str, Any], placement: Placement) -> Any:
    """Load the safetensors of a folder. Raises ModelError as `read_native` does, and where transformers is too old."""
    network_class = getattr(transformers, "DiffusionGemmaForBlockDiffusion", None)
    if network_class is None:
        raise ModelError(
            f"transformers {transformers.__version__} has no DiffusionGemma; 5.23 has (`pip install -U transformers`)."
        )
    return read_native(network_class, folder, placement, attn_implementation="sdpa")
