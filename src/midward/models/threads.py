"""How many threads a model on the CPU is worth."""

import os

import torch

from .language_model import LanguageModel

#: Weights of a small model. Two threads took 1.06 to 1.12 times as long as one at 2 million weights, 1.23 and .88 times
#: at 13 million (1 and 8 rows), and less in batches from there on (docs/findings/speed.md).
SMALL = 5_000_000

_largest = 0  # model on the CPU that `spare_threads` was told of, in weights
_spared: int | None = None  # the threads that torch had before, while it has one


def spare_threads(model: LanguageModel) -> None:
    """Have torch use one thread as long as this process was told of small models on the CPU alone: more would wait for
    each other. For commands, whose process is ours. OMP_NUM_THREADS, where it is set, decides."""
    global _largest, _spared
    if "OMP_NUM_THREADS" in os.environ or model.device.type != "cpu":
        return
    _largest = max(_largest, sum(weight.numel() for weight in model.network.parameters()))
    if _largest <= SMALL:
        _spared = _spared or torch.get_num_threads()
        torch.set_num_threads(1)
    elif _spared is not None:
        torch.set_num_threads(_spared)
        _spared = None


def available_threads() -> int:
    """The threads that independent pieces of work may share: those that torch has, and those spared."""
    return _spared or torch.get_num_threads()
