"""How probable given tokens are at given response positions, and how that changes with the prompt.

Shapes: B rows of a forward, L = P + length positions as in `Canvas`, N scored positions, n tokens of a span, S slots of
a prompt, V vocabulary rows, D hidden size. Log-probabilities are natural (nats), at temperature 1, float32 or better.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from threading import get_ident

import torch
from torch.nn.functional import cross_entropy

from midward._hints import one_of
from midward.models import LanguageModel

from .canvas import Canvas, Row
from .choose import _CHUNK
from .noise import row_seed
from .requests import Forced, Prompt, Request, resolve
from .settings import Sampling

MODES = ("parallel", "sequential", "mc")


@dataclass(frozen=True)
class Span:
    """Tokens whose probability is asked for.

    prompt: as in `Request`; mask tokens in it stay masks. position: response coordinate of the first token, 0 or more.
    ids: the tokens, one or more. forced: response tokens that are seen; everything else in the response is masked.
    """

    prompt: Prompt
    position: int
    ids: tuple[int, ...]
    forced: tuple[Forced, ...] = ()


@dataclass(frozen=True)
class SpanScore:
    """What `span_log_probs` found.

    tokens [n]: a log-probability for each token of the span, 0 or less. total: their sum.
    stderr: standard error of `total` over the drawn masks, with mode="mc"; 0 where the value is exact.
    nfe: rows of forward passes it took.
    """

    tokens: list[float]
    total: float
    stderr: float
    nfe: int


@dataclass(frozen=True)
class _Look:
    """One row of a forward: these offsets of the span are masked, these are scored; share * scale weighs them."""

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
    length: int,
    samples: int = 32,
    seed: int = 0,
    batch_size: int = 8,
) -> list[SpanScore]:
    """Return the log-probability of each span in a response of `length` positions, in the spans' order.

    mode: "parallel": each token with the whole span masked (one forward); "sequential": the span revealed from left to
        right (n forwards), a proper log-likelihood; "mc": the mean of `samples` random masks of l of the n tokens,
        l uniform in 1..n, the masked tokens' sum weighted by n / l: unbiased for the mean over all orders of revealing
        (LLaDA, Nie et al. 2025, eq. 6). Equal masks are evaluated once.
    An autoregressive model knows one order, so that every mode gives its exact log-likelihood with one forward; it sees
    nothing on the right, so the forced spans must cover what stands before the span and nothing else.
    samples: 2 or more. seed: of the masks; they depend on it and on the span, never on the batch.
    batch_size: rows a forward. In float32 a score doesn't depend on what else is in its batch.
    Raises TypeError or ValueError, naming the span, before the first forward.
    """
    one_of("mode", mode, MODES)
    for name, value, least in (("samples", samples, 2), ("batch_size", batch_size, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer, {least} or more; received {value!r}.")
    rows = [_row(model, span, length, index) for index, span in enumerate(spans)]

    looks: list[_Look] = []
    for row, span in zip(rows, spans, strict=True):
        offsets = tuple(range(len(span.ids)))
        if model.family.kind == "autoregressive":
            looks.append(_Look(row.index, (), offsets))
        elif mode == "parallel":
            looks.append(_Look(row.index, offsets, offsets))
        elif mode == "sequential":
            looks += [_Look(row.index, offsets[k:], (k,)) for k in offsets]
        else:
            looks += _random_looks(row, len(offsets), samples, seed)

    looks.sort(key=lambda look: len(rows[look.span].prompt_ids))  # rows of similar length share a forward
    found: list[list[tuple[_Look, list[float]]]] = [[] for _ in spans]
    for start in range(0, len(looks), batch_size):
        batch = looks[start : start + batch_size]
        with torch.no_grad():
            values = _forward(model, spans, rows, batch, length).tolist()
        for look in batch:
            found[look.span].append((look, values[: len(look.scored)]))
            del values[: len(look.scored)]
    return [_score(len(span.ids), parts, samples) for span, parts in zip(spans, found, strict=True)]


def span_gradient(
    model: LanguageModel,
    span: Span,
    slots: Sequence[int],
    *,
    length: int,
    drafts: Sequence[tuple[Forced, ...]] = ((),),
    batch_size: int = 8,
) -> torch.Tensor:
    """Return the gradient [S, V] of the span's negative log-probability with respect to the prompt's one-hot tokens.

    span: its prompt best as token ids, since slots: indices into the prompt's ids, from 0.
    drafts: the loss is the mean over these of the "parallel" one with the draft's tokens seen as well; the default is
        one draft that reveals nothing. batch_size: drafts a forward.
    The entry [s, v] says how the loss would change, to first order, if token v stood at slot s: the gradient of the
    greedy coordinate search (Zou et al. 2023). It is taken at the embeddings of the slots, so no [P, V] one-hot exists.
    Raises TypeError or ValueError as `span_log_probs` does.
    """
    if not drafts:
        raise ValueError("drafts is empty; leave it out for a response that is all masks.")
    revealed = [Span(span.prompt, span.position, span.ids, (*span.forced, *draft)) for draft in drafts]
    rows = [_row(model, each, length, index) for index, each in enumerate(revealed)]
    width = len(rows[0].prompt_ids)
    wrong = [slot for slot in slots if not 0 <= slot < width]
    if wrong or not slots:
        raise ValueError(
            f"slots are one or more of the prompt's {width} positions, from 0; received {list(slots)!r}."
        )

    offsets = tuple(range(len(span.ids)))
    looks = [
        _Look(row.index, () if model.family.kind == "autoregressive" else offsets, offsets) for row in rows
    ]
    embedding = model.causal_lm.get_input_embeddings()
    at_slots: list[torch.Tensor] = []
    for start in range(0, len(looks), batch_size):
        leaves: list[torch.Tensor] = []
        mine = get_ident()

        def cut(
            module: torch.nn.Module,
            args: object,
            output: torch.Tensor,
            leaves: list = leaves,
            mine: int = mine,
        ) -> torch.Tensor:
            if get_ident() != mine:  # another thread's forward of the same model
                return output
            leaves.append(output.detach().requires_grad_())  # the graph begins here
            return leaves[0]

        hook = embedding.register_forward_hook(cut)
        try:
            with torch.enable_grad():
                loss = -_forward(model, revealed, rows, looks[start : start + batch_size], length).sum()
        finally:
            hook.remove()
        (gradient,) = torch.autograd.grad(loss / len(looks), leaves)  # [B, L, D]; one prompt, so no padding
        at_slots.append(gradient[:, list(slots)].sum(0))
    slope = torch.stack(at_slots).sum(0)  # [S, D]

    parts = []
    rows_at_once = max(1, _CHUNK // model.hidden_size)
    with torch.no_grad():
        for start in range(0, embedding.weight.shape[0], rows_at_once):
            # Through the module, not its weight: some models scale their embeddings.
            tokens = torch.arange(
                start, min(start + rows_at_once, embedding.weight.shape[0]), device=model.device
            )
            parts.append(slope @ embedding(tokens).T)
    return torch.cat(parts, dim=1)


def _row(model: LanguageModel, span: Span, length: int, index: int) -> Row:
    """The span as a checked row of a canvas that holds it and what is forced beside it."""
    if not isinstance(span, Span):
        raise TypeError(f"span {index} is a {type(span).__name__}; give Span(prompt, position, ids).")
    try:
        request = Request(span.prompt, forced=(*span.forced, Forced(span.position, span.ids)))
        _, prompt_ids = resolve(model, request, Sampling(length=length, steps=1).length, index)
    except (TypeError, ValueError) as error:
        message = str(error).removeprefix(f"request {index}: ")
        raise type(error)(f"span {index}: {message}") from None
    seen = {forced.position + i for forced in span.forced for i in range(len(forced.ids))}
    if model.family.kind == "autoregressive" and seen != set(range(span.position)):
        raise ValueError(
            f"span {index}: {model.name!r} is autoregressive, so its forced spans must cover the positions before "
            f"{span.position} and no others; received {span.forced!r}."
        )
    return Row(index, request, prompt_ids)


def _random_looks(row: Row, n: int, samples: int, seed: int) -> list[_Look]:
    generator = torch.Generator().manual_seed(row_seed(seed, row.request, row.prompt_ids))
    drawn: Counter[tuple[int, ...]] = Counter()
    for _ in range(samples):
        count = int(torch.randint(1, n + 1, (), generator=generator))
        drawn[tuple(sorted(torch.randperm(n, generator=generator)[:count].tolist()))] += 1
    return [
        _Look(row.index, masked, masked, share=times / samples, scale=n / len(masked))
        for masked, times in drawn.items()
    ]


def _forward(
    model: LanguageModel, spans: Sequence[Span], rows: Sequence[Row], looks: Sequence[_Look], length: int
) -> torch.Tensor:
    """Log-probabilities [N] of what the looks score, in their order."""
    if model.family.kind == "autoregressive":  # nothing behind the last span matters
        length = max(spans[look.span].position + len(spans[look.span].ids) for look in looks)
    shown, where, columns, targets = [], [], [], []
    for i, look in enumerate(looks):
        span, row = spans[look.span], rows[look.span]
        seen = [
            Forced(span.position + k, (token,)) for k, token in enumerate(span.ids) if k not in look.masked
        ]
        shown.append(Row(i, Request(row.prompt_ids, forced=(*span.forced, *seen)), row.prompt_ids))
        where += [i] * len(look.scored)
        columns += [span.position + k for k in look.scored]
        targets += [span.ids[k] for k in look.scored]
    canvas = Canvas(model, Sampling(length=length, steps=1), shown)
    hidden = model.hidden(canvas.ids, canvas.mask)  # [B, L, D]
    device = hidden.device
    source = torch.tensor(columns, device=device) + canvas.width - int(model.family.shift)
    return _log_probs(
        model, hidden[torch.tensor(where, device=device), source], torch.tensor(targets, device=device)
    )


def _log_probs(model: LanguageModel, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probability of one token [N] at each hidden state [N, D]."""
    rows = max(1, _CHUNK // model.vocab_size)
    parts = []
    for start in range(0, len(hidden), rows):
        logits = model.head(hidden[start : start + rows])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        parts.append(-cross_entropy(logits, targets[start : start + rows], reduction="none"))
    return torch.cat(parts)


def _score(n: int, parts: Sequence[tuple[_Look, list[float]]], samples: int) -> SpanScore:
    tokens = [0.0] * n
    for look, values in parts:
        for offset, value in zip(look.scored, values, strict=True):
            tokens[offset] += look.share * look.scale * value
    total = sum(tokens)
    stderr = 0.0
    if any(look.share < 1 for look, _ in parts):
        spread = sum(look.share * (look.scale * sum(values) - total) ** 2 for look, values in parts)
        stderr = math.sqrt(spread / (samples - 1))
    return SpanScore(tokens, total, stderr, len(parts))
