"""Data in the invented vocabulary of fixtures/llada-tiny ("t3" is token 3), and a small run."""

from pathlib import Path

import torch

import midward.models
from midward.alignment import SentenceSet

TINY = Path(__file__).parents[1] / "fixtures" / "llada-tiny"


def words(*numbers: int) -> str:
    return " ".join(f"t{n}" for n in numbers)


SENTENCES = SentenceSet(
    safe=[words(40, 41, 42, 43), words(50, 51, 52)], harmful=[words(60, 61, 62), words(70, 71, 72, 73)]
)
# Lengths differ, so that batches are padded.
HARMFUL = [words(*range(100 + i, 106 + i + i % 3)) for i in range(12)]
BENIGN = [(words(*range(200 + i, 206 + i)), words(*range(300, 310 + i))) for i in range(8)]
# A short response and steps that learn; what the tests do not vary.
SMALL = {"length": 24, "window_start": 6, "window_end": 14, "lr": 1e-3, "clip": 1.0, "log_steps": 5, "save_steps": 5}


def double():
    """The tiny model in float64 throughout."""
    model = midward.models.load(TINY, device="cpu", dtype=torch.float64)
    for name, module in list(model.network.named_modules()):
        # transformers' norm computes in float32 whatever the model's dtype is.
        if type(module).__name__ == "LlamaRMSNorm":
            norm = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=torch.float64)
            norm.weight = module.weight
            model.network.set_submodule(name, norm)
    return model
