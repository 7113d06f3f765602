"""Several guards by blocks as one: the largest of their tail ranks, calibrated once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from midward.dynamics.looks import Look, Reader
from midward.guards.config import GuardError, parsed
from midward.guards.guard import Labelled
from midward.guards.labelled import DirectionMonitor, HesitationMonitor, ProjectionMonitor
from midward.guards.logits import EndToken, Energy
from midward.guards.looks import LookGuard, SRIBlocksGuard
from midward.models import LanguageModel
from midward.sampling import Canvas, Sampling, Step

if TYPE_CHECKING:
    from typing import Self

_KINDS = (SRIBlocksGuard, Energy, EndToken, HesitationMonitor, DirectionMonitor, ProjectionMonitor)
#: What may be in one, by name.
KINDS: dict[str, type[LookGuard]] = {kind.name: kind for kind in _KINDS}

#: What a cascade is made of unless told otherwise.
MEMBERS = ("sri-blocks:detector=autoencoder", "energy")


@dataclass(frozen=True, config={"extra": "forbid"})
class CascadeSettings:
    """members: guards by blocks as `guards.make` takes them."""

    members: Annotated[tuple[str, ...], Field(min_length=1)] = MEMBERS


class Cascade(LookGuard):
    """Score: the largest score of its members, which are on one scale. The threshold is calibrated on that largest one,
    so that one false-positive rate is spent on all of them."""

    name = "cascade"
    about = "several guards by blocks at one false-positive rate; sri-blocks and energy unless told otherwise"
    Settings = CascadeSettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.members: list[LookGuard] = []
        self._ends: list[int] = []  # of each member's features but the last one's
        for spec in self.settings.members:
            kind, own = parsed(spec, _member)
            self.members.append(kind(**own))

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

    def reader(self) -> Reader:
        return _Together([member.reader() for member in self.members])

    def fit_class(self, number: int, features: np.ndarray) -> None:
        for member, own in zip(self.members, self._parts(features), strict=True):
            member.fit_class(number, own)

    def distances(self, number: int, features: np.ndarray) -> np.ndarray:
        parts = zip(self.members, self._parts(features), strict=True)
        return np.concatenate([member.distances(number, own) for member, own in parts], axis=-1)

    def _parts(self, features: np.ndarray) -> list[np.ndarray]:
        """Each member's features [N, t, F] of all."""
        if not self._ends:
            self._ends = np.cumsum([member.reader().width for member in self.members])[:-1].tolist()
        return np.split(features, self._ends, axis=-1)

    # --- on the disk ----------------------------------------------------------------------------------------

    def bind(self, model: LanguageModel, sampling: Sampling | None = None) -> None:
        super().bind(model, sampling)
        for number, member in enumerate(self.members):
            member.bind(model, sampling)
            if "anchors" in member.bound:
                self.bound[f"anchors{number}"] = member.bound["anchors"]

    def learned(self) -> dict[str, np.ndarray]:
        return _prefixed([member.learned() for member in self.members])

    def fitted(self) -> dict[str, np.ndarray]:
        return _prefixed([member.fitted() for member in self.members])

    def rebuild(self, tensors: Mapping[str, np.ndarray]) -> None:
        for number, member in enumerate(self.members):
            prefix = f"member{number}/"
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            member.bound = {**self.bound, "anchors": self.bound.get(f"anchors{number}")}
            member.take(own)


def _member(name: str) -> type[LookGuard]:
    if name not in KINDS:
        raise GuardError(f"a cascade is made of guards by blocks ({', '.join(KINDS)}); received {name!r}.")
    return KINDS[name]


def _prefixed(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {f"member{number}/{name}": value for number, part in enumerate(parts) for name, value in part.items()}


class _Together:
    """The features of several readers side by side."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = readers
        self.width = sum(reader.width for reader in readers)
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
