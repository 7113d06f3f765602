"""A PEFT adapter folder, put on the network it was made for."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from midward._peft import PeftConfig, PeftModel, get_peft_model_state_dict, quiet_peft

from .errors import ModelError


def attach(network: Any, folder: Path, name: str) -> PeftModel:
    """Return `network` with the adapter in `folder` on it.

    Raises ModelError when the folder is no adapter, holds only pickle, or was made for another base model.
    """
    if not (folder / "adapter_config.json").is_file():
        hint = (
            "that is a whole checkpoint" if (folder / "config.json").is_file() else "is it an adapter folder?"
        )
        raise ModelError(f"{folder} has no adapter_config.json; {hint}")
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        pickle = (
            " (adapter_model.bin is a pickle file and is never read)" if list(folder.glob("*.bin")) else ""
        )
        raise ModelError(
            f"{folder} has no adapter_model.safetensors{pickle}; save the adapter as safetensors."
        )
    try:
        with safe_open(weights, framework="pt") as file:
            stored = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelError(f"{weights} is no complete safetensors file ({error}).") from None
    try:
        config = PeftConfig.from_pretrained(str(folder))
        if config.is_prompt_learning:
            raise ModelError(
                f"{folder} is a {config.peft_type} adapter; only adapters that change weights are loaded."
            )
        with quiet_peft():
            wrapped = PeftModel.from_pretrained(network, str(folder))
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"the adapter {folder} doesn't fit {name!r}; it was made for another base model: {error}"
        ) from error
    wanted = {
        key: tuple(value.shape)
        for key, value in get_peft_model_state_dict(wrapped, save_embedding_layers=False).items()
    }
    if stored != wanted:
        key = next(iter(sorted(stored.items() ^ wanted.items())))[0]
        raise ModelError(
            f"the adapter {folder} doesn't fit {name!r}: {key} has shape {stored.get(key)} in the file and "
            f"{wanted.get(key)} in the model; it was made for another base model."
        )
    return wrapped.eval()
