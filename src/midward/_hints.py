"""What errors share: the "did you mean" line, the check of a choice that ends in it, what differs between two."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from midward.errors import InputError


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known name, or an empty string."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def differing(there: Mapping[str, Any], here: Mapping[str, Any], but: Collection[str] = ()) -> list[str]:
    """What of `here` is otherwise in `there`, in words; names in `but` may be."""
    return [
        f"{name} {there.get(name)!r} there, {value!r} here"
        for name, value in here.items()
        if name not in but and there.get(name) != value
    ]


def one_of(name: str, value: Any, allowed: Collection[str]) -> None:
    """Raise InputError, naming the nearest allowed value, unless `value` is one. name: of what, for the error."""
    if value not in allowed:
        hint = did_you_mean(str(value), allowed)
        raise InputError(f"unknown {name} {value!r}.{hint} Available: {', '.join(allowed)}.")
