"""`ra` in code: Recovery Alignment, reinforcement learning of responses that start contaminated.

"Recovery Alignment", ICLR 2026, arXiv 2510.00565; written from its main text, without its code, which isn't to be had.
A training step s of S:

1. A harmful prompt q with an answer r that complies. The start r_t: each token of r stands with probability t, all
   others are masked; t = s / (S - 1) * `most_anchors`. Benign prompts start from their own answers [ours]. (1, below)
2. G rollouts r_T from r_t: the model's own sampler at temperature 1, in random order, without gradient.
3. Their rewards R, from outside: a judge's of harmful prompts, usefulness of benign ones. (`Reward`)
4. Advantages within the group: A = (R - mean) / (sd + 1e-6). A response without a verdict has none.
5. Loss: -A * mean over masked i of log pi(r_T,i | q, r_t), one forward at r_t for all G, a mean over them and prompts
   (algorithm 2, line 16: the predictor at the start, not the chain); one inner update, so that no ratio is clipped.
6. Plus `beta` KL(policy || reference) a masked token at r_t; on benign prompts `benign_beta` where it isn't 0 [ours].

Starts and seeds of rollouts are functions of (seed, epoch, place in the data) alone, so a resumed run is the
uninterrupted one. Group, weights, t's end and steps are [ours]: the paper's aren't known.

Shapes: H harmful and N benign prompts, B = H + N starts, G rollouts of each, L response length, R masked positions of
all starts, C vocabulary entries that occur in a rollout, D hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from midward.alignment.answers import require_answers
from midward.alignment.config import AlignConfig
from midward.alignment.data import Batch, Prompt, Row, Schedule, canvas, read_at
from midward.alignment.objective import Passes, Terms, row_means
from midward.models import Family, LanguageModel
from midward.sampling import Forced, Request, Sampling, sample

METRICS: tuple[str, ...] = ("safety", "useful", "spread", "anchors", "kl", "kl_benign")
"""What every step measures.

safety, useful: mean reward on harmful and on benign prompts. spread: standard deviation of the rewards in a group.
anchors: share of a harmful prompt's response that stands from the start. kl, kl_benign: KL(policy || reference) a
masked token, in nats.
"""
_EPSILON = 1e-6  # in the denominator of an advantage
_ROWS = 32  # rollouts a forward


class Reward(Protocol):
    """What responses are worth.

    key: All that it depends on, as JSON: a run that goes on must have the same.
    """

    @property
    def key(self) -> Mapping[str, Any]: ...

    def __call__(self, harmful: bool, rows: Sequence[int], responses: Sequence[str]) -> Sequence[float | None]:
        """A finite number for each response, the more the better; None where there is no verdict.

        Args:
            harmful: Whether the prompts are of `data`, else they are of `benign`.
            rows: Which of them each response is to.
            responses: Texts, up to the end token.
        """
        ...


@dataclass(frozen=True)
class Start:
    """A prompt with what stands in its response from the start. index: in its data. seed: of its rollouts."""

    row: Row
    index: int
    seed: int


@dataclass(frozen=True)
class Starts:
    """One place of the schedule."""

    harmful: Start
    benign: list[Start]


class RolloutSchedule(Schedule):
    """Contaminated starts; a later step has more anchors."""

    def __init__(self, config: AlignConfig, harmful: Sequence[Prompt], benign: Sequence[Prompt], *more: Any) -> None:
        super().__init__(config, harmful, benign, *more)
        for name, prompts in (("data", harmful), ("benign", benign)):
            require_answers(config, name, prompts, ("answer",))
        self._indices = {prompt.ids: index for prompts in (harmful, benign) for index, prompt in enumerate(prompts)}

    def __getitem__(self, place: int) -> Starts:
        share = self.config.most_anchors * (place // self.config.batch_size) / max(1, self.steps - 1)
        return Starts(
            self._start(*self._harmful_at(place), share),
            [self._start(prompt, rng, share) for prompt, rng in self._benign_at(place)],
        )

    def collator(self, family: Family) -> "StartCollator":
        return StartCollator(self.config, family)

    def _start(self, prompt: Prompt, rng: Any, share: float) -> Start:
        text = (prompt.answer or ())[: self.config.length]
        shown = [at for at in range(len(text)) if rng.random() < share]
        if len(shown) == self.config.length:  # something stays to be written
            shown.remove(rng.choice(shown))
        row = Row(prompt.ids, {at: text[at] for at in shown})
        return Start(row, self._indices[prompt.ids], rng.getrandbits(48))


class StartCollator:
    """Examples of a `RolloutSchedule` -> `Batch`."""

    def __init__(self, config: AlignConfig, family: Family) -> None:
        self.config, self.family = config, family

    def __call__(self, examples: Sequence[Starts]) -> Batch:
        benign = [start for example in examples for start in example.benign]
        starts = [example.harmful for example in examples] + benign
        ids, mask, masked = canvas([start.row for start in starts], self.config.length, self.family)
        order = masked.nonzero()  # [R, 2]: (row, position)
        batch = read_at(order, ids, mask, masked, scored=len(order), family=self.family)
        batch["data_row"] = torch.tensor([example.harmful.index for example in examples])
        batch["benign_row"] = torch.tensor([start.index for start in benign], dtype=torch.int64)
        batch["draw"] = torch.tensor([start.seed for start in starts])
        return batch


class RolloutObjective(Passes):
    """Steps 2 to 6, for one micro-batch.

    Args:
        model: Its network is a PeftModel.
        config: The settings.
        reward: What its responses are worth.
    """

    METRICS = METRICS

    def __init__(self, model: LanguageModel, config: AlignConfig, reward: Reward) -> None:
        super().__init__(model, config)
        self.reward = reward
        whole = {} if model.family.attention == "block" else {"block": None}
        steps = config.rollout_steps or max(1, config.length // 4)
        how = {"length": config.length, "steps": steps, "order": "random", "temperature": 1.0, "end": "keep"}
        self.sampling = Sampling.for_model(model, **how, seed=config.seed, **whole)

    @property
    def needs_reference(self) -> bool:
        """For the KL alone."""
        return self.config.beta > 0 or self.config.benign_beta > 0

    def __call__(self, batch: Batch) -> Terms:
        """The rollouts, one pass of the body, one of the reference's, and the loss."""
        config, prompts, total = self.config, len(batch["data_row"]), len(batch["ids"])
        owner = self.owner(batch)  # [R]
        # 2 to 4. Rollouts and advantages.
        rollouts = self.rollouts(batch)  # [B, G, L]
        rewards = self.rewards(batch, rollouts)  # [B, G]
        advantage, spread = advantages(rewards)  # [B, G], [B]
        # 5. Log-probabilities of what was written at the masked positions.
        written = rollouts.transpose(1, 2).flatten(0, 1)[batch["slot"]]  # [R, G]
        columns, target = written.unique(return_inverse=True)
        batch = {**batch, "columns": columns}
        hidden = self.states(batch)
        reference = self.reference(batch) if self.needs_reference else None
        head = self.head(batch, hidden, reference, len(hidden))
        each = head.log_probs.gather(1, target)  # [R, G]
        means = row_means(each, owner, total)  # [B, G]
        gain = (advantage.to(means.dtype) * means).mean(1)  # [B]
        loss = -gain[:prompts].mean()
        shares = 1 - batch["masked"].double().mean(1)
        measured = {"spread": spread, "anchors": shares[:prompts]}
        # 6. The KL.
        kl = None
        if reference is not None:
            kl = row_means(head.kl, owner, total)
            loss = loss + config.beta * kl[:prompts].mean()
            measured |= {"kl": kl[:prompts], "kl_benign": kl[prompts:]}
        if total > prompts:
            loss = loss - gain[prompts:].mean()
            if kl is not None:
                loss = loss + (config.benign_beta or config.beta) * kl[prompts:].mean()
        metrics: dict[str, tuple[Tensor, int | Tensor]] = {
            name: (value.detach().sum(), value.numel()) for name, value in measured.items()
        }
        for name, part in (("safety", rewards[:prompts]), ("useful", rewards[prompts:])):
            metrics[name] = (part.nansum(), (~part.isnan()).sum())
        return Terms(loss, metrics)

    @torch.no_grad()
    def rollouts(self, batch: Batch) -> Tensor:
        """G responses from each start, [B, G, L] token ids.

        Raises:
            ModelError: The model's numbers aren't finite.
        """
        length, network = self.config.length, self.model.network
        real = batch["mask"].bool() if "mask" in batch else torch.ones_like(batch["ids"], dtype=torch.bool)
        requests = []
        for ids, kept, masked, seed in zip(batch["ids"], real, batch["masked"], batch["draw"].tolist(), strict=True):
            response = ids[-length:].tolist()
            prompt = tuple(ids[:-length][kept[:-length]].tolist())
            forced = tuple(Forced(at, (response[at],)) for at in (~masked).nonzero()[:, 0].tolist())
            requests += [Request(prompt, forced, seed=seed + number) for number in range(self.config.group)]
        training = network.training
        network.eval()
        try:
            with self.model.folded():
                responses = sample(self.model, requests, self.sampling, batch_size=_ROWS)
        finally:
            network.train(training)
        ids = [response.checked().raw_ids for response in responses]
        return torch.tensor(ids, device=batch["ids"].device).view(len(batch["ids"]), self.config.group, length)

    def rewards(self, batch: Batch, rollouts: Tensor) -> Tensor:
        """[B, G] in float64; NaN where there is no verdict. rollouts: [B, G, L]."""
        values: list[float | None] = []
        rows = {True: batch["data_row"].tolist(), False: batch["benign_row"].tolist()}
        texts = [self._text(ids) for ids in rollouts.flatten(0, 1).tolist()]
        for harmful, of_rows in rows.items():
            owners = [row for row in of_rows for _ in range(self.config.group)]
            if owners:
                values += self.reward(harmful, owners, texts[len(values) : len(values) + len(owners)])
        numbers = [float("nan") if value is None else value for value in values]
        return torch.tensor(numbers, dtype=torch.float64, device=rollouts.device).view(rollouts.shape[:2])

    def _text(self, ids: Sequence[int]) -> str:
        """Up to the first end token."""
        ends = self.model.family.end_ids
        return self.model.decode(ids[: next((at for at, token in enumerate(ids) if token in ends), len(ids))])


def advantages(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """(R - mean) / (sd + 1e-6) in each group, 0 where there is no verdict; and the groups' standard deviations.

    Args:
        rewards: [B, G], NaN where there is no verdict.

    Returns:
        [B, G] and [B].
    """
    scored = ~rewards.isnan()
    count = scored.sum(1, keepdim=True).clamp(min=1)
    known = rewards.nan_to_num()
    centred = torch.where(scored, known - known.sum(1, keepdim=True) / count, 0.0)
    spread = (centred.square().sum(1, keepdim=True) / count).sqrt()
    return centred / (spread + _EPSILON), spread[:, 0]
