"""The sampler against a plain statement of the published algorithm, as ratios.

    python bench/sampling.py                              # vocabulary 126,464 and the sandbox's size, on the CPU
    python bench/sampling.py --quick                      # fewer layers and steps
    python bench/sampling.py --device cuda --shape llada-8b   # random bfloat16 weights at LLaDA-8B's real shape

Both run back to back in one process on the same random weights, medians of a few repeats; CPU time of the process
(wall clock on a GPU). Tokens are compared as well: a ratio for other tokens would mean nothing.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from reference import published_sampler

from midward import Forced, LanguageModel, Request, Sampling, sample
from midward.models import llada
from midward.models._rope import keep_rope_in_float32
from midward.sampling import noise
from midward.sampling.choose import choose

MASK, END = 2, 1
SHAPES = {
    "head-heavy": dict(vocab_size=126_464, hidden_size=512, layers=8, heads=8, feed_forward=1536),
    "real-share": dict(vocab_size=2_048, hidden_size=512, layers=8, heads=8, feed_forward=1536),
    "sandbox": dict(vocab_size=1_500, hidden_size=128, layers=6, heads=4, feed_forward=384),
    "llada-8b": dict(vocab_size=126_464, hidden_size=4096, layers=32, heads=32, feed_forward=12_288),
}


def random_model(shape, device, dtype):
    """A model of this shape with random weights, made without any file."""
    config = llada.llada_config(**shape, max_length=1024, mask_id=MASK, end_id=END)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            network = llada.build(config)
    finally:
        torch.set_default_dtype(default)
    if dtype.itemsize < 4:
        network.model.rotary_emb = type(network.model.rotary_emb)(network.config).to(device)
        keep_rope_in_float32(network)
    tokenizer = SimpleNamespace(get_vocab=dict, chat_template=None, decode=lambda ids, **options: "")
    return LanguageModel("random", llada.family(config, tokenizer), tokenizer, network.requires_grad_(False))


def clock(device):
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(jobs, repeats, device):
    """Median seconds of each job, and its last result; interleaved, so that a drift of the machine hits all."""
    times, results = {name: [] for name in jobs}, {}
    for _ in range(repeats):
        for name, job in jobs.items():
            start = clock(device)
            results[name] = job()
            times[name].append(clock(device) - start)
    return {name: statistics.median(values) for name, values in times.items()}, results


def exact(model, *, batch, prompt, length, steps, repeats, device, float64):
    """Identical tokens: block = length and block 32, against softmax in float32 and float64."""
    ids = torch.randint(5, model.vocab_size, (batch, prompt), generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def forward(canvas, mask):
        return model.head(model.hidden(canvas.to(device), mask)).float()

    def plain(block, dtype):
        return published_sampler(
            forward, ids, length=length, steps=steps, block=block, mask_id=MASK, dtype=dtype
        )

    def ours(block):
        settings = Sampling(length=length, steps=steps, block=block, end="keep")
        return torch.tensor([r.raw_ids for r in sample(model, ids.tolist(), settings, batch_size=batch)])

    for block in (length, 32):
        jobs = {"plain float32": lambda block=block: plain(block, torch.float32)}
        if float64:
            jobs["plain float64"] = lambda block=block: plain(block, torch.float64)
        jobs["midward"] = lambda block=block: ours(block)
        seconds, results = measure(jobs, repeats, device)
        same = (results["midward"] == results["plain float32"]).all(-1).sum().item()
        line = f"  exact, B {batch}, length {length}, steps {steps}, block {block}: "
        line += f"{batch * length / seconds['midward']:.1f} tokens/s"
        for name in jobs:
            if name != "midward":
                line += f", {seconds[name] / seconds['midward']:.2f}x {name}"
        print(f"{line}; rows with identical tokens {same}/{batch}")


def shares(model, *, batch, prompt, length, repeats, device):
    """Where a step's time goes: transformer body, head and choice on a block of 32, and everything else."""
    ids = torch.randint(5, model.vocab_size, (batch, prompt)).tolist()
    canvas = torch.full((batch, prompt + length), MASK, device=device)
    hidden = model.hidden(canvas)
    block = hidden[:, -32:].reshape(-1, hidden.shape[-1])
    jobs = {
        "body": lambda: [model.hidden(canvas) for _ in range(8)],
        "head": lambda: [choose(model, block) for _ in range(8)],
        "all": lambda: sample(model, ids, Sampling(length=length, steps=8, end="keep"), batch_size=batch),
    }
    with torch.no_grad():
        seconds, _ = measure(jobs, repeats, device)
    outside = 1 - seconds["body"] / seconds["all"]
    print(
        f"  share of a step: head and choice on 32 positions {seconds['head'] / seconds['body']:.1%} of the body; "
        f"8 steps over the whole response spend {outside:.1%} outside the body"
    )


def early_stop(model):
    """Refusals of 8-24 tokens, block 32: row-forwards with and without the end-of-text stop.

    A random model has no sense of length, so each row's end token is forced at its place.
    """
    ends = torch.randint(8, 25, (16,), generator=torch.Generator().manual_seed(3)).tolist()
    requests = [Request([5 + row] * 16, forced=(Forced(end, (END,)),)) for row, end in enumerate(ends)]
    forwards = {}
    for end in ("keep", "stop"):
        settings = Sampling(length=128, steps=32, block=32, end=end)
        forwards[end] = sum(response.nfe for response in sample(model, requests, settings, batch_size=16))
    ratio = forwards["keep"] / forwards["stop"]
    print(f"  end-of-text stop, refusals of 8-24 tokens, block 32: {ratio:.2f}x fewer row-forwards")


def temperature(model, *, repeats, device):
    """Scoring and drawing of 64 positions at temperature 1, against float64 Gumbel noise."""
    hidden = torch.randn(64, model.hidden_size, device=device, dtype=model.dtype)
    logits = model.head(hidden).float()
    seeds, columns = torch.full((64,), 7, device=device), torch.arange(64, device=device)
    fixed = SimpleNamespace(head=lambda h: logits.clone(), vocab_size=model.vocab_size)

    def gumbel():
        wide = logits.to(torch.float64)
        drawn = (wide.exp() / (-torch.log(torch.rand_like(wide)))).argmax(-1)
        return logits.softmax(-1).gather(-1, drawn[:, None])

    jobs = {
        "float64 Gumbel": gumbel,
        "midward": lambda: choose(fixed, hidden, noise.uniform(seeds, 0, columns), temperature=1.0),
    }
    seconds, _ = measure(jobs, repeats, device)
    ratio = seconds["float64 Gumbel"] / seconds["midward"]
    print(f"  temperature > 0, scoring and drawing 64 positions: {ratio:.1f}x cheaper than float64 Gumbel")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["head-heavy", "real-share", "sandbox"])
    parser.add_argument(
        "--quick", action="store_true", help="two layers and few steps: minutes become seconds"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=32, help="a multiple of 4; the ratios hardly depend on it"
    )
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # a long run shows each line as it comes
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16

    for name in options.shape:
        shape = dict(SHAPES[name])
        small = name == "sandbox"
        batch, length, steps, repeats = (
            8,
            96 if small else 128,
            48 if small else options.steps,
            options.repeats,
        )
        if options.quick:
            shape["layers"] = min(shape["layers"], 2)
            batch, steps, repeats = 4, 12, 1
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        model = random_model(shape, options.device, dtype)
        print(f"{name}: {shape}, {str(dtype).removeprefix('torch.')} on {options.device}")
        prompt = 32 if small else 64
        sizes = dict(batch=batch, prompt=prompt, length=length, repeats=repeats, device=options.device)
        exact(model, steps=steps, float64=options.device == "cpu", **sizes)
        shares(model, **sizes)
        if not options.quick or small:
            early_stop(model)
        temperature(model, repeats=max(3, repeats), device=options.device)
        if options.device == "cuda":
            print(f"  peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
