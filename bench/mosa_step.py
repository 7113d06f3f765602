"""One MOSA training step against the plain way to write it: full logits, log-softmax, autograd.

    python bench/mosa_step.py                         # both CPU shapes, KL on response and on window
    python bench/mosa_step.py --quick                 # a smaller vocabulary, one repeat
    python bench/mosa_step.py --device cuda --shape llada-8b

Times are process CPU time on one thread (wall time on a GPU), medians of interleaved repeats in one process.
Peak memory is over idle (model, adapter and batch in place), each variant in a process of its own.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # for tools
from midward._peft import LoraConfig, get_peft_model
from midward.alignment import AlignConfig, MosaObjective, best_start, resolve, span_scores
from midward.alignment.data import Example, Row, SentenceCollator
from midward.models import Family, LanguageModel
from midward.models._rope import keep_rope_in_float32
from midward.models.family import LLAMA_PROJECTIONS
from tools.world import layout


@dataclass(frozen=True)
class Shape:
    vocabulary: int
    width: int
    layers: int
    heads: int
    inner: int
    prompt: int
    response: int
    batch: int


SHAPES = {
    "wide": Shape(126_464, 512, 8, 8, 1536, 56, 200, 4),
    "sandbox": Shape(1_039, 192, 4, 6, 544, 30, 96, 4),
    "llada-8b": Shape(126_464, 4096, 32, 32, 12_288, 64, 128, 2),
}
SENTENCE_LENGTHS = (14, 16)  # safe (with its end token), harmful
EXAMPLES = 3_000  # the paper's training set


VARIANTS = ("plain", "ours")
KL_ROWS = ("response", "window")


def build(shape: Shape, device: str) -> LanguageModel:
    """A random model of that shape under a LoRA adapter that already does something (bfloat16 on a GPU)."""
    torch.manual_seed(0)
    raw = layout.llada_config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        layers=shape.layers,
        heads=shape.heads,
        feed_forward=shape.inner,
        max_length=1024,
        mask_id=2,
        end_id=1,
    )
    with torch.device(device):
        network = layout.build(raw).requires_grad_(False)
    if device == "cuda":
        # Parameters only: the rotary table stays float32, as when a checkpoint is loaded.
        for parameter in network.parameters():
            parameter.data = parameter.data.bfloat16()
        keep_rope_in_float32(network)
    family = Family("llada", "diffusion", 2, (1,), 1, False, "full", LLAMA_PROJECTIONS)
    model = LanguageModel("random", family, None, network)
    lora = LoraConfig(r=32, lora_alpha=64, target_modules=list(LLAMA_PROJECTIONS))
    model.network = get_peft_model(network, lora).train()
    with torch.no_grad():
        for name, weight in model.network.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    return model


def batch_of(shape: Shape, config: AlignConfig, model: LanguageModel) -> dict[str, torch.Tensor]:
    safe, harmful = (tuple(range(3 + 20 * i, 3 + 20 * i + n)) for i, n in enumerate(SENTENCE_LENGTHS))
    examples = [
        Example(Row(tuple(range(50 + i, 50 + i + shape.prompt)), {}), [(safe, harmful)], []) for i in range(shape.batch)
    ]
    batch = SentenceCollator(config, model.family, max(SENTENCE_LENGTHS))(examples)
    return {name: value.to(model.device) for name, value in batch.items()}


def settings(shape: Shape, kl_rows: str) -> AlignConfig:
    return resolve({"recipe": "paper", "length": shape.response, "kl_rows": kl_rows})


def plain_loss(model: LanguageModel, config: AlignConfig, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The objective as one would first write it: log-softmax and KL over the whole canvas, then the rows wanted."""
    ids, length = batch["ids"], config.length
    with torch.no_grad(), model.reference():
        reference = model.head(model.hidden(ids)).float().log_softmax(-1)
    policy = model.head(model.hidden(ids)).float().log_softmax(-1)  # [B, T, V]
    kl = (policy.exp() * (policy - reference)).sum(-1)[:, -length:]
    if config.kl_rows == "window":
        kl = kl[:, config.window_start : config.window_end - 1 + max(SENTENCE_LENGTHS)]
    scores = []
    for name in ("safe", "harmful"):
        columns = batch[name][:, 0]  # [B, M] into the batch's columns, -1 pads
        tokens = batch["columns"][columns.clamp(min=0)].masked_fill(columns < 0, -1)
        scores.append(best_start(span_scores(policy[:, -length:], tokens, config.window)))
    return (scores[1] - scores[0] + config.beta * kl.mean(1)).mean()


def steps(shape: Shape, kl_rows: str, model: LanguageModel):
    """name -> a function that runs one forward and backward pass and returns the loss."""
    config = settings(shape, kl_rows)
    batch, objective = batch_of(shape, config, model), MosaObjective(model, config)

    def step(loss_of):
        model.network.zero_grad()
        loss = loss_of()
        loss.backward()
        return loss.item()

    return {
        "plain": lambda: step(lambda: plain_loss(model, config, batch)),
        "ours": lambda: step(lambda: objective(batch).loss),
    }


def gradient(model: LanguageModel) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.network.parameters() if p.requires_grad]).double()


def measure(shape: Shape, device: str, repeats: int, with_memory: bool) -> None:
    model = build(shape, device)
    if device == "cuda":

        def clock() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()
    else:
        clock = time.process_time
    for kl_rows in KL_ROWS:
        run = steps(shape, kl_rows, model)
        losses, gradients, times = {}, {}, {name: [] for name in VARIANTS}
        for repeat in range(repeats + 1):  # the first round warms up
            for name in VARIANTS:
                start = clock()
                losses[name] = run[name]()
                if repeat:
                    times[name].append(clock() - start)
                gradients[name] = gradient(model)
        seconds = {name: statistics.median(values) for name, values in times.items()}
        error = (gradients["ours"] - gradients["plain"]).norm() / gradients["plain"].norm()
        print(
            f"  KL on {kl_rows:8}: plain {seconds['plain']:7.3f} s, ours {seconds['ours']:7.3f} s a step: "
            f"{seconds['plain'] / seconds['ours']:.2f}x faster"
        )
        print(f"    loss {losses['plain']:.5f} and {losses['ours']:.5f}; gradient differs by {error:.1e} (relative)")
        print(f"    {EXAMPLES} examples: {EXAMPLES / shape.batch * seconds['ours'] / 60:.1f} minutes")
        if with_memory:
            peaks = {name: peak_of(shape, kl_rows, name, device) for name in VARIANTS}
            ratio = peaks["plain"] / peaks["ours"]
            print(f"    peak over idle: {peaks['plain']:.2f} and {peaks['ours']:.2f} GB: {ratio:.1f}x less")


def peak_of(shape: Shape, kl_rows: str, variant: str, device: str) -> float:
    """GB over idle of one step in a fresh process (of this one, on a GPU)."""
    if device == "cuda":
        torch.cuda.empty_cache()
        model = build(shape, device)
        run = steps(shape, kl_rows, model)
        idle = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run[variant]()
        return (torch.cuda.max_memory_allocated() - idle) / 1e9
    command = [sys.executable, __file__, "--peak", json.dumps([vars(shape), kl_rows, variant])]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(shape: Shape, kl_rows: str, variant: str) -> None:
    run = steps(shape, kl_rows, build(shape, "cpu"))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak that building the model left (Linux)
    idle = resident("VmRSS")
    run[variant]()
    print(resident("VmHWM") - idle)


def resident(field: str) -> float:
    """GB, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, help="default: wide and sandbox")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, help="prompts a step")
    parser.add_argument("--quick", action="store_true", help="vocabulary 16,000, two layers, one repeat")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak:
        shape, kl_rows, variant = json.loads(args.peak)
        return print_peak(Shape(**shape), kl_rows, variant)
    for name in [args.shape] if args.shape else ["wide", "sandbox"]:
        shape = SHAPES[name]
        if args.quick:
            shape = replace(shape, vocabulary=min(shape.vocabulary, 16_000), layers=2)
        if args.batch:
            shape = replace(shape, batch=args.batch)
        print(f"{name}: {shape}, {args.device}")
        measure(shape, args.device, 1 if args.quick else args.repeats, with_memory=not args.quick)


if __name__ == "__main__":
    main()
