"""GCG on masked diffusion: a suffix of the user's turn that makes a phrase likely at any place of the response.

The search is the greedy coordinate gradient of Zou et al. (2307.15043, Algorithm 1); its use at the start against the
middle of a response is MOSA's (2508.12398, figure 4). MOSA says no more of it than phrase, place and number of
iterations, so the loss is ours: the mean cross entropy of the phrase with the response fully masked, or over partly
revealed drafts. Where the aim is a whole response, the former is First-Step GCG (Recovery Alignment, 2510.00565,
section 4.2), and drafts of the response itself make its rival, Monte-Carlo GCG. Shapes: S tokens of the suffix, V
vocabulary rows.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from midward.attacks._suffix import plain_tokens, start_in
from midward.errors import InputError
from midward.models import LanguageModel, ModelError
from midward.probes.configs import Gcg
from midward.probes.evading import Evaded
from midward.sampling import Forced, Request, Sampling, Span, sample, span_gradient, span_log_probs

Suffix = tuple[int, ...]
Draft = tuple[Forced, ...]


@dataclass(frozen=True)
class Aim:
    """A phrase that is to stand at a response position, as text and as the model's tokens."""

    position: int
    phrase: str
    ids: tuple[int, ...]


class SuffixPrompt:
    """A user's turn with a suffix behind it, seen as the model's own tokens."""

    def __init__(self, model: LanguageModel, text: str) -> None:
        self.model, self.goal = model, text

    def text(self, suffix: Suffix) -> str:
        """What the user would send."""
        shown = self.model.tokenizer.decode(list(suffix), clean_up_tokenization_spaces=False)
        return f"{self.goal} {shown}"

    def ids(self, suffix: Suffix) -> list[int]:
        """The whole prompt, through the chat template."""
        return self.model.encode(self.text(suffix))

    def place(self, suffix: Suffix) -> tuple[list[int], int] | None:
        """The prompt's ids and the index of the suffix's first token; None where its text is read as other tokens."""
        ids = self.ids(suffix)
        start = start_in(ids, suffix)
        return None if start is None else (ids, start)


def start_of(prompt: SuffixPrompt, tokens: int) -> Suffix:
    """A suffix of equal tokens that says nothing: exclamation marks where they are read back as they are.

    Args:
        prompt: what it stands behind.
        tokens: its length, S.

    Raises:
        InputError: no token of visible text repeats itself in this prompt.
    """
    words = plain_tokens(prompt.model.tokenizer)
    marks = [tuple(prompt.model.tokens(mark)) for mark in (" !", "!")]
    for token in [*(ids[0] for ids in marks if len(ids) == 1 and ids[0] in words), *words]:
        suffix = (token,) * tokens
        if prompt.place(suffix) is not None:
            return suffix
    raise InputError(f"no token of {prompt.model.name!r} can be repeated {tokens} times in a prompt; use fewer.")


def swaps(
    slope: torch.Tensor, prompt: SuffixPrompt, current: Suffix, *, width: int, top: int, rng: random.Random
) -> tuple[list[tuple[Suffix, list[int]]], int]:
    """Candidates that differ from `current` in one token.

    Args:
        slope: the loss's gradient with respect to the one-hot suffix [S, V].
        prompt: what the suffix stands in.
        current: the suffix.
        width: candidates, at most; drawn evenly, none twice.
        top: plain tokens of steepest descent that they are drawn from, at each slot.
        rng: of the draw.

    Returns:
        Suffixes with their prompt's ids, and how many were dropped because their text isn't read back as these tokens.
    """
    words = plain_tokens(prompt.model.tokenizer)
    steepest = slope[:, list(words)].topk(min(top, len(words)), largest=False).indices.tolist()
    placed = prompt.place(current)
    assert placed is not None  # it was read back when it was chosen
    ids, start = placed
    candidates: list[tuple[Suffix, list[int]]] = []
    dropped = 0
    pairs = [(slot, words[at]) for slot, row in enumerate(steepest) for at in row]
    for slot, token in rng.sample(pairs, len(pairs)):
        if token == current[slot]:
            continue
        swapped = [*ids[: start + slot], token, *ids[start + slot + 1 :]]
        suffix = (*current[:slot], token, *current[slot + 1 :])
        if prompt.ids(suffix) != swapped:
            dropped += 1
            continue
        candidates.append((suffix, swapped))
        if len(candidates) == width:
            break
    return candidates, dropped


def losses(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    aim: Aim,
    *,
    length: int,
    drafts: Sequence[Draft] = ((),),
    batch_size: int = 64,
) -> list[float]:
    """Mean cross entropy of the aim's tokens after each prompt; the mean over drafts.

    Args:
        model: whose loss it is.
        prompts: token ids each, N of them.
        aim: what is to become likely; the head runs on its positions alone.
        length: tokens of the response.
        drafts: what of the response is revealed, see `drafts_of`.
        batch_size: rows (prompts x drafts) a forward.

    Returns:
        N losses in nats a token; infinity where it isn't a number.
    """
    spans = [Span(ids, aim.position, aim.ids, draft) for ids in prompts for draft in drafts]
    scores = span_log_probs(model, spans, mode="parallel", length=length, batch_size=batch_size)
    # What isn't finite is never the least.
    means = [math.inf if math.isnan(score.total) else -score.total / len(aim.ids) for score in scores]
    return [sum(means[i : i + len(drafts)]) / len(drafts) for i in range(0, len(means), len(drafts))]


def drafts_of(
    model: LanguageModel,
    prompt: Sequence[int],
    aim: Aim,
    drafts: int,
    sampling: Sampling,
    key: str,
    objective: str | None = None,
) -> list[Draft]:
    """What of the response is revealed while the loss is taken: nothing, or so many random subsets of tokens.

    Without an objective, of the model's own response to `prompt`, elsewhere than in the aim's place. With one, in the
    aim's place, so that its other l of n tokens are the loss, n / l times, and an average over subsets estimates the
    masked-diffusion bound (LLaDA, arXiv 2502.09992, equation 6): "target" reveals the aim's own tokens, "own" the
    model's. A subset's size is drawn evenly, its positions at random; one search has the same ones throughout.

    Args:
        model: whose response it is.
        prompt: token ids.
        aim: what the search aims at.
        drafts: how many.
        sampling: of the response; its seed is the draws'.
        key: of the draws as well, such as the goal's id.
        objective: "target", "own", or None.
    """
    if not drafts:
        return [()]
    place = range(aim.position, aim.position + len(aim.ids))
    tokens = dict(zip(place, aim.ids, strict=True))
    if objective != "target":
        [response] = sample(model, [Request(prompt)], sampling)
        tokens = dict(enumerate(response.checked().raw_ids))
    free = [p for p, token in tokens.items() if (p in place) == bool(objective) and token != model.family.mask_id]
    most = min(len(free), len(place) - 1) if objective else len(free)  # something stays to be scored
    subsets = []
    for number in range(drafts):
        rng = random.Random(f"{sampling.seed}:{key}:{aim.position}:draft {number}")
        shown = sorted(rng.sample(free, rng.randint(0, most)))
        subsets.append(tuple(Forced(p, (tokens[p],)) for p in shown))
    return subsets


@dataclass
class Search:
    """Where a search stands. loss: of `best`, the suffix of the least loss so far. curve: the present suffix's loss at
    the start and after each iteration, in nats a token. dropped: swaps that weren't read back as they are."""

    current: Suffix
    best: Suffix
    loss: float
    curve: list[float] = field(default_factory=list)
    evaluated: int = 0
    dropped: int = 0

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Search:
        """From its JSON."""
        return cls(**{**record, "current": tuple(record["current"]), "best": tuple(record["best"])})


def forwards(evaluated: int, curve: Sequence[float], drafts: int) -> int:
    """Rows of forward passes that a search took, over so many drafts; a row with a backward pass counts as one.

    evaluated, curve: as of `Search`.
    """
    return drafts * (evaluated + len(curve))


def search(
    model: LanguageModel,
    prompt: SuffixPrompt,
    aim: Aim,
    config: Gcg,
    *,
    length: int,
    seed: int = 0,
    key: str = "",
    drafts: Sequence[Draft] = ((),),
    budget: float = math.inf,
    evaded: Evaded | None = None,
    state: Search | None = None,
    watch: Callable[[Search], None] = lambda state: None,
) -> Search:
    """Optimise a suffix.

    Args:
        model: whose gradient is followed.
        prompt: what the suffix stands in.
        aim: what it is to make likely.
        config: tokens, iterations, width, top, stop_loss and batch_size of the search.
        length: of the response, in tokens.
        seed, key: of the draws, which depend on them, position and iteration alone: a search that goes on ends where
            an uninterrupted one does.
        drafts: what of the response is revealed, see `drafts_of`.
        budget: rows of forward passes that it may take, but for those of `evaded`.
        evaded: a guard whose weighted score is a part of the loss.
        state: where an earlier call stood (it is changed).
        watch: called with the state after each iteration.

    Returns:
        The state, whose `best` is the best suffix it ever had.

    Raises:
        ModelError: the model computes NaN.
    """
    how: dict[str, Any] = {"length": length, "drafts": drafts, "batch_size": config.batch_size}
    also = None if evaded is None else evaded.slope(len(aim.ids))

    def values_of(prompts: list[list[int]]) -> list[float]:
        values = losses(model, prompts, aim, **how)
        added = [0.0] * len(values) if evaded is None else evaded.added(prompts)
        return [value + more for value, more in zip(values, added, strict=True)]

    if state is None:
        start = start_of(prompt, config.tokens)
        [loss] = values_of([prompt.ids(start)])
        if not math.isfinite(loss):
            raise ModelError(f"{model.name!r} computes NaN or infinite numbers, so nothing can be searched for.")
        state = Search(start, start, loss, [loss])
    width, top = config.width or 512, config.top or 256
    while len(state.curve) <= config.iterations and state.loss > config.stop_loss:
        if forwards(state.evaluated, state.curve, len(drafts)) + len(drafts) * (1 + width) > budget:
            break
        # 1. The gradient of the loss with respect to the one-hot tokens of the present suffix.
        rng = random.Random(f"{seed}:{key}:{aim.position}:{len(state.curve)}")
        placed = prompt.place(state.current)
        assert placed is not None  # every candidate was read back
        ids, start_slot = placed
        slots = range(start_slot, start_slot + len(state.current))
        slope = span_gradient(model, Span(ids, aim.position, aim.ids), slots, **how, also=also)
        # 2. Candidates: one token swapped for one of the `top` of steepest descent.
        candidates, dropped = swaps(slope, prompt, state.current, width=width, top=top, rng=rng)
        state.dropped += dropped
        if not candidates:  # nor would there be another time
            break
        # 3. The one of least loss is the next suffix, as published also where it is no better.
        values = values_of([prompt_ids for _, prompt_ids in candidates])
        state.evaluated += len(candidates)
        least = min(range(len(values)), key=values.__getitem__)
        state.current = candidates[least][0]
        state.curve.append(values[least])
        if values[least] < state.loss:
            state.best, state.loss = candidates[least][0], values[least]
        watch(state)
    return state
