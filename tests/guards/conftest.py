"""A tiny model and an SRI guard fitted for it."""

import pytest
from guard_world import LENGTH, STEPS, fit

import midward
from midward.guards import SRIGuard
from midward.sampling import Sampling


@pytest.fixture(scope="package")
def model(lively_folder):
    return midward.load(lively_folder, device="cpu")


@pytest.fixture(scope="package")
def sampling(model):
    return Sampling.for_model(model, length=LENGTH, steps=STEPS)


@pytest.fixture(scope="package")
def fitted(model, sampling, tmp_path_factory):
    """(guard, its file): alpha 0.25, so that some of any prompts are flagged."""
    folder = tmp_path_factory.mktemp("guards")
    guard = SRIGuard(epochs=40, seeds=1)
    paths = fit(model, {"sri": guard}, folder, sampling)
    return guard, paths["sri"]
