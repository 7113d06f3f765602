"""The "did you mean" line that errors share, and the check of a choice that ends in it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known name, or an empty string."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def one_of(name: str, value: Any, allowed: Collection[str]) -> None:
    """Raise ValueError, naming the nearest allowed value, unless `value` is one. name: of what, for the error."""
    if value not in allowed:
        hint = did_you_mean(str(value), allowed)
        raise ValueError(f"unknown {name} {value!r}.{hint} Available: {', '.join(allowed)}.")
