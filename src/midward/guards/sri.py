"""SRI Guard: a generation whose step-wise refusal signal isn't that of a harmless one is stopped (arXiv 2602.02600).

Shapes: N signals, B rows of a step, T steps, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from midward.dynamics import Anchors, AnchorsError, SRISignal
from midward.dynamics.states import LAST
from midward.errors import InputError
from midward.guards.autoencoder import HIDDEN, Autoencoder, Detector
from midward.guards.guard import Exchange, Guard, GuardError, Verdict, told
from midward.guards.mahalanobis import Mahalanobis
from midward.models import LanguageModel
from midward.sampling import Request, Response, Sampling, Step, Watcher, sample

if TYPE_CHECKING:
    from typing import Self

Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config={"extra": "forbid"})
class SRIMaha:
    """early: decide at every step and stop the generation once flagged; otherwise when it is over, as in the paper.
    reading, layer: of the states, see `Pooling`. steps: of the signal that is looked at: "all", "first" (the step t = 0
    alone) or "later" (without it)."""

    early: bool = True
    reading: Literal["response", "generated"] = "response"
    layer: Literal["last", "middle", "first"] = "last"
    steps: Literal["all", "first", "later"] = "all"


@dataclass(frozen=True, config={"extra": "forbid"})
class SRI(SRIMaha):
    """As `SRIMaha`. hidden, epochs, seed: of the autoencoder. seeds: how many are trained, from `seed` on: the first
    decides, the others show what a figure owes to the draw."""

    hidden: tuple[Positive, ...] = HIDDEN
    epochs: Positive = 300
    seed: int = 0
    seeds: Positive = 5


class SRIGuard(Guard):
    """Score: how badly an autoencoder of harmless signals rebuilds the signal, in units of the training errors' 99 %
    quantile. With early=True it is the largest such ratio over the signal's beginnings, each completed by the harmless
    mean, and the threshold is calibrated on that maximum: the false-positive rate counts every look.

    anchors: None until `train`. detectors: what was fitted on harmless signals, by seed; the first one decides. The
    sampling isn't changed: a row that ends early ends early, and its last state's signal stands for the rest.
    """

    name = "sri"
    about = "an autoencoder of harmless SRI signals, over the steps"
    looks = "during"
    Settings: ClassVar[type[Any]] = SRI
    tied_to = ("model", "sampling")

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.anchors: Anchors | None = None
        self.detectors: tuple[Detector, ...] = ()

    # --- the estimator --------------------------------------------------------------------------------------

    def train(self, anchors: Anchors, signals: np.ndarray) -> Self:
        """Fit the detectors on harmless signals [N, T] made with these anchors; `fit` then calibrates on others.

        Raises GuardError for anchors that would change the sampling.
        """
        if anchors.needs_all_steps:
            raise GuardError(
                "these anchors run every step, which changes what is sampled; fit them with needs_all_steps=False."
            )
        self.anchors = anchors
        self.detectors = self._fitted(self._seen(signals))
        return self

    def trains_as(self, other: SRIGuard) -> bool:
        """Whether `train` fits the same detectors: they differ at most in when they decide."""
        return self.name == other.name and self.settings == replace(other.settings, early=self.settings.early)

    def _fitted(self, signals: np.ndarray) -> tuple[Detector, ...]:
        own = self.settings
        return tuple(
            Autoencoder.fit(signals, hidden=own.hidden, epochs=own.epochs, seed=seed)
            for seed in range(own.seed, own.seed + own.seeds)
        )

    def _rebuilt(self, tensors: Mapping[str, np.ndarray], steps: int) -> Detector:
        return Autoencoder.rebuild(tensors, self.settings.hidden, steps)

    def score(self, model: LanguageModel | None, exchanges: Sequence[Exchange], *, batch_size: int = 8) -> np.ndarray:
        if any(each.signal is None for each in exchanges):
            raise GuardError("SRI Guard looks at signals, and an exchange has none; sample with its `watcher`.")
        return self.score_signals(np.array([each.signal for each in exchanges], dtype=float))

    def score_signals(self, signals: np.ndarray) -> np.ndarray:
        """Scores [N] of signals [N, T]; NaN for one that isn't known (the row took part in no step)."""
        return self._scores(self._trained, signals)

    def scores_by_seed(self, signals: np.ndarray) -> np.ndarray:
        """Scores [S, N] of each of the `detectors`; the first row is `score_signals`."""
        return np.stack([self._scores(detector, signals) for detector in self.detectors])

    def _scores(self, detector: Detector, signals: np.ndarray) -> np.ndarray:
        scores = np.full(len(signals), np.nan)
        known = np.isfinite(signals).all(1)
        if known.any():
            ratios = detector.ratios(self._seen(signals[known]))
            scores[known] = ratios.max(1) if self.settings.early else ratios[:, -1]
        return scores

    def scores_so_far(self, signal: Sequence[float]) -> list[float | None]:
        """How suspicious a signal [T] is after each of its steps; None at steps that aren't looked at."""
        seen = self._seen(np.array([signal], dtype=float))
        start = 1 if self.settings.steps == "later" else 0
        ratios = [float(self._trained.ratio_at(seen[:, : t + 1])[0]) for t in range(seen.shape[1])]
        return [*[None] * start, *ratios, *[None] * (len(signal) - start - len(ratios))]

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
            raise GuardError(f"the guard {self.name!r} isn't trained yet; see midward guard fit.")
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
            score = (
                scores[row]
                if step is None
                else max(one for one in self.scores_so_far(seen.tolist()) if one is not None)
            )
            flagged = step is not None or bool(score > self.threshold)
            verdict = Verdict(
                self.name,
                self.looks,
                flagged,
                None if np.isnan(score) else float(score),
                self.threshold,
                step,
                tuple(seen.tolist()) if np.isfinite(seen).all() else None,
            )
            found.append(told(model, response, verdict, prompt_ids))
        return found

    # --- inside ---------------------------------------------------------------------------------------------

    @property
    def _trained(self) -> Detector:
        if not self.detectors:
            raise GuardError(f"the guard {self.name!r} isn't trained yet; see midward guard fit.")
        return self.detectors[0]

    def _seen(self, signals: np.ndarray) -> np.ndarray:
        """The steps that are looked at."""
        part = {"all": slice(None), "first": slice(0, 1), "later": slice(1, None)}[self.settings.steps]
        return np.asarray(signals, dtype=float)[:, part]

    def bind(self, model: LanguageModel, sampling: Sampling | None = None) -> None:
        """As `Guard.bind`; raises GuardError where the anchors are those of another model or sampling."""
        super().bind(model, sampling)
        if self.anchors is None:
            raise GuardError(f"the guard {self.name!r} is trained before it is calibrated; see `train`.")
        try:
            self.anchors.check(model, sampling or Sampling.for_model(model))
        except AnchorsError as error:
            raise GuardError(str(error)) from None
        self.bound["anchors"] = self.anchors.record()

    def tensors(self) -> dict[str, np.ndarray]:
        assert self.anchors is not None
        anchors = {f"anchors.{name}": value.numpy() for name, value in self.anchors.tensors().items()}
        found = self._trained.tensors()
        for number, other in enumerate(self.detectors[1:], 1):
            found |= {f"seed{number}/{name}": value for name, value in other.tensors().items()}
        return {**anchors, **found}

    def restore(self, tensors: Mapping[str, np.ndarray]) -> None:
        anchors: dict[str, torch.Tensor] = {}
        detectors: dict[str, dict[str, np.ndarray]] = {"": {}}  # by seed, the first one's without a name
        for name, value in tensors.items():
            if name.startswith("anchors."):
                anchors[name.removeprefix("anchors.")] = torch.from_numpy(value.copy())
            else:
                seed, _, own = name.rpartition("/")
                detectors.setdefault(seed, {})[own] = value
        self.anchors = Anchors.rebuild(anchors, self.bound["anchors"], "the file")
        if self.anchors.needs_all_steps or self.anchors.fingerprint != self.bound["fingerprint"]:
            raise InputError("its anchors aren't those of its settings")
        # A file from before guards had these settings is read as its anchors say.
        layer = {LAST: "last", 0: "first"}.get(self.anchors.layer, "middle")
        self.settings = replace(self.settings, reading=self.anchors.reading, layer=layer)
        steps = len(self.anchors.mu_harmless)
        seen = {"all": steps, "first": 1, "later": steps - 1}[self.settings.steps]
        self.detectors = tuple(self._rebuilt(one, seen) for _, one in sorted(detectors.items()))


class SRIMahalanobisGuard(SRIGuard):
    """As SRI Guard, with the Mahalanobis distance of the signal on the logit scale in the place of the autoencoder's
    error; ours."""

    name = "sri-maha"
    about = "the distance from harmless SRI signals on the logit scale, over the steps"
    Settings = SRIMaha

    def _fitted(self, signals: np.ndarray) -> tuple[Detector, ...]:
        return (Mahalanobis.fit(signals),)

    def _rebuilt(self, tensors: Mapping[str, np.ndarray], steps: int) -> Detector:
        return Mahalanobis.rebuild(tensors, steps)
