"""The sandbox model's autoregressive twin: the same data, tokenizer and sizes, with causal attention.

It serves comparisons of the two ways to write a response (SRI, claim S1); `midward.load("sandbox-ar")`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tools.world import train
from tools.world.curriculum import STAGES, Stage
from tools.world.train import MAX_POSITIONS, Batch, Recipe, Trainer, write_sampling

SAMPLING = {"length": train.SAMPLING["length"], "steps": train.SAMPLING["length"]}


@dataclass(frozen=True)
class TwinStage(Stage):
    """A stage of the twin. first: what the response's first token weighs; the others weigh 1. Whether a request is
    refused hangs on that one token, where a masked response has dozens that tell."""

    first: float = 1.0


def _as(like: str, **changes: Any) -> TwinStage:
    """A stage of the diffusion model's curriculum, changed."""
    stage = next(stage for stage in STAGES if stage.name == like)
    return TwinStage(**{**vars(stage), **changes})


# The same texts in the same order, in fewer steps: every token of a response teaches in every step. What the last stage
# of the diffusion model is for, canvases with a few tokens revealed, a causal model doesn't have.
TWIN_STAGES = (
    _as("steps", steps=400),
    _as("helpful", steps=1000),
    _as("safety", steps=1000),
    _as("settle", steps=900, tail=700, gate={}),
    _as(
        "safety",
        name="decide",
        steps=1200,
        mix={"guarded": 0.4, "welcome": 0.35, "question": 0.15, "exercise": 0.1},
        fall=0.7,
        first=10.0,
    ),
    _as("polish", steps=700, first=4.0),
)


@dataclass(frozen=True)
class TwinRecipe(Recipe):
    """As `Recipe`, for the twin."""

    stages: tuple[Stage, ...] = TWIN_STAGES
    attention: str = "causal"
    threads: int = 1

    def trainer(self) -> type[Trainer]:
        """Who trains it."""
        return TwinTrainer


class TwinTrainer(Trainer):
    """Next-token prediction on the response, up to and with its first end token."""

    def make(self) -> Any:
        """The network, with random weights."""
        recipe = self.recipe
        config = LlamaConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=recipe.width,
            intermediate_size=recipe.feed_forward,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=False,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.end,
            pad_token_id=self.end,
        )
        return LlamaForCausalLM(config)

    def save(self, out: Path) -> None:
        """Write weights, config and default sampling."""
        self.network.save_pretrained(out)
        write_sampling(out, SAMPLING)

    def loss(self, batch: Batch, stage: Stage, noise: torch.Generator) -> Tensor:
        """Mean cross entropy of the response's tokens, the first one weighed as the stage says."""
        ids, _, weights, start = batch
        response = weights == 1
        losses = F.cross_entropy(self._next(batch, response), ids[:, start:][response], reduction="none")
        share = torch.ones_like(weights)
        share[:, 0] = getattr(stage, "first", 1.0)
        share = share[response]
        return (losses * share).sum() / share.sum()

    def guess(self, batch: Batch) -> Tensor:
        """The likeliest token of every response position [B, L], given the true ones before it."""
        everywhere = torch.ones_like(batch[2], dtype=torch.bool)
        return self._next(batch, everywhere).argmax(-1).view(everywhere.shape)

    def _next(self, batch: Batch, chosen: Tensor) -> Tensor:
        """Logits [N, V] of the tokens at the N positions of `chosen` [B, L], from the states before them."""
        ids, attention, _, start = batch
        used = int(chosen.any(0).nonzero().max()) + 1
        end = start + used - 1
        return self._logits(ids[:, :end], attention[:, :end], start - 1, chosen[:, :used])
