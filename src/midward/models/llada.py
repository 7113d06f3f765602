"""LLaDA in its published checkpoint layout, on transformers' own Llama backbone.

The published modules are Llama with other names, without the causal mask; so the safetensors are renamed into
`LlamaForCausalLM` with `is_causal=False`, and written back under the published names. No remote code runs.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from ._files import Renaming, renaming
from ._read import Placement, read_native, require
from ._rope import keep_rope_in_float32
from .errors import ModelError
from .family import LLAMA_PROJECTIONS, Family, FamilyInfo

ARCHITECTURE = "LLaDAModelLM"
INFO = FamilyInfo(
    name="llada",
    checkpoints="LLaDA-8B Base and Instruct, LLaDA-1.5",
    architectures=(ARCHITECTURE,),
    backbone="LlamaForCausalLM",
    attention="full",
    sampling={"length": 128, "steps": 128, "order": "low_confidence", "temperature": 0.0},
    verified="official logits and tokens of a tiny checkpoint, plain restatement of architecture and sampler",
)

#: Ids of the published LLaDA-8B checkpoints, used where a folder's own config names none.
PUBLISHED_IDS = {"mask_token_id": 126336, "eos_token_id": 126081, "pad_token_id": 126081}
TURN_END = "<|eot_id|>"

# Published name -> Llama's. One back-reference a rule: transformers' `key_mapping` allows no more.
KEY_MAPPING = {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_norm\.": r"model.layers.\1.input_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.q_proj\.": r"model.layers.\1.self_attn.q_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.k_proj\.": r"model.layers.\1.self_attn.k_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.v_proj\.": r"model.layers.\1.self_attn.v_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_out\.": r"model.layers.\1.self_attn.o_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.up_proj\.": r"model.layers.\1.mlp.up_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_out\.": r"model.layers.\1.mlp.down_proj.",
}
_PUBLISHED_NAMES = {
    "model.embed_tokens.": "model.transformer.wte.",
    "model.norm.": "model.transformer.ln_f.",
    "lm_head.": "model.transformer.ff_out.",
    "input_layernorm.": "attn_norm.",
    "post_attention_layernorm.": "ff_norm.",
    "self_attn.q_proj.": "q_proj.",
    "self_attn.k_proj.": "k_proj.",
    "self_attn.v_proj.": "v_proj.",
    "self_attn.o_proj.": "attn_out.",
    "mlp.gate_proj.": "ff_proj.",
    "mlp.up_proj.": "up_proj.",
    "mlp.down_proj.": "ff_out.",
}

# The published config can switch on parts that Llama lacks; each must have this value (or be absent).
_REQUIRED = {
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "rope": True,
    "scale_logits": False,
}


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
        "architectures": [ARCHITECTURE],
        "model_type": "llada",
        **_REQUIRED,
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


def backbone_config(raw: dict[str, Any]) -> LlamaConfig:
    """Translate a published config into Llama's, with full attention.

    Raises ModelError for a missing size, or for a switch that Llama has no counterpart of.
    """
    require(raw, _REQUIRED, "LLaDA")
    try:
        config = LlamaConfig(
            vocab_size=raw.get("embedding_size") or raw["vocab_size"],
            hidden_size=raw["d_model"],
            intermediate_size=raw.get("mlp_hidden_size") or raw["mlp_ratio"] * raw["d_model"],
            num_hidden_layers=raw["n_layers"],
            num_attention_heads=raw["n_heads"],
            num_key_value_heads=raw.get("n_kv_heads") or (1 if raw.get("multi_query_attention") else raw["n_heads"]),
            rms_norm_eps=raw.get("rms_norm_eps", 1e-5),
            max_position_embeddings=raw["max_sequence_length"],
            rope_parameters={"rope_type": "default", "rope_theta": raw["rope_theta"]},
            tie_word_embeddings=raw.get("weight_tying", False),
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    except KeyError as error:
        raise ModelError(f"the LLaDA config lacks {error.args[0]!r}; is config.json complete?") from None
    config.is_causal = False
    return config


def family(raw: dict[str, Any], tokenizer: Any) -> Family:
    """Return the family record of a published config: ids from the config, else the published ones."""
    vocab_size = raw.get("embedding_size") or raw["vocab_size"]
    ids = {key: raw[key] if raw.get(key) is not None else value for key, value in PUBLISHED_IDS.items()}
    for key, value in ids.items():
        if not 0 <= value < vocab_size:
            raise ModelError(f"{key}={value} lies outside the vocabulary of {vocab_size} rows; set it in config.json.")
    end_ids = [ids["eos_token_id"]]
    turn_end = tokenizer.get_vocab().get(TURN_END)
    if turn_end is not None and turn_end not in end_ids:
        end_ids.append(turn_end)
    return Family(
        name="llada",
        kind="diffusion",
        mask_id=ids["mask_token_id"],
        end_ids=tuple(end_ids),
        pad_id=ids["pad_token_id"],
        shift=False,
        attention=INFO.attention,
        lora_targets=LLAMA_PROJECTIONS,
        sampling=dict(INFO.sampling),
    )


def published(raw: dict[str, Any]) -> Renaming:
    """What published weights, and adapters of them, are called here."""
    return renaming(KEY_MAPPING)


def build(config: dict[str, Any]) -> LlamaForCausalLM:
    """Return a randomly initialised float32 network for a published config (torch's current seed)."""
    backbone = backbone_config(config)
    backbone._attn_implementation = "sdpa"
    return LlamaForCausalLM(backbone).eval()


def read(folder: Path, raw: dict[str, Any], placement: Placement) -> LlamaForCausalLM:
    """Load the safetensors of a published folder.

    Raises ModelError when a weight is missing, unexpected or of another shape.
    """
    network = read_native(
        LlamaForCausalLM,
        folder,
        placement,
        config=backbone_config(raw),
        key_mapping=KEY_MAPPING,
        attn_implementation="sdpa",
    )
    if placement.dtype.itemsize < 4:
        keep_rope_in_float32(network)
    return network


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
    """Translate one Llama weight name into LLaDA's."""
    layer = re.match(r"model\.layers\.(\d+)\.(.*)", name)
    prefix, rest = (f"model.transformer.blocks.{layer[1]}.", layer[2]) if layer else ("", name)
    for ours, theirs in _PUBLISHED_NAMES.items():
        if rest.startswith(ours):
            return prefix + theirs + rest[len(ours) :]
    raise ModelError(f"{name!r} has no place in the LLaDA layout; was the network made by `build`?")
