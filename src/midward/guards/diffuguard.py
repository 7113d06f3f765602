"""DiffuGuard's audit: does the request's first step look away from that of the plain request (arXiv 2509.24296)?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from pydantic.dataclasses import dataclass

from midward.guards.guard import Exchange, Guard, GuardError, prompt_ids
from midward.models import LanguageModel
from midward.sampling import Canvas, Request, Sampling
from midward.sampling.canvas import Row


@dataclass(frozen=True, config={"extra": "forbid"})
class Audit:
    """oracle: compare with the plain goal behind the attack, as the published code does; only an evaluation knows it.
    Otherwise with the request itself, its mask tokens and forced spans taken away."""

    oracle: bool = False


class DiffuGuard(Guard):
    """Score: the cosine distance (0..2) between the mean hidden state of the first block at the first step and the same
    of a baseline request. A request that is its own baseline scores 0.

    Deviations: a flagged request is refused rather than re-masked and refined, so that the guards are told apart by
    what they detect; the annealed remasking, which changes the sampling of every response, isn't part of it; and the
    threshold is calibrated on harmless prompts where the published one is 0.1 to 0.35 by hand.
    """

    name = "diffuguard"
    about = "the first step's hidden state against that of the plain request"
    looks = "before"
    Settings = Audit
    tied_to = ("model", "sampling")

    def score(
        self, model: LanguageModel, exchanges: Sequence[Exchange], *, batch_size: int = 8
    ) -> np.ndarray:
        if model.family.kind != "diffusion":
            raise GuardError(f"DiffuGuard audits diffusion models; {model.name!r} is autoregressive.")
        scores = np.zeros(len(exchanges))
        pairs, places = [], []
        for i, each in enumerate(exchanges):
            baseline = self._baseline(model, each)
            given = replace(each.request, prompt=prompt_ids(model, each.request), bans=(), seed=None)
            if baseline != given:
                pairs += [given, baseline]
                places.append(i)
        if pairs:
            sampling = Sampling(**self.bound["sampling"]) if self.bound else Sampling.for_model(model)
            states = _first_block(model, pairs, sampling, batch_size).reshape(len(places), 2, -1)
            alike = torch.cosine_similarity(states[:, 0], states[:, 1], dim=-1)
            scores[places] = (1 - alike).tolist()
        return scores

    def _baseline(self, model: LanguageModel, exchange: Exchange) -> Request:
        if self.settings.oracle:
            if exchange.plain is None:
                raise GuardError(
                    "DiffuGuard's oracle compares with the plain goal, which only an evaluation knows; "
                    "use oracle=False."
                )
            return Request(model.encode(exchange.plain))
        ids = prompt_ids(model, exchange.request)
        return Request([token for token in ids if token != model.family.mask_id])


@torch.no_grad()
def _first_block(
    model: LanguageModel, requests: Sequence[Request], sampling: Sampling, batch_size: int
) -> torch.Tensor:
    """Mean hidden state [N, D] of each request's first block before anything is committed."""
    start, stop = sampling.blocks[0]
    found = []
    for first in range(0, len(requests), batch_size):
        rows = [
            Row(i, request, list(request.prompt))  # type: ignore[arg-type]
            for i, request in enumerate(requests[first : first + batch_size])
        ]
        canvas = Canvas(model, sampling, rows)
        hidden = model.hidden(canvas.ids, canvas.mask)[:, canvas.response]
        found.append(hidden[:, start:stop].float().mean(1).cpu())
    return torch.cat(found)
