"""`sft`, `rt` and `a2d` in code: cross-entropy over masked tokens of an answer.

- `sft`: supervised fine-tuning on safe answers, a baseline of A2D and of Recovery Alignment (arXiv 2510.00565).
- `rt`: refusal training, the same with a refusal as the answer to every harmful prompt; a baseline of A2D.
- `a2d`: Jeung et al., "A2D: Any-Order, Any-Step Safety Alignment for Diffusion Language Models", ICLR 2026, arXiv
  2509.23286. On harmful prompts the answer's visible tokens comply and every masked one is trained to be the end token,
  so that the model ends a response at whatever step and place it turns harmful.

A training step, the same for all three:

1. Rows of prompt and answer with tokens masked at rate p; benign prompts with their own answers. (answers.py)
2. CE_i = -log p(target_i | row) at the masked positions i.
3. `token_mean="length"` (A2D's code for LLaDA): the mean over rows of sum_i CE_i / p / L.
   `token_mean="masked"` (its code for Dream): the mean of CE_i / p over all masked tokens of the optimizer step.
4. Recipe "stable" adds benign_beta KL(policy || reference) on the benign rows [ours]; without it no reference is run.
"""

import torch

from midward.alignment.answers import AnswerObjective
from midward.alignment.data import Batch
from midward.alignment.objective import Terms

METRICS: tuple[str, ...] = ("ce_harmful", "ce_benign", "end_harmful", "end_benign", "kl_benign")
"""What every step measures, in nats.

ce_harmful, ce_benign: cross-entropy of a masked token, on harmful and on benign prompts. end_harmful, end_benign:
log-probability of the end token at a row's first masked position: what A2D reads as its alarm. kl_benign: KL(policy ||
reference) a masked token.
"""


class TokenObjective(AnswerObjective):
    """Steps 2 to 4, for one micro-batch."""

    METRICS = METRICS

    @property
    def needs_reference(self) -> bool:
        """For the KL on benign prompts alone."""
        return self.config.benign_beta > 0

    def __call__(self, batch: Batch) -> Terms:
        """One pass of the body, one of the reference's over benign rows if it is needed, and the loss."""
        config, prompts, scored = self.config, len(batch["in_step"]), len(batch["scored"])
        benign = len(batch["ids"]) - prompts
        # 2. Log-probabilities at the masked positions; the KL costs a second head, so only benign rows have it.
        hidden = self.states(batch)  # [R, D]
        reference = self.reference(batch, first=prompts) if self.needs_reference and benign else None
        harmful_rows = self.head(batch, hidden[:scored], None, scored)
        benign_rows = self.head(batch, hidden[scored:], reference, len(hidden) - scored)
        log_probs = torch.cat([harmful_rows.log_probs, benign_rows.log_probs])  # [R, C]
        # 3. The loss.
        scores = self.scores(batch, log_probs)  # [H + N]
        if config.token_mean == "length":
            loss = -scores.mean() / config.length
        else:  # micro-batches are averaged, and all of them together have batch_size prompts
            loss = -scores.sum() / batch["in_step"][0].clamp(min=1) * config.batch_size / prompts

        ce = -log_probs.detach().gather(1, batch["target"][:, None])[:, 0]  # [R]
        ends = log_probs.detach()[batch["first"]].index_select(1, batch["end"])[:, 0]  # [F]
        calm = batch["first"] >= scored
        metrics: dict[str, tuple[torch.Tensor, int | torch.Tensor]] = {
            "ce_harmful": (ce[:scored].sum(), scored),
            "ce_benign": (ce[scored:].sum(), len(ce) - scored),
            "end_harmful": (ends.masked_fill(calm, 0.0).sum(), (~calm).sum()),
            "end_benign": (ends.masked_fill(~calm, 0.0).sum(), calm.sum()),
        }
        # 4. The KL.
        if reference is not None:
            kl = self.benign_kl(batch, benign_rows.kl, prompts)
            loss = loss + config.benign_beta * kl.mean()
            metrics["kl_benign"] = (kl.detach().sum(), benign)
        return Terms(loss, metrics)
