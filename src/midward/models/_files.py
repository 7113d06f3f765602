"""What stands in a checkpoint folder, checked before anything big is read."""

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .errors import ModelError
from .names import require_file

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]

#: What a published weight is here: its name and itself -> names and tensors (a fused one becomes several).
Renaming = Callable[[str, torch.Tensor], Iterable[tuple[str, torch.Tensor]]]

_PIECES, _PIECE = 8, 1024  # of a stored tensor, spread evenly over its bytes, that `digest` reads


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file; ModelError when it is missing or torn."""
    require_file(path)
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


def stored_tensors(files: list[Path]) -> dict[str, tuple[str, torch.Tensor]]:
    """Return the tensors of safetensors files by name, each with its kind ("BF16", "F32", "I64" ...).

    They are mapped into memory: what isn't looked at isn't read. Raises ModelError for a torn file.
    """
    tensors = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    tensors[name] = (file.get_slice(name).get_dtype(), file.get_tensor(name))
        except SafetensorError as error:
            raise ModelError(
                f"{path} is no complete safetensors file ({error}); a Git LFS pointer or a broken download?"
            ) from None
    return tensors


def digest(files: list[Path]) -> str:
    """16 hex digits of weights as they are stored, in whatever shards: of every tensor its name, kind and shape, and a
    sample of its bytes. Tells checkpoints of one shape apart without reading them whole, whatever they are loaded as.
    """
    sha = hashlib.sha256()
    for name, (kind, tensor) in sorted(stored_tensors(files).items(), key=itemgetter(0)):
        sha.update(f"{name} {kind} {tuple(tensor.shape)}".encode())
        stored = tensor.reshape(-1).view(torch.uint8)  # [bytes]
        for piece in range(_PIECES):
            start = piece * max(0, len(stored) - _PIECE) // (_PIECES - 1)
            sha.update(stored[start : start + _PIECE].numpy().data)
    return sha.hexdigest()[:16]


def not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of the tensors that hold NaN or infinite numbers. Every number is read once, and each device waited for
    once."""
    by_device: dict[torch.device, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.dtype.itemsize > 1 and tensor.numel() and not tensor.is_meta:
            ends = torch.stack(tensor.detach().aminmax())  # NaN goes into both; no copy of the tensor is made
            by_device.setdefault(tensor.device, {})[name] = ends.isfinite().all()
    verdicts = [zip(fine, torch.stack(list(fine.values())).tolist(), strict=True) for fine in by_device.values()]
    return [name for names in verdicts for name, is_fine in names if not is_fine]


def renaming(mapping: Mapping[str, str]) -> Renaming:
    """By regular expressions, as transformers' `key_mapping`."""

    def rename(name: str, tensor: torch.Tensor) -> Iterable[tuple[str, torch.Tensor]]:
        for pattern, own in mapping.items():
            name = re.sub(pattern, own, name)
        yield name, tensor

    return rename
