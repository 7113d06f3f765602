"""Training rows that are whole answers, each token hidden at a random rate: what `sft`, `rt`, `a2d`, `dpo` learn from.

A row is a prompt and an answer, cut or padded with end tokens to L tokens; padding is hidden, predicted and counted
like any other token. Its rate is p = (1 - eps) t + eps with t ~ U(0, 1), and each of its L tokens is masked with
probability p, the prompt never: the forward process of masked diffusion (LLaDA, arXiv 2502.09992, section 2), and what
A2D's released code computes (arXiv 2509.23286; eps 0.001).

Shapes: H harmful prompts, A rows of theirs (one each; of dpo 2 n_t), N benign rows, B = A + N rows in all, T
canvas length, L response length, R masked positions (the first S of the A rows), C vocabulary entries that occur as a
target, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from midward.alignment.config import AlignConfig, AlignError
from midward.alignment.data import Batch, Prompt, Row, Schedule, canvas, read_at
from midward.alignment.objective import Passes, row_means, row_sums
from midward.models import Family


@dataclass(frozen=True)
class AnswerRow:
    """A canvas row, what each of its L response tokens should be, and the rate at which they were masked."""

    row: Row
    targets: tuple[int, ...]
    rate: float

    @property
    def masked(self) -> int:
        """How many of its tokens are masked."""
        return len(self.targets) - len(self.row.revealed)


@dataclass(frozen=True)
class AnswerExample:
    """One place of the schedule: rows of the harmful prompt, benign rows beside them, and how many tokens the whole
    optimizer step masks (0 where nobody asks)."""

    rows: list[AnswerRow]
    benign: list[AnswerRow]
    in_step: int


@dataclass(frozen=True)
class Learns:
    """What a method learns of each prompt.

    texts: What stands in a harmful prompt's rows: answers of it (fields of `Prompt`, which it must have), or a drawn
        "refusal".
    ends: Whether each hidden token of them should be the end token, and not its own.
    copies: Whether each stands in `masks` rows, with masks of their own.
    benign: Whether benign answers are learnt, so that every benign prompt must have one.
    """

    texts: tuple[str, ...]
    ends: bool = False
    copies: bool = False
    benign: bool = True


LEARNS = {
    "sft": Learns(("safe_answer",)),
    "rt": Learns(("refusal",)),
    "a2d": Learns(("answer",), ends=True),
    "dpo": Learns(("safe_answer", "answer"), copies=True, benign=False),
}


def require_answers(config: AlignConfig, name: str, prompts: Sequence[Prompt], fields: Sequence[str]) -> None:
    """Raise AlignError for the first prompt that lacks one of these fields. name: of the data."""
    for row, prompt in enumerate(prompts):
        for field in fields:
            if getattr(prompt, field) is None:
                raise AlignError(
                    f"method {config.method!r} learns from the {field.replace('_', ' ')} of every prompt and "
                    f"{name}[{row}] has none; give it in a column {field!r}, or as (prompt, answer, safe answer)."
                )


class AnswerSchedule(Schedule):
    """Examples of methods that learn answers, as `LEARNS` says."""

    def __init__(self, config: AlignConfig, harmful: Sequence[Prompt], benign: Sequence[Prompt], *more: Any) -> None:
        super().__init__(config, harmful, benign, *more)
        self.learns = LEARNS[config.method]
        require_answers(config, "data", harmful, [text for text in self.learns.texts if text != "refusal"])
        require_answers(config, "benign", benign, ("answer",) if self.learns.benign else ())
        self._counted = (-1, 0)  # a step, and the tokens that it masks

    def __getitem__(self, place: int) -> AnswerExample:
        rows, benign = self._draw(place)
        return AnswerExample(rows, benign, self._in_step(place // self.config.batch_size))

    def collator(self, family: Family) -> "AnswerCollator":
        return AnswerCollator(self.config, family, self.end_id)

    def _draw(self, place: int) -> tuple[list[AnswerRow], list[AnswerRow]]:
        rows = self._rows(*self._harmful_at(place))
        return rows, [self._hidden(prompt, prompt.answer, rng) for prompt, rng in self._benign_at(place)]

    def _rows(self, prompt: Prompt, rng: Random) -> list[AnswerRow]:
        """The rows of a harmful prompt."""
        texts = [rng.choice(self.sentences.safe) if t == "refusal" else getattr(prompt, t) for t in self.learns.texts]
        targets = (self.end_id,) * self.config.length if self.learns.ends else None
        copies = self.config.masks if self.learns.copies else 1
        return [self._hidden(prompt, text, rng, targets) for text in texts for _ in range(copies)]

    def _in_step(self, step: int) -> int:
        if self.config.token_mean == "length":
            return 0
        if self._counted[0] != step:
            size = self.config.batch_size
            drawn = (self._draw(place) for place in range(step * size, (step + 1) * size))
            self._counted = step, sum(row.masked for rows, benign in drawn for row in (*rows, *benign))
        return self._counted[1]

    def _hidden(
        self, prompt: Prompt, text: tuple[int, ...] | None, rng: Random, targets: tuple[int, ...] | None = None
    ) -> AnswerRow:
        """A row with the text as its answer, partly hidden. targets: what is learnt instead of the text's own tokens.
        Without a text all is hidden."""
        length, least = self.config.length, self.config.least_rate
        tokens = (*(text or ()), *[self.end_id] * length)[:length]
        rate = 1.0 if text is None else (1 - least) * rng.random() + least
        shown = {i: token for i, token in enumerate(tokens) if rng.random() >= rate}
        return AnswerRow(Row(prompt.ids, shown), targets or tokens, rate)


class AnswerCollator:
    """Examples of an `AnswerSchedule` -> `Batch`."""

    def __init__(self, config: AlignConfig, family: Family, end_id: int) -> None:
        self.config, self.family, self.end_id = config, family, end_id

    def __call__(self, examples: Sequence[AnswerExample]) -> Batch:
        # 1. The canvas: all rows of harmful prompts, then the benign ones.
        harmful = [row for example in examples for row in example.rows]
        rows = harmful + [row for example in examples for row in example.benign]
        ids, mask, masked = canvas([row.row for row in rows], self.config.length, self.family)
        # 2. The head runs on what is masked, row by row, so that the harmful prompts' come first.
        order = masked.nonzero()  # [R, 2]: (row, position)
        batch = read_at(order, ids, mask, masked, scored=int(masked[: len(harmful)].sum()), family=self.family)
        # 3. What should stand there, as indices into the vocabulary entries that occur.
        targets = torch.tensor([row.targets for row in rows])[masked]  # [R]
        columns, index = torch.cat([torch.tensor([self.end_id]), targets]).unique(return_inverse=True)
        batch["columns"], batch["end"], batch["target"] = columns, index[:1], index[1:]
        batch["weight"] = torch.tensor([1 / row.rate for row in rows], dtype=torch.float64)[order[:, 0]]
        # 4. Which of the R is a row's first.
        counts = masked.sum(1)
        batch["first"] = (counts.cumsum(0) - counts)[counts > 0]
        batch["in_step"] = torch.tensor([example.in_step for example in examples])
        return batch


class AnswerObjective(Passes):
    """What the objectives over answers share."""

    def scores(self, batch: Batch, log_probs: Tensor) -> Tensor:
        """log_probs, [R, C] or the first S of them, to [B]: of each canvas row the sum over masked i of
        log p(target_i) / p."""
        count = len(log_probs)
        each = log_probs.gather(1, batch["target"][:count, None])[:, 0]
        each = each * batch["weight"][:count].to(each.dtype)
        return row_sums(each, self.owner(batch)[:count], len(batch["ids"]))

    def benign_kl(self, batch: Batch, kl: Tensor, harmful: int) -> Tensor:
        """[N]: KL(policy || reference) a masked token of each benign row, of kl [R - S]. harmful: A."""
        return row_means(kl, self.owner(batch)[len(batch["scored"]) :] - harmful, len(batch["ids"]) - harmful)
