"""MOSA in code: middle-token safety alignment.

Xie, Song, Luo, "Where to Start Alignment? Diffusion Large Language Model May Demand a Distinct Position", AAAI 2026,
arXiv 2508.12398. No code was published. The trainer runs what stands here. A training step, and where each part is:

1. Draw harmful prompts, and a safe and a harmful sentence: one pair for the step (paper, `draw="step"`), or one for
   each prompt [ours, the default]. Every safe sentence ends in the end-of-sequence token: an attacker who wins the
   opening gets a response that breaks off in the middle. (data.Schedule, sentences.py)
2. Put each prompt before a response of masks, and run the body twice: policy (adapter on), reference (adapter off).
3. L[i, v]: the policy's log-probability of token v at response position i. (_head.head_rows, a chunk at a time)
4. score(s) = max over starts k in the window, tokens 20 to 59 counted from 0, of the sum over j of L[k + j, s_j].
   (Algorithm 1)
5. Reward R = score(safe) - score(harmful), each at its own best start.
6. Minimise -R + beta KL(policy || reference), beta 0.05. The KL is a mean over the response's tokens by default (the
   paper doesn't say; `kl_reduction="sum"` weighs it a hundred times more).
7. AdamW at 5e-5, gradients clipped at norm 0.01, one epoch, LoRA r 32 and alpha 64. (config.AlignConfig, trainer.py)

"Initial alignment", the paper's baseline, has the response's first token as its only start. Recipe "paper" leaves out
every term marked [ours] below: floor, benign KL, revealed tokens. Where the paper is silent (the masked response, what
the KL covers, a window that a sentence need only start in, the batch size) it takes our choice (docs/papers.md).

Shapes: H harmful prompts, N benign prompts, T canvas length, L response length, R response positions that the head is
run on (the first S can hold a sentence), C vocabulary entries that occur in a sentence, K starts in the window, M
longest sentence, P sentence pairs a prompt.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from midward.alignment._head import HeadRows
from midward.alignment.data import Batch, by_position
from midward.alignment.objective import Passes, Terms, row_means, row_sums

METRICS: tuple[str, ...] = (
    "reward",
    "safe",
    "harmful",
    "safe_gain",
    "harmful_gain",
    "floored",
    "kl",
    "kl_benign",
    "over_refusal",
)
"""What every step measures, in nats unless said otherwise.

reward: score of the safe sentence minus that of the (possibly floored) harmful one. safe, harmful: the two scores.
safe_gain, harmful_gain: the same minus the reference's score of that sentence. floored: share of pairs whose
harmful sentence is at the floor, 0 to 1. kl, kl_benign: KL(policy || reference) a masked token, on harmful and benign
prompts. over_refusal: see `mosa.over_refusal`, the mean over benign prompts.
"""

# The reward warning compares the two halves of this many logged rows, and ignores moves below the margin
# (nats).
WARN_ROWS = 10
WARN_MARGIN = 0.5


def span_scores(
    log_probs: Tensor, sentences: Tensor, window: tuple[int, int], *, fit: bool = False, masked: Tensor | None = None
) -> Tensor:
    """Score each sentence at each start of the window: the sum over j of log_probs[k + j, s_j] (Algorithm 1).

    Args:
        log_probs: [B, L, C], in nats.
        sentences: [B, M] indices into the last axis of `log_probs`; -1 pads.
        window: Starts k with window[0] <= k < window[1]. A sentence need only start there.
        fit: It must also end there [ours].
        masked: [B, L] bool, False where a token is already revealed; no sentence may lie over one [ours].

    Returns:
        [B, K] in nats; -inf where the sentence can't stand.
    """
    batch, length, _ = log_probs.shape
    first, end = window
    starts = torch.arange(first, end, device=log_probs.device)  # [K]
    positions = starts[:, None] + torch.arange(sentences.shape[1], device=log_probs.device)  # [K, M]: k + j
    inside = positions.clamp(max=length - 1)
    is_token = sentences >= 0  # [B, M]
    rows = torch.arange(batch, device=log_probs.device)[:, None, None]
    picked = log_probs[rows, inside[None], sentences.clamp(min=0)[:, None, :]]  # [B, K, M]: L[k + j, s_j]
    scores = torch.where(is_token[:, None, :], picked, 0.0).sum(-1)
    allowed = starts[None] + is_token.sum(-1, keepdim=True) <= (end if fit else length)
    if masked is not None:
        allowed = allowed & (masked[:, inside] | ~is_token[:, None, :]).all(-1)
    return scores.masked_fill(~allowed, -torch.inf)


def best_start(scores: Tensor) -> Tensor:
    """[B, K] scores to [B]: that of the best start (Algorithm 1)."""
    return scores.max(-1).values


def reward(safe: Tensor, harmful: Tensor, floor: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """R = score(safe) - score(harmful), and where the harmful score is at the floor (bool).

    floor [ours]: below it the harmful term is a constant without gradient, so that nothing is gained by sinking a
    harmful sentence further; None is the paper's unbounded term. All of one shape.
    """
    if floor is None:
        return safe - harmful, torch.zeros_like(harmful, dtype=torch.bool)
    floored = harmful.detach() < floor
    return safe - torch.where(floored, floor, harmful), floored


class MosaObjective(Passes):
    """-(mean reward of the pairs) + beta (mean KL of harmful prompts) + benign_beta (that of benign prompts) [ours]."""

    METRICS = METRICS
    needs_reference = True

    def __call__(self, batch: Batch) -> Terms:
        """Two passes of the body, one sweep of the head, and the loss (steps 2 to 6)."""
        reference, policy = self.reference(batch), self.states(batch)  # [R, D] each
        return self.loss(batch, self.head(batch, policy, reference, len(batch["scored"])))

    def loss(self, batch: Batch, head: HeadRows) -> Terms:
        """Steps 4 to 6: from log-probabilities and KL to the loss."""
        config = self.config
        prompts, total = batch["safe"].shape[0], batch["ids"].shape[0]  # H, H + N
        # 4. Scores of the safe and of the harmful sentences, under the policy and under the reference.
        safe, harmful = self.scores(batch, head.log_probs)  # [H, P] each
        with torch.no_grad():
            reference_safe, reference_harmful = self.scores(batch, head.reference)
        # 5. The reward.
        floor = None if config.harmful_floor is None else reference_harmful - config.harmful_floor
        gain, floored = reward(safe, harmful, floor)  # [H, P]
        # 6. The KL of each prompt, over its rows: the masked tokens of its response, or of the window [ours].
        owner = self.owner(batch)
        mean = row_means(head.kl, owner, total)  # [H + N]
        penalty = row_sums(head.kl, owner, total) if config.kl_reduction == "sum" else mean
        loss = -gain.mean() + config.beta * penalty[:prompts].mean()
        if total > prompts:  # benign prompts, on which the model stays as it is [ours]
            loss = loss + config.benign_beta * penalty[prompts:].mean()

        measured = {
            "reward": gain,
            "safe": safe,
            "harmful": harmful,
            "safe_gain": safe - reference_safe,
            "harmful_gain": harmful - reference_harmful,
            "floored": floored.to(gain.dtype),
            "kl": mean[:prompts],
            "kl_benign": mean[prompts:],
        }
        metrics: dict[str, tuple[Tensor, int | Tensor]] = {
            name: (value.detach().sum(), value.numel()) for name, value in measured.items() if value.numel()
        }
        if total > prompts:
            metrics["over_refusal"] = over_refusal(batch, head.log_probs.detach(), head.reference, config.window)
        return Terms(loss, metrics)

    def scores(self, batch: Batch, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [H, P] of the safe and of the harmful sentences at their best starts, of log_probs [R, C].

        With `reveal_room="any"` a sentence may have no start at all: a safe one then scores as the end token alone, and
        a harmful one 0, a constant without gradient.
        """
        config = self.config
        prompts, pairs, _ = batch["safe"].shape
        table = by_position(batch, log_probs, scored=True).repeat_interleave(pairs, 0)  # [H * P, L, C]
        masked = batch["masked"][:prompts].repeat_interleave(pairs, 0)

        def score(sentences: Tensor) -> Tensor:
            starts = span_scores(table, sentences.flatten(0, 1), config.window, fit=config.fit, masked=masked)
            return best_start(starts).view(prompts, pairs)

        safe, harmful = score(batch["safe"]), score(batch["harmful"])
        if config.reveal_room == "any":  # [ours]
            safe = torch.where(safe.isneginf(), self.end_scores(table, masked, batch["safe"]), safe)
            harmful = harmful.masked_fill(harmful.isneginf(), 0.0)
        return safe, harmful

    def end_scores(self, table: Tensor, masked: Tensor, safe: Tensor) -> Tensor:
        """[H, P]: log-probability of the end token at the first masked position of the window [ours].

        Args:
            table: [H * P, L, C] log-probabilities.
            masked: [H * P, L] bool, True at one position of the window or more.
            safe: [H, P, M] the safe sentences, which end in the end token.
        """
        first, end = self.config.window
        position = first + masked[:, first:end].int().argmax(1)  # [H * P]
        sentence = safe.flatten(0, 1)
        token = sentence.gather(1, (sentence >= 0).sum(1, keepdim=True) - 1)[:, 0]  # [H * P]
        return table[torch.arange(len(table), device=table.device), position, token].view(safe.shape[:2])

    def warning(self, rows: Sequence[dict[str, float]]) -> str | None:
        """See `reward_warning`."""
        return reward_warning(rows, self.config.harmful_floor)


def over_refusal(batch: Batch, log_probs: Tensor, reference: Tensor, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Logged, not trained: how much likelier a refusal begins on benign prompts than under the reference.

    Returns:
        The sum over benign prompts of the log-probability of a refusal's first tokens at its best start (token 0, or in
        the window), policy minus reference, in nats; and how many prompts have room for one.
    """
    prompts = batch["safe"].shape[0]
    masked = batch["masked"][prompts:]
    best = []
    for values in (log_probs, reference):
        table = by_position(batch, values, scored=False)[prompts:]  # [N, L, C]
        starts = [span_scores(table, batch["opening"], each, masked=masked) for each in ((0, 1), window)]
        best.append(torch.cat(starts, 1).max(1).values)
    room = best[1].isfinite()
    return torch.where(room, best[0] - best[1], 0.0).sum(), room.sum()


def reward_warning(rows: Sequence[dict[str, float]], floor: float | None = None) -> str | None:
    """What to tell the user when the last rows' reward rises while the safe score falls, or None.

    floor: the run's harmful_floor, so that nobody is told to set what is set.
    """
    rows = rows[-WARN_ROWS:]
    if len(rows) < WARN_ROWS:
        return None
    half = WARN_ROWS // 2

    def change(name: str) -> float:
        return sum(row[name] for row in rows[half:]) / half - sum(row[name] for row in rows[:half]) / half

    if change("reward") <= WARN_MARGIN or change("safe") >= -WARN_MARGIN:
        return None
    remedy = "Set harmful_floor (recipe='stable')"
    if floor is not None:
        remedy = f"Lower harmful_floor (now {floor:g})"
    return (
        f"step {rows[-1]['step']}: over the last {WARN_ROWS} rows the reward rose by {change('reward'):.1f} "
        f"nats while the safe sentences' own score fell by {-change('safe'):.1f}: the harmful term alone "
        f"is being pushed down. {remedy}, or lower lr."
    )
