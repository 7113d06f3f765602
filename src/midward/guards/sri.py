"""SRI Guard: a generation whose step-wise refusal signal isn't that of a harmless one is stopped (arXiv 2602.02600).

Shapes: N signals, B rows of a step, T steps, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from midward.dynamics import Anchors, AnchorsError, SRISignal
from midward.errors import InputError
from midward.guards.autoencoder import HIDDEN, Autoencoder
from midward.guards.guard import Exchange, Guard, GuardError, Verdict, told
from midward.models import LanguageModel
from midward.sampling import Request, Response, Sampling, Step, Watcher, sample

if TYPE_CHECKING:
    from typing import Self

Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config={"extra": "forbid"})
class SRI:
    """early: decide at every step and stop the generation once flagged; otherwise when it is over. steps: of the signal
    that is looked at: "all", "first" (the step t = 0 alone) or "later" (without it). hidden, epochs, seed: of the
    autoencoder."""

    early: bool = True
    steps: Literal["all", "first", "later"] = "all"
    hidden: tuple[Positive, ...] = HIDDEN
    epochs: Positive = 300
    seed: int = 0


class SRIGuard(Guard):
    """Score: how badly an autoencoder of harmless signals rebuilds the signal, in units of the training errors' 99 %
    quantile. With early=True it is the largest such ratio over the signal's beginnings, each completed by the harmless
    mean, and the threshold is calibrated on that maximum: the false-positive rate counts every look.

    anchors, autoencoder: None until `train`. The sampling isn't changed: a row that ends early ends early, and its last
    state's signal stands for the rest.
    """

    name = "sri"
    about = "an autoencoder of harmless SRI signals, over the steps"
    looks = "during"
    Settings = SRI
    tied_to = ("model", "sampling")

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.anchors: Anchors | None = None
        self.autoencoder: Autoencoder | None = None

    # --- the estimator --------------------------------------------------------------------------------------

    def train(self, anchors: Anchors, signals: np.ndarray) -> Self:
        """Fit the autoencoder on harmless signals [N, T] made with these anchors; `fit` then calibrates on others.

        Raises GuardError for anchors that would change the sampling.
        """
        if anchors.needs_all_steps:
            raise GuardError(
                "these anchors run every step, which changes what is sampled; fit them with needs_all_steps=False."
            )
        self.anchors = anchors
        own = self.settings
        self.autoencoder = Autoencoder.fit(
            self._seen(signals), hidden=own.hidden, epochs=own.epochs, seed=own.seed
        )
        return self

    def score(
        self, model: LanguageModel | None, exchanges: Sequence[Exchange], *, batch_size: int = 8
    ) -> np.ndarray:
        if any(each.signal is None for each in exchanges):
            raise GuardError(
                "SRI Guard looks at signals, and an exchange has none; sample with its `watcher`."
            )
        return self.score_signals(np.array([each.signal for each in exchanges], dtype=float))

    def score_signals(self, signals: np.ndarray) -> np.ndarray:
        """Scores [N] of signals [N, T]; NaN for one that isn't known (the row took part in no step)."""
        scores = np.full(len(signals), np.nan)
        known = np.isfinite(signals).all(1)
        if known.any():
            ratios = self._trained.ratios(self._seen(signals[known]))
            scores[known] = ratios.max(1) if self.settings.early else ratios[:, -1]
        return scores

    def stops(self, signals: np.ndarray) -> list[int | None]:
        """The step after which each signal [N, T] is flagged, from 0; None for one that isn't, or only at its end."""
        if not self.settings.early:
            return [None] * len(signals)
        above = self._trained.ratios(self._seen(signals)) > self.threshold
        offset = 1 if self.settings.steps == "later" else 0
        return [int(row.argmax()) + offset if row.any() else None for row in above]

    # --- while sampling -------------------------------------------------------------------------------------

    def watcher(self, stopped: dict[int, int] | None = None) -> SRISignal:
        """A watcher that makes the signals; with `stopped`, it stops rows as they are flagged and notes the step."""
        if self.anchors is None:
            raise GuardError("the guard 'sri' isn't trained yet; see midward guard fit.")
        trained, settings = self._trained, self.settings
        offset = 1 if settings.steps == "later" else 0

        def decide(step: Step, sigma: np.ndarray, reached: list[int]) -> None:
            signals = sigma[:, offset:]
            for count in set(reached):  # rows are at different steps only where a threshold commits
                known = count - offset
                if known == 0 or (settings.steps == "first" and known > 1):
                    continue
                places = [place for place, each in enumerate(reached) if each == count]
                seen = signals if len(places) == len(signals) else signals[places]
                above = trained.ratio_at(seen[:, :known]) > self.threshold
                for row in (step.rows[place] for place, over in zip(places, above.tolist()) if over):
                    step.stopped.add(row)
                    assert stopped is not None
                    stopped[row] = known - 1 + offset

        early = stopped is not None and settings.early
        return SRISignal(self.anchors, on_signal=decide if early else None)

    def _guarded(
        self,
        model: LanguageModel,
        pairs: Sequence[tuple[Request, list[int]]],
        sampling: Sampling,
        batch_size: int,
        watchers: Sequence[Watcher],
    ) -> list[Response]:
        stopped: dict[int, int] = {}
        watcher = self.watcher(stopped)
        requests = [request for request, _ in pairs]
        responses = sample(model, requests, sampling, batch_size=batch_size, watchers=[*watchers, watcher])
        if not responses:
            return []
        signals = watcher.signals().numpy()
        scores = self.score_signals(signals)
        found = []
        for row, (response, (_, prompt_ids)) in enumerate(zip(responses, pairs, strict=True)):
            step = stopped.get(row)
            seen = signals[row] if step is None else signals[row, : step + 1]
            score = scores[row] if step is None else self._score_so_far(seen)
            flagged = step is not None or bool(score > self.threshold)
            verdict = Verdict(
                self.name, self.looks, flagged, None if np.isnan(score) else float(score), self.threshold, step,
                tuple(seen.tolist()) if np.isfinite(seen).all() else None,
            )  # fmt: skip
            found.append(told(model, response, verdict, prompt_ids))
        return found

    def _score_so_far(self, prefix: np.ndarray) -> float:
        """The largest ratio over the beginnings of one signal's first steps [t]."""
        trained, seen = self._trained, self._seen(prefix[None])
        return max(float(trained.ratio_at(seen[:, : t + 1])[0]) for t in range(seen.shape[1]))

    # --- inside ---------------------------------------------------------------------------------------------

    @property
    def _trained(self) -> Autoencoder:
        if self.autoencoder is None:
            raise GuardError("the guard 'sri' isn't trained yet; see midward guard fit.")
        return self.autoencoder

    def _seen(self, signals: np.ndarray) -> np.ndarray:
        """The steps that are looked at."""
        part = {"all": slice(None), "first": slice(0, 1), "later": slice(1, None)}[self.settings.steps]
        return np.asarray(signals, dtype=float)[:, part]

    def bind(self, model: LanguageModel, sampling: Sampling | None = None) -> None:
        """As `Guard.bind`; raises GuardError where the anchors are those of another model or sampling."""
        super().bind(model, sampling)
        if self.anchors is None:
            raise GuardError("the guard 'sri' is trained before it is calibrated; see `train`.")
        try:
            self.anchors.check(model, sampling or Sampling.for_model(model))
        except AnchorsError as error:
            raise GuardError(str(error)) from None
        self.bound["anchors"] = self.anchors.record()

    def tensors(self) -> dict[str, np.ndarray]:
        assert self.anchors is not None
        anchors = {f"anchors.{name}": value.numpy() for name, value in self.anchors.tensors().items()}
        return {**anchors, **self._trained.tensors()}

    def restore(self, tensors: Mapping[str, np.ndarray]) -> None:
        anchors = {
            name.removeprefix("anchors."): torch.from_numpy(value.copy())
            for name, value in tensors.items()
            if name.startswith("anchors.")
        }
        self.anchors = Anchors.rebuild(anchors, self.bound["anchors"], "the file")
        if self.anchors.needs_all_steps or self.anchors.fingerprint != self.bound["fingerprint"]:
            raise InputError("its anchors aren't those of its settings")
        steps = len(self.anchors.mu_harmless)
        seen = {"all": steps, "first": 1, "later": steps - 1}[self.settings.steps]
        rest = {name: value for name, value in tensors.items() if not name.startswith("anchors.")}
        self.autoencoder = Autoencoder.rebuild(rest, self.settings.hidden, seen)
