"""`dpo` in code: preference optimisation with the masked-diffusion bound, as VRPO has it.

Zhu et al., "LLaDA 1.5: Variance-Reduced Preference Optimization for Large Language Diffusion Models", arXiv 2505.19223;
written from its idea, without its code. A2D (arXiv 2509.23286) compares itself with VRPO,
Recovery Alignment (arXiv 2510.00565) with a DPO that it doesn't describe. A training step:

1. Each harmful prompt q with a safe answer y+ and a harmful one y-, each in n_t copies masked at rates p of their own.
   (answers.py; `masks` copies, 4)
2. The bound of log pi(y | q): B(y) = mean over copies of the sum over masked i of log pi(y_i | copy) / p.
3. The reference is run on the very same copies, so that the noise of the masks cancels in
   dB(y) = B_policy(y) - B_reference(y): what makes it VRPO rather than DPO with two estimates.
4. Minimise -log sigmoid(dpo_beta (dB(y+) - dB(y-))), dpo_beta 0.1, as DPO (arXiv 2305.18290, equation 7).
5. Recipe "stable" adds benign_beta KL(policy || reference) on benign rows [ours].

Shapes: H harmful prompts, n_t copies, A = 2 H n_t rows of theirs in the order (prompt, safe before harmful, copy), and
those of answers.py.
"""

import torch.nn.functional as F
from torch import Tensor

from midward.alignment.answers import AnswerObjective
from midward.alignment.data import Batch
from midward.alignment.objective import Terms

METRICS: tuple[str, ...] = ("margin", "accuracy", "safe_gain", "harmful_gain", "kl_benign")
"""What every step measures, in nats unless said otherwise.

safe_gain, harmful_gain: dB of the safe and of the harmful answer. margin: their difference. accuracy: share of prompts
with a positive margin, 0 to 1. kl_benign: KL(policy || reference) a masked token, on benign prompts.
"""


class PreferenceObjective(AnswerObjective):
    """Steps 2 to 5, for one micro-batch."""

    METRICS = METRICS
    needs_reference = True

    def __call__(self, batch: Batch) -> Terms:
        """Two passes of the body over the same canvas, and the loss."""
        config, prompts, scored = self.config, len(batch["in_step"]), len(batch["scored"])
        rows = 2 * config.masks * prompts  # A
        benign = len(batch["ids"]) - rows
        # 2 and 3. Both bounds, of the same masks.
        reference, hidden = self.reference(batch), self.states(batch)  # [R, D] each
        before, after = (self.head(batch, each[:scored], None, scored).log_probs for each in (reference, hidden))
        gain = self.bounds(batch, after) - self.bounds(batch, before)  # [H, 2]
        # 4. The preference.
        margin = gain[:, 0] - gain[:, 1]  # [H]
        loss = -F.logsigmoid(config.dpo_beta * margin).mean()
        measured = {
            "margin": margin,
            "accuracy": (margin > 0).to(margin.dtype),
            "safe_gain": gain[:, 0],
            "harmful_gain": gain[:, 1],
        }
        # 5. The KL.
        if benign:
            rows_of_benign = self.head(batch, hidden[scored:], reference[scored:], 0)
            measured["kl_benign"] = self.benign_kl(batch, rows_of_benign.kl, rows)
            loss = loss + config.benign_beta * measured["kl_benign"].mean()
        return Terms(loss, {name: (value.detach().sum(), value.numel()) for name, value in measured.items()})

    def bounds(self, batch: Batch, log_probs: Tensor) -> Tensor:
        """B of the safe and of the harmful answer of each prompt, [H, 2], of log_probs [S, C]."""
        prompts, masks = len(batch["in_step"]), self.config.masks
        return self.scores(batch, log_probs)[: 2 * masks * prompts].view(prompts, 2, masks).mean(-1)
