"""SRI Guard: a generation whose step-wise refusal signal isn't that of a harmless one is stopped (arXiv 2602.02600).

What it computes stands in `midward.dynamics.sri`. Shapes: N signals, S seeds, T steps, t of them known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from midward._hints import one_of
from midward.dynamics import Anchors, Autoencoder, SRISignal, View, layers_of
from midward.dynamics.sri import HIDDEN
from midward.guards.config import GuardError
from midward.guards.detectors import Detector, Fitted, Mahalanobis
from midward.guards.exchange import Exchange
from midward.guards.guard import ANCHORS, Guard
from midward.models import LanguageModel
from midward.sampling import Step

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
        self.detectors: tuple[Detector, ...] = ()

    # --- the estimator --------------------------------------------------------------------------------------

    def view(self, model: LanguageModel) -> View:
        layers = layers_of(model)
        one_of("layer", self.settings.layer, tuple(layers))
        return self.settings.reading, layers[self.settings.layer]

    def train(self, anchors: Anchors | None, signals: np.ndarray, others: Sequence[Guard] = ()) -> Self:
        """Fit the detectors on harmless signals [N, T] made with these anchors; `fit` then calibrates on others.

        Raises GuardError for anchors that would change the sampling.
        """
        if anchors is None or anchors.needs_all_steps:
            raise GuardError(
                "these anchors run every step, which changes what is sampled; fit them with needs_all_steps=False."
            )
        self.anchors = anchors
        for other in others:  # one that differs in nothing but when it decides has the same detectors
            if type(other) is type(self) and other.settings == replace(self.settings, early=other.settings.early):
                self.detectors = other.detectors
                return self
        seen = self._seen(signals[np.isfinite(signals).all(1)])
        self.detectors = tuple(Detector.of(fitted, seen) for fitted in self._fitted(seen))
        return self

    def _fitted(self, signals: np.ndarray) -> Sequence[Fitted]:
        own = self.settings
        seeds = range(own.seed, own.seed + own.seeds)
        return [Autoencoder.fit(signals, hidden=own.hidden, epochs=own.epochs, seed=seed) for seed in seeds]

    def _rebuilt(self, tensors: Mapping[str, np.ndarray], steps: int) -> Fitted:
        return Autoencoder.rebuild(tensors, self.settings.hidden, steps)

    def score(self, model: LanguageModel | None, exchanges: Sequence[Exchange], *, batch_size: int = 8) -> np.ndarray:
        return self._score_exchanges(exchanges, self._trained)

    def scores_by_seed(
        self, model: LanguageModel | None, exchanges: Sequence[Exchange], *, batch_size: int = 8
    ) -> np.ndarray:
        return np.stack([self._score_exchanges(exchanges, detector) for detector in self.detectors])

    def _score_exchanges(self, exchanges: Sequence[Exchange], detector: Detector) -> np.ndarray:
        signals = [each.signal for each in exchanges if each.signal is not None]
        if len(signals) < len(exchanges):
            raise GuardError("SRI Guard looks at signals, and an exchange has none; sample with its `watcher`.")
        scores = np.full(len(signals), np.nan)
        for known in {len(signal) for signal in signals}:  # one that was stopped has a beginning alone
            rows = [i for i, signal in enumerate(signals) if len(signal) == known]
            scores[rows] = self._scores(detector, np.array([signals[i] for i in rows], dtype=float))
        return scores

    def score_signals(self, signals: np.ndarray) -> np.ndarray:
        """Scores [N] of signals [N, t]; NaN for one that isn't known (the row took part in no step)."""
        return self._scores(self._trained, signals)

    def _scores(self, detector: Detector, signals: np.ndarray) -> np.ndarray:
        scores = np.full(len(signals), np.nan)
        finite = np.isfinite(signals).all(1)
        if finite.any():
            ratios = detector.ratios(self._seen(signals[finite]))
            scores[finite] = ratios.max(1) if self.settings.early else ratios[:, -1]
        return scores

    def scores_so_far(self, signal: Sequence[float]) -> list[float | None]:
        seen = self._seen(np.array([signal], dtype=float))
        ratios = self._trained.ratios(seen)[0].tolist() if seen.shape[1] else []
        return [*[None] * self._first, *ratios, *[None] * (len(signal) - self._first - len(ratios))]

    def stops(self, signals: np.ndarray) -> list[int | None]:
        if not self.settings.early:
            return super().stops(signals)
        above = self.flag(self._trained.ratios(self._seen(signals)))
        return [int(row.argmax()) + self._first if row.any() else None for row in above]

    # --- while sampling -------------------------------------------------------------------------------------

    def watcher(self, stopped: dict[int, int] | None = None) -> SRISignal:
        trained, first = self._trained, self._first
        assert self.anchors is not None  # `train` takes both
        most = self._steps(len(self.anchors.mu_harmless))

        def decide(step: Step, sigma: np.ndarray, reached: list[int]) -> None:
            places = [place for place, count in enumerate(reached) if first < count <= first + most]
            if not places:
                return
            known = np.array([reached[place] - first for place in places])
            seen = sigma if len(places) == len(sigma) else sigma[places]
            seen, is_same = seen[:, first : first + known.max()], (known == known[0]).all()
            above = self.flag(trained.ratio_at(seen, None if is_same else known))
            for place in (place for place, over in zip(places, above.tolist(), strict=True) if over):
                assert stopped is not None
                step.stopped.add(step.rows[place])
                stopped[step.rows[place]] = reached[place] - 1

        early = stopped is not None and self.settings.early
        return SRISignal(self.anchors, on_signal=decide if early else None)

    # --- inside ---------------------------------------------------------------------------------------------

    @property
    def _trained(self) -> Detector:
        if not self.detectors:
            raise GuardError(f"the guard {self.name!r} isn't trained yet; see midward guard fit.")
        return self.detectors[0]

    @property
    def _first(self) -> int:
        """The first step that is looked at."""
        return 1 if self.settings.steps == "later" else 0

    def _steps(self, steps: int) -> int:
        """How many of so many steps are looked at."""
        return 1 if self.settings.steps == "first" else steps - self._first

    def _seen(self, signals: np.ndarray) -> np.ndarray:
        """The steps that are looked at, of signals [N, t]."""
        return np.asarray(signals, dtype=float)[:, self._first :][:, : self._steps(signals.shape[1])]

    def tensors(self) -> dict[str, np.ndarray]:
        tensors = super().tensors() | self._trained.tensors()
        for number, other in enumerate(self.detectors[1:], 1):
            tensors |= {f"seed{number}/{name}": value for name, value in other.tensors().items()}
        return tensors

    def restore(self, tensors: Mapping[str, np.ndarray]) -> None:
        anchors = {name: value for name, value in tensors.items() if name.startswith(ANCHORS)}
        super().restore(anchors)
        assert self.anchors is not None
        detectors: dict[str, dict[str, np.ndarray]] = {}  # by seed, the first one's without a name
        for name in tensors.keys() - anchors.keys():
            seed, _, own = name.rpartition("/")
            detectors.setdefault(seed, {})[own] = tensors[name]
        steps = self._steps(len(self.anchors.mu_harmless))
        self.detectors = tuple(
            Detector.rebuild(self._rebuilt(own, steps), own, steps) for _, own in sorted(detectors.items())
        )


class SRIMahalanobisGuard(SRIGuard):
    """As SRI Guard, with the Mahalanobis distance of the signal on the logit scale in the place of the autoencoder's
    error; ours."""

    name = "sri-maha"
    about = "the distance from harmless SRI signals on the logit scale, over the steps"
    Settings = SRIMaha

    def _fitted(self, signals: np.ndarray) -> Sequence[Fitted]:
        return [Mahalanobis.fit(signals)]

    def _rebuilt(self, tensors: Mapping[str, np.ndarray], steps: int) -> Fitted:
        return Mahalanobis.rebuild(tensors, steps)
