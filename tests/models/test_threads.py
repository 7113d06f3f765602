"""Small models on the CPU get one thread, of the command alone."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from midward.models import threads


def model(weights, device="cpu"):
    return SimpleNamespace(
        device=torch.device(device),
        network=SimpleNamespace(parameters=lambda: [SimpleNamespace(numel=lambda: weights)]),
    )


@pytest.fixture
def four(monkeypatch):
    """A process of four threads that has loaded nothing yet."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_largest", 0)
    monkeypatch.setattr(threads, "_spared", None)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_small_models_share_one_thread_until_a_large_one_comes(four):
    threads.spare_threads(model(2_000_000))
    assert (torch.get_num_threads(), threads.available_threads()) == (1, 4)
    threads.spare_threads(model(threads.SMALL))
    assert (torch.get_num_threads(), threads.available_threads()) == (1, 4)
    threads.spare_threads(model(8_000_000_000))
    assert (torch.get_num_threads(), threads.available_threads()) == (4, 4)
    threads.spare_threads(model(2_000_000))  # an attacker beside the large target
    assert torch.get_num_threads() == 4


def test_the_environment_and_other_devices_decide_for_themselves(four, monkeypatch):
    threads.spare_threads(model(2_000_000, "meta"))
    assert torch.get_num_threads() == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    threads.spare_threads(model(2_000_000))
    assert torch.get_num_threads() == 4


@pytest.mark.slow
def test_a_command_uses_one_and_a_program_all():
    program = (
        "import os, torch; os.environ.pop('OMP_NUM_THREADS', None); torch.set_num_threads(2); {}; "
        "print(torch.get_num_threads())"
    )
    ways = {
        "import midward; midward.load('sandbox')": "2",
        "from midward.cli._options import ModelOptions; ModelOptions().load()": "1",
    }
    for way, expected in ways.items():
        done = subprocess.run([sys.executable, "-c", program.format(way)], capture_output=True, text=True, check=True)
        assert done.stdout.split()[-1] == expected
