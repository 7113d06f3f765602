"""The sandbox model's autoregressive twin: the same data, tokenizer and sizes, with causal attention.

It serves comparisons of the two ways to write a response (SRI, claim S1); `midward.load("sandbox-ar")`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from midward.sandbox import build
from midward.sandbox.build import MAX_POSITIONS, Batch, Recipe, Trainer, write_sampling
from midward.sandbox.curriculum import STAGES, Stage

SAMPLING = {"length": build.SAMPLING["length"], "steps": build.SAMPLING["length"]}

# The same mixes in the same order. Every token of a response teaches in every step, so fewer steps are needed; what the
# last stage is for, canvases with a few tokens revealed, a causal model doesn't have.
_STEPS = {"steps": 400, "helpful": 1000, "safety": 1000, "settle": 1800, "polish": 1300}
TWIN_STAGES = tuple(replace(stage, steps=_STEPS[stage.name]) for stage in STAGES if stage.name in _STEPS)


@dataclass(frozen=True)
class TwinRecipe(Recipe):
    """As `Recipe`, for the twin."""

    stages: tuple[Stage, ...] = TWIN_STAGES
    attention: str = "causal"

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
        """Mean cross entropy of the response's tokens."""
        ids, _, weights, start = batch
        where = weights == 1
        return F.cross_entropy(self._next(batch, where), ids[:, start:][where])

    def guess(self, batch: Batch) -> Tensor:
        """The likeliest token of every response position [B, L], given the true ones before it."""
        where = torch.ones_like(batch[2], dtype=torch.bool)
        return self._next(batch, where).argmax(-1).view(where.shape)

    def _next(self, batch: Batch, where: Tensor) -> Tensor:
        """Logits [N, V] of the tokens at the N positions of `where` [B, L], from the states before them."""
        ids, attention, _, start = batch
        used = int(where.any(0).nonzero().max()) + 1
        end = start + used - 1
        return self._logits(ids[:, :end], attention[:, :end], start - 1, where[:, :used])
