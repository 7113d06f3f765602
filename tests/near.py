"""Results of batches of other shapes: kernels differ by shape, so floats are near, never equal."""

from typing import Any

import pytest


def near(value: Any) -> Any:
    """`value` with each float in it, at any depth, equal to what is within 1e-4 of it."""
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-4, abs=1e-4, nan_ok=True)
    if isinstance(value, dict):
        return {name: near(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(near, value))
    return value
