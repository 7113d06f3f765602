"""Samplers of the same weights, by name: what a comparison of samplers holds against each other (SRI, S2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from midward._hints import one_of
from midward.sampling import Sampling

#: SRI's own sampling (section 5), which its tables are of.
PAPER: dict[str, Any] = {"length": 128, "steps": 32, "block": 128, "order": "low_confidence", "temperature": 0.0}

#: Name -> from the settings as given to the sampler's.
SAMPLERS: dict[str, Callable[[Sampling], Sampling]] = {
    "native": lambda given: given,
    "paper": lambda given: given.changed(**PAPER),
    # autoregressive sampling: one token a step, from left to right
    "ar": lambda given: given.changed(order="left_to_right", steps=given.length, block=None),
    # most confident first: as many steps as tokens, or the given ones
    "greedy": lambda given: given.changed(order=_confident(given), steps=given.length),
    "static": lambda given: given.changed(order=_confident(given)),
    "random": lambda given: given.changed(order="random"),
    "random-greedy": lambda given: given.changed(order="random", steps=given.length),
    "left-to-right": lambda given: given.changed(order="left_to_right"),
    # dynamic remasking: all tokens of at least 0.9 at once
    "dynamic": lambda given: given.changed(order="low_confidence", threshold=0.9),
}


def _confident(given: Sampling) -> str:
    """The given order where it goes by the model's confidence."""
    return "low_confidence" if given.order in ("random", "left_to_right") else given.order


def sampler(name: str, given: Sampling) -> Sampling:
    """The settings of a sampler.

    Args:
        name: one of SAMPLERS.
        given: what it starts from.

    Raises:
        InputError: for an unknown name.
    """
    one_of("sampler", name, SAMPLERS)
    return SAMPLERS[name](given)
