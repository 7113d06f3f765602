"""The output head over chosen rows only, in chunks: never a `[rows, vocabulary]` tensor that outlives its
chunk.

Shapes: R rows, D hidden size, V vocabulary, C needed vocabulary columns, S scored rows (the first S of the
    R).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

# What a chunk of float32 logits may take; three such buffers live at once.
_CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 256 * 2**20}


@dataclass(frozen=True)
class HeadRows:
    """What the objective needs from the head.

    log_probs: `[R, C]` policy log-probabilities at the needed columns; only the first S rows carry a
        gradient.
    reference: `[R, C]` the same for the reference, no gradient; `[0, C]` where there is none.
    kl: `[R]` exact KL(policy || reference) over the vocabulary, in nats, with gradient; `[0]` without a reference.
    """

    log_probs: Tensor
    reference: Tensor
    kl: Tensor


def whole(tensor: Tensor) -> Tensor:
    """A weight that FSDP has sharded over the processes, gathered (by all of them at once); any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def plain_head(network: nn.Module, head: Callable[[Tensor], Tensor]) -> nn.Linear | None:
    """The frozen linear layer that `head` amounts to, or None where the head does more (scaling,
    soft-capping, an adapter).

    Tried out on random rows rather than looked up by class, so that a new family cannot be mistaken.
    """
    find = getattr(network, "get_output_embeddings", None)
    layer = find() if find is not None else None
    if type(layer) is not nn.Linear or layer.weight.requires_grad:
        return None
    generator = torch.Generator().manual_seed(0)
    # Wide enough that a soft-cap or a scale would show.
    probe = 10 * torch.randn(4, layer.in_features, generator=generator)
    probe = probe.to(layer.weight.device, layer.weight.dtype)
    with torch.no_grad():
        same = torch.equal(head(probe).float(), layer(probe).float())
    return layer if same else None


def head_rows(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    reference: Tensor | None,
    columns: Tensor,
    scored: int,
    *,
    linear: nn.Linear | None = None,
    chunk: int | None = None,
) -> HeadRows:
    """Log-probabilities at `columns` and the exact KL, for hidden rows of policy and reference.

    With `linear` one fused sweep also computes what the backward pass needs (nothing where no gradient is wanted), so
    nothing of size V is kept or recomputed; otherwise the chunks are checkpointed and recomputed in the backward pass.
    Softmax and KL are in float32 for half-precision models.

    Args:
        head: Hidden rows [r, D] -> logits [r, V].
        hidden: [R, D] of the policy, with gradient.
        reference: [R, D] of the reference; None: no KL is wanted.
        columns: [C] vocabulary entries.
        scored: S, how many of the first rows of `log_probs` carry a gradient; the rest are for logging.
        linear: The frozen linear layer that `head` is, see `plain_head`; None where it is more.
        chunk: Rows at a time; None by vocabulary size.
    """
    if chunk is None:
        vocabulary = linear.out_features if linear is not None else head(hidden[:1].detach()).shape[-1]
        budget = _CHUNK_BYTES.get(hidden.device.type, _CHUNK_BYTES["cpu"])
        chunk = max(16, budget // (4 * vocabulary))
    if linear is not None:
        weight, bias = whole(linear.weight), None if linear.bias is None else whole(linear.bias)
        return HeadRows(*_FusedHead.apply(hidden, reference, weight, bias, columns, scored, chunk))
    return _checkpointed(head, hidden, reference, columns, scored, chunk)


class _FusedHead(torch.autograd.Function):
    """One sweep over row chunks; the gradients are analytic because the head's weight W is frozen.

    d log p[c] / d h = W[c] - p W  and  d KL / d h = (p * (log p - log q - KL)) W, so the forward sweep keeps
    only p W (scored rows) and the KL product (all rows), both `[., D]`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        reference: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        columns: Tensor,
        scored: int,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, wide = hidden.shape[0], _compute_dtype(hidden.dtype)
        compared = 0 if reference is None else rows
        graded = ctx.needs_input_grad[0]
        scored = scored if graded else 0
        log_probs = hidden.new_empty(rows, len(columns), dtype=wide)
        ref_log_probs = hidden.new_empty(compared, len(columns), dtype=wide)
        kl = hidden.new_empty(compared, dtype=wide)
        expected = hidden.new_empty(scored, hidden.shape[1], dtype=wide)  # p W
        kl_slope = hidden.new_empty(compared if graded else 0, hidden.shape[1], dtype=wide)
        # 1. Three buffers (two without a reference) for the whole sweep: fresh ones for every chunk would cost more
        #    than the arithmetic on them, in page faults.
        sizes = [min(chunk, rows), min(chunk, rows), min(chunk, compared)]
        buffers = [hidden.new_empty(size, weight.shape[0], dtype=wide) for size in sizes]
        for start in range(0, rows, chunk):
            stop = min(start + chunk, rows)
            part = slice(start, stop)
            # 2. Log-softmax of the chunk's logits, the reference's first: `probs` is then the policy's.
            policy, probs, other = (buffer[: stop - start] for buffer in buffers)  # [r, V] each
            if reference is not None:
                _log_softmax(reference[part], weight, bias, out=other, exp=probs)
                ref_log_probs[part] = other[:, columns]
            total = _log_softmax(hidden[part], weight, bias, out=policy, exp=probs)
            probs.div_(total)
            # 3. What the loss reads of them.
            log_probs[part] = policy[:, columns]
            # 4. d log p[c] / d h = W[c] - p W: keep p W of the scored rows.
            if start < scored:
                inside = slice(start, min(stop, scored))
                expected[inside] = probs[: inside.stop - start].to(weight.dtype) @ weight
            if reference is None:
                continue
            # 5. KL = sum p (log p - log q), and its slope (p (log p - log q) - p KL) W. `policy` is overwritten.
            product = policy.sub_(other).mul_(probs)
            kl[part] = product.sum(-1)
            if graded:
                product.addcmul_(probs, kl[part, None], value=-1)
                kl_slope[part] = product.to(weight.dtype) @ weight
        ctx.save_for_backward(expected, kl_slope, weight[columns])
        ctx.scored, ctx.dtype, ctx.shape = scored, hidden.dtype, hidden.shape
        ctx.mark_non_differentiable(ref_log_probs)
        return log_probs, ref_log_probs, kl

    @staticmethod
    def backward(ctx: Any, grad_log_probs: Tensor, _: Any, grad_kl: Tensor) -> Any:
        expected, kl_slope, chosen = ctx.saved_tensors
        grad_scored = grad_log_probs[: ctx.scored]
        grad = kl_slope * grad_kl[:, None] if len(kl_slope) else expected.new_zeros(ctx.shape)
        grad[: ctx.scored] += grad_scored @ chosen.to(grad_scored.dtype)
        grad[: ctx.scored] -= expected * grad_scored.sum(-1, keepdim=True)
        return grad.to(ctx.dtype), *[None] * 6


def _checkpointed(
    head: Callable[[Tensor], Tensor], hidden: Tensor, reference: Tensor | None, columns: Tensor, scored: int, chunk: int
) -> HeadRows:
    wide = _compute_dtype(hidden.dtype)

    def sweep(policy_rows: Tensor, reference_rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        policy = F.log_softmax(head(policy_rows).to(wide), -1)
        if reference_rows is None:
            return policy[:, columns], policy.new_empty(0, len(columns)), policy.new_empty(0)
        with torch.no_grad():
            other = F.log_softmax(head(reference_rows).to(wide), -1)
        return policy[:, columns], other[:, columns], (policy.exp() * (policy - other)).sum(-1)

    parts = [
        checkpoint(
            sweep, hidden[i : i + chunk], None if reference is None else reference[i : i + chunk], use_reentrant=False
        )
        for i in range(0, max(1, len(hidden)), chunk)
    ]
    log_probs, other, kl = (torch.cat(column) for column in zip(*parts))
    log_probs = torch.cat([log_probs[:scored], log_probs[scored:].detach()])
    return HeadRows(log_probs, other, kl)


def _log_softmax(rows: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor, exp: Tensor) -> Tensor:
    """`out` = log-softmax of the head's logits of `rows`, `exp` = the probabilities times the sums [r, 1] that are
    returned; nothing else of size V."""
    if out.dtype == weight.dtype:
        torch.mm(rows, weight.t(), out=out)
    else:
        out.copy_(rows @ weight.t())
    if bias is not None:
        out.add_(bias)
    out.sub_(out.amax(-1, keepdim=True))
    total = torch.exp(out, out=exp).sum(-1, keepdim=True)
    out.sub_(total.log())
    return total


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
