"""The one exception of this room, and the "did you mean" line that errors share."""

from collections.abc import Iterable
from difflib import get_close_matches


class ModelError(Exception):
    """A checkpoint or an adapter can't be used; the message says what was wrong and what to do."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known name, or an empty string."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
