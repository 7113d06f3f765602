"""What stands in a checkpoint folder, checked before anything big is read."""

import codecs
import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from midward.errors import InputError

from .errors import ModelError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]

#: What a published weight is here: its name and itself -> names and tensors (a fused one becomes several).
Renaming = Callable[[str, torch.Tensor], Iterable[tuple[str, torch.Tensor]]]

_PIECES, _PIECE = 8, 1024  # of a stored tensor, spread evenly over its bytes, that `digest` reads


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file; ModelError when it is missing or torn."""
    if not path.is_file():
        raise ModelError(f"{path.parent} has no {path.name}; is it a checkpoint folder?")
    if path.read_bytes()[:3] == codecs.BOM_UTF8:  # which transformers doesn't read either
        raise ModelError(f"{path} begins with a byte-order mark; save it as UTF-8 without one.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is no valid JSON ({error}); download it again.") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}, not an object; download it again.")
    return content


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder: those its index names, or the single file.

    Raises ModelError when there are none (naming pickle files, which are never read) or a shard is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            listed = ", ".join(missing[:3]) or "all of them"
            raise ModelError(f"{folder} lacks {len(missing) or 'its'} weight shards ({listed}); download them again.")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder} holds its weights only as pickle ({', '.join(pickles[:3])}), which can run any code "
            "when read; ask for a safetensors version, or convert it in a place you trust."
        )
    raise ModelError(f"{folder} has no model.safetensors; is the download complete?")


@dataclass(frozen=True)
class Header:
    """A tensor as a safetensors header declares it. kind: "BF16", "F32", "I64" ...; stored: bytes in the file, from
    byte `start` of `path` on."""

    kind: str
    shape: tuple[int, ...]
    stored: int
    path: Path
    start: int

    def bytes_as(self, dtype: torch.dtype, quantize: str | None = None) -> int:
        """Bytes in memory when read as `dtype`, or quantised by bitsandbytes; integers stay as they are stored."""
        numbers = math.prod(self.shape)
        if quantize == "8bit":
            return numbers + 4 * self.shape[0]  # a float32 scale a row
        if quantize == "4bit":
            blocks = -(-numbers // 64)  # a byte of scale each, and of those every 256 a float32 of their own
            return -(-numbers // 2) + blocks + 4 * -(-blocks // 256) + 4 * (256 + 16 + 1)  # two tables and an offset
        return numbers * dtype.itemsize if self.kind.startswith(("F", "BF")) else self.stored


def headers(files: list[Path]) -> dict[str, Header]:
    """Return what the safetensors headers declare, by name; ModelError for a torn file."""
    found = {}
    for path in files:
        size = path.stat().st_size
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > size - 8:
                    raise InputError("header is longer than the file")
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            if size != 8 + length + end:
                raise InputError(f"{8 + length + end} bytes are declared, {size} are there")
            for name, entry in header.items():
                start, stop = entry["data_offsets"]
                found[name] = Header(entry["dtype"], tuple(entry["shape"]), stop - start, path, 8 + length + start)
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{path} is no complete safetensors file ({error}); a Git LFS pointer or a broken download?"
            ) from None
    return found


def digest(files: list[Path]) -> str:
    """16 hex digits of weights as they are stored, in whatever shards: of every tensor its name, kind and shape, and a
    sample of its bytes. Tells checkpoints of one shape apart without reading them whole, whatever they are loaded as.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(headers(files).items()):
        found.update(f"{name} {tensor.kind} {tensor.shape}".encode())
        with tensor.path.open("rb") as file:
            for piece in range(_PIECES):
                file.seek(tensor.start + piece * max(0, tensor.stored - _PIECE) // (_PIECES - 1))
                found.update(file.read(min(_PIECE, tensor.stored)))
    return found.hexdigest()[:16]


def not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of the tensors that hold NaN or infinite numbers. Every number is read once and the device waited for
    once a device."""
    fine: dict[torch.device, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.dtype.itemsize > 1 and tensor.numel() and not tensor.is_meta:
            ends = torch.stack(tensor.detach().aminmax())  # NaN goes into both; no copy of the tensor is made
            fine.setdefault(tensor.device, {})[name] = ends.isfinite().all()
    return [
        name
        for some in fine.values()
        for name, is_fine in zip(some, torch.stack(list(some.values())).tolist(), strict=True)
        if not is_fine
    ]


def renaming(mapping: Mapping[str, str]) -> Renaming:
    """By regular expressions, as transformers' `key_mapping`."""

    def rename(name: str, tensor: torch.Tensor) -> Iterable[tuple[str, torch.Tensor]]:
        for pattern, ours in mapping.items():
            name = re.sub(pattern, ours, name)
        yield name, tensor

    return rename
