"""What a model answers without its refusal direction (arXiv 2512.24143): how much of an alignment hangs on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from midward.guards.arms import Arm, Steering
from midward.guards.exchange import Labelled
from midward.guards.labelled import DirectionMonitor
from midward.models import LanguageModel
from midward.sampling import Canvas, Sampling

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True, config={"extra": "forbid"})
class Removed:
    """direction: what is taken out: of refusals, or a random one of equal length, the control. beta: how much of it;
    2 turns it round. seed: of the random one."""

    direction: Literal["refusal", "random"] = "refusal"
    beta: Annotated[float, Field(ge=0)] = 1.0
    seed: int = 0


class Ablation(Arm):
    """No defence but an attack that writes to states, as an arm: h - beta <h, v> v in the place of each state that a
    token is chosen from, v the unit vector of `DirectionMonitor`, from answered harmless requests to refused harmful
    ones. Flags nothing, see `Arm`.

    Deviations: the paper takes a direction of one layer and token position of the prompts out of every layer; here it
    is of the responses, and out of the state after the final norm alone, so that what is left of a refusal inside the
    network shows.
    """

    name = "ablation"
    about = "an attack: takes the refusal direction, or a random one, out of the states that tokens are chosen from"
    Settings = Removed
    holds = (("vector", torch.float32, 1),)
    vector: torch.Tensor

    def learn(
        self, model: LanguageModel, labelled: Labelled, *, sampling: Sampling | None = None, batch_size: int = 8
    ) -> Self:
        vector = DirectionMonitor().learn(model, labelled, sampling=sampling, batch_size=batch_size).along
        if self.settings.direction == "random":
            vector = np.random.default_rng(self.settings.seed).normal(size=vector.shape)
        self.vector = torch.from_numpy(vector / np.linalg.norm(vector)).float()
        return self

    def defence(self) -> Steering:
        return _Removing(self.vector, self.settings.beta)

    def is_sound(self, name: str, values: torch.Tensor) -> bool:
        return abs(float(values.norm()) - 1) <= 1e-3


class _Removing(Steering):
    """The removal of one call to `sample`."""

    def __init__(self, vector: torch.Tensor, beta: float) -> None:
        super().__init__()
        self.vector, self.beta = vector, beta

    def on_start(self, canvas: Canvas) -> None:
        super().on_start(canvas)
        self.vector = self.vector.to(canvas.ids.device)

    def steered(self, states: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        along = self.beta * (states.float() @ self.vector)
        self.mark(rows, positions, along != 0)
        return (states.float() - along[:, None] * self.vector).to(states.dtype)
