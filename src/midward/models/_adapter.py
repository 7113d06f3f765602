"""A PEFT adapter folder, put on the network it was made for."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from midward._peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_pattern_key,
    get_peft_model,
    get_peft_model_state_dict,
    quiet_peft,
    set_peft_model_state_dict,
)

from ._files import Renaming, not_finite
from .errors import ModelError
from .names import require_adapter

WEIGHTS = "adapter_model.safetensors"
RECORD = "align.json"

_PREFIX = "base_model.model."
#: Ways to begin an adapter that leave the base's own weights as they are; the others (PiSSA, OLoRA ...) change them.
_INITS = (True, False, "gaussian", "eva", "orthogonal")

Tensors = dict[str, torch.Tensor]


def attach(network: Any, folder: Path, name: str, published: Renaming, base: str | None) -> PeftModel:
    """Return `network` with the adapter in `folder` on it.

    published: the family's renaming of published weights, which an adapter of the published modules needs as well.
    base: the digest of the stored weights of `name`, which must be the one in a record of `midward align`.
    Raises ModelError when the folder is no adapter, holds only pickle or numbers that aren't finite, was made for
    another base model, or can't be turned off again to give the base.
    """
    _check_record(folder, name, base)
    tensors = _read(folder)
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # whatever PEFT makes of the file
        raise ModelError(f"{folder / 'adapter_config.json'} can't be read: {error}") from error
    if config.is_prompt_learning:
        raise ModelError(f"{folder} is a {config.peft_type} adapter; only adapters that change weights are loaded.")
    init = getattr(config, "init_lora_weights", True)
    if init not in _INITS:
        raise ModelError(
            f"{folder} was begun with init_lora_weights={init!r}, which changes the base's own weights; save it with "
            "PEFT's path_initial_model_for_weight_conversion, as a plain LoRA."
        )
    config.inference_mode = True
    config.base_model_name_or_path = None  # or PEFT remarks that the base was loaded from elsewhere
    try:
        tensors = _renamed(tensors, config, network, published, folder)
        tensors = _without_the_base(tensors, network, folder, name)
        with quiet_peft():
            wrapped = get_peft_model(network, config)
            wanted = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
            _check_shapes(tensors, wanted, folder, name)
            set_peft_model_state_dict(wrapped, tensors)
    except ModelError:
        raise
    except Exception as error:  # PEFT's own, of any kind
        raise ModelError(
            f"the adapter {folder} doesn't fit {name!r}; it was made for another base model: {error}"
        ) from error
    wrapped.requires_grad_(False)
    return wrapped.eval()


def _check_record(folder: Path, name: str, base: str | None) -> None:
    """An adapter of `midward align` knows the weights that it was trained on."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        made_for = record.get("base")
    except (OSError, ValueError, AttributeError):
        return
    if base is not None and made_for is not None and made_for != base:
        raise ModelError(
            f"the adapter {folder} was trained on other weights than those of {name!r}: on {record.get('model')!r} "
            f"({made_for}), and these are {base}. Load it on the model it was made for."
        )


def _read(folder: Path) -> Tensors:
    require_adapter(folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        pickle = " (adapter_model.bin is a pickle file and is never read)" if list(folder.glob("*.bin")) else ""
        raise ModelError(f"{folder} has no {WEIGHTS}{pickle}; save the adapter as safetensors.")
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise ModelError(f"{weights} is no complete safetensors file ({error}).") from None
    if bad := not_finite(tensors):
        raise ModelError(
            f"the adapter {folder} holds NaN or infinite numbers, in {len(bad)} of its {len(tensors)} weights "
            f"({bad[0]}): its training diverged, or the file is damaged. Train it again with a lower learning rate, or "
            "take an earlier checkpoint."
        )
    return tensors


def _renamed(tensors: Tensors, config: PeftConfig, network: Any, published: Renaming, folder: Path) -> Tensors:
    """The tensors under the network's own names. Where that renames any, the config is told of the modules by their own
    full names: patterns of published ones would meet others, or none."""
    renamed: Tensors = {}
    published_of: dict[str, str] = {}  # own module -> published, of each adapted one
    whole = set()  # modules that are stored as a whole
    modules = {name for name, _ in network.named_modules()}
    changed = False
    for key, tensor in tensors.items():
        published_key = key.removeprefix(_PREFIX)
        for own, part in published(published_key, tensor):
            changed |= own != published_key
            module = own
            while module and module not in modules:
                module = module.rpartition(".")[0]
            tail = own[len(module) :]
            if tail in (".weight", ".bias"):
                whole.add(module)
            elif ".base_layer." not in tail:
                published_of[module] = published_key[: -len(tail)]
            renamed[_PREFIX + own] = part
    if not changed:
        return tensors
    if not isinstance(config, LoraConfig) or config.target_parameters or config.layer_replication:
        raise ModelError(
            f"the adapter {folder} goes by published module names, and only a LoRA of modules can be translated; it is "
            f"{config.peft_type}."
        )
    for pattern in ("alpha_pattern", "rank_pattern"):
        by_published = getattr(config, pattern)
        keys = {own: get_pattern_key(by_published, name) for own, name in published_of.items()}
        setattr(config, pattern, {re.escape(own): by_published[k] for own, k in keys.items() if k in by_published})
    config.target_modules = sorted(published_of)
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.modules_to_save = sorted(whole - set(published_of)) if config.modules_to_save else None
    return renamed


def _without_the_base(tensors: Tensors, network: Any, folder: Path, name: str) -> Tensors:
    """The tensors without the base's own layers, which PEFT stores beside an adapter of the embeddings or the head."""
    adapter = {key: tensor for key, tensor in tensors.items() if not key.endswith(".base_layer.weight")}
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for key in tensors.keys() - adapter.keys():
        own = parameters.get(key.removeprefix(_PREFIX).replace(".base_layer.", "."))
        if own is None or own.shape != tensors[key].shape or not _alike(own.detach(), tensors[key]):
            raise ModelError(
                f"the adapter {folder} doesn't fit {name!r}: the base's layer stored with it ({key}) is another; it "
                "was made for another base model."
            )
    return adapter


def _alike(own: torch.Tensor, stored: torch.Tensor) -> bool:
    """Equal up to what a narrower dtype rounds."""
    stored = stored.to(own.device, torch.float32)
    return torch.allclose(own.float(), stored, rtol=2**-7, atol=1e-6)


def _check_shapes(tensors: Tensors, wanted: Mapping[str, torch.Tensor], folder: Path, name: str) -> None:
    in_file = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    in_model = {key: tuple(tensor.shape) for key, tensor in wanted.items()}
    if in_file != in_model:
        key = min(in_file.items() ^ in_model.items())[0]
        experts = " Single experts can't be adapted: they are one fused tensor here." if ".experts." in key else ""
        raise ModelError(
            f"the adapter {folder} doesn't fit {name!r}: {key} has shape {in_file.get(key)} in the file and "
            f"{in_model.get(key)} in the model; it was made for another base model.{experts}"
        )
