"""DiffuGuard: what looks away from the plain request at its first step is masked again and repaired (arXiv 2509.24296).

`DiffuGuardAudit` is its detector alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from midward.dynamics.directions import asked_states
from midward.guards.config import GuardError
from midward.guards.exchange import Exchange, Look, prompt_ids
from midward.guards.guard import Guard
from midward.models import LanguageModel
from midward.sampling import Ban, Canvas, Forced, Request, Response, Sampling, Step, Watcher, sample
from midward.sampling.noise import row_seed, uniform

log = logging.getLogger("midward")


@dataclass(frozen=True, config={"extra": "forbid"})
class Audit:
    """oracle: compare with the plain goal behind the attack, as the published code does; only an evaluation knows it.
    Otherwise with the request itself, its mask tokens and forced spans taken away."""

    oracle: bool = False


@dataclass(frozen=True, config={"extra": "forbid"})
class Repair(Audit):
    """remask: share of the first block's positions that a repair masks again, forced ones included. steps: it takes."""

    remask: Annotated[float, Field(gt=0, le=1)] = 0.9
    steps: Annotated[int, Field(ge=1)] = 8


class DiffuGuardAudit(Guard):
    """Score: the cosine distance (0..2) between the mean hidden state of the first block at the first step and the same
    of a baseline request. A request that is its own baseline scores 0.

    Without the oracle the baseline is the request less its forced spans and masks: so it flags requests that have any,
    harmless ones alike, and no other, by construction. It doesn't tell harm.

    Deviations: a flagged request is refused, so that guards are told apart by what they detect (`DiffuGuard` is the
    whole method); the threshold is calibrated on harmless prompts where the published one is 0.1 to 0.35 by hand.
    """

    name = "diffuguard-audit"
    version = "2"
    about = "the first step's hidden state against that of the plain request"
    looks: ClassVar[Look] = "before"
    Settings = Audit
    tied_to = ("model", "sampling")

    def score(self, model: LanguageModel, exchanges: Sequence[Exchange], *, batch_size: int = 8) -> np.ndarray:
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


def _first_block(
    model: LanguageModel, requests: Sequence[Request], sampling: Sampling, batch_size: int
) -> torch.Tensor:
    """Mean hidden state [N, D] of each request's first block before anything is committed."""
    start, stop = sampling.blocks[0]
    states = asked_states(model, requests, sampling, batch_size=batch_size)
    return torch.stack([each[start:stop].mean(0) for each in states])


class _FirstBlock:
    """A watcher that lets these rows go once their first block is full."""

    needs_all_steps = False
    needs_states = "none"

    def __init__(self, rows: Iterable[int]) -> None:
        self.rows = frozenset(rows)

    def on_start(self, canvas: Canvas) -> None:
        self.mask_id, self.stop = canvas.mask_id, canvas.sampling.blocks[0][1]

    def on_step(self, step: Step) -> None:
        block = step.ids[:, : step.response.start + self.stop]
        full = (block != self.mask_id).all(-1).tolist()
        step.stopped |= self.rows.intersection(row for row, is_full in zip(step.rows, full, strict=True) if is_full)

    def on_end(self, canvas: Canvas) -> None:
        pass


class DiffuGuard(DiffuGuardAudit):
    """The whole method. Every response is sampled in the annealed order; where the audit flags, 90 % of the first block
    is masked again and refilled in random order without the tokens that stood there, and the rest is sampled behind it.

    A flagged response is therefore no stub but what the repair made of it, and may still do harm. Its order goes by a
    schedule: where the model commits above a threshold, the settings' steps take the threshold's place.
    Deviations: masks in a prompt are filled anew in a repair, where the published code masks the user's words and the
    template behind the first of them as well; the threshold as for the audit.
    """

    name = "diffuguard"
    about = "sampled in an annealed order; what the audit flags is masked again and refilled"
    looks = "during"
    Settings = Repair
    repairs = True

    def bind(self, model: LanguageModel, sampling: Sampling | None = None) -> None:
        super().bind(model, sampling)
        steps, threshold = (self.bound["sampling"][name] for name in ("steps", "threshold"))
        if threshold is not None:
            log.warning(
                "the guard %r goes by a schedule: its responses take %d steps in place of the threshold %g.",
                *(self.name, steps, threshold),
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
        """The method's responses with their verdicts; the watchers see a flagged one as it was before its repair, its
        first block alone unless it has edits."""
        verdicts = self.verdicts(self.checked(model, exchanges, batch_size=batch_size))
        requests = [each.request for each in exchanges]
        annealed = sampling.changed(order="annealed")
        flagged = [i for i, verdict in enumerate(verdicts) if verdict.flagged]
        begun = [i for i in flagged if not requests[i].edits]  # what stands behind its first block is sampled later
        watching = [*watchers, *([_FirstBlock(begun)] if begun else [])]
        responses = sample(model, requests, annealed, batch_size=batch_size, watchers=watching)
        repaired = self._repair(
            model, [requests[i] for i in flagged], [responses[i] for i in flagged], annealed, batch_size
        )
        for i, response in zip(flagged, repaired, strict=True):
            responses[i] = response
        return [replace(response, verdict=verdict) for response, verdict in zip(responses, verdicts, strict=True)]

    def _repair(
        self,
        model: LanguageModel,
        requests: Sequence[Request],
        responses: Sequence[Response],
        sampling: Sampling,
        batch_size: int,
    ) -> list[Response]:
        """Refill the first block of each response, then sample what stands behind it."""
        stop, mask_id = sampling.blocks[0][1], model.family.mask_id
        refill = []
        for request, response in zip(requests, responses, strict=True):
            stood = response.raw_ids[:stop]
            seed = torch.tensor(row_seed(sampling.seed, request, prompt_ids(model, request)))
            order = uniform(seed, _REPAIR, torch.arange(stop)).argsort().tolist()
            again = set(order[: int(stop * self.settings.remask)])
            kept = {i: token for i, token in enumerate(stood) if i not in again}
            bans = [Ban((stood[i],), i) for i in sorted(again) if stood[i] != mask_id]
            refill.append(_begun(request, kept, stop, mask_id, (*request.bans, *bans)))
        steps = sampling.changed(order="random", steps=self.settings.steps * len(sampling.blocks))
        filled = sample(model, refill, steps, batch_size=batch_size, watchers=[_FirstBlock(range(len(refill)))])
        behind = [
            replace(
                _begun(request, dict(enumerate(each.raw_ids[:stop])), stop, mask_id, request.bans),
                prompt=each.prompt_ids,
            )
            for request, each in zip(requests, filled, strict=True)
        ]
        rest = sample(model, behind, sampling, batch_size=batch_size)
        return [
            replace(last, nfe=before.nfe + each.nfe + last.nfe, steps=before.steps + each.steps + last.steps)
            for before, each, last in zip(responses, filled, rest, strict=True)
        ]


def _begun(request: Request, block: dict[int, int], stop: int, mask_id: int | None, bans: tuple[Ban, ...]) -> Request:
    """The request with these tokens standing in the first block, and its own spans behind it; its edits were made."""
    behind = {
        span.position + i: token
        for span in request.forced
        for i, token in enumerate(span.ids)
        if span.position + i >= stop
    }
    standing = {i: token for i, token in block.items() if token != mask_id} | behind
    return replace(request, forced=tuple(Forced(i, (token,)) for i, token in standing.items()), bans=bans, edits=())


_REPAIR = -(2**20)  # the step number that the repaired positions are drawn under; no step of a sampler has it
