"""Plain statements of the families' architectures. Nothing here imports midward or transformers; readable, not fast.

`logits` takes weights under their published names. Shapes: B rows, L positions, D width, V vocabulary rows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn.functional import silu

Weights = dict[str, torch.Tensor]


def logits(
    weights: Weights,
    config: dict[str, Any],
    ids: torch.Tensor,
    mask: torch.Tensor | None = None,
    block: int | None = None,
    columns: bool = False,
) -> torch.Tensor:
    """Logits [B, L, V]. mask [B, L]: 0 at padding. block: of block-causal attention; None is full attention. columns:
    blocks are counted with the padding."""
    mask = torch.ones_like(ids) if mask is None else mask
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    seen = mask[:, None, :].bool().expand(-1, ids.shape[1], -1)  # [B, query, key]
    if block is not None:
        number = (torch.arange(ids.shape[1]).expand_as(ids) if columns else positions) // block
        seen = seen & (number[:, None, :] <= number[:, :, None])
    eps = config["rms_norm_eps"]
    fused = "model.word_embeddings.weight" in weights

    x = weights["model.word_embeddings.weight" if fused else "model.embed_tokens.weight"]
    head = weights.get("lm_head.weight", x)
    x = x[ids]
    for n in range(config["num_hidden_layers"]):
        at = f"model.layers.{n}"
        h = norm(x, weights[f"{at}.input_layernorm.weight"], eps)
        x = x + attention(h, weights, at, config, positions, seen)
        h = norm(x, weights[f"{at}.post_attention_layernorm.weight"], eps)
        x = x + (
            mixture(h, weights, at, config)
            if f"{at}.mlp.gate.weight" in weights
            else feed_forward(h, weights, f"{at}.mlp")
        )
    return norm(x, weights["model.norm.weight"], eps) @ head.T


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def rotate(x: torch.Tensor, positions: torch.Tensor, theta: float, share: float) -> torch.Tensor:
    """Rotate the first `share` of each head [B, L, heads, size]: dimension i with i + half."""
    turned = int(x.shape[-1] * share)
    half = turned // 2
    angles = positions[:, :, None, None] * theta ** (-torch.arange(half) * 2.0 / turned)
    first, second, rest = x[..., :half], x[..., half:turned], x[..., turned:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


def attention(
    h: torch.Tensor, weights: Weights, at: str, config: dict[str, Any], positions: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    if f"{at}.attention.query_key_value.weight" in weights:
        everything = h @ weights[f"{at}.attention.query_key_value.weight"].T
        q, k, v = everything.split([heads * size, groups * size, groups * size], -1)
        names = "attention.query_layernorm", "attention.key_layernorm", "attention.dense"
    else:
        q, k, v = (
            h @ weights[f"{at}.self_attn.{name}_proj.weight"].T
            + weights.get(f"{at}.self_attn.{name}_proj.bias", torch.zeros(()))
            for name in "qkv"
        )
        names = "self_attn.q_norm", "self_attn.k_norm", "self_attn.o_proj"
    q, k, v = (t.unflatten(-1, (-1, size)) for t in (q, k, v))
    if f"{at}.{names[0]}.weight" in weights:
        q = norm(q, weights[f"{at}.{names[0]}.weight"], config["rms_norm_eps"])
        k = norm(k, weights[f"{at}.{names[1]}.weight"], config["rms_norm_eps"])
    turn = config["rope_theta"], config.get("partial_rotary_factor", 1.0)
    q, k = rotate(q, positions, *turn), rotate(k, positions, *turn)
    mixed = []
    for n in range(heads):
        group = n // (heads // groups)
        scores = torch.einsum("bid,bjd->bij", q[:, :, n], k[:, :, group]) / math.sqrt(size)
        mixed.append(scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num() @ v[:, :, group])
    return torch.cat(mixed, -1) @ weights[f"{at}.{names[2]}.weight"].T


def feed_forward(h: torch.Tensor, weights: Weights, at: str) -> torch.Tensor:
    inner = silu(h @ weights[f"{at}.gate_proj.weight"].T) * (h @ weights[f"{at}.up_proj.weight"].T)
    return inner @ weights[f"{at}.down_proj.weight"].T


def mixture(h: torch.Tensor, weights: Weights, at: str, config: dict[str, Any]) -> torch.Tensor:
    """Token by token: the chosen experts' outputs, weighted."""
    out = torch.zeros_like(h)
    router = weights[f"{at}.mlp.gate.weight"]
    for row, column in torch.cartesian_prod(torch.arange(h.shape[0]), torch.arange(h.shape[1])).tolist():
        token = h[row, column]
        if config.get("score_function") == "sigmoid":
            shares = grouped_choice(router @ token, weights[f"{at}.mlp.gate.expert_bias"], config)
        else:
            p = (router @ token).softmax(-1)
            chosen = p.topk(config["num_experts_per_tok"]).indices.tolist()
            total = p[chosen].sum() if config.get("norm_topk_prob") else 1.0
            shares = {expert: p[expert] / total for expert in chosen}
        for expert, share in shares.items():
            out[row, column] += share * feed_forward(token, weights, f"{at}.mlp.experts.{expert}")
    if f"{at}.mlp.shared_experts.gate_proj.weight" in weights:
        out = out + feed_forward(h, weights, f"{at}.mlp.shared_experts")
    return out


def grouped_choice(scores: torch.Tensor, bias: torch.Tensor, config: dict[str, Any]) -> dict[int, torch.Tensor]:
    """Experts and their weights: the best groups by their two best biased scores, then the best experts in them."""
    p = scores.sigmoid()
    biased = p + bias
    groups = torch.arange(len(p)).chunk(config["n_group"])
    worth = [biased[group].sort().values[-2:].sum().item() for group in groups]
    best = sorted(range(len(groups)), key=lambda number: -worth[number])[: config["topk_group"]]
    allowed = [expert for number in best for expert in groups[number].tolist()]
    chosen = sorted(allowed, key=lambda expert: -biased[expert].item())[: config["num_experts_per_tok"]]
    total = sum(p[expert] for expert in chosen)
    return {expert: config["routed_scaling_factor"] * p[expert] / total for expert in chosen}
