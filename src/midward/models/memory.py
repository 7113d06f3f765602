"""What a checkpoint will need, read off its safetensors headers before any weight is; and whether that is there.

Counts are bytes unless said otherwise.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from ._files import read_json, stored_tensors, weight_files
from .errors import ModelError
from .reading import Placement

GB = 10**9

QUANTIZED = ("8bit", "4bit")

#: Set to anything, a model is loaded although the estimate says that it can't fit.
OVERRIDE = "MIDWARD_IGNORE_MEMORY"

# A layer's own matrices; what lies outside (embeddings, output head) is never quantised.
_LAYER = re.compile(r"\.(?:layers?|blocks|h)\.(\d+)\.")
_EXPERT = ".experts."
# Not a linear layer although it is a matrix of a layer: routers.
_ROUTER = re.compile(r"\.(?:gate|router)\.weight$")

# What a training step keeps for each input and output of a matrix, all else included: the adapter computes in float32
# whatever the dtype is (measured by saved-tensor hooks: 3.9 to 4.1 in float32, 3.6 to 3.7 in bfloat16).
_KEPT = 4
_LOGITS = 3 * 256 * 2**20  # three chunks of logits: sampling's and the objective's both stay below
_ADAM = 4 * 4  # float32: weight, gradient, two moments


@dataclass(frozen=True)
class Memory:
    """An estimate. weights: exact for what is loaded; activations: of one forward (or training step); optimizer: the
    adapter with its gradients and AdamW's moments, in training."""

    weights: int
    activations: int
    optimizer: int = 0
    dtype: str = "float32"

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.activations + self.optimizer

    def __str__(self) -> str:
        parts = [f"{_gb(self.weights)} of weights ({self.dtype})", f"{_gb(self.activations)} of activations"]
        if self.optimizer:
            parts.append(f"{_gb(self.optimizer)} of adapter and optimizer")
        return f"about {_gb(self.total)}: {', '.join(parts)}"


def estimate(
    path: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    quantize: Literal["8bit", "4bit"] | None = None,
    *,
    batch: int = 1,
    length: int = 512,
    training: bool = False,
    checkpointing: bool = False,
    rank: int = 32,
) -> Memory:
    """What a checkpoint needs once loaded, from config.json and the safetensors headers alone.

    Args:
        path: The checkpoint folder.
        dtype: What its weights are read as.
        quantize: As in `midward.load`.
        batch: Rows that go through at a time.
        length: Tokens of a row, prompt and response.
        training: A LoRA adapter of `rank` on every linear layer is trained by AdamW.
        checkpointing: With activation checkpointing.
        rank: Of the adapter.

    Raises:
        ModelError: The folder is no complete checkpoint.
    """
    folder = Path(path)
    raw = read_json(folder / "config.json")
    raw = {**raw, **(raw.get("text_config") or {})}
    tensors = {name: tensor for name, (_, tensor) in stored_tensors(weight_files(folder)).items()}
    weights = adapter = 0
    widths = 0.0  # inputs and outputs of the matrices that a token goes through, in numbers, over all layers
    layers = set()
    share = _expert_share(raw, tensors)
    for name, tensor in tensors.items():
        layer = _LAYER.search(name)
        linear = layer is not None and len(tensor.shape) == 2 and not _ROUTER.search(name)
        expert = _EXPERT in name
        weights += bytes_as(tensor, dtype, quantize if linear and not expert else None)
        if linear and layer is not None:
            layers.add(layer[1])
            widths += sum(tensor.shape) * (share if expert else 1)
            adapter += 0 if expert else sum(tensor.shape) * rank
    rows, layer_count = batch * length, max(1, len(layers))
    one_layer = rows * widths / layer_count * dtype.itemsize
    if not training:
        return Memory(weights, int(one_layer) + _logits(raw, rows), 0, dtype_name(dtype, quantize))
    kept = _KEPT * rows * widths / layer_count
    hidden = rows * (raw.get("hidden_size") or raw.get("d_model") or 0) * dtype.itemsize
    activations = kept + layer_count * hidden if checkpointing else layer_count * kept
    return Memory(weights, int(activations) + _logits(raw, rows), adapter * _ADAM, dtype_name(dtype, quantize))


def bytes_as(tensor: torch.Tensor, dtype: torch.dtype, quantize: str | None = None) -> int:
    """Bytes of a stored tensor once read as `dtype`, or quantised by bitsandbytes; integers stay as they are stored."""
    numbers = tensor.numel()
    if quantize == "8bit":
        return numbers + 4 * len(tensor)  # a float32 scale a row
    if quantize == "4bit":
        blocks = -(-numbers // 64)  # a byte of scale each, and of those every 256 a float32 of their own
        return -(-numbers // 2) + blocks + 4 * -(-blocks // 256) + 4 * (256 + 16 + 1)  # two tables and an offset
    return numbers * dtype.itemsize if tensor.is_floating_point() else tensor.nbytes


def require(need: Memory, placement: Placement, tell: Callable[[str], None] = lambda line: None) -> None:
    """Tell of a need above 1 GB in a line. Raises ModelError where it exceeds what is free on the placement's devices.

    With MIDWARD_IGNORE_MEMORY in the environment it passes.
    """
    free, devices = available(placement)
    if need.total > GB:
        room = "what is free can't be told" if free is None else f"{_gb(free)} free"
        tell(f"memory    {need}; {room} on {devices}")
    if free is None or need.total <= free or os.environ.get(OVERRIDE):
        return
    raise ModelError(
        f"the model needs {need}, and {devices} has {_gb(free)} free; use dtype='bfloat16' (--dtype), quantize='8bit' "
        "or '4bit' (--quantize), device_map='auto' over several GPUs (--device-map), a smaller --batch-size or a "
        f"smaller model. {OVERRIDE}=1 goes on anyway."
    )


def available(placement: Placement) -> tuple[int | None, str]:
    """Bytes that are free on the placement's devices together, and which devices those are.

    MPS shares the system's memory. None where a device is of a kind whose free memory can't be asked for here.
    """
    devices = placement.devices
    if devices == "auto":
        chosen = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    else:
        chosen = list(dict.fromkeys(devices.values())) if isinstance(devices, dict) else [devices]
    names = " and ".join(map(str, chosen))
    kinds = {device.type for device in chosen}
    if not kinds <= {"cuda", "cpu", "mps"}:
        return None, names
    free = sum(torch.cuda.mem_get_info(device)[0] for device in chosen if device.type == "cuda")
    if kinds & {"cpu", "mps"}:
        free += psutil.virtual_memory().available
    return free, names


def dtype_name(dtype: torch.dtype, quantize: str | None) -> str:
    """As it is told: bfloat16, or 4bit over bfloat16."""
    name = str(dtype).removeprefix("torch.")
    return name if quantize is None else f"{quantize} over {name}"


def _logits(raw: dict[str, Any], rows: int) -> int:
    """Sampling and training hold the logits of a chunk of rows at a time, in float32 and three times over."""
    return min(_LOGITS, 3 * 4 * rows * (raw.get("embedding_size") or raw.get("vocab_size") or 0))


def _expert_share(raw: dict[str, Any], names: Iterable[str]) -> float:
    """The share of the experts that one token goes through; 1 without experts."""
    experts = {match[1] for name in names if (match := re.search(r"\.experts\.(\d+)\.", name))}
    return min(1.0, (raw.get("num_experts_per_tok") or 1) / len(experts)) if experts else 1.0


def _gb(count: float) -> str:
    return f"{count / GB:.1f} GB" if count >= 0.05 * GB else f"{count / 10**6:.1f} MB"
