"""Guards on the disk: one safetensors file each, with every setting; no pickle, and nothing in a file is run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from midward.errors import InputError, MissingFile
from midward.guards.guard import Guard, GuardError, settings_of
from midward.guards.registry import find
from midward.models import LanguageModel
from midward.sampling import Sampling
from midward.tensors import Record, load_record, load_tensors, save_tensors

#: Bytes; a guard of an 8B model with 1,024 steps is a tenth of it.
LARGEST = 1 << 28


class About(BaseModel):
    """What a guard's file says of itself: its name and version, the `Guard` attributes of these names, its settings."""

    model_config = ConfigDict(extra="forbid")

    guard: str
    version: str
    settings: dict[str, Any]
    alpha: float | None
    calibrated: int
    fitted_on: tuple[str, ...]
    bound: dict[str, Any]


class GuardFile(Record):
    """The header of a guard's file."""

    noun: ClassVar[str] = "guard"
    format: Literal["midward.guard/2"] = "midward.guard/2"
    about: About


def save(guard: Guard, path: str | Path) -> Path:
    """Write a fitted guard as one safetensors file, whole or not at all. Raises GuardError where it isn't fitted."""
    if not guard.bound or not math.isfinite(guard.threshold):
        raise GuardError(f"the guard {guard.name!r} isn't fitted yet, so there is nothing to save.")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = About(
        guard=guard.name,
        version=guard.version,
        settings=asdict(guard.settings),
        alpha=guard.alpha,
        calibrated=guard.calibrated,
        fitted_on=guard.fitted_on,
        bound=guard.bound,
    )
    save_tensors(path, {"threshold": np.array([guard.threshold]), **guard.tensors()}, GuardFile(about=about))
    return path


def describe(path: str | Path) -> dict[str, Any]:
    """What a guard's file says of itself: guard, version, settings, alpha, calibrated, fitted_on, bound.

    Raises GuardError.
    """
    with _readable(path) as file:
        return load_record(file, GuardFile).about.model_dump()


def sampling_of(path: str | Path) -> dict[str, Any]:
    """The settings of `Sampling` that a guard's file is bound to, see `settings_of`. Raises GuardError."""
    about = describe(path)
    return settings_of(find(about["guard"]).kind, about["bound"])


def load(path: str | Path, model: LanguageModel | None = None, sampling: Sampling | None = None) -> Guard:
    """Read a guard.

    Args:
        path: its file, or a folder, whose sri.safetensors is taken.
        model: what it must have been fitted for, with the adapter.
        sampling: what it must have been fitted for, but for the seed.

    Raises:
        GuardError: a missing, torn or foreign file, a guard there isn't, one of another version, values that no fitted
            guard has, or another model, adapter or sampling, saying what differs.
    """
    with _readable(path) as file:
        record, tensors = load_tensors(file, GuardFile)
    about, info = record.about, find(record.about.guard)
    if about.version != info.version:
        raise GuardError(
            f"{path} holds version {about.version!r} of the guard {info.name!r}, and this is version "
            f"{info.version!r}; fit it anew."
        )
    if strange := [name for name, value in tensors.items() if not np.isfinite(value.astype(np.float64)).all()]:
        raise GuardError(f"{path} holds values that aren't finite numbers, in {strange[0]!r}; it isn't used.")
    try:
        guard = info.kind(**about.settings)
        [threshold] = tensors.pop("threshold")
        guard.threshold = float(threshold)
        guard.alpha, guard.calibrated, guard.bound = about.alpha, about.calibrated, about.bound
        guard.fitted_on = about.fitted_on
        if missing := {"model", "adapter", "fingerprint", "sampling"} - set(guard.bound):
            raise InputError(f"it doesn't say for which {min(missing)} it is")
        Sampling(**guard.bound["sampling"])
        guard.restore(tensors)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise GuardError(f"{path} is no guard that can be used: {error}.") from None
    if model is not None:
        guard.check(model, sampling)
    return guard


def files_of(paths: Sequence[str | Path]) -> dict[str, Path]:
    """The guards in files and folders.

    Returns:
        label -> file.

    Raises:
        GuardError: for what isn't there or is no guard, or two of one name.
    """
    files: dict[str, Path] = {}
    for path in map(Path, paths):
        inside = sorted(file for file in path.glob("*.safetensors") if not file.name.startswith("anchors-"))
        if path.is_dir() and not inside:
            raise GuardError(f"{path} holds no guard; midward guard fit --out {path} writes them there.")
        for file in inside or [path]:
            describe(file)
            if file.stem in files:
                raise GuardError(f"two guards are called {file.stem!r}: {files[file.stem]} and {file}; rename one.")
            files[file.stem] = file
    if not files:
        raise GuardError("no guard is named; give files or folders that midward guard fit wrote.")
    return files


@contextmanager
def _readable(path: str | Path) -> Iterator[Path]:
    """The file of a guard, in a block that reads it."""
    path = Path(path)
    path = path / "sri.safetensors" if path.is_dir() else path
    try:
        if path.is_file() and path.stat().st_size > LARGEST:
            raise InputError(f"{path} has {path.stat().st_size} bytes, more than any guard; it isn't read.")
        yield path
    except MissingFile as error:
        raise GuardError(f"{error} midward guard fit writes one.") from None
    except GuardError:
        raise
    except InputError as error:
        raise GuardError(str(error)) from None
