"""Guards that look at blocks by progress, whatever they read there: one score a request, one threshold, any number of
steps.

    1  a reader makes features of each look (`midward.dynamics.looks`)
    2  a detector, fitted on harmless requests, makes of a block's features so far how far they are from those
       (`distances`), by the class of the block
    3  a = -log10 of the share of training looks of that class and place that are as far, so that looks, blocks, and
       different detectors are on one scale; what is farther than all of them goes on by its distance
    4  S, the score: the largest a of all looks so far. A request is stopped when S exceeds the threshold, which is
       calibrated on the S of whole harmless generations: stopping early is covered, since who is flagged at any look
       is who has a larger maximum

Shapes: N blocks, J looks of one, F features, K distances of a look.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from midward.dynamics import Anchors, Autoencoder
from midward.dynamics.anchors import FREE
from midward.dynamics.blockwise import Sigma, look_anchors
from midward.dynamics.looks import CLASSES, GRID, LAST, Followed, Looks, Reader, class_of, judged_as, so_far
from midward.errors import InputError
from midward.guards.config import GuardError
from midward.guards.detectors import Detector, Fitted, Mahalanobis
from midward.guards.exchange import Exchange, Labelled, Verdict
from midward.guards.guard import ANCHORS, Guard, hash_of
from midward.models import LanguageModel
from midward.sampling import Sampling
from midward.store import key_of

if TYPE_CHECKING:
    from typing import Self

log = logging.getLogger("midward")

#: No rank is above it: distances are floats, within 308 powers of ten.
HIGHEST = 330
#: How many times as far as all training looks one is that a guard of any use flags. Odds of a probe have heavy tails:
#: the hundredth of harmless answers that counts lay up to 2e8 times as far, in fits of 60 to 300 answers.
FAR = 1e12
#: Share of the training looks of a place; the median harmless answer isn't nearer than so many at each of its looks.
NEARLY_ALL = 0.9


class LookGuard(Guard):
    """What all guards share that look at blocks by progress; a subclass reads and measures distances.

    tails: (class, look) -> distances of the training looks [N, K], each column sorted. reads_phi: whether its reader
    takes nothing of a look but phi and its place, so that an engine can hand it over (`midward.guards.engine`).
    by_look: whether a look's distances are of its own features alone, whatever class of block it is in.
    """

    looks = "during"
    decides_at_steps = True
    tied_to = ("model", "sampling")
    free = FREE
    reads_phi: ClassVar[bool] = False
    by_look: ClassVar[bool] = False

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.tails: dict[tuple[int, int], np.ndarray] = {}

    # --- for the subclass -----------------------------------------------------------------------------------

    @abstractmethod
    def reader(self) -> Reader:
        """What makes features of looks."""

    def deciding(self) -> Reader:
        """As `reader`, but what this guard's own score doesn't hang on may be 0."""
        return self.reader()

    def fit_class(self, number: int, features: np.ndarray) -> None:
        """Fit the detector of a class of blocks on harmless features [N, J, F], where there is one."""

    @abstractmethod
    def distances(self, number: int, features: np.ndarray) -> np.ndarray:
        """How far blocks of a class are from harmless ones after t looks [N, t, F]: [N, K], above 0."""

    def distance(self, features: np.ndarray) -> float | None:
        """Of the K = 1 distance of a look with these features [F], what it is at most; None where others count, too."""
        return None

    # --- the estimator --------------------------------------------------------------------------------------

    @property
    def reads(self) -> str:
        return key_of(guard=self.name, version=self.version, learned=hash_of(self.learned()))

    def learned(self) -> dict[str, np.ndarray]:
        """What `learn` found, for the file; with `anchors` theirs."""
        return super().tensors()

    def train(self, anchors: Anchors | None, signals: np.ndarray, others: Sequence[Guard] = ()) -> Self:
        by_class: list[list[np.ndarray]] = [[] for _ in range(CLASSES)]
        for table in signals:
            for block, looks in enumerate(table[:, : len(GRID), :-1]):
                if np.isfinite(looks[0]).all():
                    by_class[class_of(block)].append(looks)
        if not by_class[0]:
            raise GuardError(f"the guard {self.name!r} has nothing to train on: no harmless request has a block.")
        for number, blocks in enumerate(by_class):
            blocks = blocks if len(blocks) > 1 else by_class[number - 1]  # too few: as the class before
            by_class[number] = blocks
            seen = np.array(blocks)
            carried = _carried(seen)
            self.fit_class(number, carried)
            for look in range(len(GRID)):
                reached = np.isfinite(seen[:, look]).all(-1)
                there = seen[reached] if reached.any() else carried
                self.tails[number, look] = np.sort(self.distances(number, there[:, : look + 1]), axis=0)
        return self

    def score(self, model: LanguageModel | None, exchanges: Sequence[Exchange], *, batch_size: int = 8) -> np.ndarray:
        tables = [each.signal for each in exchanges if each.signal is not None]
        if len(tables) < len(exchanges):
            raise GuardError(f"the guard {self.name!r} looks at blocks, and an exchange has none; use its `watcher`.")
        together = [tables] if self.by_look else [[table] for table in tables]  # a score hangs on no other request
        ranks = [a for part in together for a in self._ranks(part)]
        return np.array([np.nanmax(a) if np.isfinite(a).any() else np.nan for a in ranks])

    def ranks(self, table: np.ndarray) -> np.ndarray:
        """a [blocks, J] of the looks [blocks, J, F + 1] of a request; NaN where it wasn't looked at."""
        return self._ranks([table])[0]

    def _ranks(self, tables: Sequence[np.ndarray]) -> list[np.ndarray]:
        """`ranks` of requests, all blocks of a class at once."""
        ranks = [np.full(table.shape[:2], np.nan) for table in tables]
        by_class: list[list[tuple[int, int]]] = [[] for _ in range(CLASSES)]
        for request, table in enumerate(tables):
            for block in range(len(table)):
                by_class[class_of(block)].append((request, block))
        for number, places in enumerate(by_class):
            if not places:
                continue
            most = max(tables[request].shape[1] for request, _ in places)
            looks = np.full((len(places), most, tables[places[0][0]].shape[2] - 1), np.nan)  # [N, J, F]
            for place, (request, block) in enumerate(places):
                looks[place, : tables[request].shape[1]] = tables[request][block, :, :-1]
            for look in range(most):
                if seen := np.flatnonzero(np.isfinite(looks[:, look]).all(-1)).tolist():
                    for at, a in zip(seen, self.ranks_at(number, looks[seen][:, so_far(look)]), strict=True):
                        request, block = places[at]
                        ranks[request][block, look] = a
        return ranks

    def ranks_at(self, number: int, looks: np.ndarray) -> np.ndarray:
        """a [N] after t looks [N, t, F] of blocks of a class; the last may be a change of a full block."""
        return tail_ranks(self.tails[number, looks.shape[1] - 1], self.distances(number, looks)).max(1)

    def stops(self, signals: np.ndarray) -> list[int | None]:
        firsts = [self.first_above(table) for table in signals]
        return [None if at is None else int(table[at][-1]) for table, at in zip(signals, firsts, strict=True)]

    def seen(self, verdict: Verdict, exchange: Exchange, step: int | None) -> Verdict:
        """With the block and the progress of the first look above the threshold."""
        verdict, signal = replace(verdict, flagged=verdict.flagged or step is not None, step=step), exchange.signal
        if signal is None or not verdict.flagged or (at := self.first_above(signal)) is None:
            return verdict
        return replace(verdict, block=at[0], progress=GRID[judged_as(at[1])])

    def first_above(self, table: np.ndarray) -> tuple[int, int] | None:
        """The first look of a request [blocks, J, F + 1] that is above the threshold, as (block, look)."""
        above = np.argwhere(self.flag(np.nan_to_num(self.ranks(table), nan=-np.inf))).tolist()
        return min(((block, look) for block, look in above), key=lambda at: (table[at][-1], at), default=None)

    def check_tokens(self, model: LanguageModel) -> None:
        """Raise GuardError where what was learned has tokens that the model has not."""

    @property
    def reach(self) -> float:
        """The rank of a look `FAR` times as far as all training looks of its place, at the place where it is highest;
        0 without tails."""
        return max((float(np.log10(FAR * (1 + len(tails)))) for tails in self.tails.values()), default=0.0)

    @property
    def doubt(self) -> str:
        if self.threshold >= self.reach:
            return (
                f"its threshold is {self.threshold:.3g}, and a look {FAR:g} times as far as all that it was trained on "
                f"scores {self.reach:.3g}"
            )
        if self.trace is not None and not self._is_typical(self.trace):
            return (
                f"the harmless answer in its file is nearer, at every look, than {NEARLY_ALL:.0%} of those that it was "
                "trained on"
            )
        return ""

    def _is_typical(self, signal: np.ndarray) -> bool:
        """Whether some look of a harmless signal [blocks, J, F + 1] isn't nearer than `NEARLY_ALL` training looks."""
        for block, looks in enumerate(signal[..., :-1]):
            number = class_of(block)
            for look in np.flatnonzero(np.isfinite(looks).all(-1)).tolist():
                distances = self.distances(number, looks[None, so_far(look)])
                if ((self.tails[number, judged_as(look)] > distances).mean(0) < NEARLY_ALL).any():
                    return True
        return False

    def check(self, model: LanguageModel, sampling: Sampling | None = None) -> None:
        """As of every guard. Under another number of steps, threshold or length it works, but its false-positive rate
        is another one, which is warned of."""
        super().check(model, sampling)
        self.check_tokens(model)
        other = [] if sampling is None else self.elsewhere(sampling)
        if other:
            log.warning(
                "the guard %r was calibrated under another decoding (%s): its false-positive rate isn't %s here.",
                *(self.name, "; ".join(other), f"{self.alpha:g}" if self.alpha else "known"),
            )

    def elsewhere(self, sampling: Sampling) -> list[str]:
        here, there = asdict(sampling), self.bound["sampling"]
        names = ("steps", "threshold", "length")
        return [
            f"{name} {there.get(name)!r} there, {here[name]!r} here" for name in names if here[name] != there.get(name)
        ]

    # --- while sampling -------------------------------------------------------------------------------------

    def watcher(self, stopped: dict[int, int] | None = None) -> Looks:
        if stopped is None:
            return Looks(self.reader())
        near = {at: self._near(tails) for at, tails in self.tails.items()}  # what few looks are farther than
        nearest = {at: float(distances.min()) for at, distances in near.items()}

        def decide(taken: Sequence[tuple[int, int, int]], followed: Mapping[int, Followed]) -> set[int]:
            groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
            for request, block, look in taken:
                if request in stopped:
                    continue
                number, most = class_of(block), self.distance(followed[request].features[block, look])
                if most is None or most > nearest[number, judged_as(look)]:
                    groups.setdefault((number, look), []).append((request, block))
            flagged: set[int] = set()
            for (number, look), members in groups.items():
                distances = self.distances(
                    number, np.array([followed[request].so_far(block, look) for request, block in members])
                )
                at = number, judged_as(look)
                if not (distances > near[at]).any():
                    continue
                above = self.flag(tail_ranks(self.tails[at], distances).max(1)).tolist()
                for request, block in (member for member, is_above in zip(members, above, strict=True) if is_above):
                    step = followed[request].steps[block, look]
                    stopped[request] = min(step, stopped.get(request, step))
                    flagged.add(request)
            for request in flagged:
                followed[request].last = stopped[request]
            return flagged

        return Looks(self.deciding(), on_look=decide)

    def _near(self, tails: np.ndarray) -> np.ndarray:
        """Distances [K] up to which no rank among training distances [N, K] is above the threshold."""
        farther = int((np.log10((1 + len(tails)) / (1 + np.arange(1 + len(tails)))) > self.threshold).sum())
        if farther > len(tails):
            return np.full(tails.shape[1], -np.inf)
        return np.asarray(tails[len(tails) - max(farther, 1)])

    # --- on the disk ----------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, np.ndarray]:
        tails = {f"tail.{number}.{look}": tail for (number, look), tail in self.tails.items()}
        return {**self.learned(), **tails, **self.fitted()}

    def fitted(self) -> dict[str, np.ndarray]:
        """What `fit_class` found, for the file."""
        return {}

    def rebuild(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Take `fitted` and what `learn` found back. Raises InputError or KeyError over anything else."""
        super().restore(tensors)

    def restore(self, tensors: Mapping[str, np.ndarray]) -> None:
        if not 0 <= self.threshold <= HIGHEST:
            raise InputError(f"its threshold is {self.threshold:g}, and ranks are 0 to {HIGHEST}")
        self.take({name: value for name, value in tensors.items() if not name.startswith("tail.")})
        width = self.reader().width
        trace = self.trace
        if trace is not None and (trace.ndim != 3 or trace.shape[1] <= LAST or trace.shape[2] != width + 1):
            raise InputError(f"its self-test is {trace.shape}, not [blocks, {len(GRID)}, {width + 1}]")
        for number in range(CLASSES):
            with np.errstate(all="ignore"):  # how many there are is all that is asked
                needed = self.distances(number, np.zeros((1, 1, width))).shape[1]
            for look in range(len(GRID)):
                tail = self.tails[number, look] = tensors[f"tail.{number}.{look}"]
                if tail.ndim != 2 or tail.shape[1] != needed:
                    raise InputError(f"tail.{number}.{look} is {tail.shape}, not [N, {needed}], a column a distance")
                if tail.dtype.kind != "f" or not tail.size or (tail[1:] < tail[:-1]).any() or (tail < 0).any():
                    raise InputError(f"tail.{number}.{look} must be sorted distances [N, {needed}], floats")

    def take(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Take `learned` and `fitted` back."""
        super().restore({name: value for name, value in tensors.items() if name.startswith(ANCHORS)})
        self.rebuild({name: value for name, value in tensors.items() if not name.startswith(ANCHORS)})


def tail_ranks(tails: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """a = -log10 of the share of training distances that are as far, and for what is farther than all of them, as many
    powers of ten as it is.

    Args:
        tails: distances of training looks [N, K], each column sorted.
        distances: of others [M, K].

    Returns:
        a [M, K].
    """
    columns = range(tails.shape[1])
    as_far = np.stack([len(tails) - np.searchsorted(tails[:, k], distances[:, k]) for k in columns], 1)
    beyond = np.log10(np.maximum(distances / np.maximum(tails[-1], 1e-12), 1))
    return np.asarray(np.log10((1 + len(tails)) / (1 + as_far)) + beyond)


def states_of(answers: Sequence[Exchange]) -> list[np.ndarray]:
    """phi of the looks [blocks, J, D] of answers that were sampled to learn from."""
    return [each.states for each in answers if each.states is not None]


def _carried(looks: np.ndarray) -> np.ndarray:
    """Features [N, J, F] of blocks, where a look that wasn't reached has those of the look before."""
    carried = looks.copy()
    for look in range(1, looks.shape[1]):
        missing = ~np.isfinite(carried[:, look]).all(-1)
        carried[missing, look] = carried[missing, look - 1]
    return carried


# --- SRI by blocks ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, config={"extra": "forbid"})
class SRIBlocks:
    """detector: an autoencoder of a block's signal (J-16-2-16-J), or its Mahalanobis distance on the logit scale.
    epochs, seed: of the autoencoder."""

    detector: Literal["autoencoder", "mahalanobis"] = "mahalanobis"
    epochs: Annotated[int, Field(ge=1)] = 300
    seed: int = 0


HIDDEN = (16, 2, 16)  # the published bottleneck of 8 is wider than six looks and would learn the identity


class SRIBlocksGuard(LookGuard):
    """SRI Guard by blocks; ours. Score: how rare the signal of some block so far is among those of harmless requests,
    as -log10 of the share."""

    name = "sri-blocks"
    about = "harmless SRI signals of a block at six looks of its progress, for any number of steps"
    Settings = SRIBlocks
    reads_phi = True

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.detectors: dict[int, Detector] = {}

    def learn(
        self, model: LanguageModel, labelled: Labelled, *, sampling: Sampling | None = None, batch_size: int = 8
    ) -> Self:
        answered, refused = (states_of(part) for part in (labelled.answered, labelled.refused))
        self.anchors = look_anchors(model, sampling or Sampling.for_model(model), answered, refused)
        return self

    def reader(self) -> Reader:
        if self.anchors is None:
            raise GuardError(f"the guard {self.name!r} isn't trained yet; see midward guard fit.")
        return Sigma(self.anchors)

    def fit_class(self, number: int, features: np.ndarray) -> None:
        signals = features[..., 0]
        fitted: Fitted
        if self.settings.detector == "autoencoder":
            fitted = Autoencoder.fit(signals, hidden=HIDDEN, epochs=self.settings.epochs, seed=self.settings.seed)
        else:
            fitted = Mahalanobis.fit(signals)
        self.detectors[number] = Detector.of(fitted, signals)

    def distances(self, number: int, features: np.ndarray) -> np.ndarray:
        return self.detectors[number].ratio_at(features[..., 0])[:, None]

    def fitted(self) -> dict[str, np.ndarray]:
        return {
            f"class{number}/{name}": value
            for number, detector in self.detectors.items()
            for name, value in detector.tensors().items()
        }

    def rebuild(self, tensors: Mapping[str, np.ndarray]) -> None:
        for number in range(CLASSES):
            prefix = f"class{number}/"
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            fitted: Fitted
            if self.settings.detector == "autoencoder":
                fitted = Autoencoder.rebuild(own, HIDDEN, len(GRID))
            else:
                fitted = Mahalanobis.rebuild(own, len(GRID))
            self.detectors[number] = Detector.rebuild(fitted, own, len(GRID))
