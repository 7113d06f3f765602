"""The sampler against a plain statement of the published algorithm, as ratios.

    python bench/sampling.py                              # vocabulary 2,048 and 126,464, on the CPU: an hour or two
    python bench/sampling.py --quick                      # two layers, a few blocks of 16: minutes
    python bench/sampling.py --device cuda --shape llada-8b   # random bfloat16 weights at LLaDA-8B's real shape

All run back to back in one process on the same random weights, medians of a few repeats; CPU time of the process
(wall clock on a GPU). Exact mode must give the plain sampler's tokens (in float32; the bench fails where it doesn't).
Approximate modes print how many tokens agree; random weights say little about that, so the shipped sandbox model is
asked as well, at its own settings. Behind a ratio stands what it was to be, where there is such a figure.
"""

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent.parent))
from reference import published_sampler

import midward
from midward import Forced, LanguageModel, Request, Sampling, sample
from midward.models import llada
from midward.models._rope import keep_rope_in_float32
from midward.sampling import noise
from midward.sampling._agreement import compare
from midward.sampling.choose import choose
from tools.world import layout

MASK, END = 2, 1
SHAPES = {
    "real-share": dict(vocab_size=2_048, hidden_size=512, layers=8, heads=8, feed_forward=1536),
    "head-heavy": dict(vocab_size=126_464, hidden_size=512, layers=8, heads=8, feed_forward=1536),
    "sandbox": dict(vocab_size=1_039, hidden_size=192, layers=4, heads=6, feed_forward=544),
    "llada-8b": dict(vocab_size=126_464, hidden_size=4096, layers=32, heads=32, feed_forward=12_288),
}
#: (shape, mode, whether in blocks) -> at least this many times the plain sampler, for 8 layers and batch 8; the caches'
#: for a step a token.
TARGETS = {
    ("head-heavy", "exact", False): 1.9,
    ("head-heavy", "exact", True): 3.1,
    ("real-share", "exact", False): 1.0,
    ("real-share", "exact", True): 1.03,
    ("real-share", "prefix", True): 2.2,
    ("real-share", "dual", True): 4.5,
}
MODES = {"exact": {}, "prefix": {"cache": "prefix"}, "dual": {"cache": "dual"}}


def random_model(shape, device, dtype):
    """A model of this shape with random weights, made without any file.

    Its logits have a standard deviation of about 3: with flat ones the order of commits would hang on rounding.
    """
    config = layout.llada_config(**shape, max_length=1024, mask_id=MASK, end_id=END)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            network = layout.build(config)
    finally:
        torch.set_default_dtype(default)
    with torch.no_grad():
        head = network.get_output_embeddings().weight
        head.mul_(3 / (head.float().std() * head.shape[1] ** 0.5))
    if dtype.itemsize < 4:
        network.model.rotary_emb = type(network.model.rotary_emb)(network.config).to(device)
        keep_rope_in_float32(network)
    tokenizer = SimpleNamespace(
        get_vocab=dict, special_tokens_map={}, chat_template=None, decode=lambda ids, **options: ""
    )
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


def modes(model, shape, *, batch, prompt, length, steps, block, repeats, device, float64, whole=True):
    """Exact and accelerated modes, over the whole response (exact alone, if `whole`) and in blocks."""
    ids = torch.randint(5, model.vocab_size, (batch, prompt), generator=torch.Generator().manual_seed(1))
    ids = ids.to(device)

    @torch.no_grad()
    def forward(canvas, mask):
        return model.head(model.hidden(canvas, mask)).float()

    def plain(size, dtype=torch.float32):
        return published_sampler(forward, ids, length=length, steps=steps, block=size, mask_id=MASK, dtype=dtype)

    def ours(size, **options):
        settings = Sampling(length=length, steps=steps, block=size, end="keep", **options)
        return sample(model, ids.tolist(), settings, batch_size=batch)

    for size in (length, block) if whole else (block,):
        jobs = {"plain": lambda size=size: plain(size)}
        if float64:
            jobs["float64"] = lambda size=size: plain(size, torch.float64)
        for mode, options in MODES.items():
            if size < length or mode == "exact":
                jobs[mode] = lambda size=size, options=options: ours(size, **options)
        seconds, results = measure(jobs, repeats, device)
        for mode in MODES:
            if mode not in results:
                continue
            found = results[mode]
            line = f"  {mode:6} B {batch:2}, block {size:3}, steps {steps:3}: "
            line += f"{batch * length / seconds[mode]:8.1f} tokens/s, "
            line += f"{seconds['plain'] / seconds[mode]:.2f}x plain"
            if float64:
                line += f", {seconds['float64'] / seconds[mode]:.2f}x with float64 softmax"
            if target := TARGETS.get((shape, mode, size < length)):
                line += f" (target {target}x{'' if mode == 'exact' else ' at a step a token'})"
            if mode == "exact":
                same = (torch.tensor([one.raw_ids for one in found]) == results["plain"].cpu()).all(-1).sum().item()
                line += f"; the plain sampler's tokens in {same} of {batch} rows"
                if same < batch and model.dtype == torch.float32:
                    sys.exit(f"{line}\nerror: exact mode gave other tokens.")
            else:
                line += f"; {compare(results['exact'], found).token_share:.1%} of tokens as exact"
            print(line)


def shares(model, *, batch, prompt, length, block, device, **_):
    """Where a step's time goes: the transformer's body, the head, and everything else, timed inside one run."""
    ids = torch.randint(5, model.vocab_size, (batch, prompt)).tolist()
    spent = {"hidden": 0.0, "head": 0.0}

    def timed(name):
        own = getattr(model, name)

        def run(*given, **options):
            start = clock(device)
            found = own(*given, **options)
            spent[name] += clock(device) - start
            return found

        return run

    settings = Sampling(length=length, steps=4 * (length // block), block=block, end="keep")
    model.hidden, model.head = timed("hidden"), timed("head")
    try:
        start = clock(device)
        sample(model, ids, settings, batch_size=batch)
        whole = clock(device) - start
    finally:
        del model.hidden, model.head
    print(
        f"  share  B {batch:2}, block {block:3}: outside the transformer's body {1 - spent['hidden'] / whole:.2%} of a "
        f"run, head {spent['head'] / whole:.2%} of it" + (" (target under 2%)" if model.vocab_size < 4096 else "")
    )


class Everything:
    """A watcher that wants the states of all positions, which turns the exact cache off."""

    needs_all_steps, needs_all_positions = False, True

    def on_start(self, canvas):
        pass

    on_step = on_end = on_start


def block_causal(model, *, batch, prompt, length, steps, block, repeats, device):
    """The exact cache: the same weights with block-causal attention, against whole forwards."""
    family = replace(model.family, attention="block", attention_block=block)
    causal = LanguageModel("random", family, model.tokenizer, model.network)
    ids = torch.randint(5, model.vocab_size, (batch, prompt)).tolist()
    settings = Sampling(length=length, steps=steps, block=block, end="keep")
    jobs = {
        name: lambda watchers=watchers: sample(causal, ids, settings, batch_size=batch, watchers=watchers)
        for name, watchers in (("whole", [Everything()]), ("cached", []))
    }
    seconds, results = measure(jobs, repeats, device)
    found = compare(results["whole"], results["cached"])
    print(
        f"  block-causal, exact cache, B {batch:2}, block {block:3}, steps {steps:3}: "
        f"{seconds['whole'] / seconds['cached']:.2f}x whole forwards; {found.token_share:.1%} of tokens equal"
    )
    if found.equal_responses < batch and model.dtype == torch.float32:
        sys.exit("error: the exact cache gave other tokens.")


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
    print(f"  end-of-text stop, refusals of 8-24 tokens: {ratio:.2f}x fewer row-forwards (target 3.8x)")


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
        "gumbel": gumbel,
        "midward": lambda: choose(fixed, hidden, noise.uniform(seeds, 0, columns), temperature=1.0),
    }
    seconds, _ = measure(jobs, max(3, repeats), device)
    ratio = seconds["gumbel"] / seconds["midward"]
    print(
        f"  temperature > 0, 64 positions: {ratio:.1f}x cheaper than float64 Gumbel"
        + (" (target 5x)" if model.vocab_size > 100_000 else "")
    )


def refill(model, *, batch, device):
    """What replacing finished rows at once would save over one batch after the other.

    Row-forwards are the same; calls are fewer and fuller. The gain is computed from the measured cost of a forward of
    each number of rows.
    """
    ends = torch.randint(4, 120, (4 * batch,), generator=torch.Generator().manual_seed(4)).tolist()
    requests = [Request([5 + row % 50] * 16, forced=(Forced(end, (END,)),)) for row, end in enumerate(ends)]
    settings = Sampling(length=128, steps=16, block=32)
    counted = [one.nfe for one in sample(model, requests, settings, batch_size=batch)]
    batches = [counted[start : start + batch] for start in range(0, len(counted), batch)]
    now = [sum(count > step for count in one) for one in batches for step in range(max(one))]
    waiting, working, replaced = list(counted), [], []
    while waiting or working:
        while waiting and len(working) < batch:
            working.append(waiting.pop(0))
        replaced.append(len(working))
        working = [count - 1 for count in working if count > 1]
    ids = torch.full((batch, 144), MASK, device=model.device)
    with torch.no_grad():
        jobs = {rows: lambda rows=rows: model.hidden(ids[:rows]) for rows in range(1, batch + 1)}
        seconds, _ = measure(jobs, 3, device)
    spent = [sum(seconds[rows] for rows in calls) for calls in (now, replaced)]
    print(
        f"  mixed lengths, B {batch}: {sum(counted)} row-forwards in {len(now)} calls, {len(replaced)} if finished "
        f"rows were replaced at once, which would be {spent[0] / spent[1]:.2f}x as fast"
    )


def trained(*, batch, device):
    """The sandbox model on its own prompts: what accelerated modes save, and how many tokens stay."""
    from midward.goals import load

    model = midward.load("sandbox", device=device)
    prompts = [goal.prompt for name in ("sandbox-benign", "sandbox") for goal in load(name)[: 2 * batch]]
    exact = Sampling.for_model(model, order="low_confidence")  # a token a step
    choices = {
        "exact": exact,
        "prefix": replace(exact, cache="prefix"),
        "dual": replace(exact, cache="dual"),
        "threshold 0.9": replace(exact, threshold=0.9),
        "threshold 0.9, dual": replace(exact, threshold=0.9, cache="dual"),
    }
    jobs = {
        name: lambda settings=settings: sample(model, prompts, settings, batch_size=batch)
        for name, settings in choices.items()
    }
    seconds, results = measure(jobs, 3, device)
    print(f"sandbox: the shipped model, {len(prompts)} of its prompts, batch {batch}, a token a step in its own blocks")
    for name in choices:
        found = compare(results["exact"], results[name])
        print(f"  {name:19}: {seconds['exact'] / seconds[name]:.2f}x exact; {found}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["real-share", "head-heavy"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument(
        "--quick", action="store_true", help="two layers, 32 or 64 positions in blocks of 16 and 4 steps, once"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=32, help="a multiple of 4; the exact ratios hardly depend on it")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # a long run shows each line as it comes
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    sizes = dict(prompt=64, length=128, block=32, repeats=options.repeats)
    steps = options.steps

    for name in options.shape:
        shape = SHAPES[name]
        if options.quick:
            length = 64 if shape["vocab_size"] < 4096 else 32
            shape, steps = {**shape, "layers": 2}, length // 4
            sizes = dict(prompt=length // 2, length=length, block=16, repeats=1)
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        model = random_model(shape, options.device, dtype)
        print(
            f"{name}: {shape}, {str(dtype).removeprefix('torch.')} on {options.device}; prompt {sizes['prompt']}, "
            f"length {sizes['length']}, {steps} steps"
        )
        for batch in options.batch:
            modes(
                model,
                name,
                batch=batch,
                steps=steps,
                device=options.device,
                float64=options.device == "cpu" and not options.quick and batch == 8,
                **sizes,
            )
        if name == "real-share" and not options.quick:
            modes(
                model,
                name,
                batch=8,
                steps=sizes["length"],
                device=options.device,
                float64=False,
                whole=False,
                **{**sizes, "repeats": 1},
            )
        block_causal(model, batch=min(8, max(options.batch)), steps=steps, device=options.device, **sizes)
        shares(model, batch=min(8, max(options.batch)), device=options.device, **sizes)
        if shape["vocab_size"] < 4096 or options.device == "cuda":
            early_stop(model)
            refill(model, batch=8, device=options.device)
        temperature(model, repeats=sizes["repeats"], device=options.device)
        if options.device == "cuda":
            print(f"  peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    trained(batch=8, device=options.device)


if __name__ == "__main__":
    main()
