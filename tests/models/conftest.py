"""Checkpoints of every diffusion family, made once."""

from __future__ import annotations

import json

import pytest
import torch
from published import CHECKPOINTS, ENCODERS, write, write_encoder
from safetensors.torch import load_file


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Name in `published.CHECKPOINTS` or `ENCODERS` -> checkpoint folder."""
    made = {name: write(name, tmp_path_factory.mktemp(name)) for name in CHECKPOINTS}
    return made | {name: write_encoder(name, tmp_path_factory.mktemp(name)) for name in ENCODERS}


@pytest.fixture(scope="session")
def published(folders):
    """Name -> config and weights, as they stand in the folder."""

    def read(name):
        folder = folders[name]
        return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")

    return read


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
