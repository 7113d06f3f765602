"""The rows of training: MOSA's step against the plain way to write it (full logits, log-softmax, autograd), each
objective's against MOSA's, and a whole optimizer step at a size."""

import ctypes
import gc
import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from frame import Row, clock
from rows import Bench

from midward import LanguageModel
from midward._peft import LoraConfig, get_peft_model
from midward.alignment import AlignConfig, best_start, resolve, span_scores
from midward.alignment.data import Batch, Prompt
from midward.alignment.methods import METHODS, objective_of
from midward.alignment.sentences import SentenceIds
from midward.models.family import LLAMA_PROJECTIONS

SENTENCE_LENGTHS = (14, 16)  # safe (with its end token), harmful
EXAMPLES = 3_000  # the paper's training set
RECIPES = ("paper", "stable")


@dataclass(frozen=True)
class Size:
    """Harmful prompts a step, and tokens of each and of its response."""

    prompts: int
    prompt: int
    length: int

    def __str__(self) -> str:
        return f"{self.prompts} prompts of {self.prompt} + {self.length} tokens"


@contextmanager
def adapted(bench: Bench) -> Iterator[LanguageModel]:
    """The bench's model under a LoRA adapter that already does something."""
    model, base = bench.model, bench.model.network
    torch.manual_seed(0)
    model.network = get_peft_model(
        base, LoraConfig(r=32, lora_alpha=64, target_modules=list(LLAMA_PROJECTIONS))
    ).train()
    with torch.no_grad():
        for name, weight in model.network.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    try:
        yield model
    finally:
        base.gradient_checkpointing_disable()
        model.network = model.network.unload().eval().requires_grad_(False)


class Steps:
    """Steps of an objective with a recipe, over random prompts whose answers fill half of the response.

    benign: as many benign prompts beside the harmful ones. count: steps before they come anew. settings: fields of
    AlignConfig.
    """

    def __init__(
        self,
        model: LanguageModel,
        size: Size,
        method: str,
        recipe: str = "paper",
        *,
        benign: bool,
        count: int,
        **settings: Any,
    ) -> None:
        window = {"window_start": 4, "window_end": size.length // 2} if method == "mosa" and size.length <= 64 else {}
        sizes = {"length": size.length, "batch_size": size.prompts, "max_steps": count}
        self.model, self.config = model, resolve({"method": method, "recipe": recipe, **sizes, **window, **settings})
        self.objective = objective_of(
            model, self.config, reward=lambda _, rows, texts: [random.random() for _ in texts]
        )
        rng = random.Random(0)

        def tokens(count: int) -> tuple[int, ...]:
            return tuple(rng.randrange(3, model.vocab_size) for _ in range(count))

        half = size.length // 2
        harmful, calm = ([Prompt(*map(tokens, (size.prompt, half, half))) for _ in range(size.prompts)] for _ in "ab")
        safe, harm = SENTENCE_LENGTHS
        sentences = SentenceIds(((*tokens(safe - 1), model.family.end_ids[0]),), (tokens(harm),))
        schedule = METHODS[method].schedule(
            self.config, harmful, calm if benign else [], sentences, model.family.end_ids[0]
        )
        collate, prompts = schedule.collator(model.family), size.prompts
        batches = [collate([schedule[step * prompts + i] for i in range(prompts)]) for step in range(schedule.steps)]
        self.batches: list[Batch] = [{name: each.to(model.device) for name, each in b.items()} for b in batches]
        self._next = cycle(self.batches)

    def backward(self) -> None:
        """Loss and gradients of the next step."""
        for module in self.model.network.modules():
            if hasattr(module, "lora_dropout"):
                rate = self.config.lora_dropout
                module.lora_dropout["default"] = torch.nn.Dropout(rate) if rate else torch.nn.Identity()
        self.model.network.zero_grad()
        self.objective(next(self._next)).loss.backward()

    def whole(self) -> Callable[[], None]:
        """What runs one whole optimizer step: rollouts where there are any, with rewards that are drawn, loss,
        gradients, clipping and AdamW."""
        weights = [parameter for parameter in self.model.network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=self.config.lr, weight_decay=self.config.weight_decay)

        def step() -> None:
            self.backward()
            torch.nn.utils.clip_grad_norm_(weights, self.config.clip or float("inf"))
            optimizer.step()

        return step


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
        idle = _resident("VmRSS")
    start = clock(device)
    work()
    seconds = clock(device) - start
    return seconds, (torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else _resident("VmHWM")) - idle


def _resident(field: str) -> float:
    """GB, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e9


# --- MOSA's step, plainly written --------------------------------------------------------------------------------


def plain_loss(model: LanguageModel, config: AlignConfig, batch: Batch) -> torch.Tensor:
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


def mosa_ratio(bench: Bench, size: Size) -> Iterator[Row]:
    """A step's forward and backward against the plainly written one: seconds, gradients, memory over idle."""
    with adapted(bench) as model:
        for rows in ("response", "window"):
            yield from _beside_plain(bench, model, size, rows)


def _beside_plain(bench: Bench, model: LanguageModel, size: Size, rows: str) -> Iterator[Row]:
    ours = Steps(model, size, "mosa", benign=False, count=1, kl_rows=rows)
    gradients: dict[str, torch.Tensor] = {}

    def work(name: str) -> None:
        if name == "ours":
            ours.backward()
        else:
            model.network.zero_grad()
            plain_loss(model, ours.config, ours.batches[0]).backward()
        trained = [each.grad.flatten() for each in model.network.parameters() if each.grad is not None]
        gradients[name] = torch.cat(trained).double()

    jobs = {name: lambda name=name: work(name) for name in ("plain", "ours")}
    runs = bench.watch.interleaved(jobs, bench.rounds, warm=jobs["plain"])
    error = (gradients["ours"] - gradients["plain"]).norm() / gradients["plain"].norm()
    words, note = bench.words(f"{size}, KL on {rows}"), f"gradient differs by {error:.0e}"
    yield Row("MOSA step / plainly written", words, runs["plain"].over(runs["ours"]), note=note)
    if rows == "response":
        plain, own = (measured(jobs[name], bench.device)[1] for name in ("plain", "ours"))
        note = f"{plain:.2f} and {own:.2f} GB over idle"
        yield Row("MOSA step: memory of the plainly written / ours", words, [plain / own], note=note)


# --- each objective's step ---------------------------------------------------------------------------------------


def objectives(bench: Bench, size: Size, rollout_steps: int) -> Iterator[Row]:
    """Loss and gradients of each objective, as a ratio to MOSA's of the same recipe in the same rounds: what it needs
    of the reference included, no optimizer, no judge. `ra`'s rollouts are sampled once, and are a row of their own."""
    with adapted(bench) as model:
        own = {"ra": {"rollout_steps": rollout_steps}}
        every = {
            (method, recipe): Steps(model, size, method, recipe, benign=True, count=bench.rounds, **own.get(method, {}))
            for method in METHODS
            for recipe in RECIPES
        }
        first, drawn = every["ra", "paper"], list[torch.Tensor]()
        rollouts = measured(lambda: drawn.append(first.objective.rollouts(first.batches[0])), bench.device)
        rewards = torch.rand(drawn[0].shape[:2], dtype=torch.float64, device=bench.device)
        for recipe in RECIPES:
            learner: Any = every["ra", recipe].objective
            learner.rollouts, learner.rewards = lambda batch: drawn[0], lambda *_: rewards
        every["dpo", "paper"].backward()  # warms up: the most rows
        figures = [
            {name: measured(steps.backward, bench.device) for name, steps in every.items()} for _ in range(bench.rounds)
        ]
    words = bench.words(f"{size}, as many benign ones")
    for (method, recipe), steps in every.items():
        seconds, peaks = zip(*(each[method, recipe] for each in figures), strict=True)
        ratio = [each[method, recipe][0] / each["mosa", recipe][0] for each in figures]
        positions = statistics.mean(len(batch["rows"]) for batch in steps.batches)
        note = (
            f"{positions:.0f} positions of the head, {statistics.mean(seconds):.3g} s, peak {1e3 * max(peaks):.0f} MB"
        )
        yield Row(f"{method}, {recipe}: step / MOSA's", words, ratio, note=note)
    count, seconds = len(drawn[0]) * first.config.group, statistics.mean(each["mosa", "paper"][0] for each in figures)
    note = f"{count} rows, denoising steps: {rollout_steps}, {rollouts[0]:.3g} s, peak {1e3 * rollouts[1]:.0f} MB"
    yield Row("ra: rollouts / MOSA's step", words, [rollouts[0] / seconds], note=note)


# --- a whole optimizer step --------------------------------------------------------------------------------------


def mosa(
    bench: Bench, size: Size, *, most: float | None = None, least: float | None = None, checkpointing: bool = False
) -> Iterator[Row]:
    """A whole optimizer step of the paper's recipe: forward, backward, clipping, AdamW. most, least: of minutes and
    of model FLOP utilisation."""
    with adapted(bench) as model:
        steps = Steps(model, size, "mosa", benign=False, count=4)
        if checkpointing:
            model.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
        step = steps.whole()
        run = bench.watch.interleaved({"": step}, 2 * bench.rounds, warm=step)[""]
    words = bench.words(f"{size}{', gradient checkpointing' if checkpointing else ''}")
    minutes = [EXAMPLES / size.prompts * seconds / 60 for seconds in run.seconds]
    note = "" if run.peak is None else f"peak {run.peak:.1f} GB"
    yield Row("MOSA: minutes for 3,000 examples", words, minutes, "{:.2f}", most=most, note=note)
    if bench.flops:
        needed = _flops(bench, size, statistics.mean(batch["rows"].numel() for batch in steps.batches))
        used = [100 * needed / seconds / bench.flops for seconds in run.seconds]
        yield Row("MOSA step: MFU", words, used, "{:.0f} %", least=least)


def _flops(bench: Bench, size: Size, scored: float) -> float:
    """Three passes of the body (policy, reference, back to the inputs), four of the head on the scored rows. Frozen
    weights have no gradient; nothing that is computed anew counts."""
    width, columns = bench.size["hidden_size"], size.prompt + size.length
    attention = 4 * columns * width * bench.size["layers"]
    return 3 * size.prompts * columns * (2 * bench.body + attention) + 8 * scored * width * bench.size["vocab_size"]
