"""Small models in float64, where batches differ by nothing that a test would see."""

import pytest
import torch

import midward


@pytest.fixture(scope="session")
def exact(lively_folder):
    """The lively diffusion model; one token in four is an end token, so rows end early."""
    model = midward.load(lively_folder, device="cpu", dtype=torch.float64)
    head = model.network.lm_head.weight.data
    head[1] = head[23] * 1.2
    return model


@pytest.fixture(scope="session")
def exact_causal(llama_folder):
    """The tiny Llama."""
    model = midward.load(llama_folder, device="cpu", dtype=torch.float64)
    model.network.lm_head.weight.data[1] *= 3
    return model
