"""midward measures, aligns and guards diffusion language models.

`import midward` is light: names below import their room (and torch) on first use.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from .alignment import align
    from .models import Family, LanguageModel, ModelError
    from .sampling import Ban, Forced, Request, Response, Sampling, Step, Trace, sample

__version__ = "0.1.0"

_ROOM_OF = {
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


def load(
    name: str | Path,
    adapter: str | Path | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    guard: str | Path | None = None,
    quantize: Literal["8bit", "4bit"] | None = None,
    device_map: Literal["auto"] | dict[str, Any] | None = None,
) -> LanguageModel:
    """`midward.models.load`, with a fitted guard (a file or folder of `midward guard fit`) in front of `generate`.

    `midward.sample` is the bare sampler, with a guard or without. Raises ModelError as there, and GuardError where the
    guard can't be read or was fitted for another model or adapter.
    """
    from .models import load as load_model

    model = load_model(name, adapter, device, dtype, quantize, device_map)
    if guard is not None:
        from .guards import load as load_guard

        model.guard = load_guard(guard, model)
    return model


def __getattr__(name: str) -> Any:
    room = _ROOM_OF.get(name)
    if room is None:
        raise AttributeError(f"module 'midward' has no attribute {name!r}; there are {', '.join(__all__)}")
    return getattr(import_module(f".{room}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
