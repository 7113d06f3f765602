"""`Family`: the one record that knows a kind of model's ids, attention pattern and default sampling."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Family:
    """What distinguishes one kind of checkpoint from another.

    name: "llada" or "autoregressive".
    kind: "diffusion" (fills masks in any order) or "autoregressive" (next token only).
    mask_id: the id that stands for "not decided yet"; None for the autoregressive kind.
    end_ids: every id that ends a response. `end_ids[0]` is *the* end-of-sequence token: the one that pads
        answers in training and in which MOSA's safe sentences end.
    pad_id: the id put where the attention mask is 0.
    shift: True where position i is predicted from the hidden state at i - 1.
    attention: "full" (every position sees every other) or "causal".
    lora_targets: the linear layers an adapter goes on, by module name.
    sampling: the published default sampling settings, as fields of `midward.sampling.Sampling`.
    """

    name: str
    kind: Literal["diffusion", "autoregressive"]
    mask_id: int | None
    end_ids: tuple[int, ...]
    pad_id: int
    shift: bool
    attention: Literal["full", "causal"]
    lora_targets: tuple[str, ...]
    sampling: dict[str, Any] = field(default_factory=dict)


#: Every linear layer of a Llama-like block: the seven projections of attention and feed-forward.
LLAMA_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
