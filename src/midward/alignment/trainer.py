"""`AlignTrainer`: transformers' Trainer with the loss of an objective, its metrics and the training curve."""

import csv
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from midward._tables import csv_text
from midward.alignment._head import whole
from midward.alignment.config import AlignError
from midward.alignment.data import Batch, Schedule
from midward.alignment.objective import Objective, Terms
from midward.models import LanguageModel
from midward.store import write_text

log = logging.getLogger("midward.alignment")

BEFORE, BEHIND = ("step", "epoch", "loss"), ("grad_norm", "lr")
"""Columns of the training curve before and behind the objective's own METRICS; grad_norm: before clipping."""

COMPLETE = "complete"
"""Written last into a checkpoint folder: one without it was torn by a kill."""


class RewardWarning(UserWarning):
    """The reward rises while the safe sentences' own score falls: only the harmful term moves."""


class AlignTrainer(Trainer):
    """Trains the adapter on `model.network` (a PeftModel) with an objective.

    The loss is a mean over examples and micro-batches are equal, so gradient accumulation and several processes give
    what one big batch gives.

    Args:
        model: The policy, its reference inside.
        objective: The loss.
        schedule: The examples in training order.
        args: What transformers' Trainer takes.
        curve: The CSV file of the training curve. It is what the trainer's own state holds, which checkpoints keep: a
            resumed run rewrites it.
        on_log: Called with every row of the curve (a dict of its columns).
        stop: Asked behind every step, see `align`.
    """

    def __init__(
        self,
        model: LanguageModel,
        objective: Objective,
        schedule: Schedule,
        args: TrainingArguments,
        curve: Path,
        on_log: Callable[[dict[str, float]], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(
            model=model.network,
            args=args,
            train_dataset=schedule,
            data_collator=schedule.collator(model.family),  # type: ignore[arg-type]
            callbacks=[_Keep(stop)],
        )
        self.network: nn.Module = model.network
        self.objective: Objective = objective
        self.remove_callback(PrinterCallback)
        # No token counts: our loss is already a mean over examples.
        self.model_accepts_loss_kwargs = False
        self.schedule, self.curve, self.on_log = schedule, curve, on_log
        self.warned: list[str] = []
        self._totals: torch.Tensor | None = None  # [metrics, 2]: sum and count since the last row

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,  # type: ignore[override]
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The objective's loss of a micro-batch, a mean over its examples, through the wrapped model (DDP)."""
        terms = _through(model, self.network, lambda: self.objective(inputs))
        values = [terms.metrics.get(name, (0.0, 0)) for name in self.objective.METRICS]
        zero = terms.loss.new_zeros((), dtype=torch.float64)  # numbers are added to it: copied, they would wait for it
        flat = torch.stack([zero + x for pair in values for x in pair])
        self._totals = flat if self._totals is None else self._totals + flat
        return (terms.loss, terms) if return_outputs else terms.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics to what Trainer logs: means over all examples of all processes since the last row."""
        if "loss" not in logs or self._totals is None:
            super().log(logs, start_time)
            return
        totals = self.accelerator.reduce(self._totals, reduction="sum").view(-1, 2).tolist()
        self._totals = None
        logs.update({name: total / count for name, (total, count) in zip(self.objective.METRICS, totals) if count})
        super().log(logs, start_time)
        rows = self.rows()
        row = rows[-1]
        if not torch.isfinite(torch.tensor([row["loss"], row["grad_norm"]])).all():
            raise AlignError(
                f"the loss is {row['loss']} and the gradient norm {row['grad_norm']} at step {row['step']}; "
                "lower lr or use dtype='float32'."
            )
        if self.is_world_process_zero():
            write_curve(self.curve, rows, (*BEFORE, *self.objective.METRICS, *BEHIND))
            message = self.objective.warning(rows)
            if message and not self.warned:
                self.warned.append(message)
                log.warning(message)
                warnings.warn(message, RewardWarning, stacklevel=2)
            if self.on_log is not None:
                self.on_log(row)

    def rows(self) -> list[dict[str, Any]]:
        """The training curve up to now."""
        epoch = len(self.schedule.harmful) / self.schedule.config.batch_size  # steps
        return [
            {
                "step": entry["step"],
                "epoch": entry["step"] / epoch,
                "loss": entry["loss"],
                **{name: entry[name] for name in self.objective.METRICS if name in entry},
                "grad_norm": entry.get("grad_norm", 0.0),  # DeepSpeed may have none
                "lr": entry["learning_rate"],
            }
            for entry in self.state.log_history
            if "loss" in entry
        ]

    # --- what Trainer would do otherwise -------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter alone. Trainer would gather all weights of a sharded model, and add its own as a pickle."""
        folder = Path(output_dir or self.args.output_dir or ".")
        save_adapter(self.network, folder, write=self.args.should_save)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: Trainer's estimate walks over every parameter at every step."""
        return 0


class _Keep(TrainerCallback):
    """Says when a checkpoint is whole. Where training is to stop, it does so behind one that it asks for."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True  # whatever log_steps is, the curve ends where training does
        elif self.stop():
            control.should_log = control.should_save = True  # the row, or the curve would lack these steps

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
            (folder / COMPLETE).touch()
        if self.stop() and state.global_step < state.max_steps:
            raise KeyboardInterrupt


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


def write_curve(curve: Path, rows: Sequence[dict[str, float]], columns: Sequence[str]) -> None:
    """Write the training curve, whole or not at all."""
    write_text(curve, csv_text(columns, ([row.get(name) for name in columns] for row in rows)))


def read_curve(curve: Path) -> list[dict[str, float]]:
    """The rows of a training curve."""
    if not curve.exists():
        return []
    return [
        {name: int(value) if name == "step" else float(value) for name, value in row.items() if value}
        for row in csv.DictReader(curve.read_text(encoding="utf-8").splitlines())
    ]


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
