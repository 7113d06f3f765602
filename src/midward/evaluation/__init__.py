"""Runs over data: attacks in a matrix, guards side by side, responses to every row of a table.

`generate` imports the model's rooms (and torch) on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from midward.evaluation.runs import generate

__all__ = ["generate"]


def __getattr__(name: str) -> Any:
    if name != "generate":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are {', '.join(__all__)}")
    from midward.evaluation.runs import generate

    return generate
