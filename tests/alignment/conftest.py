"""A tiny random model in the LLaDA layout."""

import pytest
import torch
from align_world import TINY

import midward.models


@pytest.fixture(autouse=True)
def one_thread():
    """Bit-for-bit comparisons need one order of summation."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model():
    return midward.models.load(TINY, device="cpu", dtype=torch.float32)


@pytest.fixture
def model64():
    """The same in float64 throughout, where batches of different shapes agree to rounding."""
    model = midward.models.load(TINY, device="cpu", dtype=torch.float64)
    for name, module in list(model.network.named_modules()):
        # transformers' norm computes in float32 whatever the model's dtype is.
        if type(module).__name__ == "LlamaRMSNorm":
            norm = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=torch.float64)
            norm.weight = module.weight
            model.network.set_submodule(name, norm)
    return model
