"""`Trace`: the watcher that records which position was committed when, and what was predicted."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from midward.errors import InputError
from midward.tensors import Record, load_tensors, save_tensors

from .canvas import Canvas
from .settings import Sampling
from .step import Step

NEVER, FORCED = -1, -2


class TraceRecord(Record):
    """What a trace's file says beside its tensors; the fields are those of `Trace`."""

    noun, format, again = "trace", "midward.trace/1.0", "record it anew"
    sampling: dict[str, Any]
    of: int | None
    notes: dict[str, Any]


class Trace:
    """Records the steps of one call to `sample`, for N requests of `length` response positions.

    predictions: also keep, per step, the whole predicted response (int32 [length] per row and step), and how confident
        the step that committed a position was of its token.
    needs_all_steps: run every scheduled step on every row, so that all rows have the same number of steps.

    commit_step: request index -> int16 [length]: the step (from 0) that committed each position, NEVER (-1)
        where none did (masks behind an early end), FORCED (-2) where a forced span stood from the start, or an
        edit wrote. With a threshold steps are the row's own count, whatever shares its batch.
    confidence: request index -> float32 [length]: probability of each token at its commit; NaN where no step committed,
        or predictions weren't kept.
    prompt_ids: request index -> ids of the prompt, as it was before the first step.
    sampling: the settings of the run. of: its steps in all; None where that depends on the data (threshold).
    notes: what whoever traced wants kept with it, as JSON.
    """

    def __init__(self, *, predictions: bool = False, needs_all_steps: bool = False) -> None:
        self.needs_all_steps = needs_all_steps
        self.keep_predictions = predictions
        self.sampling: Sampling | None = None
        self.of: int | None = None
        self.notes: dict[str, Any] = {}
        self.commit_step: dict[int, torch.Tensor] = {}
        self.confidence: dict[int, torch.Tensor] = {}
        self.prompt_ids: dict[int, list[int]] = {}
        self._tokenizer: Any = None
        self._predicted: dict[int, dict[int, torch.Tensor]] = {}
        self._own_count: dict[int, int] | None = None

    def on_start(self, canvas: Canvas) -> None:
        """A batch begins: its requests, and what is forced, are noted."""
        self.sampling = canvas.sampling
        self._tokenizer = canvas.model.tokenizer
        self._own_count = {} if canvas.sampling.threshold is not None else None
        start = torch.full((len(canvas.rows), canvas.length), NEVER, dtype=torch.int16)
        start[canvas.forced.cpu()] = FORCED
        for row, line in zip(canvas.rows, start, strict=True):
            self.commit_step[row.index] = line
            self.confidence[row.index] = torch.full((canvas.length,), torch.nan)
            self.prompt_ids[row.index] = list(row.prompt_ids)
            self._predicted[row.index] = {}

    def on_step(self, step: Step) -> None:
        """Note what the step committed, and its predictions where they are kept."""
        new = step.new.cpu()
        self.of = step.of
        kept = [part.cpu() for part in step.predictions] if self.keep_predictions else None
        for i, row in enumerate(step.rows):
            index = step.index
            if self._own_count is not None:  # rows wait for each other between blocks; that mustn't show
                index = self._own_count.get(row, 0)
                self._own_count[row] = index + 1
            self.commit_step[row][new[i]] = index
            if step.written is not None:  # an edit: what it masked again was never committed, as it turns out
                open_again, written = ~step.committed[i].cpu(), step.written[i].cpu()
                self.commit_step[row][open_again] = NEVER
                self.commit_step[row][written] = FORCED
                self.confidence[row][open_again | written] = torch.nan
            if kept is not None:
                tokens, confidence = kept
                self._predicted[row][index] = tokens[i].to(torch.int32)
                self.confidence[row][new[i]] = confidence[i][new[i]].float()

    def on_end(self, canvas: Canvas) -> None:
        """Nothing is left to do."""

    def order(self, row: int) -> list[int]:
        """Return the response positions of a request in commit order (left to right within a step)."""
        steps = self.commit_step[row]
        committed = (steps >= 0).nonzero()[:, 0]
        return committed[steps[committed].argsort(stable=True)].tolist()

    def predicted_ids(self, row: int, step: int) -> torch.Tensor:
        """Return the whole predicted response [length] of a request at a step.

        Raises KeyError if the row took no part in that step, or predictions weren't kept.
        """
        if step not in self._predicted[row]:
            why = "it took no part in that step" if self._predicted[row] else "use Trace(predictions=True)"
            raise KeyError(f"no prediction of request {row} at step {step}: {why}.")
        return self._predicted[row][step]

    def predicted_steps(self, row: int) -> list[int]:
        """Return the steps whose predictions were kept for a request."""
        return sorted(self._predicted[row])

    def text(self, row: int, step: int, tokenizer: Any | None = None) -> str:
        """Return the predicted response of a request at a step as text, special tokens stripped.

        tokenizer: needed after `Trace.load`. Raises as `predicted_ids`.
        """
        tokenizer = tokenizer or self._tokenizer
        if tokenizer is None:
            raise InputError("a loaded trace holds no tokenizer; pass the model's.")
        ids = self.predicted_ids(row, step).tolist()
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def save(self, path: str | Path) -> None:
        """Write the trace as one safetensors file. Raises InputError where nothing was traced yet."""
        if self.sampling is None:
            raise InputError("nothing was traced yet; pass the trace to sample(..., watchers=[trace]).")
        rows = sorted(self.commit_step)
        tensors = {
            "rows": torch.tensor(rows),
            "commit_step": torch.stack([self.commit_step[row] for row in rows]),
            "confidence": torch.stack([self.confidence[row] for row in rows]),
        }
        for row in rows:
            tensors[f"prompt.{row}"] = torch.tensor(self.prompt_ids[row])
            if kept := self.predicted_steps(row):
                tensors[f"steps.{row}"] = torch.tensor(kept)
                tensors[f"predicted.{row}"] = torch.stack([self._predicted[row][step] for step in kept])
        save_tensors(path, tensors, TraceRecord(sampling=asdict(self.sampling), of=self.of, notes=self.notes))

    @classmethod
    def load(cls, path: str | Path) -> "Trace":
        """Read a trace that `save` wrote. Raises InputError for any other file, MissingFile without one."""
        record, arrays = load_tensors(path, TraceRecord)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        trace = cls()
        try:
            trace.sampling, trace.of, trace.notes = Sampling(**record.sampling), record.of, record.notes
            for i, row in enumerate(tensors["rows"].tolist()):
                trace.commit_step[row] = tensors["commit_step"][i]
                trace.confidence[row] = tensors["confidence"][i]
                trace.prompt_ids[row] = tensors[f"prompt.{row}"].tolist()
                steps = tensors[f"steps.{row}"].tolist() if f"steps.{row}" in tensors else []
                trace._predicted[row] = dict(zip(steps, tensors.get(f"predicted.{row}", []), strict=True))
                trace.keep_predictions |= bool(steps)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(f"{path} is no trace ({error}); was it written by Trace.save?") from None
        return trace
