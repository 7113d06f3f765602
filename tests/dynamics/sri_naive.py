"""SRI's definitions restated plainly, row by row and step by step. Nothing here imports midward."""

import math

import torch
from watching import Watching


class AllStates(Watching):
    """A watcher that clones every activation: what the pooled states must equal."""

    def __init__(self, needs_all_steps=True):
        super().__init__(self.keep, needs_all_steps=needs_all_steps)
        self.seen = {}  # request -> [(step, hidden [positions, D], ids of the response, committed)]

    def keep(self, step):
        for i, row in enumerate(step.rows):
            entry = (step.index, step.hidden[i].clone(), step.ids[i, step.response].clone(), step.committed[i].clone())
            self.seen.setdefault(row, []).append(entry)


def diffusion_states(seen, steps, ends, reading):
    """phi [T, D] of one request of a diffusion model."""
    found = {}
    for index, hidden, ids, committed in seen:
        counted, ended = [], False
        for position in range(len(ids)):
            if reading == "response" or (committed[position] and not ended):
                counted.append(position)
            if int(ids[position]) in ends:
                ended = True
        counted = counted or list(range(len(ids)))
        found[index] = sum(hidden[position] for position in counted) / len(counted)
    return _carried(found, steps)


def causal_states(seen, steps, ends):
    """phi [T, D] of one request of an autoregressive model."""
    found, total, count, ended = {}, 0, 0, False
    for index, hidden, ids, _ in seen:
        if not ended:
            total, count = total + hidden[0], count + 1
        ended = ended or int(ids[index]) in ends
        found[index] = total / count
    return _carried(found, steps)


def _carried(found, steps):
    now, rows = found[min(found)], []
    for index in range(steps):
        now = found.get(index, now)
        rows.append(now)
    return torch.stack(rows)


def signal(states, mu_harmless, mu_harmful, eps=1e-8, tau=0.1):
    """sigma as a list of T numbers."""

    def distance(a, b):
        a, b = a.tolist(), b.tolist()
        dot = math.fsum(x * y for x, y in zip(a, b))
        norms = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(y * y for y in b))
        return max(0.0, 1 - dot / norms)

    out = []
    for phi, harmless, harmful in zip(states, mu_harmless, mu_harmful):
        logit = (math.log(distance(phi, harmful) + eps) - math.log(distance(phi, harmless) + eps)) / tau
        out.append(1 / (1 + math.exp(-logit)) if logit > -700 else 0.0)
    return out
