"""SRI by blocks: anchors and signal of looks in the place of steps, so that one file serves every number of steps.

`looks` says what a look is. Anchors are means of phi by (class of block, look), of requests that were answered and of
some that were refused; the signal of a look is the paper's, between the anchors of its place.

Shapes: J looks of a block, D hidden size, R looks of one step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from midward.dynamics.anchors import Anchors, NothingToAverage, made_for
from midward.dynamics.looks import CLASSES, GRID, Look, Looks, class_of, judged_as
from midward.dynamics.sri import signal, unit_anchors
from midward.errors import InputError, MissingFile
from midward.models import LanguageModel
from midward.sampling import Request, Sampling, sample
from midward.store import key_of
from midward.tensors import Record, load_tensors, save_tensors


@dataclass(frozen=True)
class Answer:
    """One generation. text: None where it failed. phi [blocks, J, D] float32, NaN where it wasn't looked at."""

    text: str | None
    phi: np.ndarray


class States:
    """A reader whose features are phi itself. width: D."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, look: Look) -> np.ndarray:
        return look.phi


class Sigma:
    """A reader of the SRI signal: F = 1, sigma in 0..1."""

    width = 1

    def __init__(self, anchors: Anchors) -> None:
        self.anchors = anchors
        self.units = unit_anchors(anchors.mu_harmful, anchors.mu_harmless)  # [CLASSES * J, 2, D]

    def on_start(self, canvas: Any) -> None:
        self.anchors.check(canvas.model, canvas.sampling)

    def __call__(self, look: Look) -> np.ndarray:
        at = [place_of(block, point) for block, point in zip(look.blocks, look.looks, strict=True)]
        return np.asarray(signal(look.phi.astype(np.float64), self.units[at], eps=self.anchors.eps))[:, None]


def place_of(block: int, look: int) -> int:
    """Of a block's number and a look, the row of anchors."""
    return class_of(block) * len(GRID) + judged_as(look)


class _Shard(Record):
    """texts: of the batch's answers, None of one that failed. The tensors are their states, by place."""

    noun: ClassVar[str] = "batch of states"
    texts: list[str | None]


def look_states(
    model: LanguageModel,
    requests: Sequence[Request | Any],
    sampling: Sampling,
    *,
    batch_size: int = 16,
    kept: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """Answer requests and keep the states of every look.

    Args:
        requests: as `sample` takes them.
        sampling: how they are answered.
        batch_size: rows of a forward.
        kept: a folder of one file a batch, read where it is there; so a run that broke off goes on.
        progress: called with how many are answered.

    Returns:
        One `Answer` a request.
    """
    answers: list[Answer] = []
    for start in range(0, len(requests), batch_size):
        batch = list(requests[start : start + batch_size])
        key = key_of(model=model.fingerprint, sampling=asdict(sampling), requests=batch)
        path = None if kept is None else kept / f"{key}.safetensors"
        shard = None
        with suppress(InputError, MissingFile):
            shard = None if path is None else load_tensors(path, _Shard)
        if shard is None:
            watcher = Looks(States(model.hidden_size))
            responses = sample(model, batch, sampling, batch_size=batch_size, watchers=[watcher])
            record = _Shard(texts=[None if each.error else each.text for each in responses])
            tensors = {str(row): watcher.signal(row).numpy()[..., :-1].astype(np.float32) for row in range(len(batch))}
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                save_tensors(path, tensors, record)
            shard = record, tensors
        answers += [Answer(text, shard[1][str(row)]) for row, text in enumerate(shard[0].texts)]
        progress(len(answers))
    return answers


def look_anchors(
    model: LanguageModel, sampling: Sampling, answered: Sequence[np.ndarray], refused: Sequence[np.ndarray]
) -> Anchors:
    """Anchors by (class of block, look).

    A refusal is often over where an answer goes on: looks that no refusal (or no answer) reached have the mean of the
    look before, which may be one of the class before.

    Args:
        model, sampling: of the answers.
        answered, refused: phi [blocks, J, D] of harmless requests that were answered, of harmful ones refused.

    Raises:
        NothingToAverage: there is none of a kind.
    """
    if not answered or not refused:
        raise NothingToAverage.of("harmful" if answered else "harmless")
    return Anchors(
        _means(answered),
        _means(refused),
        counts=(len(answered), len(refused)),
        **{name: value for name, value in made_for(model, sampling).items() if name != "sampling"},
        sampling=sampling,
        reading="generated",
        needs_all_steps=False,
        index="look",
    )


def _means(states: Sequence[np.ndarray]) -> torch.Tensor:
    """Means [CLASSES * J, D] float32 of phi [blocks, J, D]."""
    total = np.zeros((CLASSES * len(GRID), states[0].shape[-1]))
    count = np.zeros(len(total))
    for phi in states:
        for block, points in enumerate(phi):
            points = points[: len(GRID)]
            seen = np.isfinite(points).all(-1)
            at = place_of(block, 0) + np.flatnonzero(seen)
            total[at] += points[seen]
            count[at] += 1
    for place in range(len(total)):
        if count[place]:
            total[place] /= count[place]
        elif place:
            total[place] = total[place - 1]
    return torch.from_numpy(total).float()
