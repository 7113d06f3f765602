"""midward measures, aligns and guards diffusion language models.

`import midward` is light: names below import their room (and torch) on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .alignment import align
    from .chat import Chat, load
    from .models import Family, LanguageModel, ModelError
    from .sampling import Ban, Forced, Request, Response, Sampling, Step, Trace, sample

__version__ = "0.1.0"

_ROOM_OF = {
    "load": "chat",
    "Chat": "chat",
    "LanguageModel": "models",
    "Family": "models",
    "ModelError": "models",
    "sample": "sampling",
    "Sampling": "sampling",
    "Request": "sampling",
    "Response": "sampling",
    "Forced": "sampling",
    "Ban": "sampling",
    "Step": "sampling",
    "Trace": "sampling",
    "align": "alignment",
}

__all__ = [
    "Ban",
    "Chat",
    "Family",
    "Forced",
    "LanguageModel",
    "ModelError",
    "Request",
    "Response",
    "Sampling",
    "Step",
    "Trace",
    "align",
    "load",
    "sample",
    "__version__",
]


def __getattr__(name: str) -> Any:
    room = _ROOM_OF.get(name)
    if room is None:
        raise AttributeError(f"module 'midward' has no attribute {name!r}; there are {', '.join(__all__)}")
    return getattr(import_module(f".{room}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
