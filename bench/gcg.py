"""Candidate suffixes evaluated a second: the probe's batches against a plain loop over single ones, as ratios.

    python bench/gcg.py                               # the sandbox, on the CPU
    python bench/gcg.py --quick                       # fewer of them
    python bench/gcg.py --device cuda --shape llada-8b    # random bfloat16 weights at LLaDA-8B's real shape

The plain loop is the network's own forward over one row, with the head on every position. Both take the same candidates
in turn in one process, medians of a few repeats; wall clock, and CPU time of the process, which others hardly move.
Losses are compared as well. The retokenisation filter runs before both and is told apart.
"""

import argparse
import random
import statistics
import sys
import time

import torch
from sampling import SHAPES, random_model

import midward
from midward import goals
from midward.models import LanguageModel
from midward.probes import gcg
from midward.probes.configs import Gcg
from midward.probes.suffix import SuffixPrompt, losses, start_of, swaps
from midward.sampling import Sampling


def clock(device):
    """Wall clock and CPU time, in seconds."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


@torch.no_grad()
def plain(model, prompts, aim, length):
    """One row a forward, logits of the whole vocabulary everywhere."""
    found = []
    for ids in prompts:
        row = torch.tensor([[*ids, *[model.family.mask_id] * length]], device=model.device)
        logits = model.network(input_ids=row, use_cache=False).logits[0].float()
        start = len(ids) + aim.position
        wanted = torch.tensor(aim.ids, device=model.device)
        found.append(torch.nn.functional.cross_entropy(logits[start : start + len(aim.ids)], wanted).item())
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape; the sandbox's own unless given")
    parser.add_argument("--width", type=int, default=64, help="candidates of an iteration")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="16 candidates, three repeats")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    if options.quick:
        options.width, options.repeats = 16, 3

    model = midward.load("sandbox", device=options.device)
    if options.shape:
        dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
        network = random_model(SHAPES[options.shape], options.device, dtype).network
        model = LanguageModel("random", model.family, model.tokenizer, network)
    [goal] = goals.load("sandbox", count=1)
    _, case = gcg.cases(model, [goal], Gcg(positions=(30,)), Sampling(length=options.length, steps=1))
    aim = gcg.aim_of(case)
    prompt = SuffixPrompt(model, goal.prompt)
    slope = torch.randn(20, model.vocab_size, generator=torch.Generator().manual_seed(0))
    wall, _ = clock(options.device)
    found, dropped = swaps(slope, prompt, start_of(prompt, 20), width=options.width, top=256, rng=random.Random(0))
    filtered = clock(options.device)[0] - wall
    prompts = [ids for _, ids in found]

    jobs = {
        "one by one": lambda: plain(model, prompts, aim, options.length),
        "midward": lambda: losses(model, prompts, aim, length=options.length, batch_size=options.batch),
    }
    values = {name: job() for name, job in jobs.items()}  # and warm
    times = {name: [] for name in jobs}
    for _ in range(options.repeats):
        for name, job in jobs.items():
            before = clock(options.device)
            job()
            after = clock(options.device)
            times[name].append([b - a for a, b in zip(before, after)])
    seconds = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in times.items()}
    far = max(abs(a - b) for a, b in zip(*values.values()))
    print(
        f"{options.shape or 'sandbox'} on {options.device}, {len(prompts)} candidates of {len(prompts[0])} + "
        f"{options.length} tokens, batch {options.batch}"
    )
    for name, (wall, cpu) in seconds.items():
        print(f"  {name}: {len(prompts) / wall:.1f} a second, {len(prompts) / cpu:.1f} a CPU second")
    by_wall, by_cpu = (seconds["one by one"][i] / seconds["midward"][i] for i in range(2))
    print(f"  batched it is {by_wall:.2f}x faster (CPU time {by_cpu:.2f}x); losses differ by at most {far:.1g} nats")
    print(
        f"  encoding them anew took {filtered / seconds['midward'][0]:.1%} of their evaluation; {dropped} were dropped"
    )


if __name__ == "__main__":
    main()
