"""The rows of a MOSA step: against the plainly written one, and a whole optimizer step at a size."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mosa_step
import torch
from frame import Row
from rows import Bench

from midward._peft import LoraConfig, get_peft_model
from midward.alignment import MosaObjective, resolve
from midward.models.family import LLAMA_PROJECTIONS


def mosa_ratio(bench: Bench, shape: str, **smaller: int) -> Iterator[Row]:
    """A step's forward and backward against the plainly written one: seconds, gradients, memory over idle."""
    sizes = replace(mosa_step.SHAPES[shape], **smaller)
    model = mosa_step.build(sizes, bench.device)
    words = f"V {sizes.vocabulary:,}, {sizes.layers} layers, {sizes.batch} prompts of {sizes.prompt} + "
    words += f"{sizes.response} tokens, "
    for rows in mosa_step.KL_ROWS:
        run = mosa_step.steps(sizes, rows, model)
        gradients: dict[str, torch.Tensor] = {}

        def work(name: str, run: Any = run, gradients: Any = gradients) -> None:
            run[name]()
            gradients[name] = mosa_step.gradient(model)

        jobs = {name: lambda name=name, work=work: work(name) for name in mosa_step.VARIANTS}
        runs = bench.watch.interleaved(jobs, bench.rounds, warm=jobs["plain"])
        error = (gradients["ours"] - gradients["plain"]).norm() / gradients["plain"].norm()
        note = f"gradient differs by {error:.0e}"
        setting = f"{words}KL on {rows}"
        yield Row("MOSA step / plainly written", setting, runs["plain"].over(runs["ours"]), note=note)
    peaks = {name: mosa_step.peak_of(sizes, "response", name, bench.device) for name in mosa_step.VARIANTS}
    note = f"{peaks['plain']:.2f} and {peaks['ours']:.2f} GB over idle"
    ratio = [peaks["plain"] / peaks["ours"]]
    yield Row("MOSA step: memory of the plainly written / ours", f"{words}KL on response", ratio, note=note)


def mosa(
    bench: Bench,
    prompts: int,
    prompt: int,
    length: int,
    *,
    most: float | None = None,
    least: float | None = None,
    checkpointing: bool = False,
) -> Iterator[Row]:
    """A whole optimizer step of the paper's recipe: forward, backward, clipping, AdamW. most, least: of minutes and
    of model FLOP utilisation."""
    model, size = bench.model, bench.size
    window = {} if length > 64 else {"window_start": 4, "window_end": length // 2}
    config = resolve({"recipe": "paper", "length": length, **window})
    shape = mosa_step.Shape(*size.values(), prompt, length, prompts)
    base = model.network
    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=list(LLAMA_PROJECTIONS))
    model.network = get_peft_model(base, lora).train()
    if checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        trained = [p for p in model.network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=config.lr)
        objective, tensors = MosaObjective(model, config), mosa_step.batch_of(shape, config, model)

        def step() -> None:
            objective(tensors).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, config.clip)
            optimizer.step()
            optimizer.zero_grad()

        run = bench.watch.interleaved({"": step}, 2 * bench.rounds, warm=step)[""]
    finally:
        if checkpointing:
            base.gradient_checkpointing_disable()
        model.network = model.network.unload().eval().requires_grad_(False)
    words = bench.words(f"{prompts} prompts of {prompt} + {length} tokens")
    words += ", gradient checkpointing" if checkpointing else ""
    minutes = [mosa_step.EXAMPLES / prompts * seconds / 60 for seconds in run.seconds]
    note = "" if run.peak is None else f"peak {run.peak:.1f} GB"
    yield Row("MOSA: minutes for 3,000 examples", words, minutes, "{:.2f}", most=most, note=note)
    if bench.flops:
        needed = _flops(bench, shape, tensors["rows"].numel())
        used = [100 * needed / seconds / bench.flops for seconds in run.seconds]
        yield Row("MOSA step: MFU", words, used, "{:.0f} %", least=least)


def _flops(bench: Bench, shape: mosa_step.Shape, scored: int) -> float:
    """Three passes of the body (policy, reference, back to the inputs), four of the head on the scored rows. Frozen
    weights have no gradient; nothing that is computed anew counts."""
    tokens = shape.batch * (shape.prompt + shape.response)
    attention = 4 * (shape.prompt + shape.response) * shape.width * shape.layers
    return 3 * tokens * (2 * bench.body + attention) + 8 * scored * shape.width * shape.vocabulary
