"""RAEC: what opens a refusal and is predicted again and again at the head of a response is committed early (arXiv
2609.00495)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from midward.guards.arms import Arm, Progress
from midward.guards.config import GuardError
from midward.guards.exchange import Exchange, Labelled
from midward.models import LanguageModel
from midward.sampling import Canvas, Edit, Forced, Sampling, Step

if TYPE_CHECKING:
    from typing import Self

Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config={"extra": "forbid"})
class EarlyCommitment:
    """rho: over the first share of a response, see `Progress`. window: so many of its first open positions. looks: in a
    row at which a refusal's token is predicted. size: of the fitted set of tokens. words: a set of one's own instead:
    all tokens of these words."""

    rho: Annotated[float, Field(ge=0, le=1)] = 0.25
    window: Positive = 16
    looks: Positive = 3
    size: Positive = 64
    words: tuple[str, ...] = ()


class RAEC(Arm):
    """While less than `rho` of a response stands, a position among the first `window` open ones (those that nothing was
    forced on) whose predicted token is one of S at `looks` steps running is committed with it, out of the schedule's
    quota and however unsure the model is. It isn't frozen: who edits later may mask it again.

    S: the `size` tokens whose share of the first `window` positions of refused answers exceeds most that of answered
    ones, counted in texts. Flags nothing, see `Arm`; its score counts the positions that it committed.

    Deviations: the abstract alone is published; which tokens, positions and steps, and what is persistent, are ours.
    Positions behind the active block wait for their block. What it commits counts as written by an edit, so `authored`
    texts leave it out.
    """

    name = "raec"
    about = "commits early what persistently opens a refusal"
    Settings = EarlyCommitment
    holds = (("tokens", torch.long, 1),)
    tokens: torch.Tensor

    @property
    def reads_labels(self) -> bool:
        return not self.settings.words

    def bind(self, model: LanguageModel, sampling: Sampling | None = None) -> None:
        super().bind(model, sampling)
        if words := self.settings.words:
            self.tokens = torch.tensor(sorted({token for word in words for token in model.tokens(word)}))

    def learn(
        self, model: LanguageModel, labelled: Labelled, *, sampling: Sampling | None = None, batch_size: int = 8
    ) -> Self:
        refused, answered = (self._shares(model, each) for each in (labelled.refused, labelled.answered))
        excess = {token: more for token in refused if (more := refused[token] - answered.get(token, 0.0)) > 0}
        if not excess:
            raise GuardError(
                f"{len(labelled.refused)} refused answers have no opening that {len(labelled.answered)} answered ones "
                "haven't; give more harmful prompts that the model refuses (--harmful), or words (raec:words=[...])."
            )
        ranked = sorted(excess, key=lambda token: (-excess[token], token))
        self.tokens = torch.tensor(ranked[: self.settings.size])
        return self

    def _shares(self, model: LanguageModel, answers: Sequence[Exchange]) -> dict[int, float]:
        """Of the first positions of these answers, the share that each token has."""
        openings = [model.tokens(each.text or "")[: self.settings.window] for each in answers]
        counts = Counter(token for opening in openings for token in opening)
        return {token: count / counts.total() for token, count in counts.items()}

    def defence(self) -> Progress:
        return _Committing(self.tokens, self.settings)

    def is_sound(self, name: str, values: torch.Tensor) -> bool:
        return bool((values >= 0).all())


class _Committing(Progress):
    """The defence of one call to `sample`. runs [B, length]: steps in a row at which a position waits with a token of
    S predicted. window [B, length]: where it looks."""

    def __init__(self, tokens: torch.Tensor, settings: EarlyCommitment) -> None:
        super().__init__()
        self.tokens, self.settings = tokens, settings

    def on_start(self, canvas: Canvas) -> None:
        super().on_start(canvas)
        self.refusing = self.tokens.to(canvas.ids.device)
        self.window = self.open & (self.open.cumsum(-1) <= self.settings.window)
        for number, row in enumerate(canvas.rows):
            for ban in row.request.bans:  # its window is filled from left to right, and by nobody else
                self.window[number, ban.position : ban.position + len(ban.ids)] = False
        self.runs = torch.zeros_like(self.open, dtype=torch.long)

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        rows = self.rows(step)
        early = self.share[rows] < self.settings.rho
        if not early.any():
            return {}
        tokens, _ = step.predictions
        refusing = torch.isin(tokens, self.refusing) & self.window[rows] & ~step.committed
        self.runs[rows] = torch.where(refusing, self.runs[rows] + 1, 0)
        due = (self.runs[rows] >= self.settings.looks) & early[:, None]
        edits = {}
        for at in due.any(-1).nonzero()[:, 0].tolist():
            request, positions = step.rows[at], due[at].nonzero()[:, 0].tolist()
            start, stop = step.place(request).block
            written = [position for position in positions if start <= position < stop]
            if written:
                spans = tuple(Forced(position, (int(tokens[at, position]),)) for position in written)
                edits[request] = [Edit(step.index, spans, freeze=False)]
                self.changed.setdefault(request, set()).update(written)
        return edits
