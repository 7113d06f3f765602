"""SAD: tokens that unsafe texts like the canvas have at the same place are made less probable (arXiv 2605.08116).

Shapes: N texts, L response positions, B rows of the canvas, P positions, V vocabulary rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from midward.guards.arms import Arm, Steering
from midward.guards.config import GuardError
from midward.guards.exchange import Labelled
from midward.models import LanguageModel
from midward.sampling import Canvas, Sampling

if TYPE_CHECKING:
    from typing import Self

WILD = -1  # in the place of a text's padding and ends, which match everything
FLOOR = 1e-6  # of a probability that no text gives


@dataclass(frozen=True, config={"extra": "forbid"})
class UnsafeTexts:
    """eta: strength. last: the share of a response that it lasts for, counted from the end, as published; 1 is all of
    it."""

    eta: Annotated[float, Field(ge=0)] = 4.0
    last: Annotated[float, Field(ge=0, le=1)] = 18 / 64


class SAD(Arm):
    """A text U_n weighs w_n ~ exp(log q(x | U_n) / its length), log q = M log m + K log((1 - m)(1 - b)) + K' log((1 -
    m) b): M masks on the canvas x where the text has a token, K tokens that are the text's and K' that aren't, m the
    share of masks, b = 1 / (V - 1). A token's probability p becomes that of softmax(log p + s (log p - log u)), u its
    weight among the texts at this very place, for the last tokens of a response alone.

    Deviations: the texts are the model's own answers to harmful requests behind a forced opening, where the paper's are
    corpora of harm, which are in no package. s = eta times how much of what stands the texts agree with, by weight; the
    paper's estimate of it was not read. Its window counts denoising steps, here the share of the response that stands.
    Nothing of it reads embeddings, as an option of the release does.
    """

    name = "sad"
    about = "makes tokens less probable that unsafe texts like the canvas have at the same place"
    Settings = UnsafeTexts
    holds = (("texts", torch.long, 2),)
    texts: torch.Tensor  # [N, L]

    def learn(
        self, model: LanguageModel, labelled: Labelled, *, sampling: Sampling | None = None, batch_size: int = 8
    ) -> Self:
        length = (sampling or Sampling.for_model(model)).length
        lines = [model.tokens(each.text or "")[:length] for each in labelled.complied]
        if not any(lines):
            raise GuardError(
                "SAD's texts are answers to harmful prompts behind a forced opening, and there is none; give others "
                "(--harmful, --anchors)."
            )
        self.texts = torch.full((len(lines), length), WILD)
        for number, line in enumerate(lines):
            self.texts[number, : len(line)] = torch.tensor(line)
        return self

    def defence(self) -> Steering:
        return _Shifting(self.texts, self.settings)

    def is_sound(self, name: str, values: torch.Tensor) -> bool:
        return bool((values >= WILD).all())


class _Shifting(Steering):
    """The defence of one call to `sample`."""

    def __init__(self, texts: torch.Tensor, settings: UnsafeTexts) -> None:
        super().__init__()
        self.texts, self.settings = texts, settings

    def on_start(self, canvas: Canvas) -> None:
        super().on_start(canvas)
        self.texts = self.texts.to(canvas.ids.device)
        self.real = self.texts != WILD

    def adjusted(self, logits: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        late = (self.share[rows] >= 1 - self.settings.last) & (positions >= 0) & (positions < self.texts.shape[1])
        if not self.settings.eta or not late.any():
            return logits
        numbers, at = rows[late].unique(return_inverse=True)
        weights, agreement = self.weights(numbers, logits.shape[-1])
        strength = self.settings.eta * agreement[at]  # [P]
        tokens = self.texts[:, positions[late]].T  # [P, N]
        unsafe = torch.zeros((len(tokens), logits.shape[-1]), device=logits.device)
        unsafe.scatter_add_(1, tokens.clamp(min=0), weights[at] * (tokens >= 0))
        moved = logits[late].log_softmax(-1)
        moved += strength[:, None] * (moved - unsafe.clamp(min=FLOOR).log())
        self.mark(rows[late], positions[late], strength > 0)
        logits = logits.clone()
        logits[late] = moved
        return logits

    def weights(self, rows: torch.Tensor, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
        """w [B, N] of the texts for some rows as they stand now, and how much of that they agree with [B]."""
        canvas = self.canvas
        ids = canvas.ids[rows, canvas.response][:, None, : self.texts.shape[1]]  # [B, 1, L]
        texts, real = self.texts[:, : ids.shape[-1]], self.real[:, : ids.shape[-1]]
        masks = ids == canvas.mask_id
        share = masks.float().mean(-1).clamp(0.01, 0.99)  # [B, 1]
        masked = (masks & real).sum(-1)  # [B, N]
        same = ((ids == texts) & real & ~masks).sum(-1)
        other = (real & ~masks).sum(-1) - same
        least = max(1 / (vocabulary - 1), FLOOR)
        each = share.log() * masked + (1 - share).log() * (same + other)
        each = each + math.log1p(-least) * same + math.log(least) * other
        weights = (each / real.sum(-1).clamp(min=1)).softmax(-1)
        return weights, (weights * same / (same + other).clamp(min=1)).sum(-1)
