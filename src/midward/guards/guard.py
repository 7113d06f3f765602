"""What every guard is: a score of suspicion, and a threshold calibrated on harmless prompts.

Shapes: N exchanges, T denoising steps, S detectors trained from different seeds. Scores are floats, higher is more
suspicious; what they measure is each guard's.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic.dataclasses import dataclass as settings_class

from midward._plugins import checking
from midward._settings import read_settings
from midward.dynamics import Anchors, SRISignal, View
from midward.dynamics.anchors import made_for, mismatches
from midward.dynamics.looks import Looks
from midward.errors import InputError
from midward.guards.config import GuardError, conformal_order
from midward.guards.exchange import Exchange, Labelled, Look, Verdict
from midward.guards.front import fill
from midward.models import LanguageModel
from midward.sampling import Response, Sampling, Watcher
from midward.sampling.passes import Passes, alone
from midward.store import key_of

if TYPE_CHECKING:
    from typing import Self

ANCHORS = "anchors."  # before the names of their arrays in a guard's file


def hash_of(tensors: Mapping[str, np.ndarray]) -> str:
    """A hash over names, dtypes, shapes and numbers."""
    values = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        values.update(f"{name} {value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    return values.hexdigest()


def conformal_threshold(scores: Sequence[float] | np.ndarray, alpha: float, certain: float | None = None) -> float:
    """The threshold that a fresh exchangeable score exceeds with probability alpha at most (split conformal
    prediction).

    The ceil((N + 1)(1 - alpha))-th smallest score is taken, so the false-positive rate, given these N, is
    Beta(N + 1 - k, k) distributed with k that order.

    Args:
        scores: [N], of held-out harmless prompts. An unscored NaN is never flagged and counts as the smallest.
        alpha: the false-positive rate, between 0 and 1.
        certain: see `conformal_order`.

    Raises:
        GuardError: where N is too small for alpha.
    """
    scores = np.nan_to_num(np.asarray(scores, dtype=float), nan=-np.inf)
    return float(np.sort(scores)[conformal_order(len(scores), alpha, certain) - 1])


@settings_class(frozen=True, config={"extra": "forbid"})
class Nothing:
    """Nothing to set."""


class Guard(ABC):
    """One guard: `fit`, `score`, `flag`; `sample` puts it in front of a model. `save` and `load` are functions.

    name, version (raised whenever a score may change), about. looks: "before" the generation, at the request;
    "during" it, at its steps; "after" it, at the text. Settings: a frozen pydantic dataclass. tied_to: what a fitted
    one can't be used without: "model" (weights and adapter), "sampling" (all settings but those that are `free`).
    decides_at_steps: whatever it flags it has stopped at a step, so that what a step before left standing may be shown.
    repairs: it samples in a way of its own and answers what it flags anew (`answer`), where the others refuse it.

    A guard that takes labelled answers has `learn`, which comes before `fit`. One that looks at steps `reads` a signal:
    it is trained on harmless signals (`train`) and then has a `watcher` that makes them; one that stops generations
    also says at which step (`stops`). SRI Guard's signals need anchors in its `view`; guards by blocks are in
    `midward.guards.looks`.

    threshold: a score above it is flagged; infinite until the guard is fitted. alpha: the false-positive rate it was
    calibrated for, on `calibrated` held-out harmless prompts. fitted_on: a hash (`prompt_hash`) of every prompt that
    any part of it was fitted on, which an evaluation leaves out. trace: the signal of a harmless answer of those it was
    calibrated on, for a self-test; no verdict depends on it.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    about: ClassVar[str]
    looks: ClassVar[Look]
    Settings: ClassVar[type[Any]] = Nothing
    decides_at_steps: ClassVar[bool] = False
    tied_to: ClassVar[tuple[str, ...]] = ("model",)
    free: ClassVar[tuple[str, ...]] = ("seed",)
    repairs: ClassVar[bool] = False

    def __init__(self, **settings: Any) -> None:
        self.settings = read_settings(self.Settings, settings, f"the guard {self.name!r}")
        self.threshold = math.inf
        self.alpha: float | None = None
        self.calibrated = 0
        self.fitted_on: tuple[str, ...] = ()
        self.bound: dict[str, Any] = {}
        self.anchors: Anchors | None = None
        self.trace: np.ndarray | None = None

    # --- the estimator --------------------------------------------------------------------------------------

    @abstractmethod
    def score(self, model: LanguageModel, exchanges: Sequence[Exchange], *, batch_size: int = 8) -> np.ndarray:
        """How suspicious each exchange is.

        Args:
            model: the guarded one.
            exchanges: what is looked at, N of them.
            batch_size: rows of a forward.

        Returns:
            Scores [N], higher is more suspicious; NaN where the guard can't say.

        Raises:
            GuardError: where an exchange lacks what the guard looks at.
        """

    def scores_by_seed(self, model: LanguageModel, exchanges: Sequence[Exchange], *, batch_size: int = 8) -> np.ndarray:
        """Scores [S, N] of detectors that were trained from several seeds; the first row is `score`."""
        return self.checked(model, exchanges, batch_size=batch_size)[None]

    def checked(self, model: LanguageModel, exchanges: Sequence[Exchange], *, batch_size: int = 8) -> np.ndarray:
        """The `score` of each exchange [N]. Raises GuardError also where that isn't a number, or NaN, for each."""
        given = self.score(model, exchanges, batch_size=batch_size)
        with checking("guard", self.name, GuardError):
            scores = np.asarray(given, dtype=float)
            if scores.shape != (len(exchanges),) or np.isinf(scores).any():
                raise InputError(
                    f"scored {len(exchanges)} exchanges by {scores.shape} values, {np.isinf(scores).sum()} of them "
                    "infinite; a number each is needed, NaN where it can't say."
                )
        return scores

    def fit(
        self,
        model: LanguageModel,
        harmless: Sequence[Exchange],
        *,
        alpha: float = 0.01,
        certain: float | None = None,
        sampling: Sampling | None = None,
        batch_size: int = 8,
    ) -> Self:
        """Calibrate the threshold; a guard of signals is trained before.

        Args:
            model: the guarded one.
            harmless: held-out harmless exchanges.
            alpha, certain: the false-positive rate, see `conformal_order`.
            sampling: what the exchanges were sampled with; the model's own unless given.
            batch_size: rows of a forward.

        Returns:
            The guard.

        Raises:
            GuardError: where there are too few, or they lack what the guard looks at.
        """
        self.bind(model, sampling)
        scores = self.checked(model, harmless, batch_size=batch_size)
        self.calibrate(scores, alpha, certain)
        known = np.flatnonzero(np.isfinite(scores))
        if len(known):  # the median one
            self.trace = harmless[known[np.argsort(scores[known])[len(known) // 2]]].signal
        return self

    def calibrate(self, scores: np.ndarray, alpha: float, certain: float | None = None) -> Self:
        """Set the threshold by the scores [N] of held-out harmless exchanges; see `conformal_threshold`, also for what
        is raised."""
        self.threshold = conformal_threshold(scores, alpha, certain)
        self.alpha, self.calibrated = alpha, len(scores)
        return self

    def flag(self, scores: np.ndarray) -> np.ndarray:
        """Which scores are above the threshold, bool of the same shape; unscored ones are not."""
        return np.asarray(scores, dtype=float) > self.threshold

    def early(
        self, model: LanguageModel, exchanges: Sequence[Exchange], *, batch_size: int = 8, briefly: bool = False
    ) -> np.ndarray:
        """What the requests alone score [N, K], by each of the K parts of the guard that look before the generation.

        Args:
            model, exchanges, batch_size: as of `score`.
            briefly: a request that one part flags isn't shown to those behind it, whose score is NaN then.
        """
        if self.looks != "before":
            return np.empty((len(exchanges), 0))
        return self.checked(model, exchanges, batch_size=batch_size)[:, None]

    # --- of a guard that takes labelled answers ---------------------------------------------------------------

    @property
    def reads_labels(self) -> bool:
        """Whether it takes labelled answers: then it has `learn`."""
        return type(self).learn is not Guard.learn

    def learn(
        self, model: LanguageModel, labelled: Labelled, *, sampling: Sampling | None = None, batch_size: int = 8
    ) -> Self:
        """Fit what the guard needs on labelled answers; `fit` then calibrates it on others.

        Args:
            model: the guarded one.
            labelled: its answers.
            sampling: what they were sampled with; the model's own unless given.
            batch_size: rows of a forward.

        Returns:
            The guard.

        Raises:
            GuardError: for a guard that takes none, or where there are too few of a kind.
        """
        raise GuardError(f"the guard {self.name!r} takes no labelled answers.")

    # --- of a guard that looks at steps ---------------------------------------------------------------------

    @property
    def reads(self) -> str | None:
        """What it reads at the steps, as 16 hex digits that its signals are kept under; None: nothing there."""
        return None if self.anchors is None else self.anchors.digest

    @property
    def trains(self) -> bool:
        """Whether it looks at steps, and so is trained on harmless signals."""
        return type(self).train is not Guard.train

    @property
    def reads_signals(self) -> bool:
        """Whether it looks at SRI signals by step: then it has a `view`."""
        return type(self).view is not Guard.view

    def view(self, model: LanguageModel) -> View | None:
        """How the states are read whose signals it looks at; None where it looks at none."""
        return None

    def train(self, anchors: Anchors | None, signals: np.ndarray, others: Sequence[Guard] = ()) -> Self:
        """Fit what the guard needs on harmless signals; `fit` then calibrates it on others.

        Args:
            anchors: what the signals were read against; None where the guard has what it needs.
            signals: [N, T], in 0..1; of a guard by blocks [N, blocks, J, F + 1].
            others: guards that were trained on the same signals; what is equal may be taken over from them.

        Returns:
            The guard.

        Raises:
            GuardError: for a guard that looks at no signals, or anchors that it can't use.
        """
        raise GuardError(f"the guard {self.name!r} looks at no signals.")

    def watcher(self, stopped: dict[int, int] | None = None) -> SRISignal | Looks | None:
        """What makes the signals while a model samples.

        Args:
            stopped: given, rows are also stopped as they are flagged, and the step is noted here, by request.
        """
        return None

    def stops(self, signals: np.ndarray) -> list[int | None]:
        """The step after which each signal [N, T] is flagged, from 0; None for one that isn't, or only at its end."""
        return [None] * len(signals)

    def scores_so_far(self, signal: Sequence[float]) -> list[float | None]:
        """The score after each of a signal's steps [T]; None at steps that it doesn't look at."""
        raise GuardError(f"the guard {self.name!r} has no score by step.")

    def seen(self, verdict: Verdict, exchange: Exchange, step: int | None) -> Verdict:
        """The verdict with the signal [t] it is of, and the step that it stopped the generation at."""
        signal = exchange.signal
        if signal is None:
            return verdict
        shown = tuple(signal.tolist()) if np.isfinite(signal).all() else None
        return replace(verdict, flagged=verdict.flagged or step is not None, step=step, signal=shown)

    # --- what it belongs to ---------------------------------------------------------------------------------

    def bind(self, model: LanguageModel, sampling: Sampling | None = None) -> None:
        """Note which model and sampling the guard is for. Raises AnchorsMismatch where its anchors are for others."""
        sampling = sampling or Sampling.for_model(model)
        self.bound = made_for(model, sampling)
        if self.anchors is not None:
            self.anchors.check(model, sampling)
            self.bound["anchors"] = self.anchors.record()

    def check(self, model: LanguageModel, sampling: Sampling | None = None) -> None:
        """Raise GuardError, saying what differs, unless the guard is fitted and for this model and sampling."""
        if not self.bound:
            raise GuardError(f"the guard {self.name!r} isn't fitted yet; see midward guard fit.")
        tied_to = self.tied_to if sampling else [thing for thing in self.tied_to if thing != "sampling"]
        here = made_for(model, sampling or Sampling())
        if different := mismatches(self.bound, here, tied_to, self.free):
            flags = {"model": model.name.removeprefix("midward/"), "adapter": model.adapter}
            if sampling:
                own, there = here["sampling"], self.bound["sampling"]
                flags |= {name: own[name] for name in own if name not in self.free and own[name] != there.get(name)}
            told = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in flags.items() if value is not None)
            raise GuardError(
                f"the guard {self.name!r} was fitted for something else: {'; '.join(different)}. Fit one for these "
                f"settings: midward guard fit {told} ..."
            )

    def elsewhere(self, sampling: Sampling) -> list[str]:
        """What of a sampling that the guard goes with is otherwise than it was calibrated under, in words: its
        false-positive rate is another one there."""
        return []

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings of `Sampling` that the guard was fitted for, see `settings_of`."""
        return settings_of(type(self), self.bound)

    @property
    def digest(self) -> str:
        """16 hex digits over everything a verdict depends on."""
        return key_of(
            guard=self.name,
            version=self.version,
            settings=asdict(self.settings),
            bound=self.bound,
            threshold=self.threshold,
            tensors=hash_of(self.tensors()),
        )

    @property
    def doubt(self) -> str:
        """Why what was fitted can't flag what it should, in words; "" where nothing says so."""
        return ""

    # --- in front of a model --------------------------------------------------------------------------------

    def sample(
        self,
        model: LanguageModel,
        requests: Sequence[Any],
        sampling: Sampling | None = None,
        *,
        batch_size: int = 8,
        watchers: Sequence[Watcher] = (),
    ) -> list[Response]:
        """`midward.sample` behind the guard.

        Args:
            model: the guarded one.
            requests: as `midward.sample` takes them.
            sampling: by default what the guard was fitted for.
            batch_size: rows of a forward.
            watchers: see the steps. A request that is flagged before its generation is never sampled, and they don't
                see it.

        Returns:
            Responses with a `verdict`; a flagged one is the `STUB`, and nothing else of it is handed out: its prompt's
            masks are masks again. One that isn't flagged has the tokens that it has without the guard (but for a guard
            that `repairs`).

        Raises:
            GuardError: where the guard isn't fitted for this model and sampling; else what `sample` raises.
        """
        return alone(self.fill(model, requests, sampling, batch_size=batch_size, watchers=watchers))

    def fill(
        self,
        model: LanguageModel,
        requests: Sequence[Any],
        sampling: Sampling | None = None,
        *,
        batch_size: int = 8,
        watchers: Sequence[Watcher] = (),
        shadow: bool = False,
        leaves: Callable[[dict[int, Response]], None] | None = None,
    ) -> Passes[list[Response]]:
        """`sample` as a coroutine, see `midward.sampling.passes`.

        Args:
            model, requests, sampling, batch_size, watchers: as of `sample`; the guard sees a step before the watchers.
            shadow: stop and replace nothing; responses are those without the guard, with its verdict.
            leaves: told of responses, by index, as soon as their verdicts stand; of all by the end.
        """
        return fill(
            self, model, requests, sampling, batch_size=batch_size, watchers=watchers, shadow=shadow, leaves=leaves
        )

    def answer(
        self,
        model: LanguageModel,
        exchanges: Sequence[Exchange],
        sampling: Sampling,
        *,
        batch_size: int = 8,
        watchers: Sequence[Watcher] = (),
    ) -> list[Response]:
        """Of a guard that `repairs`: its own responses, with their verdicts. Args: as of `sample`."""
        raise NotImplementedError

    def verdicts(self, scores: np.ndarray, looks: Look | None = None) -> list[Verdict]:
        """What scores [N] come to. looks: when they were made, where that isn't when the guard looks."""
        known = [None if math.isnan(score) else score for score in scores.tolist()]
        flags = self.flag(scores).tolist()
        looks = looks or self.looks
        return [Verdict(self.name, looks, flags[i], score, self.threshold) for i, score in enumerate(known)]

    # --- on the disk ----------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, np.ndarray]:
        """What was fitted beside the threshold, for the file."""
        tensors = {} if self.anchors is None else self.anchors.tensors()
        return {f"{ANCHORS}{name}": value for name, value in tensors.items()}

    def restore(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Take `tensors` back; all else of the file is there. Raises InputError or KeyError over what it can't have
        written."""
        anchors = {name.removeprefix(ANCHORS): tensor for name, tensor in tensors.items() if name.startswith(ANCHORS)}
        if len(anchors) < len(tensors):
            raise InputError(f"it holds {max(tensors)!r}, which a guard {self.name!r} has no use for")
        if anchors:
            self.anchors = Anchors.rebuild(anchors, self.bound["anchors"], "the file")
            if self.anchors.needs_all_steps or self.anchors.fingerprint != self.bound["fingerprint"]:
                raise InputError("its anchors aren't those of its settings")


def settings_of(kind: type[Guard], bound: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `Sampling`, but for the seed, that a guard is used with unless told otherwise.

    Args:
        kind: the guard's class.
        bound: what it was fitted for, see `Guard.bind`.

    Returns:
        Name -> value; empty where it goes with any sampling, or isn't fitted.
    """
    if not bound or "sampling" not in kind.tied_to:
        return {}
    return {name: value for name, value in bound["sampling"].items() if name != "seed"}
