"""What checkpoints and adapters are called, checked without torch, so that a wrong name is told at once."""

from importlib.resources import files
from pathlib import Path

from midward._hints import did_you_mean, near_path
from midward.world.world import MODELS

from .errors import ModelError


def local_checkpoint(name: str | Path) -> Path | None:
    """The folder of a model that is named as in `load`; None of what may be a Hub id, which is looked for when it is
    loaded. Raises ModelError for what is neither, and for a folder that is no checkpoint."""
    name = str(name)
    if name in MODELS:
        embedded = Path(str(files("midward"))) / "world" / MODELS[name]
        if not (embedded / "config.json").is_file():
            raise ModelError(f"the {name} model isn't at {embedded}; reinstall midward.")
        return embedded
    path = Path(name).expanduser()
    if path.is_dir():
        require_file(path / "config.json")
        return path
    if path.is_file():
        raise ModelError(f"{name!r} is a file; give the checkpoint folder it lies in.")
    if _may_be_hub_id(name):
        return None
    hint = near_path(path, folder=True) or did_you_mean(name, MODELS)
    raise ModelError(f"no model {name!r}: neither 'sandbox', nor a folder, nor a Hub id (org/model).{hint}")


def require_file(path: Path) -> None:
    """Raise ModelError where a checkpoint lacks a file."""
    if not path.is_file():
        raise ModelError(f"{path.parent} has no {path.name}; is it a checkpoint folder?")


def local_adapter(name: str | Path) -> Path | None:
    """The same of an adapter."""
    path = Path(name).expanduser()
    if not path.exists() and _may_be_hub_id(str(name)):
        return None
    if not path.is_dir():
        raise ModelError(
            f"no adapter {str(name)!r}: neither a folder nor a Hub id (org/adapter).{near_path(path, folder=True)}"
        )
    require_adapter(path)
    return path


def require_adapter(folder: Path) -> None:
    """Raise ModelError for a folder without the file that every adapter has."""
    if not (folder / "adapter_config.json").is_file():
        hint = "that is a whole checkpoint" if (folder / "config.json").is_file() else "is it an adapter folder?"
        raise ModelError(f"{folder} has no adapter_config.json; {hint}")


def model_name(name: str) -> str:
    """The name as it is, checked as `local_checkpoint` does."""
    local_checkpoint(name)
    return name


def adapter_name(name: str) -> str:
    """The name as it is, checked as `local_adapter` does."""
    local_adapter(name)
    return name


def _may_be_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "~", "/")) and "\\" not in name
