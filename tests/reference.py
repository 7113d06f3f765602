"""Plain statements of what midward must equal. Nothing here imports midward; readable comes before fast.

`llada_logits` is the LLaDA architecture, `published_sampler` the published sampling algorithm.
"""

import math

import torch
import torch.nn.functional as F


def llada_logits(weights, config, ids, mask=None):
    """Logits [B, L, V] in float32 from weights under their published names."""
    d, heads = config["d_model"], config["n_heads"]
    kv_heads, size = config["n_kv_heads"] or heads, d // heads
    batch, length = ids.shape
    mask = torch.ones_like(ids) if mask is None else mask
    positions = (mask.cumsum(-1) - 1).clamp(min=0)

    def norm(x, name):
        return weights[name] * x / torch.sqrt((x * x).mean(-1, keepdim=True) + config["rms_norm_eps"])

    frequencies = config["rope_theta"] ** (-torch.arange(0, size, 2).float() / size)
    angles = (positions[..., None] * frequencies).repeat(1, 1, 2)[:, None]  # [B, 1, L, size]

    def rotate(x):
        first, second = x[..., : size // 2], x[..., size // 2 :]
        return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

    x = weights["model.transformer.wte.weight"][ids]
    for n in range(config["n_layers"]):
        name = f"model.transformer.blocks.{n}."
        h = norm(x, name + "attn_norm.weight")
        q = (h @ weights[name + "q_proj.weight"].T).view(batch, length, heads, size).transpose(1, 2)
        k = (h @ weights[name + "k_proj.weight"].T).view(batch, length, kv_heads, size).transpose(1, 2)
        v = (h @ weights[name + "v_proj.weight"].T).view(batch, length, kv_heads, size).transpose(1, 2)
        q, k = rotate(q), rotate(k)
        k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
        attention = q @ k.transpose(-1, -2) / math.sqrt(size)
        attention = attention.masked_fill(mask[:, None, None] == 0, -torch.inf)  # keys only; every query sees all
        mixed = (attention.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, d)
        x = x + mixed @ weights[name + "attn_out.weight"].T
        h = norm(x, name + "ff_norm.weight")
        gate = F.silu(h @ weights[name + "ff_proj.weight"].T)
        x = x + (gate * (h @ weights[name + "up_proj.weight"].T)) @ weights[name + "ff_out.weight"].T
    head = "model.transformer.wte.weight" if config.get("weight_tying") else "model.transformer.ff_out.weight"
    return norm(x, "model.transformer.ln_f.weight") @ weights[head].T


def published_sampler(
    forward,
    prompt,
    *,
    length,
    steps,
    block,
    mask_id,
    order="low_confidence",
    guidance=0.0,
    mask=None,
    priority=None,
    dtype=torch.float64,
    exact_ties=False,
):
    """Response tokens [B, length] at temperature 0.

    forward(ids [B, L], mask) gives logits [B, L, V]. order: "low_confidence", "random" (by `priority` [B, L])
    or "left_to_right" (never the mask token). dtype: of the softmax.
    exact_ties: more than 37 nats ahead of all others, p is exactly 1 even in float64, and top-k's order among
    equals is arbitrary; then let the odds p / (1 - p) decide.
    """
    rows, width = prompt.shape
    x = torch.full((rows, width + length), mask_id, device=prompt.device)
    x[:, :width] = prompt
    if mask is not None:
        mask = torch.cat([mask, mask.new_ones(rows, length)], 1)
    not_masked_at_start = x != mask_id
    blocks = length // block
    assert length % block == 0 and steps % blocks == 0
    steps_per_block = steps // blocks

    for number in range(blocks):
        start, stop = width + number * block, width + (number + 1) * block
        masks_in_block = (x[:, start:stop] == mask_id).sum(-1)
        for i in range(steps_per_block):
            logits = forward(x, mask)
            if guidance > 0:
                blind = x.clone()
                blind[not_masked_at_start] = mask_id
                u = forward(blind, mask)
                logits = u + (guidance + 1) * (logits - u)
            if order == "left_to_right":
                logits[..., mask_id] = -torch.inf
            predicted = logits.argmax(-1)
            if order == "low_confidence":
                if exact_ties:
                    others = logits.double().scatter(-1, predicted[..., None], -torch.inf).logsumexp(-1)
                    odds = logits.double().gather(-1, predicted[..., None])[..., 0] - others
                confidence = logits.to(dtype).softmax(-1).gather(-1, predicted[..., None])[..., 0]
            elif order == "random":
                confidence = priority.to(dtype).clone()
            else:
                confidence = -torch.arange(width + length, dtype=dtype, device=x.device).repeat(rows, 1)
            is_mask = x == mask_id
            confidence[~is_mask] = -torch.inf
            confidence[:, stop:] = -torch.inf
            for row in range(rows):
                m = int(masks_in_block[row])
                k = m // steps_per_block + (1 if i < m % steps_per_block else 0)
                best = confidence[row].topk(k).indices
                if exact_ties and order == "low_confidence":
                    key = [(confidence[row, at].item(), odds[row, at].item()) for at in range(width + length)]
                    best = torch.tensor(
                        sorted(range(width + length), key=lambda at: key[at])[::-1][:k], device=x.device
                    ).long()
                best = best[is_mask[row, best]]
                x[row, best] = predicted[row, best]
    return x[:, width:]
