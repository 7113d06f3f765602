"""The left-to-right sampler of autoregressive models: one token a step, with a key-value cache."""

from collections.abc import Sequence

import torch
from transformers import DynamicCache

from . import _bans
from .canvas import Canvas
from .choose import choose, probability
from .noise import uniform
from .step import Step, Watcher


def run(canvas: Canvas, watchers: Sequence[Watcher]) -> None:
    """Fill the canvas from left to right; rows leave the batch (and the cache) at their end token."""
    model, sampling = canvas.model, canvas.sampling
    device = canvas.ids.device
    to_the_end = sampling.end != "stop" or any(watcher.needs_all_steps for watcher in watchers)
    ends = list(model.family.end_ids)
    end_ids = torch.tensor(ends, device=device)
    always = ends if sampling.end == "forbid" else []
    mask = canvas.mask if canvas.mask is not None else torch.ones_like(canvas.ids)

    cache = DynamicCache(config=model.config)
    rows = torch.arange(len(canvas.rows), device=device)
    fresh = canvas.ids[:, : canvas.width]  # what the cache hasn't seen yet
    for position in range(sampling.length):
        column = canvas.width + position
        hidden = model.hidden(fresh, mask[rows, :column], cache)[:, -1]  # [B, D]
        uniforms = None
        if sampling.temperature > 0:
            uniforms = uniform(canvas.seeds[rows], position, torch.full_like(rows, position))
        token, score, _ = choose(model, hidden, uniforms, temperature=sampling.temperature, forbidden=always)
        for i, row in enumerate(rows.tolist()):
            bans = canvas.rows[row].request.bans
            if not bans:
                continue
            behind = canvas.forced[row].tolist()
            line = canvas.ids[row, canvas.width :].tolist()
            decided = [line[p] if p < position or behind[p] else None for p in range(sampling.length)]
            avoid = _bans.banned_at(bans, position, decided)
            if avoid:
                this = slice(i, i + 1)
                token[this], score[this], _ = choose(
                    model,
                    hidden[this],
                    None if uniforms is None else uniforms[this],
                    temperature=sampling.temperature,
                    forbidden=[*always, *avoid],
                )
        canvas.broken[rows] |= score.isnan()
        token = torch.where(canvas.forced[rows, position], canvas.ids[rows, column], token)
        canvas.ids[rows, column] = token
        for row in rows.tolist():
            canvas.steps_taken[row] += 1
            canvas.forwards[row] += 1
        stopped: set[int] = set()
        if watchers:
            step = _step(canvas, position, rows, token, score, hidden)
            for watcher in watchers:
                watcher.on_step(step)
            stopped = step.stopped

        done = torch.tensor([canvas.rows[row].index in stopped for row in rows.tolist()], device=device)
        if not to_the_end:
            done |= torch.isin(token, end_ids) | canvas.broken[rows]
        if done.any():
            kept = (~done).nonzero()[:, 0]
            if not len(kept):
                return
            rows, token = rows[kept], token[kept]
            cache.batch_select_indices(kept)
        fresh = token[:, None]


def _step(
    canvas: Canvas, position: int, rows: torch.Tensor, token: torch.Tensor, score: torch.Tensor, hidden: torch.Tensor
) -> Step:
    ids = canvas.ids[rows]
    here = torch.arange(canvas.length, device=ids.device) == position
    forced = canvas.forced[rows]

    def predictions() -> tuple[torch.Tensor, torch.Tensor]:
        confidence = torch.where(here & ~forced, probability(score)[:, None], 1.0)
        return ids[:, canvas.response], confidence

    return Step(
        index=position,
        of=canvas.length,
        block=(position, position + 1),
        rows=[canvas.rows[row].index for row in rows.tolist()],
        ids=ids,
        response=canvas.response,
        new=here & ~forced,
        committed=(torch.arange(canvas.length, device=ids.device) <= position) | forced,
        hidden_positions=slice(position, position + 1),
        _hidden=lambda: hidden[:, None],
        _predict=predictions,
    )
