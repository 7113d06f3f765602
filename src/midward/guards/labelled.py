"""Published monitors that learn from labels, as guards by blocks: hesitation routing, the refusal direction, and CSD's
direction as a detector.

Labels are the model's own answers (`Labelled`). Those that complied all stand behind a forced opening, which answered
ones have not; so that a probe of the two doesn't learn the opening in the place of the harm, it also sees answered
requests behind the beginning of their own answers (`opened`). Layer (the last, after the final norm) and pooling (`phi`
of `midward.dynamics.looks`) are ours everywhere.

Shapes: N looks or blocks, J looks of a block, D hidden size, F features, R looks of one step.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from midward.dynamics.anchors import NO_WORDS
from midward.dynamics.blockwise import look_states
from midward.dynamics.looks import CLASSES, GRID, Look, Reader
from midward.dynamics.sri import numbers
from midward.errors import InputError
from midward.guards.config import GuardError
from midward.guards.exchange import Exchange, Labelled
from midward.guards.looks import LookGuard, states_of
from midward.models import LanguageModel
from midward.sampling import Canvas, Forced, Request, Sampling

if TYPE_CHECKING:
    from typing import Self

#: Answers of a kind that a guard learns from, at least.
LEAST = 2
Positive = Annotated[int, Field(ge=1)]
Penalty = Annotated[float, Field(gt=0)]


def require_kinds(name: str, **answers: Sequence[Any]) -> None:
    """Raise GuardError, naming the kind, where there are fewer than `LEAST` answers of one."""
    for kind, given in answers.items():
        if len(given) < LEAST:
            flag = "--harmless" if kind == "answered" else "--harmful"
            raise GuardError(
                f"the guard {name!r} learns from {' and '.join(answers)} answers, {LEAST} of each at least; received "
                f"{len(given)} {kind}. Give more prompts of that kind ({flag}, --anchors)."
                + f" {NO_WORDS}"
                * (kind == "refused")
            )


@plain_dataclass(frozen=True, eq=False)
class LogOdds:
    """Log-odds of one label against another: standardised states through dense layers with ReLU between them, so that
    one layer is a logistic regression.

    mean, scale [D]. weights: [in, out] each; biases: [out] each, float64.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]

    @classmethod
    def fit(
        cls, states: np.ndarray, labels: np.ndarray, *, penalty: float = 1.0, hidden: int = 0, seed: int = 0
    ) -> LogOdds:
        """Fit to states [N, D] and their labels [N].

        Args:
            penalty: on half the squared weights; the loss is summed over rows.
            hidden: units of one layer between; 0 for none.
            seed: of the layer's first weights and its batches.
        """
        mean, spread = states.mean(0), states.std(0)
        scale = np.where(spread > 0, spread, 1.0)
        rows = (states - mean) / scale
        if hidden:
            network = MLPClassifier((hidden,), alpha=penalty, max_iter=300, random_state=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # its penalty bounds it
                network.fit(rows, labels)
            return cls(mean, scale, tuple(network.coefs_), tuple(network.intercepts_))
        regression = LogisticRegression(C=1 / penalty, max_iter=1000).fit(rows, labels)
        return cls(mean, scale, (regression.coef_.T,), (regression.intercept_,))

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """Log-odds [N] of states [N, D]."""
        weight, bias = self.first
        out = states @ weight + bias
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            out = np.maximum(out, 0.0) @ weight + bias
        return np.asarray(out[:, 0])

    @cached_property
    def first(self) -> tuple[np.ndarray, np.ndarray]:
        """The first layer's weights and biases, for states as they are: a guard asks for a few at every step."""
        weight = self.weights[0] / self.scale[:, None]
        return weight, self.biases[0] - self.mean @ weight

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """All that was fitted, for a guard's file."""
        layers = {f"{name}/weight.{layer}": weight for layer, weight in enumerate(self.weights)}
        layers |= {f"{name}/bias.{layer}": bias for layer, bias in enumerate(self.biases)}
        return {f"{name}/mean": self.mean, f"{name}/scale": self.scale, **layers}

    @classmethod
    def rebuild(cls, tensors: Mapping[str, np.ndarray], name: str, hidden: int = 0) -> LogOdds:
        """Take `tensors` back. Raises InputError or KeyError for arrays that don't fit one another."""
        mean, scale = tensors[f"{name}/mean"], tensors[f"{name}/scale"]
        sizes = [*mean.shape, *([hidden] if hidden else []), 1]
        weights, biases = (
            tuple(tensors[f"{name}/{part}.{layer}"] for layer in range(len(sizes) - 1)) for part in ("weight", "bias")
        )
        wanted = [*pairwise(sizes)]
        if [weight.shape for weight in weights] != wanted or [bias.shape for bias in biases] != [
            size[1:] for size in wanted
        ]:
            raise InputError(f"{name}/weight must be of {wanted}")
        if mean.ndim != 1 or scale.shape != mean.shape or not (scale > 0).all():
            raise InputError(f"{name}/scale must be {mean.shape} numbers above 0")
        return cls(mean, scale, weights, biases)


def odds_of(logits: np.ndarray) -> np.ndarray:
    """Odds of log-odds, so that they are above 0; what is beyond e^-25 and e^250 is that."""
    return np.asarray(np.exp(np.minimum(np.maximum(logits, -25), 250)))


def seen_states(answers: Sequence[Exchange]) -> list[np.ndarray]:
    """phi of the looks that were taken [N, D], in order, of each answer that has any."""
    seen = [phi[np.isfinite(phi).all(-1)].astype(np.float64) for phi in states_of(answers)]
    return [phi for phi in seen if len(phi)]


def opened(model: LanguageModel, answered: Sequence[Exchange], complied: Sequence[Exchange]) -> list[Request]:
    """The requests of answered ones, each behind the beginning of its own answer: as many tokens as are forced on those
    that complied, and half the answer at most. None where nothing is forced on those."""
    sizes = [sum(len(span.ids) for span in each.request.forced) for each in complied if each.request.forced]
    if not sizes:
        return []
    requests = []
    for number, each in enumerate(answered):
        ids = model.tokens(each.text or "")
        if opening := ids[: min(sizes[number % len(sizes)], len(ids) // 2)]:
            requests.append(replace(each.request, forced=(Forced(0, tuple(opening)),)))
    return requests


# --- D2-Monitor: hesitation routing ---------------------------------------------------------------------------------


@dataclass(frozen=True, config={"extra": "forbid"})
class Hesitation:
    """arm: the "cheap" probe alone, "routed" as the paper has it, or the "heavy" one alone. hesitations: hesitating
    looks so far, from which on the heavy probe decides. margin: share of the training looks that hesitate. penalty,
    hidden, seed: of the probes."""

    arm: Literal["cheap", "routed", "heavy"] = "cheap"
    hesitations: Positive = 3
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.2
    penalty: Penalty = 1.0
    hidden: Positive = 64
    seed: int = 0


class HesitationMonitor(LookGuard):
    """D2-Monitor (arXiv 2605.25893): a cheap linear probe reads every step; a step hesitates where the state lies
    within a margin of the probe's boundary, and where many have, a heavier probe decides.

    Here: z, the log-odds of complied against answered by a logistic regression on phi; a look hesitates if |z| < m, the
    20 % quantile of |z| on training looks. A look is scored by z, or, where `hesitations` of the request's looks so far
    have hesitated, by the heavy probe's log-odds: one hidden layer, on the mean of phi over these looks. It is ranked
    among harmless looks of its place, see `LookGuard`.

    [ours], since the abstract alone was read: layer and pooling, looks in the place of steps, margin and count, what
    the heavy probe reads, and the labels, which are of responses, harmless ones also `opened`. What a look scored
    before the heavy probe took over stays in the maximum.
    """

    name = "hesitate"
    about = "a probe of the looks; where it hesitates often, a heavier one decides"
    Settings: ClassVar[type[Any]] = Hesitation
    reads_phi = True
    by_look = True

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.cheap: LogOdds | None = None
        self.heavy: LogOdds | None = None
        self.margin = 0.0

    def learn(
        self, model: LanguageModel, labelled: Labelled, *, sampling: Sampling | None = None, batch_size: int = 8
    ) -> Self:
        answered, complied = seen_states(labelled.answered), seen_states(labelled.complied)
        require_kinds(self.name, answered=answered, complied=complied)
        if requests := opened(model, labelled.answered, labelled.complied):
            again = look_states(model, requests, sampling or Sampling.for_model(model), batch_size=batch_size)
            answered += seen_states([Exchange(requests[i], states=each.phi) for i, each in enumerate(again)])
        answers, own = [*answered, *complied], self.settings
        harmful = [False] * len(answered) + [True] * len(complied)
        labels = np.repeat(harmful, [len(phi) for phi in answers])
        looks = np.concatenate(answers)
        so_far = np.concatenate([phi.cumsum(0) / np.arange(1, 1 + len(phi))[:, None] for phi in answers])
        self.cheap = LogOdds.fit(looks, labels, penalty=own.penalty)
        self.heavy = LogOdds.fit(so_far, labels, penalty=own.penalty, hidden=own.hidden, seed=own.seed)
        self.margin = float(np.quantile(np.abs(self.cheap(looks)), own.margin))
        return self

    def reader(self) -> _Hesitating:
        if self.cheap is None or self.heavy is None:
            raise GuardError(f"the guard {self.name!r} isn't trained yet; see midward guard fit.")
        return _Hesitating(self.cheap, self.heavy, self.margin)

    def deciding(self) -> Reader:
        return self.reader() if self.settings.arm != "cheap" or self.cheap is None else _Cheap(self.cheap)

    def distances(self, number: int, features: np.ndarray) -> np.ndarray:
        if self.settings.arm == "cheap":
            return odds_of(features[:, -1, :1])
        cheap, hesitations, heavy = np.moveaxis(features[:, -1], -1, 0)
        routed = {"routed": hesitations >= self.settings.hesitations, "heavy": True}
        return odds_of(np.where(routed[self.settings.arm], heavy, cheap))[:, None]

    def distance(self, features: np.ndarray) -> float | None:
        if self.settings.arm != "cheap":
            return None
        return math.exp(min(max(features[0], -25.0), 250.0)) * (1 + 1e-9)  # of `odds_of`, whatever its rounding

    def learned(self) -> dict[str, np.ndarray]:
        if self.cheap is None or self.heavy is None:
            return {}
        return {**self.cheap.tensors("cheap"), **self.heavy.tensors("heavy"), "margin": np.array([self.margin])}

    def rebuild(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.cheap = LogOdds.rebuild(tensors, "cheap")
        self.heavy = LogOdds.rebuild(tensors, "heavy", self.settings.hidden)
        if self.cheap.mean.shape != self.heavy.mean.shape:
            raise InputError("heavy/mean must be as long as cheap/mean")
        [margin] = tensors["margin"]
        self.margin = float(margin)


class _Hesitating:
    """Reads z, how many looks of the request have hesitated so far, and the heavy probe's log-odds."""

    width = 3

    def __init__(self, cheap: LogOdds, heavy: LogOdds, margin: float) -> None:
        self.cheap, self.heavy, self.margin = cheap, heavy, margin
        self._sums: dict[int, np.ndarray] = {}  # by request: of phi [D]
        self._counts: dict[int, list[int]] = {}  # of looks, and of hesitating ones

    def on_start(self, canvas: Canvas) -> None:
        for row in canvas.rows:
            self._sums.pop(row.index, None)
            self._counts.pop(row.index, None)

    def __call__(self, look: Look) -> np.ndarray:
        phi = look.phi.astype(np.float64)
        cheap, means, hesitations = self.cheap(phi), [], []
        for request, state, odds in zip(look.requests, phi, cheap, strict=True):
            counts = self._counts.setdefault(request, [0, 0])
            counts[0] += 1
            counts[1] += bool(abs(odds) < self.margin)
            self._sums[request] = self._sums.get(request, 0.0) + state
            means.append(self._sums[request] / counts[0])
            hesitations.append(counts[1])
        return np.stack([cheap, hesitations, self.heavy(np.array(means))], -1)


class _Cheap:
    """Reads z alone, as a `_Hesitating` reader whose other numbers nobody asks for."""

    width = _Hesitating.width

    def __init__(self, cheap: LogOdds) -> None:
        weight, [self.bias] = cheap.first
        self.weight = torch.from_numpy(weight)

    def on_start(self, canvas: Canvas) -> None:
        self.weight = self.weight.to(canvas.ids.device)

    def project(self, sums: torch.Tensor) -> torch.Tensor:
        """What the probe makes of sums of states [B, 1] float64."""
        return sums.double() @ self.weight

    def __call__(self, look: Look) -> list[tuple[float, float, float]]:
        return [(z + self.bias, 0.0, 0.0) for z in look.phi.tolist()]


# --- along a direction ----------------------------------------------------------------------------------------------


class AlongDirection(LookGuard):
    """What guards share that look along a direction between the mean states of two kinds of answers.

    kinds: it points from the first to the second. direction [D], of length 1. levels [CLASSES, J]: what harmless looks
    of a place have.
    """

    kinds: ClassVar[tuple[str, str]]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.direction: np.ndarray | None = None
        self.levels = np.zeros((CLASSES, len(GRID)))

    @abstractmethod
    def level(self, features: np.ndarray) -> np.ndarray:
        """Of harmless features [N, J, F], what stands in `levels` [J]."""

    def learn(
        self, model: LanguageModel, labelled: Labelled, *, sampling: Sampling | None = None, batch_size: int = 8
    ) -> Self:
        answers = {kind: seen_states(getattr(labelled, kind)) for kind in self.kinds}
        require_kinds(self.name, **answers)
        start, end = (np.mean([phi.mean(0) for phi in answers[kind]], 0) for kind in self.kinds)
        self.direction = (end - start) / max(float(np.linalg.norm(end - start)), 1e-12)
        return self

    @property
    def along(self) -> np.ndarray:
        """The direction [D]. Raises GuardError where there is none yet."""
        if self.direction is None:
            raise GuardError(f"the guard {self.name!r} isn't trained yet; see midward guard fit.")
        return self.direction

    def fit_class(self, number: int, features: np.ndarray) -> None:
        self.levels[number] = self.level(features)

    def learned(self) -> dict[str, np.ndarray]:
        return {} if self.direction is None else {"direction": self.direction}

    def fitted(self) -> dict[str, np.ndarray]:
        return {"levels": self.levels}

    def rebuild(self, tensors: Mapping[str, np.ndarray]) -> None:
        direction, levels = tensors["direction"], tensors["levels"]
        if direction.ndim != 1 or levels.shape != self.levels.shape:
            raise InputError(f"direction must be a row of numbers, levels {self.levels.shape}")
        self.direction, self.levels = direction, levels


class DirectionMonitor(AlongDirection):
    """The refusal direction (arXiv 2512.24143) as a monitor: v, the normalised difference of the mean phi of harmful
    requests that were refused and of harmless ones that were answered; z = <phi / |phi|, v>.

    Two-sided: a look's distance is |z - m|, m the median of harmless looks of its place, since a jailbroken answer may
    lie on either side of harmless ones.

    [ours]: the paper takes the direction out of the states, as an attack, and doesn't monitor it; its direction is of
    one layer and token position of the prompts, this of the responses, one for all looks.
    """

    name = "direction"
    about = "how far a block's states lie along the refusal direction, from harmless ones"
    kinds = ("answered", "refused")
    reads_phi = True

    def level(self, features: np.ndarray) -> np.ndarray:
        return np.asarray(np.median(features[..., 0], axis=0))

    def reader(self) -> _Cosine:
        return _Cosine(self.along)

    def distances(self, number: int, features: np.ndarray) -> np.ndarray:
        return np.abs(features[:, -1] - self.levels[number, features.shape[1] - 1])


class _Cosine:
    width = 1

    def __init__(self, direction: np.ndarray) -> None:
        self.direction = direction

    def __call__(self, look: Look) -> np.ndarray:
        phi = look.phi.astype(np.float64)
        return (phi @ self.direction / np.maximum(np.linalg.norm(phi, axis=-1), 1e-12))[:, None]


class ProjectionMonitor(AlongDirection):
    """The direction of CSD (arXiv 2605.13043) as a detector: v, from the mean phi of harmful requests that were refused
    to that of those that were complied with. A look's score is the share of its block's positions, masked and forced
    ones too, whose <h, v> exceeds the 99 % quantile of harmless positions at a look of its place.

    The share is of `QUANTILES` of the block's projections, so that a look is a few numbers whatever the block's size.

    [ours]: the paper steers by this direction and masks again what lies beyond 0, and detects nothing; the harmless
    quantile in the place of 0; the model's own answers in the place of a set of prompts with written refusals; states
    after the final norm.
    """

    name = "csd-score"
    about = "the share of a block's positions that lie farther towards complying than harmless ones"
    kinds = ("refused", "complied")

    def bind(self, model: LanguageModel, sampling: Sampling | None = None) -> None:
        if model.family.kind == "autoregressive":
            raise GuardError(
                f"csd-score reads all positions of a block at once; {model.name!r} is autoregressive. Use direction or "
                "hesitate."
            )
        super().bind(model, sampling)

    def level(self, features: np.ndarray) -> np.ndarray:
        return np.asarray(np.quantile(features, 0.99, axis=(0, 2)))

    def reader(self) -> _Projections:
        return _Projections(self.along)

    def distances(self, number: int, features: np.ndarray) -> np.ndarray:
        above = features[:, -1] > self.levels[number, features.shape[1] - 1]
        return FLOOR + above.mean(-1, keepdims=True)


#: Of a block's projections.
QUANTILES = np.linspace(0, 1, 17)
FLOOR = 0.01  # below every share: ranks beyond the harmless ones go by ratios


class _Projections:
    """Reads the quantiles of <h, v> over the block's positions."""

    width = len(QUANTILES)
    reads_step = True

    def __init__(self, direction: np.ndarray) -> None:
        self.direction = torch.from_numpy(direction)

    def __call__(self, look: Look) -> np.ndarray:
        assert look.step is not None
        hidden = look.step.active_hidden[look.rows].float()  # [R, n, D]
        projections = numbers(hidden @ self.direction.to(hidden))
        blocks = (look.step.blocks[row] for row in look.rows)
        inside = (row[: stop - start] for row, (start, stop) in zip(projections, blocks, strict=True))
        return np.array([np.quantile(row, QUANTILES) for row in inside])
