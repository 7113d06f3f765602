"""What a goal is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from midward.errors import InputError
from midward.world.data import Trial
from midward.world.oracle import about_world


class GoalsError(InputError):
    """A set of goals can't be had; the message says what was wrong and what to do."""


@dataclass(frozen=True)
class Goal:
    """One request, harmful or harmless, as its data set states it.

    id: unique in its set and stable. target: the affirmative opening the data set gives. context: a text that belongs
    in front of the request (HarmBench's contextual behaviours). metadata: what a judge needs beyond the text (of the
    invented world: see `midward.world.Trial`).
    """

    id: str
    text: str
    source: str  # the set's name, or the file's without its extension
    harmful: bool
    target: str | None = None
    context: str | None = None
    category: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def prompt(self) -> str:
        """What is sent: the context, where there is one, a rule (as HarmBench sets it), the request."""
        return f"{self.context}\n\n---\n\n{self.text}" if self.context else self.text

    @property
    def subject(self) -> str:
        """What it asks for, the same however it is dressed: one draw to an interval over goals."""
        names = sorted(self.metadata.keys() - {"form"})
        return " ".join(self.metadata[name] for name in names) or f"{self.source} {self.id}"


def on_sandbox(goals: Sequence[Goal]) -> bool:
    """Whether there are goals and all are of the invented world, so that its oracle can judge them."""
    return bool(goals) and all(about_world(goal.metadata) for goal in goals)


def of_trial(trial: Trial, source: str = "sandbox", id: str | None = None) -> Goal:
    """A trial of the invented world as a goal of `source`, under its own id unless told."""
    return Goal(
        id=id or trial.id,
        text=trial.text,
        source=source,
        harmful=trial.harmful,
        target=trial.target,
        category=trial.kind,
        metadata=trial.metadata,
    )
