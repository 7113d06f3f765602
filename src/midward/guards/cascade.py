"""Several guards as one: those that look at the request, then those that look at blocks; the largest of their tail
ranks, calibrated once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from midward.dynamics.looks import Look, Reader, class_of, judged_as, so_far
from midward.errors import InputError
from midward.guards.config import GuardError, parsed
from midward.guards.exchange import Exchange, Labelled, Verdict
from midward.guards.front import largest
from midward.guards.guard import Guard
from midward.guards.labelled import DirectionMonitor, HesitationMonitor, ProjectionMonitor
from midward.guards.logits import EndToken, Energy
from midward.guards.looks import LookGuard, SRIBlocksGuard, tail_ranks
from midward.guards.masks import MaskFilter
from midward.guards.prefuse import PreFusion
from midward.models import LanguageModel
from midward.sampling import Canvas, Sampling, Step

if TYPE_CHECKING:
    from typing import Self

#: What may be in one: guards that look at the request, and guards by blocks.
_KINDS: tuple[type[Guard], ...] = (
    *(MaskFilter, PreFusion),
    *(SRIBlocksGuard, Energy, EndToken, HesitationMonitor, DirectionMonitor, ProjectionMonitor),
)
KINDS = {kind.name: kind for kind in _KINDS}

#: What a cascade is made of unless told otherwise.
MEMBERS = ("sri-blocks:detector=autoencoder", "energy")


@dataclass(frozen=True, config={"extra": "forbid"})
class CascadeSettings:
    """members: guards by blocks, and before them `masks` or `prefuse`, as `guards.make` takes them."""

    members: Annotated[tuple[str, ...], Field(min_length=1)] = MEMBERS


class Cascade(LookGuard):
    """Score: the largest score of its members, which are on one scale: ranks among harmless requests. The threshold is
    calibrated on that largest one, so that one false-positive rate is spent on all of them.

    Members that look at the request come first, in their order: what one of them flags is never sampled, and costs no
    forward but its own. A mask in the request ranks beyond all harmless requests, whatever was trained on; where
    harmless ones hold masks, calibration sees to it.
    """

    name = "cascade"
    about = "several guards at one false-positive rate; sri-blocks and energy unless told otherwise"
    Settings = CascadeSettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._ends: list[int] = []  # of each later member's features but the last one's
        self.members: list[Guard] = []
        for spec in self.settings.members:
            kind, own = parsed(spec, _member)
            self.members.append(kind(**own))
        self.first = [member for member in self.members if member.looks == "before"]
        self.later = [member for member in self.members if isinstance(member, LookGuard)]
        if not self.later:
            raise InputError(f"a cascade holds a guard by blocks or more; received {', '.join(self.settings.members)}.")

    @property
    def reads_labels(self) -> bool:
        return any(member.reads_labels for member in self.members)

    def learn(
        self, model: LanguageModel, labelled: Labelled, *, sampling: Sampling | None = None, batch_size: int = 8
    ) -> Self:
        for member in self.members:
            if member.reads_labels:
                member.learn(model, labelled, sampling=sampling, batch_size=batch_size)
        return self

    # --- at the request -------------------------------------------------------------------------------------

    def early(
        self, model: LanguageModel, exchanges: Sequence[Exchange], *, batch_size: int = 8, briefly: bool = False
    ) -> np.ndarray:
        ranks = np.full((len(exchanges), len(self.first)), np.nan)
        for k, member in enumerate(self.first):
            flagged = self.flag(largest(ranks)) if briefly else np.zeros(len(exchanges), dtype=bool)
            if rest := np.flatnonzero(~flagged).tolist():
                ranks[rest, k] = _ranked(member, model, [exchanges[i] for i in rest], batch_size)
        return ranks

    def score(self, model: LanguageModel | None, exchanges: Sequence[Exchange], *, batch_size: int = 8) -> np.ndarray:
        scores = super().score(model, exchanges, batch_size=batch_size)
        if not self.first:
            return scores
        known = [each.early for each in exchanges if each.early is not None]
        if len(known) < len(exchanges):
            assert model is not None
            known = [*self.early(model, exchanges, batch_size=batch_size)]
        return np.fmax(scores, largest(np.array(known).reshape(-1, len(self.first))))

    # --- at blocks ------------------------------------------------------------------------------------------

    def reader(self) -> Reader:
        return _Together([member.reader() for member in self.later])

    def fit_class(self, number: int, features: np.ndarray) -> None:
        for member, own in zip(self.later, self._parts(features), strict=True):
            member.fit_class(number, own)

    def distances(self, number: int, features: np.ndarray) -> np.ndarray:
        return np.concatenate(self._distances(number, features), axis=-1)

    def _distances(self, number: int, features: np.ndarray) -> list[np.ndarray]:
        parts = zip(self.later, self._parts(features), strict=True)
        return [member.distances(number, own) for member, own in parts]

    def _parts(self, features: np.ndarray) -> list[np.ndarray]:
        """Each later member's features [N, t, F] of all."""
        if not self._ends:
            self._ends = np.cumsum([member.reader().width for member in self.later])[:-1].tolist()
        return np.split(features, self._ends, axis=-1)

    def seen(self, verdict: Verdict, exchange: Exchange, step: int | None) -> Verdict:
        """With the name of the member whose rank is the largest at the first look above the threshold."""
        verdict = super().seen(verdict, exchange, step)
        if exchange.signal is None and verdict.flagged and exchange.early is not None:  # at the request
            return replace(verdict, member=self.first[int(np.nanargmax(exchange.early))].name)
        if exchange.signal is None or not verdict.flagged or (at := self.first_above(exchange.signal)) is None:
            return verdict
        (block, look), number = at, class_of(at[0])
        parts = self._distances(number, exchange.signal[block][None, so_far(look), :-1])
        ranks = tail_ranks(self.tails[number, judged_as(look)], np.concatenate(parts, axis=-1))[0]
        owners = np.repeat(np.arange(len(parts)), [part.shape[1] for part in parts])
        return replace(verdict, member=self.later[owners[ranks.argmax()]].name)

    # --- on the disk ----------------------------------------------------------------------------------------

    def bind(self, model: LanguageModel, sampling: Sampling | None = None) -> None:
        super().bind(model, sampling)
        for number, member in enumerate(self.members):
            member.bind(model, sampling)
            if "anchors" in member.bound:
                self.bound[f"anchors{number}"] = member.bound["anchors"]

    def check(self, model: LanguageModel, sampling: Sampling | None = None) -> None:
        """As of every guard by blocks, and as of each member that looks at the request."""
        super().check(model, sampling)
        for member in self.first:
            member.check(model, sampling)

    def check_tokens(self, model: LanguageModel) -> None:
        for member in self.later:
            member.check_tokens(model)

    def learned(self) -> dict[str, np.ndarray]:
        return self._prefixed({member: member.learned() for member in self.later})

    def fitted(self) -> dict[str, np.ndarray]:
        return self._prefixed(
            {member: member.fitted() if isinstance(member, LookGuard) else member.tensors() for member in self.members}
        )

    def _prefixed(self, parts: Mapping[Guard, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        numbers = {member: number for number, member in enumerate(self.members)}
        return {
            f"member{numbers[member]}/{name}": value for member, part in parts.items() for name, value in part.items()
        }

    def rebuild(self, tensors: Mapping[str, np.ndarray]) -> None:
        for number, member in enumerate(self.members):
            prefix = f"member{number}/"
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            member.bound = {**self.bound, "anchors": self.bound.get(f"anchors{number}")}
            if isinstance(member, LookGuard):
                member.take(own)
            else:
                member.restore(own)


def _ranked(member: Guard, model: LanguageModel, exchanges: Sequence[Exchange], batch_size: int) -> np.ndarray:
    """What a member makes of requests [N], on the scale of ranks among harmless ones."""
    scores = member.checked(model, exchanges, batch_size=batch_size)
    return scores if isinstance(member, PreFusion) else tail_ranks(np.zeros((1, 1)), scores[:, None])[:, 0]


def _member(name: str) -> type[Guard]:
    if name not in KINDS:
        raise GuardError(
            f"a cascade is made of guards by blocks, masks and prefuse ({', '.join(KINDS)}); received {name!r}."
        )
    return KINDS[name]


class _Together:
    """The features of several readers side by side."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = readers
        self.width = sum(reader.width for reader in readers)
        self.reads_step = any(getattr(reader, "reads_step", False) for reader in readers)
        reduces = [reduce for reader in readers if (reduce := getattr(reader, "reduce", None)) is not None]
        self.reduce = reduces[0] if reduces else None  # the others read the head once more

    def on_start(self, canvas: Canvas) -> None:
        for reader in self.readers:
            if (begin := getattr(reader, "on_start", None)) is not None:
                begin(canvas)

    def on_step(self, step: Step) -> None:
        for reader in self.readers:
            if (watch := getattr(reader, "on_step", None)) is not None:
                watch(step)

    def __call__(self, look: Look) -> np.ndarray:
        return np.concatenate([reader(look) for reader in self.readers], axis=-1)
