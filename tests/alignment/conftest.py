"""A tiny random model in the LLaDA layout."""

import pytest
import torch
from align_world import TINY, double

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
    return double()
