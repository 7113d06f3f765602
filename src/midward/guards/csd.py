"""CSD: masked positions are steered away from what answers of harmful requests look like, and tokens that look so are
masked again (arXiv 2605.13043)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from midward.dynamics.directions import answer_states, asked_states, direction
from midward.guards.arms import Arm, Progress, Steering
from midward.guards.config import GuardError
from midward.guards.exchange import Exchange, Labelled, prompt_ids, user_text
from midward.models import LanguageModel
from midward.sampling import Canvas, Edit, Request, Response, Sampling, Step, Watcher

if TYPE_CHECKING:
    from typing import Self

#: Of the harmless projections, the quantile that theta is.
QUANTILE = 0.99


@dataclass(frozen=True, config={"extra": "forbid"})
class SteeringRemasking:
    """arm: what is done. beta, rho: strength of the steering, and the first share of a response that it lasts for, see
    `Progress`. rounds: of masking again, of each block (K). copy: whether the user's words stand once more between
    prompt and response."""

    arm: Literal["steer", "remask", "both"] = "both"
    beta: Annotated[float, Field(ge=0)] = 1.0
    rho: Annotated[float, Field(ge=0, le=1)] = 0.1
    rounds: Annotated[int, Field(ge=0)] = 3
    copy: bool = False


class CSD(Arm):
    """v: the unit vector from the mean state of the model's refusals to that of its answers to harmful requests behind
    a forced opening, over their own tokens. Steering: while less than `rho` of a response stands, the states that
    tokens are chosen from become h - beta max(<h, v> - theta, 0) v. Masking again: once a block is full, its tokens
    with <h, v> > theta in a forward of their own, up to the first end token, are masked and filled anew, up to `rounds`
    times; by a schedule also after each of the last `rounds` steps but one, since nothing would fill them after it.

    theta: the 99 % quantile of <h, v> over harmless requests, of masks before the first step for steering and of the
    answers' tokens for masking again, where the paper's is 0: v isn't centred, so 0 means nothing by itself. Flags
    nothing, see `Arm`; its score counts the positions that it steered or masked again.

    Deviations: h is the state after the final norm, the paper's before it. Complied answers are those that don't
    refuse, of the prompts that are given. Forced tokens stay. Refilling goes by the sampler's settings; the published
    code fills all in one forward, at temperature 1. It puts the copy of the prompt at the response's front; here it
    takes nothing of the length, and as there a prompt with masks has none.
    """

    name = "csd"
    about = "steers states away from harmful answers, and masks again what looks like them"
    Settings = SteeringRemasking
    holds = (("direction", torch.float32, 1), ("thetas", torch.float64, 1))
    direction: torch.Tensor
    thetas: torch.Tensor  # of masks, of tokens

    def learn(
        self, model: LanguageModel, labelled: Labelled, *, sampling: Sampling | None = None, batch_size: int = 8
    ) -> Self:
        sampling = sampling or Sampling.for_model(model)
        kinds = ("answered", "refused", "complied")
        counts = {kind: len(getattr(labelled, kind)) for kind in kinds}
        if not all(counts.values()):
            raise GuardError(
                "CSD's direction takes harmless prompts that are answered, harmful ones that are refused, and harmful "
                f"ones that are complied with behind a forced opening; received {counts}. Give others (--harmful)."
            )
        answered, refused, complied = (
            list(answer_states(model, _texts(getattr(labelled, kind)), sampling, batch_size=batch_size))
            for kind in kinds
        )
        self.direction = direction(complied, refused)
        block = slice(*sampling.blocks[0])
        asked = [Request(each.request.prompt) for each in labelled.answered]
        masks = [states[block] for states in asked_states(model, asked, sampling, batch_size=batch_size)]
        quantiles = [np.quantile((torch.cat(each) @ self.direction).numpy(), QUANTILE) for each in (masks, answered)]
        self.thetas = torch.tensor(quantiles, dtype=torch.float64)
        return self

    def defence(self) -> Progress:
        own = self.settings
        return _Defence(
            self.direction,
            *(float(theta) for theta in self.thetas),
            beta=own.beta if own.arm != "remask" else 0.0,
            rho=own.rho,
            rounds=own.rounds if own.arm != "steer" else 0,
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
        asked = [replace(each, request=self._copied(model, each.request)) for each in exchanges]
        answers = super().answer(model, asked, sampling, batch_size=batch_size, watchers=watchers)
        lengths = [len(prompt_ids(model, each.request)) for each in exchanges]
        return [replace(each, prompt_ids=each.prompt_ids[:n]) for each, n in zip(answers, lengths, strict=True)]

    def _copied(self, model: LanguageModel, request: Request) -> Request:
        ids = prompt_ids(model, request)
        if not self.settings.copy or model.family.mask_id in ids:
            return request
        return replace(request, prompt=[*ids, *model.tokens(user_text(model, request))])

    def is_sound(self, name: str, values: torch.Tensor) -> bool:
        return name == "direction" or len(values) == 2


def _texts(exchanges: Sequence[Exchange]) -> list[tuple[Request, str]]:
    return [(each.request, each.text or "") for each in exchanges]


class _Defence(Steering):
    """The defence of one call to `sample`."""

    def __init__(self, vector: torch.Tensor, *thetas: float, beta: float, rho: float, rounds: int) -> None:
        super().__init__()
        self.vector, self.thetas = vector, thetas
        self.beta, self.rho, self.rounds = beta, rho, rounds

    def on_start(self, canvas: Canvas) -> None:
        super().on_start(canvas)
        self.vector = self.vector.to(canvas.ids.device)
        self.ends = torch.tensor(canvas.model.family.end_ids, device=canvas.ids.device)
        self.taken: Counter[tuple[int, tuple[int, int]]] = Counter()  # rounds, by row and block

    def steered(self, states: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        excess = (states.float() @ self.vector - self.thetas[0]).clamp(min=0) * (self.share[rows] < self.rho)
        moved = (self.beta * excess > 0) & (positions >= 0)
        self.mark(rows, positions, moved)
        away = states.float() - self.beta * excess[:, None] * self.vector
        return torch.where(moved[:, None], away.to(states.dtype), states)

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        due = self._due(step) if self.rounds else {}
        if not due:
            return {}
        # 1. The rows as they stand now, in a forward of their own, which counts.
        canvas, rows = self.canvas, [self.number[request] for request in due]
        for row in rows:
            canvas.forwards[row] += 1
        mask = None if canvas.mask is None else canvas.mask[rows]
        hidden = canvas.model.hidden(canvas.ids[rows], mask)[:, canvas.response].float()
        harmful = (hidden @ self.vector > self.thetas[1]) & (canvas.ids[rows, canvas.response] != canvas.mask_id)
        # 2. What is masked again, but for what must stay.
        edits = {}
        for at, (request, (start, stop)) in enumerate(due.items()):
            kept = step.place(request).kept
            again = [start + i for i in harmful[at, start:stop].nonzero()[:, 0].tolist() if start + i not in kept]
            if again:
                edits[request] = [Edit(step.index, (), tuple(again))]
                self.changed.setdefault(request, set()).update(again)
        return edits

    def _due(self, step: Step) -> dict[int, tuple[int, int]]:
        """Request -> response positions (start, stop) of which tokens may be masked again now; its round is counted."""
        ids = step.ids[:, step.response]
        masks, ends = (ids == self.canvas.mask_id).tolist(), torch.isin(ids, self.ends).tolist()
        due = {}
        for request, masked, is_end in zip(step.rows, masks, ends, strict=True):
            row, place = self.number[request], step.place(request)
            start, stop = place.block
            stop = next((position + 1 for position in range(start, stop) if is_end[position]), stop)
            left = self.rounds - self.taken[row, place.block]
            last = self.canvas.sampling.threshold is None and place.left <= left
            if place.left >= 1 and left > 0 and (last or not any(masked[start:stop])):
                due[request] = (start, stop)
                self.taken[row, place.block] += 1
        return due
