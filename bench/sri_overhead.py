"""What SRI Guard costs: generation with signal and guard against the bare one, in one process, as ratios.

    python bench/sri_overhead.py                          # the sandbox's size, on the CPU
    python bench/sri_overhead.py --quick                  # fewer repeats
    python bench/sri_overhead.py --device cuda --shape llada-8b   # random bfloat16 weights at LLaDA-8B's shape

Three ways in turn: bare; behind the guard (signal, autoencoder and a decision at every step, with the threshold out of
reach, so that no step is saved); and with a watcher that clones every step's hidden states to the host, as a naive
detector would. CPU time of the process (wall clock on a GPU), the median over interleaved rounds of each round's ratio.
The guard's own time is also measured inside the runs, which other load on the machine hardly moves: the time spent in
its watcher, as a share of the run around it.
"""

import argparse
import random
import statistics

import numpy as np
import torch
from sampling import SHAPES, clock, random_model

from midward.dynamics import Anchors, Autoencoder, steps_of
from midward.guards import Detector, SRIGuard
from midward.sampling import Sampling, sample


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


class Clones:
    """Keeps a copy of every hidden state of every step on the host."""

    needs_all_steps = False

    def on_start(self, canvas):
        self.kept = []

    def on_step(self, step):
        self.kept.append(step.hidden.float().cpu().clone())

    def on_end(self, canvas):
        self.kept = []


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shape", default="sandbox", choices=SHAPES)
    parser.add_argument("--batch", type=int, default=16, help="rows of a forward; 16, as in the guard's verbs")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--length", type=int, help="response tokens; 96, or 128 at LLaDA-8B's shape")
    parser.add_argument("--steps", type=int, help="denoising steps; 24, or 32 at LLaDA-8B's shape")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="3 rounds")
    options = parser.parse_args()
    large = options.shape == "llada-8b"
    length, steps = options.length or (128 if large else 96), options.steps or (32 if large else 24)
    rounds = 3 if options.quick else options.rounds

    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    model = random_model(SHAPES[options.shape], options.device, dtype)
    sampling = Sampling(length=length, steps=steps, block=length if large else 32, end="keep")
    guard = guard_of(model, sampling)
    rng = random.Random(0)
    prompts = [[rng.randrange(10, 1000) for _ in range(options.prompt)] for _ in range(options.batch)]

    def run(*watchers):
        started = clock(options.device)
        found = sample(model, prompts, sampling, batch_size=options.batch, watchers=list(watchers))
        return clock(options.device) - started, found

    ways = {"bare": lambda: run(), "guard": lambda: run(guard.watcher({})), "clones": lambda: run(Clones())}
    for way in ways.values():  # warm up
        way()
    ratios, shares = {"guard": [], "clones": []}, {"guard": [], "clones": []}
    for _ in range(rounds):
        order = list(ways)
        rng.shuffle(order)
        taken = {name: ways[name]() for name in order}
        assert all(one.raw_ids == other.raw_ids for one, other in zip(taken["bare"][1], taken["guard"][1]))
        for name, watcher in (("guard", guard.watcher({})), ("clones", Clones())):
            ratios[name].append(taken[name][0] / taken["bare"][0] - 1)
            watcher = timed(watcher, options.device)
            whole, _ = run(watcher)
            shares[name].append(watcher.spent / (whole - watcher.spent))
    print(
        f"{options.shape} on {options.device}: {options.batch} rows, {options.prompt} + {length} tokens, "
        f"{steps} steps, {rounds} rounds"
    )
    for name, title in (("guard", "signal and guard"), ("clones", "a clone of every activation")):
        low, middle, high = np.quantile(ratios[name], (0.25, 0.5, 0.75))
        print(
            f"  {title}: {100 * statistics.median(shares[name]):.3f} % by its own clock, {100 * middle:+.2f} % by the "
            f"rounds' ratios (quartiles {100 * low:+.2f}, {100 * high:+.2f})"
        )


if __name__ == "__main__":
    main()
