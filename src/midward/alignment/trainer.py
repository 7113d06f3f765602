"""`MosaTrainer`: transformers' Trainer with the MOSA loss, its own metrics and the reward curve."""

import csv
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from midward.alignment._head import whole
from midward.alignment.config import AlignConfig, AlignError
from midward.alignment.data import Collator, Schedule
from midward.alignment.objective import METRICS, Batch, MosaObjective, Terms

log = logging.getLogger("midward.alignment")

COLUMNS = ("step", "epoch", "loss", *METRICS, "grad_norm", "lr")
"""Columns of the reward curve: the whole objective, METRICS, the gradient norm before clipping."""

COMPLETE = "complete"
"""Written last into a checkpoint folder: one without it was torn by a kill."""

# The reward warning compares the two halves of this many logged rows, and ignores moves below the margin
# (nats).
WARN_ROWS = 10
WARN_MARGIN = 0.5


class RewardWarning(UserWarning):
    """The reward rises while the safe sentences' own score falls: only the harmful term moves."""


def reward_warning(rows: Sequence[dict[str, float]], floor: float | None = None) -> str | None:
    """What to tell the user when the last rows' reward rises while the positive score falls, or None.

    floor: the run's negative_floor, so that nobody is told to set what is set.
    """
    rows = rows[-WARN_ROWS:]
    if len(rows) < WARN_ROWS:
        return None
    half = WARN_ROWS // 2

    def change(name: str) -> float:
        return sum(row[name] for row in rows[half:]) / half - sum(row[name] for row in rows[:half]) / half

    if change("reward") <= WARN_MARGIN or change("positive") >= -WARN_MARGIN:
        return None
    remedy = "Set negative_floor (recipe='stable')"
    if floor is not None:
        remedy = f"Lower negative_floor (now {floor:g})"
    return (
        f"step {rows[-1]['step']}: over the last {WARN_ROWS} rows the reward rose by {change('reward'):.1f} "
        f"nats while the safe sentences' own score fell by {-change('positive'):.1f}: the harmful term alone "
        f"is being pushed down. {remedy}, or lower lr."
    )


class MosaTrainer(Trainer):
    """Trains the adapter on `model.network` (a PeftModel) with `MosaObjective`.

    The loss is a mean over examples and micro-batches are equal, so gradient accumulation and several
    processes give what one big batch gives. `on_log` is called with every row of the curve (a dict of
    COLUMNS).
    """

    def __init__(
        self,
        model,
        config: AlignConfig,
        schedule: Schedule,
        args: TrainingArguments,
        curve: Path,
        on_log: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        super().__init__(
            model=model.network,
            args=args,
            train_dataset=schedule,
            data_collator=Collator(config, model.family, schedule.sentences.longest),  # type: ignore[arg-type]
            callbacks=[_MarkComplete()],
        )
        self.network: nn.Module = model.network
        self.objective: MosaObjective = MosaObjective(model, config)
        self.remove_callback(PrinterCallback)
        # No token counts: our loss is already a mean over examples.
        self.model_accepts_loss_kwargs = False
        self.align_config, self.schedule, self.curve, self.on_log = config, schedule, curve, on_log
        self.warned: list[str] = []
        self._totals: torch.Tensor | None = None  # [metrics, 2]: sum and count since the last row

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,  # type: ignore[override]
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The MOSA loss of a micro-batch, a mean over its examples, through the wrapped model (DDP)."""
        terms = _through(model, self.network, lambda: self.objective(inputs))
        values = [terms.metrics.get(name, (0.0, 0)) for name in METRICS]
        flat = torch.stack(
            [torch.as_tensor(x, dtype=torch.float64, device=terms.loss.device) for pair in values for x in pair]
        )
        self._totals = flat if self._totals is None else self._totals + flat
        return (terms.loss, terms) if return_outputs else terms.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add a row to the curve: means over all examples of all processes since the last row."""
        if "loss" in logs and self._totals is not None:
            totals = self.accelerator.reduce(self._totals, reduction="sum").view(-1, 2).tolist()
            self._totals = None
            config, step = self.align_config, self.state.global_step
            row: dict[str, Any] = {"step": step, "epoch": step * config.batch_size / len(self.schedule.harmful)}
            row["loss"] = logs["loss"]
            row.update({name: total / count for name, (total, count) in zip(METRICS, totals) if count})
            row.update(grad_norm=logs.get("grad_norm", 0.0), lr=logs["learning_rate"])  # DeepSpeed may have none
            logs.update({name: row[name] for name in METRICS if name in row})
            super().log(logs, start_time)
            norm = row.get("grad_norm", 0.0)
            if not torch.isfinite(torch.tensor([row["loss"], norm])).all():
                raise AlignError(
                    f"the loss is {row['loss']} and the gradient norm {norm} at step {step}; "
                    "lower lr or use dtype='float32'."
                )
            if self.is_world_process_zero():
                append_row(self.curve, row)
                self._watch_reward()
                if self.on_log is not None:
                    self.on_log(row)
        else:
            super().log(logs, start_time)

    def _watch_reward(self) -> None:
        message = reward_warning(
            [row for row in self.state.log_history if "reward" in row], self.align_config.negative_floor
        )
        if message and not self.warned:
            self.warned.append(message)
            log.warning(message)
            warnings.warn(message, RewardWarning, stacklevel=2)

    # --- what Trainer would do otherwise -------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter alone. Trainer would gather all weights of a sharded model, and add its own as a pickle."""
        folder = Path(output_dir or self.args.output_dir or ".")
        save_adapter(self.network, folder, write=self.args.should_save)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: Trainer's estimate walks over every parameter at every step."""
        return 0


class _MarkComplete(TrainerCallback):
    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
            (folder / COMPLETE).touch()


def save_adapter(network: Any, folder: Path, *, write: bool = True) -> None:
    """Write the adapter of a PeftModel. To be called by every process, since sharded weights are gathered for it; the
    one with `write` writes. The embeddings are never part of it, so the base isn't looked up.
    """
    adapter = {name: whole(p.detach()) for name, p in network.named_parameters() if p.requires_grad}
    if write:
        network.save_pretrained(str(folder), state_dict=adapter, save_embedding_layers=False)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None."""
    done = [path for path in folder.glob("checkpoint-*") if (path / COMPLETE).is_file()]
    return max(done, key=lambda path: int(path.name.split("-")[1]), default=None)


def append_row(curve: Path, row: dict[str, Any]) -> None:
    """Add one row to the reward curve, with the header if the file is new."""
    new = not curve.exists()
    with curve.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        if new:
            writer.writeheader()
        writer.writerow(row)
        file.flush()


def read_curve(curve: Path) -> list[dict[str, float]]:
    """The rows of a reward curve; a torn last line is left out."""
    if not curve.exists():
        return []
    text = curve.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [
        {name: int(value) if name == "step" else float(value) for name, value in row.items() if value}
        for row in csv.DictReader(lines)
    ]


def cut_curve(curve: Path, step: int) -> None:
    """Drop the rows after `step`: a resumed run writes them again."""
    rows = [row for row in read_curve(curve) if row["step"] <= step]
    fresh = curve.with_suffix(".tmp")
    fresh.unlink(missing_ok=True)
    for row in rows:
        append_row(fresh, row)
    if rows:
        os.replace(fresh, curve)
    else:
        curve.unlink(missing_ok=True)


def _through(wrapped: nn.Module, inner: nn.Module, call: Callable[[], Terms]) -> Terms:
    """Run `call` inside `wrapped`'s forward, where DDP, FSDP and DeepSpeed expect the model to be used.

    The objective calls the model's body twice and its head in chunks, which no single forward call of the
    model offers; so for one call the model's own forward is `call`, and is itself again inside it. FSDP2 changes
    the model in place (`wrapped` is `inner`) and gathers its weights in hooks around that forward.
    """
    terms: list[Terms] = []
    before = inner.__dict__.get("forward")  # accelerate may have put one there

    def restore() -> None:
        if before is None:
            inner.__dict__.pop("forward", None)
        else:
            inner.forward = before

    def redirected(*args: Any, **kwargs: Any) -> torch.Tensor:
        restore()
        terms.append(call())
        return terms[0].loss

    inner.forward = redirected
    try:
        wrapped()
    finally:
        restore()
    return terms[0]
