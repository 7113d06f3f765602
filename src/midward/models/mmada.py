"""MMaDA's language half: LLaDA's layout, with rows for image codes behind the words in the vocabulary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from . import llada
from ._files import weight_files
from .errors import ModelError
from .family import Family, info
from .reading import Placement

INFO = info("mmada")

_EMBEDDING = "model.transformer.wte.weight"


def complete(folder: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """Return the config with the vocabulary rows that the weights have: the published entries disagree about them."""
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            if _EMBEDDING in file.keys():  # noqa: SIM118
                return {**raw, "embedding_size": file.get_slice(_EMBEDDING).get_shape()[0]}
    raise ModelError(f"{folder} has no weight {_EMBEDDING!r}; is it an MMaDA checkpoint?")


def family(raw: dict[str, Any], tokenizer: Any) -> Family:
    """Return the family record: LLaDA's."""
    return replace(llada.family(raw, tokenizer), name=INFO.name)


published = llada.published


def read(folder: Path, raw: dict[str, Any], placement: Placement) -> Any:
    """Load the safetensors of a published folder. Raises ModelError as `read_native` does."""
    return llada.read(folder, raw, placement)
