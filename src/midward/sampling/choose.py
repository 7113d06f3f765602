"""From hidden states to tokens and scores: the sampler's one sweep of the vocabulary, in `_from_logits`.

Which of the tokens are kept is `diffusion._rank` and `_select`'s; bans choose again there, under a mask.
DiffusionGemma's canvases are filled by transformers' own `generate` (`canvases`).
"""

import math
from collections.abc import Callable, Sequence

import torch

from midward.models import LanguageModel

#: Logits held at once, in numbers: 2**25 float32 are 128 MiB, whatever the vocabulary.
CHUNK = 2**25

#: Columns of logits that are held at once where more than `TILED` numbers would have to leave a processor's cache.
TILE = 2**11
TILED = 2**22

#: Nats by which the others are lifted before their odds are summed: a token 150 nats ahead of them still has a finite,
#: precise score, and a million of them stay far from overflow.
_HEADROOM = 64.0

#: The least temperature that is divided by, so that no logit overflows. Below it nothing changes any more.
COLDEST = 1e-30


def choose(
    model: LanguageModel,
    hidden: torch.Tensor,
    uniforms: torch.Tensor | None = None,
    *,
    order: str = "low_confidence",
    temperature: float = 0.0,
    forbidden: Sequence[int] = (),
    unguided: torch.Tensor | None = None,
    guidance: float = 0.0,
    see: Callable[[torch.Tensor], None] | None = None,
    adjust: Callable[[torch.Tensor, slice], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose one token for each hidden state.

    Args:
        model: Its head is used, on a chunk of rows at a time.
        hidden: [N, D].
        uniforms: [N] in [0, 1), needed at a temperature above 0.
        order: What the ranks are made for, as in `Sampling`.
        temperature: 0 takes the most probable token.
        forbidden: Ids that are never chosen.
        unguided: [N, D], the states of the unconditional forward, for guidance.
        guidance: As in `Sampling`.
        see: Shown the logits of each chunk [n, V] in order, before anything is forbidden; it must leave them as they
            are.
        adjust: Given the logits [n, V] of each chunk and which of the N they are, says what stands in their place.

    Returns:
        Tokens [N].
        Scores [N]: log p / (1 - p) of the token at temperature 1, NaN where a logit is NaN or +Inf. It orders as p
        does, and still tells two positions apart where p rounds to 1: float32 p changes the tokens of peaked models.
        Ranks [N]: how sure the model is, the larger the sooner committed. "entropy": minus the entropy, in nats;
        "margin": of the two most probable tokens, p1 - p2 below a half, above it -log(1 - p1 + p2), which orders alike
        and keeps apart what rounds to 1; both of softmax(logits / temperature), as published with Dream. For any other
        order the scores themselves.
    """
    rows = max(1, CHUNK // model.vocab_size)
    temperature = max(temperature, COLDEST) if temperature > 0 else 0.0
    takes_ranks = order in ("entropy", "margin")
    is_plain = unguided is None and see is None and adjust is None and temperature == 0 and not takes_ranks
    weight = model.head_weight if is_plain and hidden.is_cpu and len(hidden) * model.vocab_size > TILED else None
    tokens, scores, ranks = [], [], []
    for start in range(0, len(hidden), rows):
        part = slice(start, start + rows)
        own = hidden if len(hidden) <= rows else hidden[part]  # an operator less, nearly always
        if weight is not None:
            chosen, score = _by_tiles(own, weight, forbidden)
        else:
            logits = _logits(model, own, None if unguided is None else unguided[part], guidance)
            if adjust is not None:
                logits = adjust(logits, part)
            if see is not None:
                see(logits)
            for token in forbidden:  # one by one: a list of them would have to be copied to the device
                logits[:, token] = -torch.inf
            if takes_ranks:
                ranks.append(_certainty(logits / temperature if temperature > 0 else logits, order))
            chosen, score = _from_logits(logits, temperature, None if uniforms is None else uniforms[part])
        tokens.append(chosen)
        scores.append(score)
    score = _whole(scores)
    return _whole(tokens), score, _whole(ranks) if ranks else score


def _whole(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The chunks as one; most calls have one alone."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def read(
    model: LanguageModel,
    hidden: torch.Tensor,
    reduce: Callable[[torch.Tensor], torch.Tensor],
    *,
    unguided: torch.Tensor | None = None,
    guidance: float = 0.0,
) -> torch.Tensor:
    """What `reduce` makes of the logits [N, V] of states [N, D], a chunk at a time: [N, K]; see `choose`."""
    rows = max(1, CHUNK // model.vocab_size)
    return torch.cat(
        [
            reduce(
                _logits(
                    model,
                    hidden[start : start + rows],
                    None if unguided is None else unguided[start : start + rows],
                    guidance,
                )
            )
            for start in range(0, max(1, len(hidden)), rows)
        ]
    )


def _logits(model: LanguageModel, hidden: torch.Tensor, unguided: torch.Tensor | None, guidance: float) -> torch.Tensor:
    """Logits [N, V], float32."""
    logits = model.head(hidden).float()
    if unguided is not None:
        base = model.head(unguided).float()
        logits = base + (guidance + 1) * (logits - base)
    return logits


def probability(score: torch.Tensor) -> torch.Tensor:
    """Return p for log-odds."""
    return torch.sigmoid(score)


def _certainty(logits: torch.Tensor, order: str) -> torch.Tensor:
    """Minus the entropy, or what orders as the margin does, of logits [N, V]."""
    top, at = logits.topk(2, dim=-1)
    others = (logits - top[:, :1]).exp_().scatter_(-1, at[:, :1], 0.0)  # relative to the most probable token
    rest = others.sum(-1)
    if order == "margin":
        gap = top[:, 1] - top[:, 0]
        margin = -gap.expm1() / (1 + rest)
        return torch.where(margin < 0.5, margin, rest.log1p() - (rest + gap.exp()).log())
    return -(rest.log1p() + torch.special.entr(others).sum(-1) / (1 + rest))


def _by_tiles(
    hidden: torch.Tensor, weight: torch.Tensor, forbidden: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """`_from_logits` at temperature 0 of the logits of states [N, D] under a head's weight [V, D], a tile of columns at
    a time: with the head a quarter less at 128 rows of 126,464 (width 512), which pass through memory seven times else.
    """
    tops, shifts, tokens, rests = [], [], [], []
    for start in range(0, len(weight), TILE):
        # 1. Of each tile the most probable token, and the odds of its others.
        logits = torch.nn.functional.linear(hidden, weight[start : start + TILE]).float()
        for banned in forbidden:
            if start <= banned < start + TILE:
                logits[:, banned - start] = -torch.inf
        top, token = logits.max(-1, keepdim=True)
        shift = (top - _HEADROOM).clamp(min=torch.finfo(top.dtype).min)  # all of a tile may be forbidden
        rests.append(logits.sub_(shift).exp_().scatter_(-1, token, 0.0).sum(-1))
        tops.append(top[:, 0])
        shifts.append(shift[:, 0])
        tokens.append(token[:, 0] + start)
    # 2. Of all tiles, in double precision: they are few. What isn't the most probable of all is one of the others.
    each, shift = torch.stack(tops).double(), torch.stack(shifts).double()
    top, tile = each.max(0, keepdim=True)
    rest = torch.stack(rests) * (shift - top).exp() + (each - top).exp().scatter(0, tile, 0.0)
    # As float32 has them from there on, so that whoever is too far ahead for a whole row is it here.
    return torch.stack(tokens).gather(0, tile)[0], _HEADROOM - (rest.sum(0) * math.exp(_HEADROOM)).float().log()


def _from_logits(
    logits: torch.Tensor, temperature: float, uniforms: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and log-odds for logits [N, V], which are overwritten."""
    top, token = logits.max(-1, keepdim=True)
    if temperature > 0 and uniforms is not None:
        # Inverse CDF: one uniform a position instead of one a vocabulary entry. `right` skips zero-width
        # steps, so a forbidden token can't be drawn; u * total stays below total for every float32 u < 1.
        cumulative = (logits.sub_(top) / temperature).exp_().cumsum_(-1)
        token = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
        token.clamp_(max=logits.shape[-1] - 1)  # only NaN is never reached
    else:
        logits.sub_(top - _HEADROOM)
    above = logits.gather(-1, token)
    rest = logits.exp_().scatter_(-1, token, 0.0).sum(-1, keepdim=True)
    return token[:, 0], (above - rest.log())[:, 0]
