"""Sampling, SRI Guard and a MOSA step at LLaDA-8B's shape: random bfloat16 weights made on the device, no download.

    python bench/full_scale.py --device cuda --out full-scale       # one GPU of 40 GB or more, some minutes
    python bench/full_scale.py --shape tiny                         # on a CPU, a minute: that the script runs

Prints a table and, with --out STEM, writes STEM.json and STEM.md. Sampling is LLaDA's published default (128 tokens,
128 steps, blocks of 32, temperature 0); "outside" is the share of the time spent neither in the transformer's layers
nor in its output head. The MOSA step is the paper's recipe (KL over the response): forward, backward, clipping, AdamW.
Model FLOPs are those that the objective needs (frozen weights have no gradient; nothing recomputed counts), against the
GPU's published dense bfloat16 peak, or, for a device that isn't listed, against what a large product reaches on it.
What random weights can't show: how many tokens an approximate mode changes, and commits by threshold.
"""

import argparse
import json
import platform
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from mosa_step import EXAMPLES, Shape, batch_of
from peft import LoraConfig, get_peft_model
from sampling import random_model
from sri_overhead import guard_of, timed

from midward.alignment import MosaObjective, resolve
from midward.models.family import LLAMA_PROJECTIONS
from midward.sampling import Sampling, sample

#: Dense bfloat16 TFLOP/s as published.
PEAKS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "RTX 4090": 165}

SIZES = {
    "llada-8b": dict(vocab_size=126_464, hidden_size=4096, layers=32, heads=32, feed_forward=12_288),
    "tiny": dict(vocab_size=4_096, hidden_size=128, layers=2, heads=4, feed_forward=384),
}


@dataclass(frozen=True)
class Plan:
    """How long: response tokens, steps and block; prompt tokens; rows a forward; prompts a MOSA step; repeats."""

    length: int = 128
    steps: int = 128
    block: int = 32
    prompt: int = 64
    batches: tuple[int, ...] = (1, 8, 32)
    examples: tuple[int, ...] = (2, 4, 8)
    repeats: int = 3


TINY = Plan(length=64, steps=16, block=32, prompt=16, batches=(1, 4), examples=(2,), repeats=2)


class Clock:
    """Wall time, and inside it the time spent in some modules."""

    def __init__(self, device, modules):
        self.device, self.spans = device, []
        self.handles = [m.register_forward_pre_hook(self._begin) for m in modules]
        self.handles += [m.register_forward_hook(self._end) for m in modules]

    def _now(self):
        if self.device == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()  # on the stream: nothing waits
        return event

    def _begin(self, *_):
        self.spans.append([self._now()])

    def _end(self, *_):
        self.spans[-1].append(self._now())

    def run(self, work):
        """Seconds of `work`, and the share of them outside the modules."""
        self.spans.clear()
        first = self._now()
        start = wall(self.device)
        work()
        last = self._now()
        seconds = wall(self.device) - start
        if self.device == "cpu":
            return seconds, 1 - sum(b - a for a, b in self.spans) / (last - first)
        inside = sum(a.elapsed_time(b) for a, b in self.spans)
        return seconds, 1 - inside / first.elapsed_time(last)

    def close(self):
        for handle in self.handles:
            handle.remove()


def wall(device):
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_of(device, work):
    """What `work` gives, and the most memory it held in GB (on a GPU)."""
    if device == "cpu":
        return work(), None
    torch.cuda.reset_peak_memory_stats()
    found = work()
    return found, torch.cuda.max_memory_allocated() / 1e9


def machine(device, dtype):
    name = platform.processor() or platform.machine()
    if device != "cpu":
        name = torch.cuda.get_device_name()
    elif Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), name)
        name += f", {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}; {str(dtype).removeprefix('torch.')}"


def peak_flops(device, dtype):
    """FLOP/s to compare with, and where the figure comes from."""
    if device != "cpu":
        for name, teraflops in PEAKS.items():
            if name in torch.cuda.get_device_name():
                return teraflops * 1e12, "published dense bfloat16 peak"
    size = 1024 if device == "cpu" else 8192
    left = torch.randn(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(5):
        start = wall(device)
        left @ left
        seconds.append(wall(device) - start)
    return 2 * size**3 / min(seconds), f"a product of two {size} x {size} matrices on it"


def sampling_rows(model, plan, device):
    """Tokens a second in exact and in cached modes, by rows a forward."""
    clock = Clock(device, [model.causal_lm.base_model, model.causal_lm.get_output_embeddings()])
    rows = []
    try:
        for batch in plan.batches:
            generator = torch.Generator().manual_seed(1)
            prompts = torch.randint(5, model.vocab_size, (batch, plan.prompt), generator=generator).tolist()
            for mode in (None, "prefix", "dual"):
                settings = Sampling(
                    length=plan.length, steps=plan.steps, block=plan.block, end="keep", cache=mode
                )

                def run(settings=settings, prompts=prompts, batch=batch):
                    return sample(model, prompts, settings, batch_size=batch)

                run()  # warm up
                taken, peak = peak_of(device, lambda run=run: [clock.run(run) for _ in range(plan.repeats)])
                seconds, outside = (statistics.median(values) for values in zip(*taken))
                rows.append(
                    {
                        "what": f"sampling, {'exact' if mode is None else f'{mode} cache (approximate)'}",
                        "batch": batch,
                        "seconds": seconds,
                        "tokens_per_second": batch * plan.length / seconds,
                        "outside": outside,
                        "peak_gb": peak,
                    }
                )
    finally:
        clock.close()
    return rows


def sri_rows(model, plan, device):
    """What SRI Guard's watcher takes of a generation's time."""
    batch = plan.batches[-1]
    settings = Sampling(length=plan.length, steps=plan.steps, block=plan.block, end="keep")
    model._base_hash = "random weights"  # spares the hashing of 16 GB
    guard = guard_of(model, settings)
    prompts = torch.randint(5, model.vocab_size, (batch, plan.prompt)).tolist()
    shares, peak = [], None
    for repeat in range(plan.repeats + 1):
        watcher = timed(guard.watcher({}), device)
        start = wall(device)
        _, peak = peak_of(
            device, lambda w=watcher: sample(model, prompts, settings, batch_size=batch, watchers=[w])
        )
        seconds = wall(device) - start
        if repeat:  # the first warms up
            shares.append((seconds, watcher.spent / (seconds - watcher.spent)))
    seconds, share = (statistics.median(values) for values in zip(*shares))
    return [
        {
            "what": "sampling, exact, behind SRI Guard",
            "batch": batch,
            "seconds": seconds,
            "tokens_per_second": batch * plan.length / seconds,
            "overhead": share,
            "peak_gb": peak,
        }
    ]


def step_flops(model, shape, scored_rows):
    """What the objective needs: three passes of the body (policy, reference, back to the inputs), four of the head."""
    body = sum(p.numel() for name, p in model.causal_lm.base_model.named_parameters() if p.dim() == 2)
    body -= model.causal_lm.get_input_embeddings().weight.numel()  # looked up, not multiplied
    tokens = shape.batch * (shape.prompt + shape.response)
    attention = (
        2 * 2 * (shape.prompt + shape.response) * shape.width * shape.layers
    )  # a token's scores and mix
    return 3 * tokens * (2 * body + attention) + 4 * 2 * scored_rows * shape.width * shape.vocabulary


def mosa_rows(model, plan, device, size, checkpointing):
    """A whole optimizer step by prompts a step."""
    peak, against = peak_flops(device, model.dtype)
    base = model.network
    if checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    config = resolve({"recipe": "paper", "length": plan.length, "window_end": min(60, plan.length)})
    rows = []
    for batch in plan.examples:
        shape = Shape(
            size["vocab_size"], size["hidden_size"], size["layers"], size["heads"], size["feed_forward"],
            plan.prompt, plan.length, batch,
        )  # fmt: skip
        lora = LoraConfig(
            r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=list(LLAMA_PROJECTIONS)
        )
        model.network = get_peft_model(base, lora).train()
        try:
            trained = [p for p in model.network.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=config.lr)
            objective, tensors = MosaObjective(model, config), batch_of(shape, config, model)

            def step(objective=objective, tensors=tensors, optimizer=optimizer, trained=trained):
                objective(tensors).loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, config.clip)
                optimizer.step()
                optimizer.zero_grad()

            step()  # warm up
            seconds = []
            for _ in range(plan.repeats):
                start = wall(device)
                _, held = peak_of(device, step)
                seconds.append(wall(device) - start)
            needed = step_flops(model, shape, tensors["rows"].numel())
            taken = statistics.median(seconds)
            rows.append(
                {
                    "what": f"MOSA step{', gradient checkpointing' if checkpointing else ''}",
                    "batch": batch,
                    "seconds": taken,
                    "mfu": needed / taken / peak,
                    "against": against,
                    "minutes": EXAMPLES / batch * taken / 60,
                    "peak_gb": held,
                }
            )
        finally:
            model.network = model.network.unload().eval().requires_grad_(False)
    if checkpointing:
        base.gradient_checkpointing_disable()
    return rows


def table(rows):
    """The rows as a Markdown table."""

    def show(value, pattern):
        return "" if value is None else pattern.format(value)

    columns = {
        "": ("what", "{}"),
        "rows": ("batch", "{}"),
        "seconds": ("seconds", "{:.3f}"),
        "tokens/s": ("tokens_per_second", "{:,.0f}"),
        "outside": ("outside", "{:.1%}"),
        "SRI adds": ("overhead", "{:.2%}"),
        "MFU": ("mfu", "{:.0%}"),
        "3,000 examples, min": ("minutes", "{:.1f}"),
        "peak GB": ("peak_gb", "{:.1f}"),
    }
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        cells = [show(row.get(key), pattern) for key, pattern in columns.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shape", default="llada-8b", choices=SIZES)
    parser.add_argument("--repeats", type=int, help="medians of so many; 3, or 2 at the tiny shape")
    parser.add_argument(
        "--checkpointing", action="store_true", help="the MOSA step with gradient checkpointing"
    )
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    options = parser.parse_args()
    if options.shape == "llada-8b" and options.device == "cpu":
        parser.error("LLaDA-8B's shape needs --device cuda; --shape tiny runs on a CPU.")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("this torch sees no CUDA device; --shape tiny runs on a CPU.")
    plan = TINY if options.shape == "tiny" else Plan()
    plan = replace(plan, repeats=options.repeats or plan.repeats)
    size = SIZES[options.shape]
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    model = random_model(size, options.device, dtype)
    where = f"{options.shape}: {machine(options.device, dtype)}"
    print(where)
    rows = []
    for rows_of in (
        lambda: sampling_rows(model, plan, options.device),
        lambda: sri_rows(model, plan, options.device),
        lambda: mosa_rows(model, plan, options.device, size, options.checkpointing),
    ):
        found = rows_of()
        rows += found
        print(table(found), flush=True)
        if options.out:
            content = {"shape": options.shape, "machine": where, "plan": vars(plan), "rows": rows}
            options.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
            options.out.with_suffix(".md").write_text(f"{where}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
