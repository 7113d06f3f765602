"""Training examples: which prompts, which sentences and which revealed tokens stand at each place of the schedule.

Everything drawn is a pure function of (seed, epoch, place in the data), never of a global random state, so that
gradient accumulation, several processes and a resumed run see the same draws.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypedDict

import torch
from torch import Tensor

from midward.alignment.config import AlignConfig, AlignError
from midward.alignment.sentences import SentenceIds
from midward.models import Family, LanguageModel

OPENING = 4  # first tokens of a safe sentence that `mosa.over_refusal` looks at


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt and, if there are any, of its answers (without an end token).

    answer: What fulfils the request. safe_answer: To a harmful request, what may be answered instead.
    """

    ids: tuple[int, ...]
    answer: tuple[int, ...] | None = None
    safe_answer: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Row:
    """One canvas row: a prompt, and the response tokens that are revealed to the model (position -> id)."""

    prompt: tuple[int, ...]
    revealed: dict[int, int]


@dataclass(frozen=True)
class Example:
    """One place of the schedule: a harmful row, its sentence pairs, and the benign rows beside it."""

    harmful: Row
    pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]
    benign: list[tuple[Row, tuple[int, ...]]]


def encode_prompts(model: LanguageModel, data: Sequence[Any], config: AlignConfig, name: str) -> list[Prompt]:
    """Prompts with their answers, as token ids.

    Args:
        model: Its chat template and tokenizer are used.
        data: Texts, conversations (lists of {"role", "content"}), pairs (prompt, answer or None), or (prompt, answer,
            safe answer).
        config: Says how much room a response takes.
        name: Of the data, for errors.

    Raises:
        AlignError: There are none, two are equal, or one is too long to leave room for the response.
    """
    if isinstance(data, str | Mapping) or not isinstance(data, Sequence):
        raise AlignError(f"{name} must be a list of prompts; received a {type(data).__name__}.")
    if not data:
        raise AlignError(f"{name} is empty; give one prompt or more.")
    room = model.max_positions - config.length
    prompts: list[Prompt] = []
    seen: dict[tuple[int, ...], int] = {}
    for row, entry in enumerate(data):
        text, *answers = entry if isinstance(entry, tuple) else (entry,)
        if len(answers) > 2:
            raise AlignError(f"{name}[{row}] has {len(answers)} answers; give one, or one and a safe one.")
        if not text or (isinstance(text, str) and not text.strip()):
            raise AlignError(f"{name}[{row}] is an empty prompt; remove it.")
        try:
            ids = tuple(model.encode(text))
        except (TypeError, ValueError) as error:
            raise AlignError(f"{name}[{row}]: {error}") from None
        if len(ids) > room:
            raise AlignError(
                f"{name}[{row}] has {len(ids)} tokens; with a response of {config.length} the model has room "
                f"for {room}. Shorten the prompt or lower length."
            )
        if ids in seen:
            raise AlignError(f"{name}[{row}] repeats {name}[{seen[ids]}]; remove one of the two.")
        seen[ids] = row
        where = f"{name}[{row}]"
        prompts.append(Prompt(ids, *(None if each is None else _answer_ids(model, each, where) for each in answers)))
    return prompts


def _answer_ids(model: LanguageModel, answer: Any, where: str) -> tuple[int, ...]:
    if not isinstance(answer, str):
        raise AlignError(f"{where}: the answer must be a text or None; received {answer!r}.")
    ids = model.tokens(answer)
    ids = [token for token in ids if token not in model.family.end_ids]
    if model.family.mask_id in ids:
        raise AlignError(f"{where}: the answer holds a mask token; write it without.")
    return tuple(ids)


def digest(*parts: Any) -> str:
    """16 hex digits over plain values: equal means the same data."""
    text = json.dumps(parts, default=lambda value: value.__dict__, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Schedule(torch.utils.data.Dataset):
    """The run's examples in training order: item i is the i-th example of the whole run, `steps * batch_size` of them.

    Each epoch is a permutation of the harmful prompts; the benign ones go round in permutations of their own. What an
    example is, and how a batch is made of examples, is the method's to say.

    Args:
        config: The settings.
        harmful: Prompts that are to be refused.
        benign: Prompts on which the model stays as it is; may be empty.
        sentences: What is drawn from, by those that draw.
        end_id: The end-of-sequence token.
    """

    def __init__(
        self,
        config: AlignConfig,
        harmful: Sequence[Prompt],
        benign: Sequence[Prompt],
        sentences: SentenceIds | None,
        end_id: int,
    ) -> None:
        self.config, self.harmful, self.benign, self.end_id = config, harmful, benign, end_id
        self.sentences = sentences or SentenceIds((), ())
        self.steps = config.max_steps or max(1, -int(-len(harmful) * config.epochs // config.batch_size))
        self._orders: dict[tuple[str, int], list[int]] = {}

    def __len__(self) -> int:
        return self.steps * self.config.batch_size

    def __getitem__(self, place: int) -> Any:
        raise NotImplementedError

    def collator(self, family: Family) -> Callable[[Sequence[Any]], "Batch"]:
        """What makes a batch of examples."""
        raise NotImplementedError

    def _at(self, kind: str, place: int, size: int) -> tuple[int, int]:
        """(turn, index): which pass over the data this is, and which of its rows stands here."""
        turn, offset = divmod(place, size)
        if (kind, turn) not in self._orders:
            order = list(range(size))
            Random(f"{self.config.seed}/{kind}/order/{turn}").shuffle(order)
            self._orders[kind, turn] = order
        return turn, self._orders[kind, turn][offset]

    def _harmful_at(self, place: int) -> tuple[Prompt, Random]:
        """The harmful prompt that stands here, and its random numbers."""
        epoch, index = self._at("harmful", place, len(self.harmful))
        return self.harmful[index], Random(f"{self.config.seed}/{epoch}/{index}")

    def _benign_at(self, place: int) -> Iterator[tuple[Prompt, Random]]:
        """The benign prompts beside it, each with its random numbers."""
        if self.benign:
            for j in range(self.config.benign_per_prompt):
                turn, other = self._at("benign", place * self.config.benign_per_prompt + j, len(self.benign))
                yield self.benign[other], Random(f"{self.config.seed}/benign/{turn}/{other}")


class SentenceSchedule(Schedule):
    """Examples of the MOSA objective: responses of masks, partly revealed or not, and drawn sentences."""

    def __init__(
        self, config: AlignConfig, harmful: Sequence[Prompt], benign: Sequence[Prompt], *more: Any, **named: Any
    ) -> None:
        super().__init__(config, harmful, benign, *more, **named)
        told = {"other": (harmful, 2, "data"), "neutral": (benign, 1, "benign")}
        if config.reveal and config.reveal_text in told:
            prompts, least, name = told[config.reveal_text]
            self.texts = tuple(dict.fromkeys(prompt.answer for prompt in prompts if prompt.answer))
            if len(self.texts) < least:
                raise AlignError(
                    f"reveal_text={config.reveal_text!r} reveals answers of {name}, and it has {len(self.texts)} "
                    f"different ones; give {least} or more in a column 'answer', or use reveal_text='own'."
                )

    def __getitem__(self, place: int) -> Example:
        config = self.config
        # 1. Which harmful prompt stands here, and whether its response is partly revealed.
        prompt, rng = self._harmful_at(place)
        reveal = rng.random() < config.reveal
        harmful = self._harmful_row(prompt, rng, place) if reveal else Row(prompt.ids, {})
        # 2. Its sentence pairs: its own, or those that all prompts of the step share.
        pairs_rng = rng
        if config.draw == "step":
            pairs_rng = Random(f"{config.seed}/step/{place // config.batch_size}")
        pairs = [
            (pairs_rng.choice(self.sentences.safe), pairs_rng.choice(self.sentences.harmful))
            for _ in range(config.pairs)
        ]
        # 3. The benign prompts beside it, each with the opening of a refusal, which is measured only.
        benign = []
        for other, own in self._benign_at(place):
            opening = own.choice(self.sentences.safe)[:OPENING]
            benign.append((self._benign_row(other, own), opening))
        return Example(harmful, pairs, benign)

    def collator(self, family: Family) -> "SentenceCollator":
        return SentenceCollator(self.config, family, self.sentences.longest)

    def _harmful_row(self, prompt: Prompt, rng: Random, place: int) -> Row:
        """A partly revealed response, with room left for a sentence at one start of the window or more; or with one
        masked token in the window, where `reveal_room` is any."""
        config, length = self.config, self.config.length
        text = self._revealed_text(prompt, rng)
        size, rate = min(len(text), length), self._rate(place, rng)
        if config.reveal_room == "any":
            shown = self._choose(size, size, rng, rate)
            if set(range(*config.window)) <= set(shown):
                shown.remove(rng.randrange(*config.window))
            return Row(prompt.ids, {i: text[i] for i in shown})
        longest = self.sentences.longest
        last = config.window_end - (longest if config.fit else 1)
        start = rng.randint(config.window_start, min(last, length - longest))
        kept = range(start, start + longest)
        shown = self._choose(size, start, rng, rate)
        return Row(prompt.ids, {i: text[i] for i in shown if i not in kept})

    def _revealed_text(self, prompt: Prompt, rng: Random) -> tuple[int, ...]:
        """What a harmful example's response is revealed from."""
        if self.config.reveal_text != "own":
            at = rng.randrange(len(self.texts))
            return self.texts[(at + 1) % len(self.texts) if self.texts[at] == prompt.answer else at]
        if prompt.answer:
            return prompt.answer
        # No compliant answer given: generic procedural lines stand in for one.
        lines = list(self.sentences.harmful)
        rng.shuffle(lines)
        return tuple(token for line in lines for token in line)

    def _rate(self, place: int, rng: Random) -> float | None:
        """The share of a text that is revealed here; None: any, drawn where it is used."""
        match self.config.reveal_rate:
            case "uniform":
                return None
            case "linear":  # Recovery Alignment: t rises with the step s of S, from 0 to T
                return place // self.config.batch_size / max(1, self.steps - 1)
            case (low, high):
                return rng.uniform(low, high)

    def _benign_row(self, prompt: Prompt, rng: Random) -> Row:
        if prompt.answer is None or rng.random() >= self.config.benign_reveal:
            return Row(prompt.ids, {})
        length = self.config.length
        # Answers are padded with the end token in training, so it is revealed there as it would be while
        # sampling.
        text = (*prompt.answer, *[self.end_id] * length)[:length]
        shown = self._choose(length, length - 1, rng)
        if len(shown) == length:
            shown.remove(rng.choice(shown))
        return Row(prompt.ids, {i: text[i] for i in shown})

    def _choose(self, size: int, longest_prefix: int, rng: Random, rate: float | None = None) -> list[int]:
        """Revealed positions among the first `size`: a prefix of random length, or each at a random rate, unless the
        rate is given."""
        kind = self.config.reveal_kind
        if kind == "both":
            kind = "prefix" if rng.random() < 0.5 else "subset"
        if kind == "prefix":
            longest = min(size, longest_prefix)
            return list(range(rng.randint(0, longest) if rate is None else round(rate * longest)))
        rate = rng.random() if rate is None else rate
        return [i for i in range(size) if rng.random() < rate]


class Batch(TypedDict, total=False):
    """Tensors of one micro-batch; rows of the canvas are the H harmful prompts, then the N benign ones.

    ids: `[H + N, T]`, prompts padded on the left, so that response token i of every row is column T - L + i.
    mask: `[H + N, T]`, 1 = real token; absent when nothing is padded.
    masked: `[H + N, L]` bool, True where the response token is hidden from the model.
    rows: `[R]` flat positions in the canvas whose output the loss reads, those that are scored first.
    slot: `[R]` the response position of each, plus L times its canvas row.
    scored: `[S]` zeros, one a scored row: S is its length (a tensor, so that devices and processes agree).
    columns: `[C]` the vocabulary entries that any sentence here uses.
    safe, harmful: `[H, P, M]` sentences as indices into `columns`, -1 pads.
    opening: `[N, Q]` the first tokens of a safe sentence, the same way.

    Of methods that learn answers (answers.py), whose canvas rows are the A of harmful prompts, then the N benign ones:
    target: `[R]` the token to learn at each position, an index into `columns`.
    weight: `[R]` one through the rate at which its row is masked.
    first: `[F]` which of the R is its row's first masked position; a row without one has none.
    end: `[1]` the end token, an index into `columns`.
    in_step: `[H]` how many tokens are masked in the whole optimizer step.

    Of `ra`, whose canvas rows are starts of responses, the H of harmful prompts, then the N benign ones:
    data_row: `[H]` which of the harmful prompts each is.
    benign_row: `[N]` which of the benign ones.
    draw: `[H + N]` seed of each row's rollouts.
    """

    ids: Tensor
    mask: Tensor
    masked: Tensor
    rows: Tensor
    slot: Tensor
    scored: Tensor
    columns: Tensor
    safe: Tensor
    harmful: Tensor
    opening: Tensor
    target: Tensor
    weight: Tensor
    first: Tensor
    end: Tensor
    in_step: Tensor
    data_row: Tensor
    benign_row: Tensor
    draw: Tensor


def canvas(rows: Sequence[Row], length: int, family: Family) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts padded on the left, and behind each a response of masks but for what is revealed: `ids`, `mask` and
    `masked` of a `Batch`."""
    widest = family.width(max(len(row.prompt) for row in rows))
    assert family.mask_id is not None, "only diffusion models are aligned"
    ids = torch.full((len(rows), widest + length), family.mask_id)
    mask = torch.ones_like(ids)
    masked = torch.ones(len(rows), length, dtype=torch.bool)
    for number, row in enumerate(rows):
        pad = widest - len(row.prompt)
        ids[number, :pad] = family.pad_id
        mask[number, :pad] = 0
        ids[number, pad:widest] = torch.tensor(row.prompt)
        for place, token in row.revealed.items():
            ids[number, widest + place] = token
            masked[number, place] = False
    return ids, mask, masked


def read_at(order: Tensor, ids: Tensor, mask: Tensor, masked: Tensor, *, scored: int, family: Family) -> Batch:
    """A batch whose loss reads the response tokens of `order`, `[R, 2]`: (row, position), the scored ones first."""
    owner, position = order.unbind(1)
    length = masked.shape[1]
    # With shifted logits (Dream) a token is predicted one place to its left.
    column = ids.shape[1] - length + position - int(family.shift)
    batch = Batch(
        ids=ids,
        masked=masked,
        rows=owner * ids.shape[1] + column,
        slot=owner * length + position,
        scored=torch.zeros(scored, dtype=torch.int8),
    )
    if not mask.all():
        batch["mask"] = mask
    return batch


def by_position(batch: Batch, log_probs: Tensor, *, scored: bool) -> Tensor:
    """[R, C] as the head gives them to [rows of the canvas, L, C], 0 where there are none; scored: those alone, of the
    harmful prompts."""
    length = batch["masked"].shape[1]
    rows = batch["safe"].shape[0] if scored else len(batch["masked"])
    count = len(batch["scored"]) if scored else len(log_probs)
    table = log_probs.new_zeros(rows * length, log_probs.shape[1])
    return table.index_copy(0, batch["slot"][:count], log_probs[:count]).view(rows, length, -1)


class SentenceCollator:
    """Examples of `SentenceSchedule` -> `Batch`."""

    def __init__(self, config: AlignConfig, family: Family, longest: int) -> None:
        self.config, self.family = config, family
        # The last row that a sentence starting in the window can reach.
        last = config.window_end if config.fit else config.window_end - 1 + longest
        self.scored = range(config.window_start, min(last, config.length))

    def __call__(self, examples: Sequence[Example]) -> Batch:
        # 1. The canvas.
        length, family = self.config.length, self.family
        openings = [opening for example in examples for _, opening in example.benign]
        rows = [example.harmful for example in examples]
        rows += [row for example in examples for row, _ in example.benign]

        ids, mask, masked = canvas(rows, length, family)

        # 2. Which masked positions the head runs on: those that sentences are scored at, then the rest of the KL's.
        wanted = masked.clone()
        score = torch.zeros_like(masked)
        score[: len(examples), self.scored.start : self.scored.stop] = True
        score &= masked
        if self.config.kl_rows == "window":
            wanted[: len(examples)] = score[: len(examples)]
        order = torch.cat([score.nonzero(), (wanted & ~score).nonzero()])  # [R, 2]: (row, position)
        batch = read_at(order, ids, mask, masked, scored=int(score.sum()), family=family)
        # 3. The sentences, as indices into the vocabulary entries that any of them uses.
        columns: dict[int, int] = {}
        batch["safe"] = _index([[safe for safe, _ in e.pairs] for e in examples], columns)
        batch["harmful"] = _index([[harmful for _, harmful in e.pairs] for e in examples], columns)
        if openings:
            batch["opening"] = _index([openings], columns)[0]
        batch["columns"] = torch.tensor(list(columns))
        return batch


def _index(groups: Sequence[Sequence[tuple[int, ...]]], columns: dict[int, int]) -> Tensor:
    """`[groups, sentences, longest]` indices into `columns` (which grows), -1 pads."""
    longest = max(len(sentence) for group in groups for sentence in group)
    table = torch.full((len(groups), len(groups[0]), longest), -1)
    for i, group in enumerate(groups):
        for j, sentence in enumerate(group):
            for k, token in enumerate(sentence):
                table[i, j, k] = columns.setdefault(token, len(columns))
    return table
