"""Tensors with a typed record, as a safetensors file: traces, anchors, guards."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from midward._formats import require_readable
from midward._hints import near_path
from midward._settings import wrong_in
from midward.errors import InputError, MissingFile
from midward.store import replacing


class Record(BaseModel):
    """What stands beside the tensors of a file, in its header; a kind of file is a subclass.

    noun: what such a file is called in errors. format: name and version of the kind, as "midward.trace/1.0", which
    stands in the header too; "" for files that only the run reads which wrote them. again: what to do about a file of
    an earlier version.
    """

    model_config = ConfigDict(extra="forbid")

    noun: ClassVar[str]
    format: ClassVar[str] = ""
    again: ClassVar[str] = "make it anew"


R = TypeVar("R", bound=Record)
_BEFORE_VERSION = re.compile(r"[/ ](?=[^/ ]*$)")  # of a format: "midward.guard/2.0", "midward sri anchors 1"


def save_tensors(path: str | Path, tensors: Mapping[str, Any], record: Record) -> None:
    """Write a safetensors file, whole or not at all.

    Args:
        path: Of the file; its folder is there.
        tensors: By name; arrays, or torch tensors on the CPU, of any dtype that numpy has.
        record: Kept in the header, each field as JSON.
    """
    arrays = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    header = {name: json.dumps(value) for name, value in record.model_dump(mode="json").items()}
    header |= {"format": record.format} if record.format else {}
    with replacing(Path(path)) as part:
        save_file(arrays, part, metadata=header)


def load_tensors(path: str | Path, kind: type[R]) -> tuple[R, dict[str, np.ndarray]]:
    """Read what `save_tensors` wrote with a record of this kind.

    Raises:
        MissingFile: There is no such file.
        InputError: It is torn, no safetensors file, or its record is of another kind or version or lacks a field.
    """
    record = load_record(path, kind)
    try:
        with safe_open(path, framework="np") as file:
            return record, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, AttributeError) as error:  # numpy has no bfloat16
        raise InputError(f"{path} is no {kind.noun}, or a damaged one ({error}).") from None


def load_record(path: str | Path, kind: type[R]) -> R:
    """The record of such a file alone. Raises as `load_tensors` does."""
    if not Path(path).is_file():
        raise MissingFile(f"there is no {kind.noun} at {path}.{near_path(path, folder=False)}")
    try:
        with safe_open(path, framework="np") as file:
            header = {name: _json(text) for name, text in (file.metadata() or {}).items()}
        if kind.format and (written := header.pop("format", None)) is not None:
            _require_format(written, kind, path)
        return kind.model_validate(header)
    except ValidationError as error:
        reason = wrong_in(error)
    except (SafetensorError, OSError, RecursionError) as error:
        reason = str(error)
    raise InputError(f"{path} is no {kind.noun}, or a damaged one ({reason}).")


def _require_format(written: Any, kind: type[Record], path: str | Path) -> None:
    name, own = _BEFORE_VERSION.split(kind.format)
    theirs, *version = _BEFORE_VERSION.split(str(written))
    if theirs != name:
        raise InputError(f"{path} is no {kind.noun}, or a damaged one (its format is {written!r:.80}).")
    require_readable("".join(version), own, f"the {kind.noun} {path}", kind.again)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
