"""Guards on the disk: one safetensors file each, with every setting; no pickle, and nothing in a file is run."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from midward._hints import near_path
from midward.errors import InputError
from midward.guards.guard import Guard, GuardError, settings_of
from midward.guards.registry import find
from midward.models import LanguageModel
from midward.sampling import Sampling
from midward.store import replacing

FORMAT = "midward.guard/2"
#: Bytes; a guard of an 8B model with 1,024 steps is a tenth of it.
LARGEST = 1 << 28


def save(guard: Guard, path: str | Path) -> Path:
    """Write a fitted guard through a file beside it, so that a kill leaves the old file or the new one."""
    if not guard.bound or not math.isfinite(guard.threshold):
        raise GuardError(f"the guard {guard.name!r} isn't fitted yet, so there is nothing to save.")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "guard": guard.name,
        "version": guard.version,
        "settings": asdict(guard.settings),
        "alpha": guard.alpha,
        "calibrated": guard.calibrated,
        "fitted_on": guard.fitted_on,
        "bound": guard.bound,
    }
    tensors = {"threshold": np.array([guard.threshold]), **guard.tensors()}
    with replacing(path) as part:
        save_file(
            {name: np.ascontiguousarray(value) for name, value in tensors.items()},
            part,
            metadata={"format": FORMAT, "about": json.dumps(about)},
        )
    return path


def describe(path: str | Path) -> dict[str, Any]:
    """What a guard's file says of itself: guard, version, settings, alpha, calibrated, fitted_on, bound.

    Raises GuardError.
    """
    return _read(Path(path), tensors=False)[0]


def sampling_of(path: str | Path) -> dict[str, Any]:
    """The settings of `Sampling` that a guard's file is bound to, see `settings_of`. Raises GuardError."""
    about = describe(path)
    return settings_of(find(about["guard"]).kind, about["bound"])


def load(path: str | Path, model: LanguageModel | None = None, sampling: Sampling | None = None) -> Guard:
    """Read a guard, of a folder its sri.safetensors; with a model (and sampling) it must have been fitted for them.

    Raises GuardError: a missing, torn or foreign file, a guard there isn't, one of another version, values that no
    fitted guard has, or another model, adapter or sampling, saying what differs.
    """
    path = Path(path)
    about, tensors = _read(path)
    info = find(about["guard"])
    if about["version"] != info.version:
        raise GuardError(
            f"{path} holds version {about['version']!r} of the guard {info.name!r}, and this is version "
            f"{info.version!r}; fit it anew."
        )
    try:
        guard = info.kind(**about["settings"])
        guard.threshold = float(tensors.pop("threshold")[0])
        guard.alpha, guard.calibrated, guard.bound = (float(about["alpha"]), int(about["calibrated"]), about["bound"])
        guard.fitted_on = tuple(map(str, about["fitted_on"]))
        missing = {"model", "adapter", "fingerprint", "sampling"} - set(guard.bound)
        if missing:
            raise InputError(f"it doesn't say for which {min(missing)} it is")
        Sampling(**guard.bound["sampling"])
        guard.restore(tensors)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise GuardError(f"{path} is no guard that can be used: {error}.") from None
    if model is not None:
        guard.check(model, sampling)
    return guard


def _read(path: Path, tensors: bool = True) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if path.is_dir():
        path = path / "sri.safetensors"
    if not path.is_file():
        raise GuardError(f"there is no file {path}; midward guard fit writes one.{near_path(path)}")
    if path.stat().st_size > LARGEST:
        raise GuardError(f"{path} has {path.stat().st_size} bytes, more than any guard; it isn't read.")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            values = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
        if metadata.get("format") != FORMAT:
            raise GuardError(f"{path} is a safetensors file, but no guard of this version ({FORMAT}).")
        about = json.loads(metadata["about"])
        if not isinstance(about, dict) or not isinstance(about.get("guard"), str):
            raise InputError("it names no guard")
        lacking = {"version", "settings", "alpha", "calibrated", "fitted_on", "bound"} - set(about)
        if lacking or (tensors and values.get("threshold", np.empty(0)).shape != (1,)):
            raise InputError(f"it lacks {min(lacking) if lacking else 'its threshold'}")
    except GuardError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise GuardError(f"{path} is no guard's file, or torn: {error}.") from None
    wrong = [name for name, value in values.items() if not np.isfinite(value.astype(np.float64)).all()]
    if wrong:
        raise GuardError(f"{path} holds values that aren't finite numbers, in {wrong[0]!r}; it isn't used.")
    return about, values
