"""Guards on the disk: one safetensors file each, with every setting; no pickle, and nothing in a file is run."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from midward._formats import is_newer
from midward.errors import InputError
from midward.guards.config import GuardError, guard_file
from midward.guards.guard import Guard, settings_of
from midward.guards.registry import find
from midward.models import LanguageModel
from midward.sampling import Sampling
from midward.tensors import Record, load_record, load_tensors, save_tensors

#: Attributes of a guard that stand in its file as they are.
_KEPT = ("alpha", "calibrated", "fitted_on", "bound")
_TRACE = "self-test"
#: Beyond any score, of whatever guard: counts, log-odds, ranks, errors in units of the training errors.
_HIGHEST = 1e12


class About(BaseModel):
    """What a guard's file says of itself: its name and version, the `Guard` attributes of these names, its settings."""

    model_config = ConfigDict(extra="forbid")

    guard: str
    version: str
    settings: dict[str, Any]
    alpha: Annotated[float, Field(gt=0, lt=1)] | None
    calibrated: Annotated[int, Field(ge=0, le=10**9)]
    fitted_on: tuple[str, ...]
    bound: dict[str, Any]


class GuardFile(Record):
    """The header of a guard's file."""

    noun: ClassVar[str] = "guard"
    format: ClassVar[str] = "midward.guard/2.0"
    again: ClassVar[str] = "fit it anew"
    about: About


def save(guard: Guard, path: str | Path) -> Path:
    """Write a fitted guard as one safetensors file, whole or not at all.

    Args:
        guard: what is kept, with every setting.
        path: of the file; its folder is made.

    Returns:
        The path.

    Raises:
        GuardError: where the guard isn't fitted.
    """
    if not guard.bound or not math.isfinite(guard.threshold):
        raise GuardError(f"the guard {guard.name!r} isn't fitted yet, so there is nothing to save.")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: getattr(guard, name) for name in _KEPT}
    about = About(guard=guard.name, version=guard.version, settings=asdict(guard.settings), **kept)
    trace = {} if guard.trace is None else {_TRACE: np.asarray(guard.trace, dtype=np.float64)}
    tensors = {"threshold": np.array([guard.threshold]), **trace, **guard.tensors()}
    save_tensors(path, tensors, GuardFile(about=about))
    return path


def describe(path: str | Path) -> dict[str, Any]:
    """What a guard's file says of itself: guard, version, settings, alpha, calibrated, fitted_on, bound.

    Raises InputError for what is no guard's file.
    """
    return load_record(guard_file(path), GuardFile).about.model_dump()


def sampling_of(path: str | Path) -> dict[str, Any]:
    """The settings of `Sampling` that a guard's file is bound to, see `settings_of`. Raises as `describe` does."""
    about = describe(path)
    return settings_of(find(about["guard"]).kind, about["bound"])


def load(path: str | Path, model: LanguageModel | None = None, sampling: Sampling | None = None) -> Guard:
    """Read a guard.

    Args:
        path: its file, or a folder, see `guard_file`.
        model: what it must have been fitted for, with the adapter.
        sampling: what it must have been fitted for, but for the seed.

    Raises:
        InputError: a torn or foreign file; GuardError, which is one, for a missing file, a guard there isn't, one of
            another version, values that no fitted guard has, or another model, adapter or sampling, saying what
            differs.
    """
    record, tensors = load_tensors(guard_file(path), GuardFile)
    about, kind = record.about, find(record.about.guard).kind
    if about.version != kind.version:
        update = "update the package that has the guard, or " if is_newer(about.version, kind.version) else ""
        raise GuardError(
            f"{path} holds version {about.version!r} of the guard {kind.name!r}, and this is version "
            f"{kind.version!r}; {update}fit it anew."
        )
    trace = tensors.pop(_TRACE, None)  # what a look didn't read is NaN there
    if strange := [name for name, value in tensors.items() if not np.isfinite(value.astype(np.float64)).all()]:
        raise GuardError(f"{path} holds values that aren't finite numbers, in {strange[0]!r}; it isn't used.")
    try:
        guard = kind(**about.settings)
        [threshold] = tensors.pop("threshold")
        guard.threshold = float(threshold)
        if threshold.dtype.kind != "f" or abs(guard.threshold) > _HIGHEST:
            raise InputError(f"its threshold is {threshold!s:.40}, which no score is calibrated to")
        for name in _KEPT:
            setattr(guard, name, getattr(about, name))
        if missing := {"model", "adapter", "fingerprint", "sampling"} - set(guard.bound):
            raise InputError(f"it doesn't say for which {min(missing)} it is")
        Sampling(**guard.bound["sampling"])
        guard.trace = trace
        guard.restore(tensors)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise GuardError(f"{path} is no guard that can be used: {error}.") from None
    if model is not None:
        guard.check(model, sampling)
    return guard
