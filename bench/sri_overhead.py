"""What guards that look at the steps cost: generation behind each of them against the bare one, in one process.

    python bench/sri_overhead.py                          # the sandbox's own sampling and prompts, on the CPU
    python bench/sri_overhead.py --quick                  # a round of each
    python bench/sri_overhead.py --device cuda --shape llada-8b   # random bfloat16 weights at LLaDA-8B's shape

The guards are fitted on the very prompts that they are timed on, with the threshold out of reach, so that no step is
saved. CPU time of the process (wall clock on a GPU). Two figures, each the median of interleaved rounds with quartiles:

    own     the guard's own clock: its watcher, the `Step` that is made for it, and the scores at the end, as a share of
            the run without them. Other load on the machine hardly moves it
    ratio   of the whole run behind the guard to the bare one beside it: nothing is missing, and noise is a few per cent
"""

import argparse
import random
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import torch
from frame import clock
from peers import SHAPES, random_model

import midward
from midward.dynamics import Anchors, Autoencoder, steps_of
from midward.guards import Detector, SRIGuard
from midward.sampling import Request, Sampling, sample
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


def timed(watcher, device):
    """The watcher with its own time added up in `watcher.spent`."""
    watcher.spent = 0.0
    for name in ("on_start", "on_step", "on_end"):
        inner = getattr(watcher, name)

        def call(what, inner=inner):
            started = clock(device)
            inner(what)
            watcher.spent += clock(device) - started

        setattr(watcher, name, call)
    return watcher


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


def spread(values):
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{100 * middle:6.2f} % [{100 * low:6.2f}, {100 * high:6.2f}]"


def measure(model, sampling, prompts, guards, *, rounds, device, seed=0):
    """Print each guard's cost for these prompts as one batch."""
    rng, batch = random.Random(seed), len(prompts)
    own, ratios = ({name: [] for name in guards} for _ in range(2))

    def run(guard=None):
        started = clock(device)
        ask = sample if guard is None else guard.sample
        responses = ask(model, prompts, sampling, batch_size=batch)
        return clock(device) - started, [each.raw_ids for each in responses]

    _, bare_ids = run()  # warm up
    for guard in guards.values():
        assert run(guard)[1] == bare_ids
    steps = 1e3 * run()[0] / max(each.steps for each in sample(model, prompts, sampling, batch_size=batch))
    for _ in range(rounds):
        order = [*guards]
        rng.shuffle(order)
        for name in order:
            pair = [None, guards[name]]
            rng.shuffle(pair)
            taken = {guard: run(guard)[0] for guard in pair}
            ratios[name].append(taken[guards[name]] / taken[None] - 1)
            with Own(guards[name], device).measured() as its:
                whole, _ = run(guards[name])
            own[name].append(its.spent / (whole - its.spent))
    print(f"  batch {batch}, {rounds} rounds, {steps:.1f} ms a step without a guard")
    for name in guards:
        print(f"    {name:12} own {spread(own[name])}   ratio {spread(ratios[name])}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shape", default="sandbox", choices=SHAPES, help="random weights but for the sandbox")
    parser.add_argument("--dtype", nargs="+", default=("float32", "bfloat16"), choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, nargs="+", default=(1, 8, 16), help="rows of a forward")
    parser.add_argument("--guards", nargs="+", help="some of sri, sri-blocks, hesitate, energy, cascade")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt, with random weights")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="a round")
    options = parser.parse_args()
    from midward.goals import load

    for dtype in options.dtype:
        if options.shape == "sandbox":
            model = midward.load("sandbox", device=options.device, dtype=dtype)
            sampling = Sampling.for_model(model)
            prompts = [goal.prompt for goal in load("sandbox-benign")[: max(options.batch)]]
        else:
            model = random_model(SHAPES[options.shape], options.device, getattr(torch, dtype))
            large = options.shape == "llada-8b"
            length = 128 if large else 96
            sampling = Sampling(length=length, steps=length // 4, block=length if large else 32, end="keep")
            rng = random.Random(0)
            prompts = [[rng.randrange(10, 1000) for _ in range(options.prompt)] for _ in range(max(options.batch))]
        print(f"{options.shape} on {options.device}, {dtype}: {sampling}")
        guards = {"sri": guard_of(model, sampling), **by_blocks(model, sampling, prompts[:16])}
        guards = {name: guards[name] for name in options.guards or guards}
        for batch in options.batch:
            rounds = 1 if options.quick else options.rounds
            measure(model, sampling, prompts[:batch], guards, rounds=rounds, device=options.device)


if __name__ == "__main__":
    main()
