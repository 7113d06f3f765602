"""A training step of each alignment objective, as a ratio to MOSA's with as many prompts.

    python bench/objectives.py                         # shapes sandbox and wide, 4 harmful and 4 benign prompts
    python bench/objectives.py --quick                 # a smaller vocabulary, two layers, one step
    python bench/objectives.py --device cuda --shape llada-8b

A step is loss and gradients, what the objective needs of the reference included, with the settings of its recipe; the
optimizer isn't in it, nor is a judge. Every round runs the next step of each objective's schedule, all in turn, in one
process. Seconds are CPU time on one thread (wall time on a GPU), the mean over rounds, since their steps hide other
tokens. Peak memory is over idle (model and adapter in place), the largest of the rounds. The rollouts of `ra` are
sampled once, in the first round, and are a row of their own.
"""

import argparse
import ctypes
import gc
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from frame import clock
from mosa_step import SENTENCE_LENGTHS, SHAPES, Shape, build, resident

from midward.alignment import AlignConfig, resolve
from midward.alignment.data import Batch, Prompt
from midward.alignment.methods import METHODS, objective_of
from midward.alignment.sentences import SentenceIds
from midward.models import LanguageModel

RECIPES = ("paper", "stable")


def batches(shape: Shape, config: AlignConfig, model: LanguageModel, benign: bool = True) -> list[Batch]:
    """The schedule's steps, of random prompts whose answers fill half of the response. benign: also such ones."""
    rng = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, shape.vocabulary) for _ in range(count))

    half = shape.response // 2
    harmful, calm = ([Prompt(*map(tokens, (shape.prompt, half, half))) for _ in range(shape.batch)] for _ in "ab")
    safe, harm = SENTENCE_LENGTHS
    sentences = SentenceIds(((*tokens(safe - 1), 1),), (tokens(harm),))
    schedule = METHODS[config.method].schedule(config, harmful, calm if benign else [], sentences, 1)
    collate = schedule.collator(model.family)
    steps = [[schedule[step * shape.batch + i] for i in range(shape.batch)] for step in range(schedule.steps)]
    return [{name: value.to(model.device) for name, value in collate(examples).items()} for examples in steps]


def drop(model: LanguageModel, rate: float) -> None:
    """Give the adapter a recipe's dropout."""
    for module in model.network.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = torch.nn.Dropout(rate) if rate else torch.nn.Identity()


def measured(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Seconds, and GB over what is in use before."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        idle = torch.cuda.memory_allocated() / 1e9
    else:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory back to the system (glibc)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is in use now (Linux)
        idle = resident("VmRSS")
    start = clock(device)
    work()
    seconds = clock(device) - start
    return seconds, (torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else resident("VmHWM")) - idle


class Steps:
    """The steps of one objective with one recipe."""

    def __init__(self, model: LanguageModel, shape: Shape, method: str, recipe: str, rounds: int, rollout_steps: int):
        own = {"rollout_steps": rollout_steps} if method == "ra" else {}
        size = {"length": shape.response, "batch_size": shape.batch, "max_steps": rounds}
        self.config = resolve({"method": method, "recipe": recipe, **size, **own})
        self.model, self.batches = model, batches(shape, self.config, model)
        self.objective = objective_of(model, self.config, reward=lambda *_: [])
        self.positions = sum(len(batch["rows"]) for batch in self.batches) / rounds
        self.figures: list[tuple[float, float]] = []

    def rollouts(self, device: str) -> tuple[float, float]:
        """Sample the rollouts that the steps of `ra` learn from, and draw their rewards."""
        drawn: list[torch.Tensor] = []
        figures = measured(lambda: drawn.append(self.objective.rollouts(self.batches[0])), device)
        rewards = torch.rand(drawn[0].shape[:2], dtype=torch.float64, device=drawn[0].device)
        self.objective.rollouts, self.objective.rewards = lambda batch: drawn[0], lambda *_: rewards
        return figures

    def run(self, number: int, device: str) -> None:
        """One step, measured."""
        drop(self.model, self.config.lora_dropout)
        self.model.network.zero_grad()
        self.figures.append(measured(lambda: self.objective(self.batches[number]).loss.backward(), device))

    @property
    def seconds(self) -> float:
        """The mean over steps."""
        return sum(seconds for seconds, _ in self.figures) / len(self.figures)


def optimizer_steps(
    model: LanguageModel, shape: Shape, method: str, recipe: str = "paper", checkpointing: bool = False, **settings: Any
) -> Callable[[], None]:
    """What runs one whole optimizer step of an objective, the next of its schedule each time: rollouts where there are
    any, with rewards that are drawn, loss, gradients, clipping and AdamW. `EXAMPLES / shape.batch` of them are the
    paper's 3,000 examples.

    Args:
        model: As `mosa_step.build` makes it.
        shape: How large its prompts are, and how many a step has.
        method: And its recipe, without benign prompts where the recipe gives them no weight.
        checkpointing: Of the body's activations.
        settings: Fields of AlignConfig.
    """
    size = {"length": shape.response, "batch_size": shape.batch, "max_steps": 4}
    config = resolve({"method": method, "recipe": recipe, **size, **settings})
    model.tokenizer = SimpleNamespace(decode=lambda ids, **_: "")
    benign = config.benign_beta > 0 or method in ("sft", "rt", "a2d", "ra")
    steps = cycle(batches(shape, config, model, benign=benign))
    objective = objective_of(model, config, reward=lambda _, rows, texts: [random.random() for _ in texts])
    weights = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.lr, weight_decay=config.weight_decay)
    if checkpointing:
        model.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model.causal_lm.gradient_checkpointing_disable()

    def step() -> None:
        drop(model, config.lora_dropout)
        objective(next(steps)).loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, config.clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()

    return step


def table(shape: Shape, device: str, rounds: int, rollout_steps: int) -> Iterator[str]:
    """Lines of Markdown."""
    model = build(shape, device)
    model.tokenizer = SimpleNamespace(decode=lambda ids, **_: "")
    every = {(m, r): Steps(model, shape, m, r, rounds, rollout_steps) for m in METHODS for r in RECIPES}
    rollouts = every["ra", "paper"].rollouts(device)
    every["ra", "stable"].objective.rollouts = every["ra", "paper"].objective.rollouts
    every["ra", "stable"].objective.rewards = every["ra", "paper"].objective.rewards
    every["dpo", "paper"].run(0, device)  # warms up: the most rows
    every["dpo", "paper"].figures.clear()
    for number in range(rounds):
        for steps in every.values():
            steps.run(number, device)
    yield "| objective | recipe | positions that the head reads | seconds a step | of MOSA's step | peak, MB |"
    yield "|---|---|---|---|---|---|"
    for (method, recipe), steps in every.items():
        ratio, peak = steps.seconds / every["mosa", recipe].seconds, max(peak for _, peak in steps.figures)
        yield f"| {method} | {recipe} | {steps.positions:.0f} | {steps.seconds:.3g} | {ratio:.2f} | {1e3 * peak:.0f} |"
    ratio = rollouts[0] / every["mosa", "paper"].seconds
    count = len(every["ra", "paper"].batches[0]["ids"]) * every["ra", "paper"].config.group
    what = f"ra, rollouts: {count} rows, denoising steps: {rollout_steps}"
    yield f"| {what} | either | | {rollouts[0]:.3g} | {ratio:.2f} | {1e3 * rollouts[1]:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, help="default: sandbox and wide")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--prompts", type=int, default=4, help="harmful prompts a step, and as many benign ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rollout-steps", type=int, default=2, help="of ra; a quarter of the response in `align`")
    parser.add_argument("--quick", action="store_true", help="vocabulary 16,000, two layers, one prompt, one round")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in [args.shape] if args.shape else ["sandbox", "wide"]:
        shape = replace(SHAPES[name], batch=args.prompts)
        if args.quick:
            shape = replace(shape, vocabulary=min(shape.vocabulary, 16_000), layers=2, batch=1)
        print(f"{name}: {shape}, {args.device}\n", flush=True)
        print(*table(shape, args.device, 1 if args.quick else args.rounds, args.rollout_steps), sep="\n", end="\n\n")


if __name__ == "__main__":
    main()
