"""`Family`: the one record that knows a kind of model's ids, attention pattern and default sampling."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Family:
    """What distinguishes one kind of checkpoint from another.

    name: the family's, e.g. "llada", "dream" or "autoregressive"; `midward models` lists them.
    kind: "diffusion" (fills masks in any order), "autoregressive" (next token only), or "canvas" (denoises a canvas of
        random tokens, by the model's own `generate`).
    mask_id: the id that stands for "not decided yet"; only the diffusion kind has one.
    end_ids: every id that ends a response. `end_ids[0]` is *the* end-of-sequence token: the one that pads
        answers in training and in which MOSA's safe sentences end.
    pad_id: the id put where the attention mask is 0.
    shift: True where position i is predicted from the hidden state at i - 1.
    attention: "full" (every position sees every other), "causal", or "block" (block-causal: positions, counted from the
        sequence's start, form blocks of `attention_block`; each sees its own block and all before it).
    lora_targets: the linear layers an adapter goes on, by module name.
    sampling: the published default sampling settings, as fields of `midward.sampling.Sampling`.
    attention_block: positions in a block of block-causal attention, else None.
    blocks_from: where blocks are counted from: the prompt's first token, or ("response") the response's, so that the
        prompt's first block is the short one. Counted by columns then: a batch is as wide as `width` says.
    end_texts: texts that end a response where the tokenizer has no token for them.

    The last two follow from the name and are in no fingerprint.
    """

    name: str
    kind: Literal["diffusion", "autoregressive", "canvas"]
    mask_id: int | None
    end_ids: tuple[int, ...]
    pad_id: int
    shift: bool
    attention: Literal["full", "causal", "block"]
    lora_targets: tuple[str, ...]
    sampling: dict[str, Any] = field(default_factory=dict)
    attention_block: int | None = None
    blocks_from: Literal["prompt", "response"] = field(default="prompt", repr=False)
    end_texts: tuple[str, ...] = field(default=(), repr=False)

    def width(self, longest: int) -> int:
        """Columns that prompts, the longest of so many tokens, are padded to on their left."""
        if self.blocks_from == "prompt" or self.attention_block is None:
            return longest
        return -(-longest // self.attention_block) * self.attention_block


def distinct(*ids: int | list[int] | None) -> tuple[int, ...]:
    """Token ids from several sources, each an id, a list of them or nothing: each once, in their order."""
    flat = [token for source in ids for token in (source if isinstance(source, list) else [source])]
    return tuple(dict.fromkeys(token for token in flat if token is not None))


@dataclass(frozen=True)
class FamilyInfo:
    """What `midward models` tells of a family; what its `Family` records share.

    name, attention, sampling: as in `Family`. checkpoints: published ones. architectures: their names in config.json.
    backbone: the class of transformers that the weights are loaded into. adapters: where they go. verified: how.
    differs: from the published sampler. usual: entries of config.json that must have this value or be absent, since the
    backbone has nothing else.
    """

    name: str
    checkpoints: str
    architectures: tuple[str, ...]
    backbone: str
    attention: Literal["full", "causal", "block"]
    sampling: dict[str, Any]
    verified: str
    adapters: str = "every linear layer"
    differs: str = ""
    usual: dict[str, Any] = field(default_factory=dict)


def info(name: str) -> FamilyInfo:
    """One of midward's own families, as families.toml has it."""
    entries = tomllib.loads(Path(__file__).with_name("families.toml").read_text(encoding="utf-8"))[name]
    return FamilyInfo(name, **{**entries, "architectures": tuple(entries["architectures"])})


#: Every linear layer of a Llama-like block: the seven projections of attention and feed-forward.
LLAMA_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

#: Those of attention alone: where the experts are fused tensors, which no adapter goes on.
ATTENTION_PROJECTIONS = LLAMA_PROJECTIONS[:4]
