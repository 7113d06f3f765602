"""Random numbers that depend on nothing but the request, the step and the position.

A generator with a state would make a row's draws depend on how often it was called, so on the batch. Here
each number is a hash (splitmix64, Steele et al. 2014) of a row's seed, the step and the response coordinate:
the same in any batch, in any order of requests, on any device, and whether or not steps are skipped.
"""

import hashlib
import json

import torch

from .requests import Request

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as a signed 64-bit integer, as torch needs it
_STEP = 0x632BE59BD9B4E019  # another odd constant, so that steps and coordinates don't meet
_MIX1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX2 = 0x94D049BB133111EB - 2**64


def row_seed(seed: int, request: Request, prompt_ids: list[int]) -> int:
    """Return a signed 64-bit seed from the sampling seed and the request's content or its own seed."""
    content = {
        "prompt": prompt_ids,
        "forced": [[span.position, list(span.ids)] for span in request.forced],
        "bans": [[ban.position, list(ban.ids)] for ban in request.bans],
    }
    if request.edits:
        content["edits"] = request.record()["edits"]
    own = content if request.seed is None else request.seed
    digest = hashlib.sha256(json.dumps([seed, own]).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def uniform(seeds: torch.Tensor, step: int | torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """Return float32 numbers in [0, 1) for row seeds [...] and coordinates [...] (int64), and a step or steps [...]."""
    step_hash = step * _STEP  # a tensor wraps around by itself
    if isinstance(step_hash, int):
        step_hash = (step_hash + 2**63) % 2**64 - 2**63
    bits = _mix(_mix(seeds + step_hash) + coordinates * _GOLDEN)
    return _shift(bits, 40).to(torch.float32) * 2.0**-24


def _mix(z: torch.Tensor) -> torch.Tensor:
    z = z + _GOLDEN
    z = (z ^ _shift(z, 30)) * _MIX1
    z = (z ^ _shift(z, 27)) * _MIX2
    return z ^ _shift(z, 31)


def _shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right without the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
