"""Mask tokens in the request, flagged: the one-line answer to attacks that let the model fill the user's own text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from midward.guards.exchange import Exchange, prompt_ids
from midward.guards.guard import Guard
from midward.models import LanguageModel


class MaskFilter(Guard):
    """Score: mask tokens in the prompt. No one's chat interface sends any, so the calibrated threshold is 0."""

    name = "masks"
    about = "counts mask tokens in the request"
    looks = "before"
    tied_to = ()

    def score(self, model: LanguageModel, exchanges: Sequence[Exchange], *, batch_size: int = 8) -> np.ndarray:
        mask = model.family.mask_id
        prompts = (prompt_ids(model, each.request) for each in exchanges)
        return np.array([float(ids.count(mask)) if mask is not None else 0.0 for ids in prompts])
