"""The MOSA objective (arXiv 2508.12398, section 4): reward a refusal somewhere in the window over a procedure
there.

Shapes: H harmful prompts, N benign prompts, T canvas length, L response length, C needed vocabulary columns,
K starts in the window, M longest sentence, P sentence pairs a prompt.
"""

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn

from midward.alignment._head import head_rows, plain_head
from midward.alignment.config import AlignConfig

METRICS = (
    "reward",
    "positive",
    "negative",
    "positive_gain",
    "negative_gain",
    "floored",
    "kl",
    "kl_benign",
    "over_refusal",
)
"""What every step logs, in nats unless said otherwise.

reward: what is maximised before the KL terms (score of the safe sentence minus the, possibly floored, harmful
    one);
positive, negative: the two scores; positive_gain, negative_gain: the same minus the reference's own score of
that sentence; floored: share of pairs whose harmful sentence is at the floor (0 to 1); kl, kl_benign:
KL(policy || reference) per masked token on harmful and on benign prompts; over_refusal: on benign prompts,
how much likelier than under the reference a refusal begins (the first tokens of a safe sentence, at their
best start among the response's first token and the window).
"""


class Batch(TypedDict, total=False):
    """Tensors of one micro-batch; rows of the canvas are the H harmful prompts, then the N benign ones.

    ids: `[H + N, T]`, prompts padded on the left, so that response token i of every row is column T - L + i.
    mask: `[H + N, T]`, 1 = real token; absent when nothing is padded.
    masked: `[H + N, L]` bool, True where the response token is hidden from the model.
    rows: `[R]` flat positions in the canvas whose output the loss reads, those that are scored first.
    owner: `[R]` the canvas row each belongs to. slot: `[R]` its response position plus L times its owner.
    scored: `[S]` zeros, one a scored row: S is its length (a tensor, so that devices and processes agree).
    columns: `[C]` the vocabulary entries that any sentence here uses.
    safe, harmful: `[H, P, M]` sentences as indices into `columns`, -1 pads.
    opening: `[N, Q]` the first tokens of a safe sentence, the same way.
    """

    ids: Tensor
    mask: Tensor
    masked: Tensor
    rows: Tensor
    owner: Tensor
    slot: Tensor
    scored: Tensor
    columns: Tensor
    safe: Tensor
    harmful: Tensor
    opening: Tensor


@dataclass(frozen=True)
class Terms:
    """`loss`: mean over the batch's prompts, differentiable. `metrics`: name -> (sum, count), detached."""

    loss: Tensor
    metrics: dict[str, tuple[Tensor, int | Tensor]]


def span_scores(
    log_probs: Tensor, sentences: Tensor, window: tuple[int, int], *, fit: bool = False, masked: Tensor | None = None
) -> Tensor:
    """Score of each sentence at each start of the window: sum over j of log_probs[k + j, s_j].

    log_probs: `[B, L, C]`; sentences: `[B, M]` indices into the last axis, -1 pads; window: starts k with
    window[0] <= k < window[1]. Returns `[B, K]`, in nats; -inf where the sentence does not fit the response
    (with `fit`: the window) or, with `masked` `[B, L]`, would lie over a token that is already revealed.
    Source: Algorithm 1; a sentence need only start in the window (`fit=False`).
    """
    batch, length, _ = log_probs.shape
    first, end = window
    device = log_probs.device
    starts = torch.arange(first, end, device=device)  # [K]
    where = starts[:, None] + torch.arange(sentences.shape[1], device=device)  # [K, M]
    inside = where.clamp(max=length - 1)
    real = sentences >= 0  # [B, M]
    rows = torch.arange(batch, device=device)[:, None, None]
    picked = log_probs[rows, inside[None], sentences.clamp(min=0)[:, None, :]]  # [B, K, M]
    scores = torch.where(real[:, None, :], picked, 0.0).sum(-1)
    legal = starts[None] + real.sum(-1, keepdim=True) <= (end if fit else length)
    if masked is not None:
        legal = legal & (masked[:, inside] | ~real[:, None, :]).all(-1)
    return scores.masked_fill(~legal, -torch.inf)


def best_start(scores: Tensor, pool: str = "max") -> Tensor:
    """`[B, K]` scores to `[B]`: the best start ("max", the paper) or a soft maximum ("logsumexp")."""
    return scores.logsumexp(-1) if pool == "logsumexp" else scores.max(-1).values


class MosaObjective:
    """The loss of one micro-batch under a policy (adapter on) and its reference (adapter off).

    `model` is a LanguageModel whose network is a PeftModel. The head runs on the rows of the batch only.
    """

    def __init__(self, model, config: AlignConfig) -> None:
        self.model = model
        self.config = config
        self.linear: nn.Linear | None = plain_head(model.network, model.head)

    def __call__(self, batch: Batch) -> Terms:
        """Two passes of the body, one sweep of the head, and the loss."""
        ids, mask, rows = batch["ids"], batch.get("mask"), batch["rows"]
        with torch.no_grad(), self.model.reference():
            reference = self.model.hidden(ids, mask).flatten(0, 1)[rows]  # [R, D]
        hidden = self.model.hidden(ids, mask).flatten(0, 1)[rows]
        head = head_rows(
            self.model.head,
            hidden,
            reference,
            batch["columns"],
            len(batch["scored"]),
            linear=self.linear,
            chunk=self.config.chunk_rows,
            with_kl=self.config.beta > 0 or self.config.benign_beta > 0,
        )
        return self.terms(batch, head.log_probs, head.reference, head.kl)

    def terms(self, batch: Batch, log_probs: Tensor, reference: Tensor, kl: Tensor) -> Terms:
        """The loss from log-probabilities `[R, C]` of policy and reference and the KL `[R]`."""
        config = self.config
        policy_scores = self._scores(batch, log_probs)  # positive, negative: [H, P] each
        with torch.no_grad():
            reference_scores = self._scores(batch, reference)
        positive, negative = policy_scores
        held = negative
        floored = torch.zeros_like(negative, dtype=torch.bool)
        if config.negative_floor is not None:
            # Below the floor the term is a constant: no gradient, so nothing is gained by sinking it further.
            bound = reference_scores[1] - config.negative_floor
            floored = negative.detach() < bound
            held = torch.where(floored, bound, negative)
        reward = positive - held

        harmful, total = batch["safe"].shape[0], batch["ids"].shape[0]
        kl_sum = kl.new_zeros(total).index_add(0, batch["owner"], kl)
        kl_count = torch.bincount(batch["owner"], minlength=total).clamp(min=1)
        kl_mean = kl_sum / kl_count
        penalty = kl_sum if config.kl_reduction == "sum" else kl_mean
        loss = -reward.mean() + config.beta * penalty[:harmful].mean()
        if total > harmful:
            loss = loss + config.benign_beta * penalty[harmful:].mean()

        means = {
            "reward": reward,
            "positive": positive,
            "negative": negative,
            "positive_gain": positive - reference_scores[0],
            "negative_gain": negative - reference_scores[1],
            "floored": floored.to(reward.dtype),
            "kl": kl_mean[:harmful],
        }
        metrics: dict[str, tuple[Tensor, int | Tensor]] = {
            name: (value.detach().sum(), value.numel()) for name, value in means.items()
        }
        if total > harmful:
            metrics["kl_benign"] = (kl_mean[harmful:].detach().sum(), total - harmful)
            metrics["over_refusal"] = self._over_refusal(batch, log_probs.detach(), reference)
        return Terms(loss, metrics)

    def _scores(self, batch: Batch, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled scores `[H, P]` of the safe and of the harmful sentences."""
        config = self.config
        prompts, pairs, _ = batch["safe"].shape
        length = batch["masked"].shape[1]
        scored = len(batch["scored"])
        table = log_probs.new_zeros(prompts * length, log_probs.shape[1])
        table = table.index_copy(0, batch["slot"][:scored], log_probs[:scored])
        table = table.view(prompts, length, -1).repeat_interleave(pairs, 0)
        masked = batch["masked"][:prompts].repeat_interleave(pairs, 0)
        scores = [
            best_start(
                span_scores(table, sentences.flatten(0, 1), config.window, fit=config.fit, masked=masked), config.pool
            ).view(prompts, pairs)
            for sentences in (batch["safe"], batch["harmful"])
        ]
        return scores[0], scores[1]

    def _over_refusal(self, batch: Batch, log_probs: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Gain of a refusal's opening, summed over benign prompts, and how many had room for one."""
        total, length = batch["masked"].shape
        harmful = batch["safe"].shape[0]
        masked = batch["masked"][harmful:]
        best = []
        for values in (log_probs, reference):
            table = values.new_zeros(total * length, values.shape[1]).index_copy(0, batch["slot"], values)
            table = table.view(total, length, -1)[harmful:]
            windows = [(0, 1), self.config.window]
            scores = [span_scores(table, batch["opening"], window, masked=masked) for window in windows]
            best.append(torch.cat(scores, 1).max(1).values)
        room = best[1].isfinite()
        return torch.where(room, best[0] - best[1], 0.0).sum(), room.sum()
