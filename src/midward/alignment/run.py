"""`align`: from prompts to a PEFT adapter, resumable by calling it again."""

import json
import logging
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import TrainingArguments

from midward._peft import LoraConfig, PeftModel, get_peft_model, quiet_peft
from midward.alignment.card import CARD, UNKNOWN, base_of, card, check_license
from midward.alignment.config import AlignConfig, AlignError, resolve
from midward.alignment.data import Prompt, digest, encode_prompts
from midward.alignment.methods import METHODS, draws_sentences, objective_of
from midward.alignment.ra import Reward
from midward.alignment.sentences import SentenceIds, SentenceSet, encode_sentences
from midward.alignment.trainer import AlignTrainer, last_checkpoint, read_curve, save_adapter
from midward.models import LanguageModel
from midward.runs.run import RECORD, Measured, RunFolder
from midward.store import write_text

log = logging.getLogger("midward.alignment")

#: Of a finished run, beside its card: what the adapter is of; no path of a machine is in either.
ABOUT = "align.json"
CURVE, CHECKPOINTS = "reward.csv", "checkpoints"
#: A norm that no gradient has: with it Trainer measures the norm all the same.
_NO_CLIP = 1e30
#: Settings that change nothing about the adapter, so that a run may be taken up again with other ones.
_FREE = ("save_steps", "micro_batch")


@dataclass(frozen=True)
class AlignResult:
    """A finished run.

    Attributes:
        adapter: folder for `midward.load(..., adapter=)` or `PeftModel.from_pretrained`.
        run: the same folder as that of a run.
        history: rows of the training curve: step, epoch, loss, what the objective measures, grad_norm, lr.
        config: as resolved.
        steps: optimizer steps.
        resumed_from: step of the checkpoint it was taken up from, or None.
        reused: it was finished already.
        warnings: what the training curve gave cause for.
    """

    adapter: Path
    run: RunFolder
    history: list[dict[str, float]]
    config: AlignConfig
    steps: int
    resumed_from: int | None = None
    reused: bool = False
    warnings: list[str] = field(default_factory=list)


def align(
    model: LanguageModel,
    data: Sequence[Any],
    out: str | Path,
    *,
    method: str = "mosa",
    recipe: str = "stable",
    benign: Sequence[Any] | None = None,
    sentences: SentenceSet | None = None,
    overwrite: bool = False,
    on_log: Callable[[dict[str, float]], None] | None = None,
    on_start: Callable[[int, str], None] | None = None,
    processes: int | None = None,
    reward: Reward | None = None,
    license: str = UNKNOWN,
    stop: Callable[[], bool] = lambda: False,
    command: Sequence[str] = (),
    **overrides: Any,
) -> AlignResult:
    """Train a LoRA adapter with one of the `METHODS` and write it to `out`.

    Called again with the same arguments it takes up an interrupted run from its last checkpoint, or returns a finished
    one. Several processes: `torchrun` or `accelerate launch`. The model is left as it was (under FSDP: sharded).

    Args:
        model: A diffusion model without an adapter.
        data: Harmful prompts: texts, conversations, (prompt, answer) pairs or (prompt, answer, safe answer).
        out: Folder of the adapter, run.json, align.json (resolved settings, hashes of the data, versions), reward.csv
            and a model card.
        method: "mosa", or another name in `RECIPES`.
        recipe: One of the method's there.
        benign: Prompts, as in `data`, on which the model must stay as it is; needed while benign_beta > 0.
        sentences: What mosa, initial and rt draw from; the built-in ones by default.
        overwrite: Start anew where `out` holds a run.
        on_log: Called with every row of the training curve.
        on_start: Called with the optimizer steps, and one line that tells processes and batches.
        processes: How many there must be, since a launcher may start fewer and say nothing.
        reward: What a response is worth to `ra`; midward.judges.rewards makes one of a judge.
        license: Of the adapter, for its card, as the Hub names it ("apache-2.0").
        stop: Asked behind every step, of one process alone: where it says so, what there is by then is kept, and the
            same call goes on from there.
        command: Of the run's record: the command line that asks for it, if one does.
        overrides: Fields of `AlignConfig`.

    Raises:
        KeyboardInterrupt: `stop` said so.
        AlignError: Before training, for settings, data, sentences, an `out` or processes that cannot work; and where
            the loss is no finite number.
        InputError: `out` holds another run, or another process trains there.
    """
    # 1. What is asked for, checked: settings, model, prompts, sentences, and the order in which they will be seen.
    config = resolve({"method": method, "recipe": recipe, **overrides})
    out = Path(out)
    check_license(license)
    _check_model(model, config)
    harmful = encode_prompts(model, data, config, "data")
    calm = encode_prompts(model, benign, config, "benign") if benign else []
    if config.benign_beta > 0 and not calm:
        raise AlignError(
            f"recipe {config.recipe!r} keeps the model in place on benign prompts; pass benign=[...] "
            "or set benign_beta=0."
        )
    shared = {p.ids for p in harmful} & {p.ids for p in calm}
    if shared:
        raise AlignError(f"{len(shared)} prompts stand in data and in benign; remove them from one of the two.")
    plan = METHODS[config.method]
    ids = encode_sentences(model, sentences or SentenceSet(), config) if draws_sentences(config.method) else None
    schedule = plan.schedule(config, harmful, calm, ids, model.family.end_ids[0])
    if config.method == "ra" and reward is None:
        raise AlignError("method 'ra' learns from what its responses are worth; pass reward=, see alignment.ra.Reward.")
    record = _record(model, config, harmful, calm, ids, schedule.steps)
    if reward is not None:
        record["reward"] = dict(reward.key)

    # 2. Where: the processes, and the folder, which may hold this very run already.
    state = PartialState(cpu=model.device.type == "cpu")
    _check_launch(state.num_processes, processes, model)
    processes = state.num_processes
    micro = _micro_batch(config, processes)
    run = _begin(out, model, record, overwrite, command, main=state.is_main_process)
    state.wait_for_everyone()
    if (out / ABOUT).exists():
        run.keep()
        return AlignResult(out, run, read_curve(out / CURVE), config, schedule.steps, reused=True)
    checkpoint = last_checkpoint(out / CHECKPOINTS)
    resumed_from = int(checkpoint.name.split("-")[1]) if checkpoint else None
    state.wait_for_everyone()

    # 3. Train, from the last checkpoint if there is one.
    accumulation = config.batch_size // (micro * processes)
    start = (
        f"processes {processes}{_sharding()}: {schedule.steps} steps of {config.batch_size} prompts = {processes} "
        f"processes x {accumulation} accumulated x {micro}; "
        f"{f'from step {resumed_from}' if resumed_from else 'from the start'}"
    )
    log.info("aligning %s (%s, %s): %s", model.name, config.method, config.recipe, start)
    if on_start is not None:
        on_start(schedule.steps, start)
    with _random_state_kept(), _adapted(model, config):
        args = _arguments(model, config, out, micro, accumulation, schedule.steps)
        alone = stop if processes == 1 else lambda: False  # several would be asked at different steps
        trainer = AlignTrainer(model, objective_of(model, config, reward), schedule, args, out / CURVE, on_log, alone)
        with warnings.catch_warnings():
            # Resuming with other save_steps is allowed.
            warnings.filterwarnings("ignore", message=".*don't match.*")
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        save_adapter(model.network, out, write=state.is_main_process)
        if not _sharding():  # under FSDP and DeepSpeed no process has all weights
            record["fingerprint"] = model.fingerprint
    # 4. Say that it is finished, and what it is.
    run.finish({"finished": True, "steps": schedule.steps, "warnings": trainer.warned})
    if state.is_main_process:
        write_text(out / CARD, card(record, plan, license))  # in place of PEFT's, which says nothing
        write_text(out / ABOUT, json.dumps({**record, "warnings": trainer.warned}, indent=2) + "\n")
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    state.wait_for_everyone()
    curve = read_curve(out / CURVE)
    return AlignResult(out, run, curve, config, schedule.steps, resumed_from, warnings=trainer.warned)


def _check_model(model: LanguageModel, config: AlignConfig) -> None:
    if model.family.kind != "diffusion":
        raise AlignError(
            f"{model.name!r} is of the {model.family.kind} kind; what is aligned here are diffusion models, which "
            "see a whole masked response at once."
        )
    if isinstance(model.network, PeftModel):
        raise AlignError(
            f"{model.name!r} already carries the adapter {model.adapter}; load it without, or merge it first."
        )
    if model.max_positions <= config.length:
        raise AlignError(
            f"length={config.length} leaves no room for a prompt: {model.name!r} has {model.max_positions} positions."
        )


def _sharding() -> str:
    """What accelerate's launcher was told to share out, for the start-up line."""
    kinds = {"FSDP": "ACCELERATE_USE_FSDP", "DeepSpeed": "ACCELERATE_USE_DEEPSPEED"}
    return "".join(f" ({kind})" for kind, name in kinds.items() if os.environ.get(name, "").lower() == "true")


def _check_launch(running: int, wanted: int | None, model: LanguageModel) -> None:
    """Launchers fall back in silence, to one process, to two that don't know of each other, or to DDP."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != running:
        raise AlignError(
            f"{launched} processes were launched and accelerate runs {running}; start with "
            "`torchrun --nproc_per_node N`."
        )
    if wanted is not None and wanted != running:
        raise AlignError(
            f"processes={wanted} were asked for and {running} run; `accelerate launch` starts one where it has no "
            "GPUs for more. On a CPU start with `torchrun --nproc_per_node N`."
        )
    if _sharding() and model.device.type == "cpu":
        raise AlignError(
            f"the launcher's file asks for{_sharding()} and the model is on the CPU, where accelerate ignores it; use "
            "`torchrun --nproc_per_node N`, or a GPU."
        )
    if "DeepSpeed" in _sharding() and model.dtype != torch.float32:
        raise AlignError(
            f"DeepSpeed trains in one dtype, and the adapter is float32 beside a model in {model.dtype}; use --dtype "
            "float32, or DDP or FSDP2 (configs/accelerate)."
        )


def _micro_batch(config: AlignConfig, processes: int) -> int:
    if config.batch_size % processes:
        raise AlignError(f"batch_size={config.batch_size} is no multiple of the {processes} processes.")
    share = config.batch_size // processes
    micro = config.micro_batch or share
    if share % micro:
        raise AlignError(
            f"micro_batch={micro} doesn't divide the {share} prompts a step of each of {processes} processes."
        )
    return micro


def _record(
    model: LanguageModel,
    config: AlignConfig,
    harmful: list[Prompt],
    calm: list[Prompt],
    ids: SentenceIds | None,
    steps: int,
) -> dict[str, Any]:
    return {
        "model": base_of(model.name),
        "model_fingerprint": model.fingerprint,
        "base": model.stored,
        "config": config.to_dict(),
        "data": {"prompts": len(harmful), "hash": digest(harmful)},
        "benign": {"prompts": len(calm), "hash": digest(calm)},
        "sentences": ids and {"safe": len(ids.safe), "harmful": len(ids.harmful), "hash": digest(ids)},
        "steps": steps,
        "versions": {name: version(name) for name in ("midward", "torch", "transformers", "peft", "accelerate")},
    }


def _begin(
    out: Path, model: LanguageModel, record: dict[str, Any], overwrite: bool, command: Sequence[str], *, main: bool
) -> RunFolder:
    """The folder of the run: fresh, or to be gone on with. In the main process nothing torn is left in it, nor what is
    to be overwritten."""
    if main and not (out / RECORD).exists() and out.is_dir() and list(out.glob("[!.]*")):
        raise AlignError(f"{out} isn't empty and holds no {RECORD}; choose another folder.")
    settings = {name: value for name, value in record["config"].items() if name not in _FREE}
    names = ("data", "benign", "sentences", "model_fingerprint", "reward")
    data = {name: record[name] for name in names if name in record}
    run = RunFolder(out, "align", settings | data, anew=overwrite)
    run.run.command = list(command)
    counts = {"harmful": record["data"]["prompts"], "benign": record["benign"]["prompts"]}
    run.start(
        [Measured.of(model).model_copy(update={"name": base_of(model.name)})], goals=counts, seed=settings["seed"]
    )
    torn = [path for path in out.glob(f"{CHECKPOINTS}/*") if overwrite or path != last_checkpoint(path.parent)]
    if main:
        for path in torn:
            shutil.rmtree(path)
        if overwrite:
            for name in (ABOUT, CURVE, CARD, "adapter_config.json", "adapter_model.safetensors"):
                (out / name).unlink(missing_ok=True)
    return run


def _arguments(
    model: LanguageModel, config: AlignConfig, out: Path, micro: int, accumulation: int, steps: int
) -> TrainingArguments:
    on_gpu = model.device.type == "cuda"
    return _OneDevice(
        output_dir=str(out / CHECKPOINTS),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        learning_rate=config.lr,
        lr_scheduler_type=config.lr_schedule,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip or _NO_CLIP,
        optim="adamw_torch",
        seed=config.seed,
        logging_steps=config.log_steps,
        logging_nan_inf_filter=False,
        save_steps=config.save_steps,
        save_total_limit=2,
        # The schedule is already in training order.
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        # A copy to a GPU doesn't hold the host up where it comes from pinned memory.
        dataloader_pin_memory=on_gpu,
        accelerator_config={"non_blocking": on_gpu},
        average_tokens_across_devices=False,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        report_to=[],
        use_cpu=model.device.type == "cpu",
    )


class _OneDevice(TrainingArguments):
    """Trainer takes all GPUs that it sees into one process (DataParallel), but for this."""

    @property
    def n_gpu(self) -> int:
        """Devices of this process."""
        return min(1, super().n_gpu)


@contextmanager
def _adapted(model: LanguageModel, config: AlignConfig) -> Iterator[None]:
    """`model` with a fresh LoRA adapter on it, and without it afterwards."""
    base, training = model.network, model.network.training
    with quiet_peft(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model.network = get_peft_model(
            base,
            LoraConfig(
                r=config.lora_rank,
                lora_alpha=config.lora_alpha,
                lora_dropout=config.lora_dropout,
                target_modules=list(model.family.lora_targets),
                # No task type: a diffusion model is no causal LM to peft, whose wrapper then changes nothing.
                task_type=None,
            ),
        )
        # PEFT wrote down the folder that the base was read from; a path of this machine is nobody else's business.
        model.network.peft_config["default"].base_model_name_or_path = base_of(model.name)
    # Not Trainer's switch: its name is changing between transformers 5 and 6.
    if config.gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        model.network = model.network.unload()
        if config.gradient_checkpointing:
            base.gradient_checkpointing_disable()
        model.network.requires_grad_(False)
        model.network.train(training)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Trainer seeds the process; the caller's random numbers go on as if it had not."""
    before = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
