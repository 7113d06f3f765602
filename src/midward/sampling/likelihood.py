"""How probable given tokens are at given response positions, and how that changes with the prompt.

Shapes: B rows of a forward, L = P + length positions as in `Canvas`, N scored positions, n tokens of a span, S slots of
a prompt, V vocabulary rows, D hidden size. Log-probabilities are natural (nats), at temperature 1, float32 or better.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from threading import get_ident

import torch
from torch.nn.functional import cross_entropy

from midward._hints import one_of
from midward.errors import InputError
from midward.models import LanguageModel

from .canvas import Canvas, Row
from .choose import CHUNK
from .noise import row_seed
from .requests import Forced, Prompt, Request, resolve
from .settings import Sampling

MODES = ("parallel", "sequential", "mc", "even", "all")


@dataclass(frozen=True)
class Span:
    """Tokens whose probability is asked for.

    prompt: as in `Request`; mask tokens in it stay masks. position: response coordinate of the first token, 0 or more.
    ids: the tokens, one or more. forced: response tokens that are seen; everything else in the response is masked.
    Those that stand in the span's own place are seen instead of its tokens there, which aren't scored (mode
    "parallel").
    """

    prompt: Prompt
    position: int
    ids: tuple[int, ...]
    forced: tuple[Forced, ...] = ()

    @property
    def covered(self) -> frozenset[int]:
        """Offsets into the span at which a forced token stands."""
        places = {forced.position + i - self.position for forced in self.forced for i in range(len(forced.ids))}
        return frozenset(places & set(range(len(self.ids))))


@dataclass(frozen=True)
class SpanScore:
    """What `span_log_probs` found.

    tokens [n]: a log-probability for each token of the span, 0 or less; NaN where the model's logits are. total: their
        sum.
    stderr: standard error of `total` over the drawn masks, with mode="mc" or "even" (too large with the latter, whose
        draws aren't independent); 0 where the value is exact.
    nfe: rows of forward passes it took part in.
    top: whether every scored token was the most probable one at its place, whatever was masked.
    """

    tokens: list[float]
    total: float
    stderr: float
    nfe: int
    top: bool = False


@dataclass(frozen=True)
class _Masking:
    """Of one span: these offsets are masked, these are scored; share * scale weighs their sum. One row of a forward."""

    span: int
    masked: tuple[int, ...]
    scored: tuple[int, ...]
    share: float = 1.0
    scale: float = 1.0


def span_log_probs(
    model: LanguageModel,
    spans: Sequence[Span],
    *,
    mode: str,
    length: int | None,
    samples: int = 32,
    seed: int = 0,
    batch_size: int = 8,
) -> list[SpanScore]:
    """Return the log-probability of each span in a response.

    Rows that show the model the same are evaluated once, be they of one span or of several. An autoregressive model
    knows one order, so that every mode gives its exact log-likelihood with one forward; it sees nothing on the right,
    so the forced spans must cover what stands before the span and nothing else.

    Args:
        model: Diffusion or autoregressive.
        spans: What is asked for.
        mode: "parallel": each token with the whole span masked (one forward); of a span with forced tokens in its place
            the l others of its n tokens are scored and count n / l times, as in "mc"; "sequential": the span revealed
            from left to right (n forwards), a proper log-likelihood; "mc": the mean of `samples` random masks of l of
            the n tokens, l uniform in 1..n, the masked tokens' sum weighted by n / l: unbiased for the mean over all
            orders of revealing (LLaDA, Nie et al. 2025, eq. 6); "even": the same with the `samples` values of l spread
            evenly over 1..n from a random one on, which is less noisy; "all": what both estimate, by all 2^n - 1 masks.
        length: Response positions; None ends each response with its span.
        samples: 2 or more.
        seed: Of the masks; they depend on it and on the span, never on the batch.
        batch_size: Rows a forward. In float32 what else is in its batch changes a score by rounding only.

    Returns:
        Scores, in the spans' order.

    Raises:
        TypeError, InputError: Before the first forward, naming the span.
    """
    one_of("mode", mode, MODES)
    for name, value, least in (("samples", samples, 2), ("batch_size", batch_size, 1)):
        if not isinstance(value, int) or value < least:
            raise InputError(f"{name} must be an integer, {least} or more; received {value!r}.")
    lengths = [length or span.position + len(span.ids) if isinstance(span, Span) else 1 for span in spans]
    rows = [_row(model, span, lengths[index], index) for index, span in enumerate(spans)]
    longest = max(lengths, default=0)
    if model.family.kind == "autoregressive" and all(
        len(row.prompt_ids) + longest <= model.max_positions for row in rows
    ):
        lengths = [longest] * len(lengths)  # nothing behind a span matters, so they may share a batch

    # 1. What has to be masked and scored of each span.
    maskings: list[_Masking] = []
    for row, span in zip(rows, spans, strict=True):
        offsets = tuple(range(len(span.ids)))
        if model.family.kind == "autoregressive":
            maskings.append(_Masking(row.index, (), offsets))
        elif mode == "parallel":
            maskings.append(_parallel(span, row.index))
        elif span.covered:
            raise InputError(f"span {row.index}: forced tokens stand in the span's place; use mode='parallel'.")
        elif mode == "sequential":
            maskings += [_Masking(row.index, offsets[k:], (k,)) for k in offsets]
        elif mode == "all":
            maskings += _all_maskings(row, len(offsets))
        else:
            maskings += _random_maskings(row, len(offsets), samples, seed, even=mode == "even")

    # 2. Evaluate them: rows of similar length share a forward, which takes one length of response.
    maskings.sort(key=lambda masking: (lengths[masking.span], len(rows[masking.span].prompt_ids)))
    scored: list[list[tuple[_Masking, list[float]]]] = [[] for _ in spans]
    top = [True] * len(spans)
    for batch in _batches(spans, rows, maskings, lengths, batch_size):
        with torch.no_grad():
            scores, best, _ = _forward(model, spans, rows, batch, lengths[batch[0][0].span])
        values, bests = scores.tolist(), best.tolist()
        start = 0
        for masking in chain.from_iterable(batch):
            stop = start + len(masking.scored)
            scored[masking.span].append((masking, values[start:stop]))
            top[masking.span] &= all(bests[start:stop])
            start = stop
    # 3. Add up what belongs to each span.
    draws = samples if mode in ("mc", "even") else None
    return [_score(len(span.ids), parts, draws, is_top) for span, parts, is_top in zip(spans, scored, top, strict=True)]


def _batches(
    spans: Sequence[Span], rows: Sequence[Row], maskings: Sequence[_Masking], lengths: Sequence[int], batch_size: int
) -> Iterator[list[list[_Masking]]]:
    """Up to `batch_size` rows of one length of response each, a row being the maskings that show the model the same."""
    numbers: dict[tuple[int, ...], int] = {}  # a prompt's place among the prompts
    prompts = [numbers.setdefault(tuple(row.prompt_ids), len(numbers)) for row in rows]
    shown: dict[tuple[object, ...], list[_Masking]] = {}
    for masking in maskings:
        span = spans[masking.span]
        seen = tuple((forced.position, forced.ids) for forced in _shown(span, masking))
        shown.setdefault((lengths[masking.span], prompts[masking.span], seen), []).append(masking)
    batch: list[list[_Masking]] = []
    for row in shown.values():
        if batch and (len(batch) == batch_size or lengths[row[0].span] != lengths[batch[0][0].span]):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _shown(span: Span, masking: _Masking) -> list[Forced]:
    """What a masking shows of the response, in the order of its positions."""
    hidden = span.covered.union(masking.masked)
    own = [k for k in range(len(span.ids)) if k not in hidden]
    seen = [Forced(span.position + k, (span.ids[k],)) for k in own]
    return sorted((*span.forced, *seen), key=lambda forced: forced.position)


def span_gradient(
    model: LanguageModel,
    span: Span,
    slots: Sequence[int],
    *,
    length: int,
    drafts: Sequence[tuple[Forced, ...]] = ((),),
    batch_size: int = 8,
    also: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return the gradient [S, V] of the span's negative log-probability with respect to the prompt's one-hot tokens.

    The entry [s, v] says how the loss would change, to first order, if token v stood at slot s: the gradient of the
    greedy coordinate search (Zou et al. 2023). It is taken at the embeddings of the slots, so no [P, V] one-hot exists.

    Args:
        model: Diffusion or autoregressive.
        span: Its prompt best as token ids, since slots count them.
        slots: Indices into the prompt's ids, from 0.
        length: Response positions.
        drafts: The loss is the mean over these of the "parallel" one with the draft's tokens seen as well; the default
            is one draft that reveals nothing.
        batch_size: Drafts a forward.
        also: Of the response's states [B, length, D], a sum over B of what is added to the loss.

    Raises:
        TypeError, InputError: As `span_log_probs`.
    """
    if not drafts:
        raise InputError("drafts is empty; leave it out for a response that is all masks.")
    revealed = [Span(span.prompt, span.position, span.ids, (*span.forced, *draft)) for draft in drafts]
    rows = [_row(model, each, length, index) for index, each in enumerate(revealed)]
    width = len(rows[0].prompt_ids)
    wrong = [slot for slot in slots if not 0 <= slot < width]
    if wrong or not slots:
        raise InputError(f"slots are one or more of the prompt's {width} positions, from 0; received {list(slots)!r}.")

    if model.family.kind == "autoregressive":
        maskings = [_Masking(row.index, (), tuple(range(len(span.ids)))) for row in rows]
    else:
        maskings = [_parallel(each, row.index) for each, row in zip(revealed, rows, strict=True)]
    embedding = model.causal_lm.get_input_embeddings()
    # 1. The gradient at the embeddings of the slots: the graph begins behind the embedding.
    at_slots: list[torch.Tensor] = []
    for start in range(0, len(maskings), batch_size):
        leaves: list[torch.Tensor] = []
        mine = get_ident()

        def cut(
            module: torch.nn.Module, args: object, output: torch.Tensor, leaves: list = leaves, mine: int = mine
        ) -> torch.Tensor:
            if get_ident() != mine:  # another thread's forward of the same model
                return output
            leaves.append(output.detach().requires_grad_())  # the graph begins here
            return leaves[0]

        hook = embedding.register_forward_hook(cut)
        try:
            with torch.enable_grad():
                batch = [[masking] for masking in maskings[start : start + batch_size]]
                scores, _, states = _forward(model, revealed, rows, batch, length)
                scales = [masking.scale for [masking] in batch for _ in masking.scored]
                loss = -(scores * scores.new_tensor(scales)).sum()
                loss = loss if also is None else loss + also(states)
        finally:
            hook.remove()
        (gradient,) = torch.autograd.grad(loss / len(maskings), leaves)  # [B, L, D]
        begin = max(0, gradient.shape[1] - length - width)  # of the prompt, behind padding
        at_slots.append(gradient[:, [begin + slot for slot in slots]].sum(0))
    slope = torch.stack(at_slots).sum(0)  # [S, D]

    # 2. Its product with every token's embedding, a chunk of the vocabulary at a time.
    parts = []
    rows_at_once = max(1, CHUNK // model.hidden_size)
    with torch.no_grad():
        for start in range(0, embedding.weight.shape[0], rows_at_once):
            # Through the module, not its weight: some models scale their embeddings.
            tokens = torch.arange(start, min(start + rows_at_once, embedding.weight.shape[0]), device=model.device)
            parts.append(slope @ embedding(tokens).T)
    return torch.cat(parts, dim=1)


def _row(model: LanguageModel, span: Span, length: int, index: int) -> Row:
    """The span as a checked row of a canvas that holds it and what is forced beside it."""
    if not isinstance(span, Span):
        raise TypeError(f"span {index} is a {type(span).__name__}; give Span(prompt, position, ids).")
    try:
        covered = span.covered
        own = [Forced(span.position + k, (token,)) for k, token in enumerate(span.ids) if k not in covered]
        whole = own if covered else [Forced(span.position, span.ids)]  # masks are drawn by how it is forced
        request = Request(span.prompt, forced=(*span.forced, *whole))
        _, prompt_ids = resolve(model, request, Sampling(length=length, steps=1), index)
    except (TypeError, ValueError) as error:
        message = str(error).removeprefix(f"request {index}: ")
        raise type(error)(f"span {index}: {message}") from None
    if not own:
        raise InputError(f"span {index}: forced tokens stand in all of the span's place, so nothing is left to score.")
    seen = {forced.position + i for forced in span.forced for i in range(len(forced.ids))}
    if model.family.kind == "autoregressive" and seen != set(range(span.position)):
        raise InputError(
            f"span {index}: {model.name!r} is autoregressive, so its forced spans must cover the positions before "
            f"{span.position} and no others; received {span.forced!r}."
        )
    return Row(index, request, prompt_ids)


def _parallel(span: Span, index: int) -> _Masking:
    """All of the span masked but for what is forced in its place."""
    covered = span.covered
    scored = tuple(k for k in range(len(span.ids)) if k not in covered)
    return _Masking(index, scored, scored, scale=len(span.ids) / len(scored))


def _random_maskings(row: Row, n: int, samples: int, seed: int, *, even: bool) -> list[_Masking]:
    generator = torch.Generator().manual_seed(row_seed(seed, row.request, row.prompt_ids))
    drawn: Counter[tuple[int, ...]] = Counter()
    first = int(torch.randint(n, (), generator=generator)) if even else 0
    for i in range(samples):
        count = (first + i * n // samples) % n + 1 if even else int(torch.randint(1, n + 1, (), generator=generator))
        drawn[tuple(sorted(torch.randperm(n, generator=generator)[:count].tolist()))] += 1
    return [
        _Masking(row.index, masked, masked, share=times / samples, scale=n / len(masked))
        for masked, times in drawn.items()
    ]


def _all_maskings(row: Row, n: int) -> list[_Masking]:
    return [
        _Masking(row.index, masked, masked, share=1 / (n * math.comb(n, count)), scale=n / count)
        for count in range(1, n + 1)
        for masked in combinations(range(n), count)
    ]


def _forward(
    model: LanguageModel, spans: Sequence[Span], rows: Sequence[Row], batch: Sequence[Sequence[_Masking]], length: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities [N] of what the maskings score, in their order, whether nothing was likelier [N], and the
    responses' states [B, length, D].

    batch: for each row of the forward the maskings that it serves.
    """
    if model.family.kind == "autoregressive":  # nothing behind the last span matters
        asked = [spans[masking.span] for masking in chain.from_iterable(batch)]
        length = max(span.position + len(span.ids) for span in asked)
    shown, owners, columns, targets = [], [], [], []
    for i, maskings in enumerate(batch):
        row = rows[maskings[0].span]
        request = Request(row.prompt_ids, forced=tuple(_shown(spans[maskings[0].span], maskings[0])))
        shown.append(Row(i, request, row.prompt_ids))
        for masking in maskings:
            span = spans[masking.span]
            owners += [i] * len(masking.scored)
            columns += [span.position + k for k in masking.scored]
            targets += [span.ids[k] for k in masking.scored]
    canvas = Canvas(model, Sampling(length=length, steps=1), shown)
    hidden = model.hidden(canvas.ids, canvas.mask)  # [B, L, D]
    device = hidden.device
    source = torch.tensor(columns, device=device) + canvas.width - int(model.family.shift)
    at_source = hidden[torch.tensor(owners, device=device), source]
    scores, best = _log_probs(model, at_source, torch.tensor(targets, device=device))
    return scores, best, hidden[:, canvas.width :]


def _log_probs(model: LanguageModel, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability [N] of one token at each hidden state [N, D], and whether no other is more probable [N]."""
    rows = max(1, CHUNK // model.vocab_size)
    parts, best = [], []
    for start in range(0, len(hidden), rows):
        logits = model.head(hidden[start : start + rows])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        wanted = targets[start : start + rows]
        parts.append(-cross_entropy(logits, wanted, reduction="none"))
        best.append(logits.detach().argmax(-1) == wanted)
    return torch.cat(parts), torch.cat(best)


def _score(n: int, parts: Sequence[tuple[_Masking, list[float]]], draws: int | None, top: bool) -> SpanScore:
    """draws: how many masks were drawn at random; None where nothing was."""
    tokens = [0.0] * n
    for masking, values in parts:
        for offset, value in zip(masking.scored, values, strict=True):
            tokens[offset] += masking.share * masking.scale * value
    total = sum(tokens)
    stderr = 0.0
    if draws is not None:
        spread = sum(masking.share * (masking.scale * sum(values) - total) ** 2 for masking, values in parts)
        stderr = math.sqrt(spread / (draws - 1))
    return SpanScore(tokens, total, stderr, len(parts), top)
