"""Fitting guards: anchors, harmless signals, and one calibration of all guards on the same held-out prompts.

Every generation is a row of `rows.jsonl`, appended as it comes; running again goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from midward.dynamics import Anchors, AnchorsError, SRISignal, View, fit_anchors
from midward.guards.files import save
from midward.guards.guard import Exchange, Guard, GuardError, conformal_threshold, prompt_hash
from midward.models import LanguageModel
from midward.sampling import Request, Sampling, sample
from midward.store import RowFile, key_of

CHUNK = 32  # rows between two writes
Progress = Callable[[str, int, int], None]  # what is being done, done so far, of how many


@dataclass(frozen=True)
class Sizes:
    """Harmless prompts, each used for one thing (the paper's numbers). anchors: of each kind. train: of the
    autoencoder. held_out: that the thresholds are calibrated on."""

    anchors: int = 400
    train: int = 1200
    held_out: int = 200

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 2:
                raise GuardError(f"{name} must be 2 or more; received {value}.")

    def check(self, alpha: float) -> None:
        """Raise GuardError where `held_out` is too small for this false-positive rate."""
        conformal_threshold(np.arange(self.held_out), alpha)

    @property
    def harmless(self) -> int:
        """How many harmless prompts it takes."""
        return self.anchors + self.train + self.held_out


def fit_guards(
    model: LanguageModel,
    guards: Mapping[str, Guard],
    harmless: Sequence[Request],
    harmful: Sequence[Request],
    folder: str | Path,
    *,
    refused: Callable[[str], bool],
    sampling: Sampling | None = None,
    alpha: float = 0.01,
    sizes: Sizes = Sizes(),
    batch_size: int = 16,
    progress: Progress = lambda what, done, of: None,
) -> dict[str, Path]:
    """Fit every guard and write it to `folder`/<label>.safetensors; returns label -> path.

    guards: label -> guard, not fitted. harmless: `sizes.harmless` prompts or more, in any order: the first ones make
    anchors, the next train, the last calibrate. harmful: for the anchors, of which those count that the model refuses;
    `refused` tells from a text. Without an SRI guard among them, only the calibration prompts are used; SRI guards of
    several readings or layers look at the same generations.
    Raises GuardError where there are too few prompts, before anything is sampled.
    """
    folder = Path(folder)
    sampling = sampling or Sampling.for_model(model)
    views = {label: view for label, guard in guards.items() if (view := guard.view(model))}
    _check(guards, views, harmless, harmful, sizes, alpha)
    parts = {
        "anchors": harmless[: sizes.anchors],
        "train": harmless[sizes.anchors : sizes.anchors + sizes.train],
        "held_out": harmless[len(harmless) - sizes.held_out :],
    }
    anchors: dict[View, Anchors] = {}
    if views:
        anchors = _anchors(
            model,
            parts["anchors"],
            harmful[: sizes.anchors],
            folder,
            refused,
            sampling,
            sorted(set(views.values())),
            batch_size,
            progress,
        )
    made = {"held_out": parts["held_out"]} | ({"train": parts["train"]} if views else {})
    rows = _answers(
        model,
        [request for part in made.values() for request in part],
        folder / "rows.jsonl",
        sampling=sampling,
        anchors={each.digest: each for each in anchors.values()},
        batch_size=batch_size,
        progress=lambda done, of: progress("harmless prompts", done, of),
    )
    paths: dict[str, Path] = {}
    for number, (label, guard) in enumerate(guards.items()):
        progress("calibrating", number, len(guards))
        held_out = [
            Exchange(request, row["response"], None, request.prompt if isinstance(request.prompt, str) else None)
            for request, row in zip(parts["held_out"], rows, strict=False)
        ]
        if label in views:
            name = anchors[views[label]].digest
            signals = np.array([row["signals"][name] for row in rows], dtype=float)
            train = signals[sizes.held_out :]
            trained = [guards[label] for label in paths if label in views]
            guard.train(anchors[views[label]], train[np.isfinite(train).all(1)], trained)
            held_out = [replace(one, signal=signal) for one, signal in zip(held_out, signals, strict=False)]
        guard.fit(model, held_out, alpha=alpha, sampling=sampling, batch_size=batch_size)
        used = [*parts.values(), harmful[: sizes.anchors]] if label in views else [parts["held_out"]]
        guard.fitted_on = tuple(sorted({prompt_hash(each.prompt) for part in used for each in part}))
        paths[label] = save(guard, folder / f"{label}.safetensors")
    progress("calibrating", len(guards), len(guards))
    return paths


def _answers(
    model: LanguageModel,
    requests: Sequence[Request],
    path: Path,
    *,
    sampling: Sampling,
    anchors: Mapping[str, Anchors],
    batch_size: int,
    progress: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """Sample every request, with an SRI signal for each of the anchors (by their hash); rows are kept in `path`."""
    file = RowFile(path)
    about = {"model": model.fingerprint, "sampling": asdict(sampling), "anchors": sorted(anchors)}
    keys = [key_of(**about, request=asdict(request)) for request in requests]
    todo = [i for i, key in enumerate(keys) if key not in file.rows]
    progress(len(requests) - len(todo), len(requests))
    for start in range(0, len(todo), CHUNK):
        chunk = todo[start : start + CHUNK]
        watchers = {name: SRISignal(one) for name, one in anchors.items()}
        found = sample(
            model, [requests[i] for i in chunk], sampling, batch_size=batch_size, watchers=list(watchers.values())
        )
        file.extend(
            {
                "key": keys[i],
                "prompt": requests[i].prompt,
                "response": response.checked().text,
                "nfe": response.nfe,
                "signals": {name: one.signal(row).tolist() for name, one in watchers.items()},
            }
            for row, (i, response) in enumerate(zip(chunk, found, strict=True))
        )
        progress(len(requests) - len(todo) + start + len(chunk), len(requests))
    return [file.rows[key] for key in keys]


def _check(
    guards: Mapping[str, Guard],
    views: Mapping[str, View],
    harmless: Sequence[Request],
    harmful: Sequence[Request],
    sizes: Sizes,
    alpha: float,
) -> None:
    if not guards:
        raise GuardError("there is no guard to fit; name one or more.")
    conformal_threshold(np.arange(sizes.held_out), alpha)  # too few for alpha is told before anything is sampled
    least = sizes.harmless if views else sizes.held_out
    if len(harmless) < least:
        parts = f"{sizes.anchors} for anchors (--anchors), {sizes.train} to train on (--train), " if views else ""
        raise GuardError(
            f"{len(harmless)} harmless prompts, and {least} are needed: {parts}{sizes.held_out} held out (--held-out). "
            "Give more, or smaller parts."
        )
    if views and not harmful:
        raise GuardError("SRI Guard's anchors need harmful prompts that the model refuses; give some.")


def _anchors(
    model: LanguageModel,
    harmless: Sequence[Request],
    harmful: Sequence[Request],
    folder: Path,
    refused: Callable[[str], bool],
    sampling: Sampling,
    views: Sequence[View],
    batch_size: int,
    progress: Progress,
) -> dict[View, Anchors]:
    done = 0

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        progress("anchors", done, len(harmless) + len(harmful))

    try:
        return fit_anchors(
            model,
            harmless,
            harmful,
            refused=refused,
            sampling=sampling,
            views=views,
            needs_all_steps=False,
            batch_size=batch_size,
            kept=folder / "anchors",
            progress=count,
        )
    except AnchorsError as error:
        raise GuardError(str(error)) from None
