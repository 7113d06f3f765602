"""Guards that read logits alone: the energy of refusing against complying (arXiv 2609.30841), and P(end) (2509.23286).

Neither takes a label of harm. Only the abstract and summaries of the first are published: its formulas, word lists and
windows are ours; its second velocity (in what is left of logit space) is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from midward.dynamics.looks import CLASSES, GRID, Look, Reader
from midward.errors import InputError
from midward.guards.config import GuardError
from midward.guards.exchange import Exchange, Labelled
from midward.guards.looks import LookGuard
from midward.models import LanguageModel
from midward.sampling import Canvas, Later, Sampling, Step
from midward.store import key_of

if TYPE_CHECKING:
    from typing import Self

_TINY = 1e-9


# --- energy --------------------------------------------------------------------------------------------------------


@settings(frozen=True, config={"extra": "forbid"})
class EnergySettings:
    """size: tokens of each kind. window: positions of an answer's start that they are taken from. signals: which of the
    three decide."""

    size: Annotated[int, Field(ge=1)] = 64
    window: Annotated[int, Field(ge=1)] = 16
    signals: Literal["all", "ratio", "slope", "speed"] = "all"


SIGNALS = ("ratio", "slope", "speed")


class Energy(LookGuard):
    """E_t, the energy of a block: mean over its open positions of log m_H - log m_S, the probabilities of openings of
    answers and of refusals. Score: how rare the rarest of three signals is among harmless requests:

        ratio  E at the first step of the response: a hidden intent is neither refused nor answered
        slope  of E over the block's progress so far
        speed  the largest so far of mean d(c_t, c_t-1)^2 / progress made, d the Fisher-Rao distance of
               c = (m_S, m_H, rest)

    each as its distance from the harmless mean in standard deviations, by class of block and look.

    openings: S and H, [size] each: the tokens whose share of the first positions of refused answers most exceeds that
    of answered ones, and the other way round.
    """

    name = "energy"
    about = "how probable refusing and complying are, from the first step on: three signals of the logits"
    Settings = EnergySettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.openings: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        self.moments: dict[int, np.ndarray] = {}  # by class: mean and deviation [2, J, F]

    def learn(
        self, model: LanguageModel, labelled: Labelled, *, sampling: Sampling | None = None, batch_size: int = 8
    ) -> Self:
        refused, answered = (self._shares(model, part) for part in (labelled.refused, labelled.answered))
        self.openings = self._most(refused, answered), self._most(answered, refused)
        if not all(self.openings):
            raise GuardError(
                f"{len(labelled.refused)} refused and {len(labelled.answered)} answered requests don't open "
                "differently, so there is no energy between them; give more of both (--harmful, --harmless)."
            )
        return self

    def _shares(self, model: LanguageModel, answers: Sequence[Exchange]) -> Counter[int]:
        return Counter(token for each in answers for token in model.tokens(each.text or "")[: self.settings.window])

    def _most(self, more: Counter[int], less: Counter[int]) -> tuple[int, ...]:
        excess = {token: count / more.total() - less[token] / max(1, less.total()) for token, count in more.items()}
        ranked = sorted((token for token in excess if excess[token] > 0), key=lambda token: (-excess[token], token))
        return tuple(ranked[: self.settings.size])

    def reader(self) -> Reader:
        return _EnergyReader(*self.openings)

    def fit_class(self, number: int, features: np.ndarray) -> None:
        self.moments[number] = np.stack([features.mean(0), features.std(0) + 1e-6])

    def distances(self, number: int, features: np.ndarray) -> np.ndarray:
        mean, deviation = self.moments[number][:, features.shape[1] - 1]
        apart = np.exp(np.minimum(np.abs(features[:, -1] - mean) / deviation, 50))
        chosen = self.settings.signals
        return np.asarray(apart if chosen == "all" else apart[:, [SIGNALS.index(chosen)]])

    def check_tokens(self, model: LanguageModel) -> None:
        for name, ids in zip(("refusing", "complying"), self.openings, strict=True):
            if max(ids, default=0) >= model.vocab_size:
                raise GuardError(
                    f"the guard {self.name!r} holds the token {max(ids)} in {name!r}; {model.name!r} has "
                    f"{model.vocab_size}. Fit it anew."
                )

    def learned(self) -> dict[str, np.ndarray]:
        return {name: np.array(ids, dtype=np.int64) for name, ids in zip(("refusing", "complying"), self.openings)}

    def fitted(self) -> dict[str, np.ndarray]:
        return {f"moments.{number}": moments for number, moments in self.moments.items()}

    def rebuild(self, tensors: Mapping[str, np.ndarray]) -> None:
        for name in ("refusing", "complying"):
            ids = tensors[name]
            if ids.ndim != 1 or ids.dtype.kind not in "iu" or not ids.size or (ids < 0).any():
                raise InputError(f"{name} must be a row of token ids, one at least")
        self.openings = tuple(tensors["refusing"].tolist()), tuple(tensors["complying"].tolist())
        for number in range(CLASSES):
            moments = self.moments[number] = tensors[f"moments.{number}"]
            if moments.shape != (2, len(GRID), len(SIGNALS)) or (moments[1] <= 0).any():
                raise InputError(f"moments.{number} must be [2, {len(GRID)}, {len(SIGNALS)}], deviations above 0")


@dataclass
class _Course:
    """Of one block: where it starts, what was open at first, (u, E) of its steps so far, and its largest speed."""

    start: int
    total: int
    progress: list[float]
    energies: list[float]
    speed: float = 0.0


class _EnergyReader:
    """F = 3: ratio, slope, speed. Each step's energies are read from the logits that its tokens are chosen from."""

    width = len(SIGNALS)
    reads_step = True

    def __init__(self, refusing: Sequence[int], complying: Sequence[int]) -> None:
        self.ids = list(refusing), list(complying)

    def on_start(self, canvas: Canvas) -> None:
        self.steps: list[tuple[list[int], list[tuple[int, int]], Later]] = []  # shown, and not yet followed
        self.before: dict[int, np.ndarray] = {}  # by row: sqrt(c) at the step before [length, 3]
        self.ratio: dict[int, float] = {}
        self.courses: dict[int, _Course] = {}

    def reduce(self, logits: torch.Tensor) -> torch.Tensor:
        """c = (m_S, m_H, rest) of each position [N, 3]."""
        p = logits.softmax(-1)
        refusing, complying = (p[:, ids].sum(-1) for ids in self.ids)
        return torch.stack([refusing, complying, 1 - refusing - complying], -1)

    def on_step(self, step: Step) -> None:
        self._follow()
        self.steps.append(([*step.rows], step.blocks, step.later(step.read(self.reduce))))

    def _follow(self) -> None:
        for rows, blocks, read in self.steps:
            self._followed(rows, blocks, read())
        self.steps = []

    def _followed(self, rows: list[int], blocks: list[tuple[int, int]], shares: np.ndarray) -> None:
        """A step's rows go on by their shares [B, length, 3]."""
        # 1. c at the open positions; NaN elsewhere.
        is_open = ~np.isnan(shares[..., 0])
        logs = np.log(np.maximum(shares[..., :2], 0) + _TINY)
        energies = np.where(is_open, logs[..., 1] - logs[..., 0], 0).sum(-1)
        roots = np.sqrt(np.maximum(shares, 0))
        counts = is_open.sum(-1)
        for place, (row, (start, _)) in enumerate(zip(rows, blocks, strict=True)):
            left = int(counts[place])
            energy = float(energies[place]) / max(left, 1)
            course = self.courses.get(row)
            # 2. A block begins, or goes on: its speed, where it was open at the step before.
            if course is None or course.start != start:
                course = self.courses[row] = _Course(start, max(left, 1), [], [])
            progress = 1 - left / course.total
            if course.progress and (made := progress - course.progress[-1]) > 0:
                products = (roots[place] * self.before[row]).sum(-1)
                angles = 2 * np.arccos(np.minimum(products[~np.isnan(products)], 1))
                if len(angles):
                    course.speed = max(course.speed, float((angles**2).mean()) / made)
            course.progress.append(progress)
            course.energies.append(energy)
            self.before[row] = roots[place]
            self.ratio.setdefault(row, energy)

    def __call__(self, look: Look) -> np.ndarray:
        self._follow()
        features = []
        for row in look.requests:
            course = self.courses[row]
            u, energies = np.array(course.progress), np.array(course.energies)
            apart = u - u.sum() / len(u)
            spread = float(apart @ apart)
            slope = float(apart @ energies) / spread if spread > 0 else 0.0
            features.append((self.ratio[row], slope, course.speed))
        return np.array(features)


# --- the end token -------------------------------------------------------------------------------------------------


@settings(frozen=True, config={"extra": "forbid"})
class EndSettings:
    """looks: "first", the response's first forward alone, as A2D has it, or "all"."""

    looks: Literal["first", "all"] = "first"


class EndToken(LookGuard):
    """Score: how rare the probability of an end token is among harmless requests: at the leftmost open position, its
    mean and its largest over the block. Of an adapter trained for it (`align --method a2d`) it is the refusal; of any
    other model it means an empty answer.

    Deviations: the threshold is calibrated, where A2D's is .9 or .8 by hand.
    """

    name = "eos"
    about = "the probability of the end token, which an A2D adapter gives to what it refuses"
    Settings = EndSettings

    @property
    def reads(self) -> str:
        return key_of(guard=self.name, version=self.version, looks=self.settings.looks)

    def reader(self) -> Reader:
        return _EndReader(self.settings.looks == "all")

    def distances(self, number: int, features: np.ndarray) -> np.ndarray:
        return features[:, -1] + _TINY


class _EndReader:
    """F = 3: P(end) at the leftmost open position, its mean and its largest; zeros at looks that don't count."""

    width = 3
    reads_step = True

    def __init__(self, every: bool) -> None:
        self.every = every

    def on_start(self, canvas: Canvas) -> None:
        self.ends = list(canvas.model.family.end_ids)

    def __call__(self, look: Look) -> np.ndarray:
        features = np.zeros((len(look.rows), self.width))
        counted = [i for i, block in enumerate(look.blocks) if self.every or (block == 0 and look.first)]
        if counted:
            assert look.step is not None  # `Looks` hands it over
            p = look.step.probabilities(self.ends).sum(-1)[[look.rows[i] for i in counted]]  # [R, length]
            is_open = ~p.isnan()
            values = p.nan_to_num(0.0)
            leftmost = values.gather(1, is_open.int().argmax(-1, keepdim=True))[:, 0]
            mean = values.sum(-1) / is_open.sum(-1).clamp(min=1)
            features[counted] = torch.stack([leftmost, mean, values.max(-1).values], -1).cpu().numpy()
        return features
