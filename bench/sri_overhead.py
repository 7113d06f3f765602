"""What guards that look at the steps cost: guards to time, and the clock that times them.

The rows are `rows.Bench.guards`: `python bench/measure.py --only guards` on the sandbox. The guards are fitted on the
very prompts that they are timed on, with the threshold out of reach, so that no step is saved. `Own` is the guard's own
clock: its watcher, the `Step` that is made for it, and the scores at the end, as a share of the run without them, which
other load on the machine hardly moves. (The ratio of a whole run behind the guard to the bare one beside it says less:
its noise is a few per cent.)
"""

from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import torch
from frame import clock

from midward.dynamics import Anchors, Autoencoder, steps_of
from midward.guards import Detector, SRIGuard
from midward.sampling import Request, sample
from midward.sampling.diffusion import _Diffusion

BY_BLOCKS = (
    "sri-blocks",
    "hesitate",
    "energy:size=8",
    "cascade:members=[sri-blocks:detector=autoencoder, energy:size=8]",
)


def guard_of(model, sampling):
    """A guard that works as any other and flags nothing: random anchors, an autoencoder of random signals."""
    steps = steps_of(model, sampling)
    generator = torch.Generator().manual_seed(0)
    means = [torch.randn(steps, model.hidden_size, generator=generator) for _ in range(2)]
    guard = SRIGuard()
    guard.anchors = Anchors(
        *means,
        counts=(1, 1),
        model=model.name,
        adapter=None,
        fingerprint=model.fingerprint,
        sampling=sampling,
        needs_all_steps=False,
    )
    signals = np.random.default_rng(0).uniform(size=(200, steps))
    guard.detectors = (Detector.of(Autoencoder.fit(signals, epochs=2), signals),)
    guard.bind(model, sampling)
    return guard


def by_blocks(model, sampling, prompts):
    """Guards by blocks: what takes labels learns from random states, and all train on these prompts' looks."""
    from midward.guards import Exchange, Labelled, make

    rng, guards = np.random.default_rng(0), {spec.partition(":")[0]: make(spec) for spec in BY_BLOCKS}

    def answers(text, shift):
        states = rng.normal(shift, size=(20, 2, 6, model.hidden_size)).astype(np.float32)
        return [Exchange(Request(prompts[0]), text, states=each) for each in states]

    texts = [model.tokenizer.decode(range(start, start + 16)) for start in (100, 200)]
    labelled = Labelled(answers(texts[0], 0.0), answers(texts[1], 0.1), answers(texts[0], -0.1))
    for guard in guards.values():
        if guard.reads_labels:
            guard.learn(model, labelled, sampling=sampling)
        guard.bind(model, sampling)
    watchers = {name: guard.watcher() for name, guard in guards.items()}
    sample(model, prompts, sampling, batch_size=len(prompts), watchers=[*watchers.values()])
    for name, guard in guards.items():
        tables = [watchers[name].signal(row).numpy() for row in range(len(prompts))]
        most = max(len(table) for table in tables)
        padding = [np.full((most - len(table), *table.shape[1:]), np.nan) for table in tables]
        guard.train(None, np.stack([np.concatenate(both) for both in zip(tables, padding, strict=True)]))
    return guards


class Own:
    """Adds up what a guard costs a run. spent: seconds."""

    def __init__(self, guard, device):
        self.guard, self.device, self.spent = guard, device, 0.0

    def around(self, inner):
        """A function whose time is the guard's."""

        def call(*args, **kwargs):
            started = clock(self.device)
            returned = inner(*args, **kwargs)
            self.spent += clock(self.device) - started
            return returned

        return call

    @contextmanager
    def measured(self):
        from midward.guards import Guard

        make_watcher = type(self.guard).watcher

        def watcher(guard, *args):
            made = make_watcher(guard, *args)
            for name in ("on_start", "on_step", "on_end"):
                setattr(made, name, self.around(getattr(made, name)))
            return made

        with (
            patch.object(type(self.guard), "watcher", watcher),
            patch.object(Guard, "checked", self.around(Guard.checked)),
            patch.object(_Diffusion, "_report", self.around(_Diffusion._report)),
        ):
            yield self
