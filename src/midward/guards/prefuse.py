"""Pre-decoding fusion: what the prompt's states and the masked response's say before any token exists (OpenReview
QVRvaVBwRh).

Shapes: N exchanges, L positions, D hidden size, K views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic.dataclasses import dataclass

from midward.dynamics.anchors import FREE
from midward.dynamics.sri import numbers
from midward.errors import InputError
from midward.guards.config import GuardError
from midward.guards.exchange import Exchange, Labelled, Look, prompt_hash, prompt_ids
from midward.guards.guard import Guard
from midward.guards.labelled import LEAST, LogOdds, Penalty, odds_of, opened, require_kinds
from midward.guards.looks import tail_ranks
from midward.models import LanguageModel
from midward.sampling import Canvas, Sampling
from midward.sampling.canvas import Row

if TYPE_CHECKING:
    from typing import Self

FOLDS = 5
VIEWS = ("prompt", "response")


@dataclass(frozen=True, config={"extra": "forbid"})
class PreFusing:
    """view: of which states, or the larger rank of both. penalty: of the regressions. seed: of their folds."""

    view: Literal["both", "prompt", "response"] = "both"
    penalty: Penalty = 1.0
    seed: int = 0


class PreFusion(Guard):
    """One forward of the prompt and a response of masks; a: the mean state of the prompt's tokens, r: of the masked
    response positions (of all, where a request forces them all). Two logistic regressions tell harmful requests, those
    refused and those complied with behind a forced opening, from answered ones, plain and `opened`; score: the larger
    of their harmless tail ranks, see `tail_ranks`.

    Ranks are among the plain answered requests, each scored by a regression of folds that its prompt isn't in: in its
    own it would look more harmless than a fresh one.

    [ours], since summaries alone were read: the classifiers, layer (the last, after the final norm), pooling, the way
    the two are joined, and the labels.
    """

    name = "prefuse"
    about = "the prompt's and the masked response's states at the first forward"
    looks: ClassVar[Look] = "before"
    Settings: ClassVar[type[Any]] = PreFusing
    tied_to = ("model", "sampling")
    free = tuple(name for name in FREE if name != "length")  # as many masks are in the forward

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.views: dict[str, LogOdds] = {}
        self.tails = np.zeros((0, len(VIEWS)))  # [answered requests, K] sorted: harmless odds

    def bind(self, model: LanguageModel, sampling: Sampling | None = None) -> None:
        if model.family.kind != "diffusion":
            raise GuardError(f"prefuse reads the masks of a response; {model.name!r} has none before it writes.")
        super().bind(model, sampling)

    def learn(
        self, model: LanguageModel, labelled: Labelled, *, sampling: Sampling | None = None, batch_size: int = 8
    ) -> Self:
        harmful = [*labelled.refused, *labelled.complied]
        require_kinds(self.name, answered=labelled.answered, harmful=harmful)
        self.bind(model, sampling)
        again = [Exchange(request) for request in opened(model, labelled.answered, labelled.complied)]
        exchanges = [*labelled.answered, *again, *harmful]
        states = self._states(model, exchanges, batch_size)
        labels = np.arange(len(exchanges)) >= len(exchanges) - len(harmful)
        folds = self._folds(exchanges, labels)
        logits = np.zeros((len(labels), len(VIEWS)))
        for k, view in enumerate(VIEWS):
            for fold in range(FOLDS):
                inside, outside = folds != fold, folds == fold
                logits[outside, k] = self._fitted(states[k][inside], labels[inside])(states[k][outside])
            self.views[view] = self._fitted(states[k], labels)
        self.tails = np.sort(odds_of(logits[: len(labelled.answered)]), axis=0)
        return self

    def _folds(self, exchanges: Sequence[Exchange], labels: np.ndarray) -> np.ndarray:
        """A fold [N] of each exchange, the same for one prompt, so that each is scored by others' regression."""
        folds = np.zeros(len(labels), dtype=int)
        for label in (False, True):
            at = np.flatnonzero(labels == label).tolist()
            keys = [prompt_hash(exchanges[i].request.prompt) for i in at]
            order = [*dict.fromkeys(keys)]
            if len(order) < LEAST:
                raise GuardError(f"prefuse learns from {LEAST} prompts of a kind at least; received {len(order)}.")
            chance = np.random.default_rng(self.settings.seed).permutation(len(order))
            place = dict(zip(order, chance.tolist(), strict=True))
            folds[at] = [place[key] % FOLDS for key in keys]
        return folds

    def _fitted(self, states: np.ndarray, labels: np.ndarray) -> LogOdds:
        return LogOdds.fit(states, labels, penalty=self.settings.penalty)

    def score(self, model: LanguageModel, exchanges: Sequence[Exchange], *, batch_size: int = 8) -> np.ndarray:
        if not self.views:
            raise GuardError(f"the guard {self.name!r} isn't trained yet; see midward guard fit.")
        states = self._states(model, exchanges, batch_size)
        logits = np.stack([self.views[view](states[k]) for k, view in enumerate(VIEWS)], -1)
        ranks = tail_ranks(self.tails, odds_of(logits))
        return ranks.max(1) if self.settings.view == "both" else ranks[:, VIEWS.index(self.settings.view)]

    @torch.no_grad()
    def _states(
        self, model: LanguageModel, exchanges: Sequence[Exchange], batch_size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """a and r [N, D] of each request's first forward."""
        sampling = Sampling(**self.bound["sampling"])
        parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for first in range(0, len(exchanges), batch_size):
            requests = [each.request for each in exchanges[first : first + batch_size]]
            rows = [Row(i, request, prompt_ids(model, request)) for i, request in enumerate(requests)]
            canvas = Canvas(model, sampling, rows)
            hidden = model.hidden(canvas.ids, canvas.mask).float()
            masked = canvas.ids == canvas.mask_id
            masked[:, : canvas.width] = False
            masked[:, canvas.width :] |= ~masked.any(-1, keepdim=True)
            prompt = torch.ones_like(masked) if canvas.mask is None else canvas.mask.bool()
            prompt[:, canvas.width :] = False
            for part, counted in zip(parts, (prompt, masked), strict=True):
                weights = counted.float() / counted.sum(-1, keepdim=True)
                part.append(numbers(torch.bmm(weights[:, None], hidden)[:, 0]))
        return np.concatenate(parts[0]), np.concatenate(parts[1])

    # --- on the disk ----------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, np.ndarray]:
        views = [self.views[view].tensors(view) for view in VIEWS if view in self.views]
        return {name: value for tensors in (*views, {"tails": self.tails}) for name, value in tensors.items()}

    def restore(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.views = {view: LogOdds.rebuild(tensors, view) for view in VIEWS}
        self.tails = tensors["tails"]
        if self.tails.ndim != 2 or self.tails.shape[1] != len(VIEWS) or not len(self.tails):
            raise InputError(f"tails must be [N, {len(VIEWS)}]")
        unsorted = (self.tails[1:] < self.tails[:-1]).any()
        if self.tails.dtype.kind != "f" or unsorted or (self.tails <= 0).any():
            raise InputError("tails must be sorted odds, floats")
