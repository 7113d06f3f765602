"""A guard by blocks in front of an engine that isn't midward's: what is handed over goes in, go on or stop comes out.

    1  `export_engine` writes what an engine can't know of a guard (mask, end and refusal ids, the digest of its file)
       beside two traces: one harmless generation, and one that is flagged
    2  `load_engine` reads both files, and replays the traces: both must come out as they did, or it doesn't arm
    3  a `RowGuard` a request is given each `BlockStep`, and says whether that row goes on

Progress, the grid, pooling with earlier blocks, classes and ranks are those of `midward.dynamics.looks` and
`midward.guards.looks`, by the same code: each step that changes a block once it is full is looked at, as its last look.

Shapes: n positions of a block, D hidden size, T steps.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from midward.dynamics.looks import BlockLooks, Followed, block_size, class_of, number_of, up_to_end
from midward.guards.config import GuardError
from midward.guards.files import load
from midward.guards.front import STUB
from midward.guards.guard import Guard
from midward.guards.looks import LookGuard
from midward.models import LanguageModel
from midward.sampling import Canvas, Sampling, Step, sample
from midward.tensors import Record, load_tensors, save_tensors

logger = logging.getLogger(__name__)

#: Scores of a replayed trace may differ from the stored ones by rounding alone.
CLOSE = 1e-3
KINDS = ("harmless", "flagged")


@dataclass(frozen=True)
class BlockStep:
    """One step of one row, as an engine hands it over.

    number: of the block, from 0. before, after [n]: its ids at the forward, and as the step left them. hidden [n, D]:
    the forward's states after the final norm; or pooled [2, D + 1]: the sum of w h and of w, with w 1 at all positions
    that were open when the block began, and at those that `standing` says after the step. is_open [n]: the open ones;
    by default those masked at the block's first step.
    """

    number: int
    before: torch.Tensor
    after: torch.Tensor
    hidden: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    is_open: torch.Tensor | None = None


@dataclass(frozen=True)
class Decision:
    """What the guard says of a row so far.

    stop: whether the row ends here. ids [n]: then, what stands in its block instead: the refusal in its open positions,
    or end ids alone where that doesn't fit. score: None before the first look. step: the row's own, from 0, that it was
    stopped after. why: where the guard couldn't look, so that the row was stopped unseen.
    """

    stop: bool
    ids: torch.Tensor | None
    looks: int
    score: float | None
    threshold: float
    step: int | None = None
    why: str | None = None

    def record(self) -> dict[str, Any]:
        """What a response carries: armed, looks, score, threshold; and why, where it isn't armed."""
        record = {"armed": self.why is None, "looks": self.looks, "score": self.score, "threshold": self.threshold}
        return record if self.why is None else {**record, "why": self.why}


class EngineGuard:
    """A fitted guard without its model, for the rows of an engine.

    Args:
        guard: by blocks, and reading phi alone.
        width: D.
        mask_id: what stands at open positions.
        end_ids: behind the first of which nothing is read.
        refusal: the ids that take the place of a flagged block; the last one ends a response.

    Raises:
        GuardError: for another kind of guard, a threshold that is no finite number, or ids that can't be used.
    """

    def __init__(
        self, guard: Guard, *, width: int, mask_id: int, end_ids: Sequence[int], refusal: Sequence[int]
    ) -> None:
        if not isinstance(guard, LookGuard) or not guard.reads_phi:
            raise GuardError(
                f"the guard {guard.name!r} needs more of a step than an engine hands over; take hesitate or sri-blocks."
            )
        if not guard.bound:
            raise GuardError(f"the guard {guard.name!r} isn't fitted yet; see midward guard fit.")
        if not np.isfinite(guard.threshold):
            raise GuardError(f"the guard {guard.name!r} has the threshold {guard.threshold}; fit it anew.")
        if mask_id < 0 or mask_id in refusal or not refusal:
            raise GuardError(
                f"an engine's rows need a mask and a refusal without masks; received {mask_id}, {refusal}."
            )
        if guard.anchors is not None and guard.anchors.mu_harmless.shape[-1] != width:
            raise GuardError(
                f"the guard {guard.name!r} was fitted on states of {guard.anchors.mu_harmless.shape[-1]} numbers, and "
                f"these have {width}."
            )
        self.guard = self._armed = guard
        self.threshold = guard.threshold
        self.size = int(guard.sampling["block"] or guard.sampling["length"])
        self.width, self.mask_id, self.refusal = width, mask_id, tuple(refusal)
        self.ends = torch.tensor(list(end_ids), dtype=torch.long)

    def row(self) -> RowGuard:
        """For a request that begins."""
        return RowGuard(self)

    def check(self) -> None:
        """Raise GuardError where the guard or its threshold isn't the one that was armed."""
        if self.guard is not self._armed or self.guard.threshold != self.threshold:
            raise GuardError("the guard, or its threshold, was changed after it was armed.")

    def filled(self, before: torch.Tensor, is_open: torch.Tensor, refusal: Sequence[int]) -> torch.Tensor:
        """A block [n] with the refusal at its open positions, and ends behind; ends alone where it doesn't fit."""
        room = int(is_open.sum())
        ids = list(refusal) if len(refusal) <= room else []
        filled = before.clone()
        filled[is_open] = torch.tensor([*ids, *[self.refusal[-1]] * (room - len(ids))], dtype=before.dtype)
        return filled

    def sums(self, step: BlockStep, is_open: torch.Tensor, first: bool) -> torch.Tensor:
        """Sum of w h and of w [D + 1] of a step, at its block's begin or after it. Raises GuardError without states."""
        if step.pooled is not None:
            sums = step.pooled[0 if first else 1].float().cpu()
        elif step.hidden is not None:
            counted = is_open[None] if first else self._standing(step, is_open)
            counted = counted.to(step.hidden.device)
            weights = counted.float()
            sums = torch.cat([(weights @ step.hidden.float())[0], weights.sum(-1)]).cpu()
        else:
            raise GuardError("there are no hidden states of this step's forward.")
        if sums.shape != (self.width + 1,) or not torch.isfinite(sums).all():
            raise GuardError(f"the states are no {self.width} finite numbers a position.")
        if not sums[:-1].any():
            raise GuardError("the states are all 0, which a model's aren't.")
        return sums

    def _standing(self, step: BlockStep, is_open: torch.Tensor) -> torch.Tensor:
        """Of the open positions of a block [1, n], what stands up to the first end token; all where none does."""
        stands = up_to_end((is_open & (step.after != self.mask_id))[None], step.after[None], self.ends)
        return stands if stands.any() else is_open[None]

    def replay(self, steps: Sequence[BlockStep]) -> Decision:
        """The decision after a whole generation, or where it was stopped."""
        row = self.row()
        for step in steps:
            if row.step(step).stop:
                break
        return row.decision


class RowGuard:
    """The guard of one request. decision: after its last step."""

    def __init__(self, engine: EngineGuard) -> None:
        self._engine = engine
        self._followed = Followed()
        self._blocks: BlockLooks | None = None  # made by the first step, so that a row can be closed whatever fails
        self._opened: dict[int | None, torch.Tensor] = {}  # of each block, what was open as it began
        self._number: int | None = None
        self.decision = Decision(False, None, 0, None, engine.threshold)

    def step(self, step: BlockStep) -> Decision:
        """Look at a step.

        Raises:
            GuardError: where states are missing, or aren't those of the guard, or it isn't the one that was armed; the
                row must be stopped then.
        """
        engine, guard = self._engine, self._engine.guard
        before, after = (torch.as_tensor(ids).cpu().long() for ids in (step.before, step.after))
        if before.shape != after.shape or before.ndim != 1 or len(before) > engine.size:
            raise GuardError(f"a block has {engine.size} ids; received {tuple(before.shape)}, {tuple(after.shape)}.")
        step = replace(step, before=before, after=after)
        is_new = step.number != self._number
        if is_new:
            is_open = before == engine.mask_id if step.is_open is None else step.is_open.cpu().bool()
            self._opened.setdefault(step.number, is_open)  # of one that it comes back to, as it began
            self._number = step.number
        is_open = self._opened[step.number]
        if self.decision.stop:  # an engine that goes on nevertheless
            if is_new:
                ids = engine.filled(before, is_open | (before == engine.mask_id), ())
                self.decision = replace(self.decision, ids=ids)
            return self.decision
        engine.check()
        if self._blocks is None:
            self._blocks = BlockLooks(guard.reader(), [self._followed], engine.size)
        begun = self._blocks.begin([0], [step.number]) if is_new else []
        counts = [[int(is_open.sum()), int((is_open & (after != engine.mask_id)).sum())]]
        number = self._followed.taken

        def pooled(first: bool) -> tuple[list[np.ndarray], list[float]]:
            sums = engine.sums(step, is_open, first).numpy()
            return [sums[:-1]], [float(sums[-1])]

        def changed(place: int) -> bool:
            return not torch.equal(before, after)

        taken = self._blocks.take([0], [step.number], counts, begun, pooled, changed)
        for _, block, look in taken:
            rank = float(guard.ranks_at(class_of(block), np.array([self._followed.so_far(block, look)]))[0])
            if not np.isfinite(rank):
                raise GuardError("the score is no finite number.")
            score = rank if self.decision.score is None else max(rank, self.decision.score)
            self.decision = replace(self.decision, score=score, looks=self.decision.looks + 1)
        if taken and guard.flag(np.array([self.decision.score]))[0]:
            ids = engine.filled(before, is_open, engine.refusal)
            self.decision = replace(self.decision, stop=True, ids=ids, step=number)
        return self.decision

    def close(self, before: torch.Tensor, why: str, is_open: torch.Tensor | None = None) -> Decision:
        """Stop the row unseen: the guard can't look. Raises nothing.

        Args:
            before: the block's ids [n].
            why: for the response; the first reason stays.
            is_open: the positions [n] that don't keep what they hold; by default those that were open when the block
                began. Masked ones never do.
        """
        before = before.cpu().long()
        masked = before == self._engine.mask_id
        is_open = self._opened.get(self._number, masked) if is_open is None else is_open.cpu().bool()
        is_open = is_open | masked if is_open.shape == masked.shape else masked
        try:
            ids = self._engine.filled(before, is_open, self._engine.refusal)
        except Exception:
            logger.exception("the refusal can't be written, so ends alone stand there")
            ids = torch.where(is_open, self._engine.refusal[-1], before)
        self.decision = replace(self.decision, stop=True, ids=ids, why=self.decision.why or why)
        return self.decision


# --- what is stored for an engine ---------------------------------------------------------------------------------


class HandedOver:
    """A watcher that keeps of each request what an engine would hand over. steps: by request."""

    needs_all_steps = False
    needs_states = "block"

    def __init__(self) -> None:
        self.steps: dict[int, list[BlockStep]] = {}

    def on_start(self, canvas: Canvas) -> None:
        self._mask_id, self._size = canvas.mask_id, block_size(canvas.model, canvas.sampling)

    def on_step(self, step: Step) -> None:
        for place, (row, (start, stop)) in enumerate(zip(step.rows, step.blocks, strict=True)):
            after = step.ids[place, step.response][start:stop].cpu()
            stands = step.committed[place, start:stop].cpu()
            after = torch.where(stands, after, self._mask_id)
            before = torch.where(stands & ~step.new[place, start:stop].cpu(), after, self._mask_id)
            hidden = step.active_hidden[place, : stop - start].cpu().clone()
            steps, number = self.steps.setdefault(row, []), number_of(start, self._size)
            if steps and steps[-1].number == number:
                before = steps[-1].after  # edits write over what stood
            steps.append(BlockStep(number, before, after, hidden))

    def on_end(self, canvas: Canvas) -> None:
        pass


class EngineFile(Record):
    """The header of what stands beside a guard's file for an engine. guard: its digest. scores: of the traces."""

    noun: ClassVar[str] = "engine file"
    format: ClassVar[str] = "midward.engine/1.0"
    again: ClassVar[str] = "export it anew"
    guard: str
    block: int
    width: int
    mask_id: int
    end_ids: tuple[int, ...]
    refusal: tuple[int, ...]
    scores: dict[str, float]


def export_engine(
    guard: Guard,
    model: LanguageModel,
    harmless: Sequence[Any],
    flagged: Sequence[Any],
    path: str | Path,
    sampling: Sampling | None = None,
) -> Path:
    """Write what an engine needs beside the guard's file: ids, and a trace of each kind to test itself with.

    Args:
        guard: fitted, by blocks.
        model: what it guards; one that fills masks.
        harmless: requests; the first that isn't flagged is kept.
        flagged: requests; the first that is flagged is kept.
        path: of the file; its folder is there.
        sampling: by default what the guard was fitted for.

    Raises:
        GuardError: for a model without masks or a guard that can't be used, or where no request comes out so.
    """
    sampling = Sampling.for_model(model, **guard.sampling) if sampling is None else sampling
    guard.check(model, sampling)
    family = model.family
    if family.kind != "diffusion" or family.mask_id is None:
        raise GuardError(f"{family.name} fills no masks, which an engine's rows are told by.")
    about: dict[str, Any] = {
        "width": model.hidden_size,
        "mask_id": family.mask_id,
        "end_ids": family.end_ids if sampling.end != "keep" else (),
        "refusal": (*model.tokens(STUB), family.end_ids[0]),
    }
    engine = EngineGuard(guard, **about)
    tensors: dict[str, np.ndarray] = {}
    scores: dict[str, float] = {}
    for kind, requests in zip(KINDS, (harmless, flagged), strict=True):
        handed_over = HandedOver()
        sample(model, requests, sampling, watchers=[handed_over])
        for steps in handed_over.steps.values():
            decision = engine.replay(steps)
            if decision.stop == (kind == "flagged") and decision.score is not None:
                scores[kind] = decision.score
                tensors |= {f"{kind}.{name}": tensor for name, tensor in _tensors(engine, steps).items()}
                break
        else:
            raise GuardError(f"none of the {len(requests)} requests comes out {kind}; give others.")
    save_tensors(path, tensors, EngineFile(guard=guard.digest, block=engine.size, scores=scores, **about))
    return Path(path)


def _tensors(engine: EngineGuard, steps: Sequence[BlockStep]) -> dict[str, np.ndarray]:
    """A trace's numbers [T], ids [T, 2, n] before and after each step, and sums [T, 2, D + 1]."""
    ids, sums, is_open, number = [], [], torch.zeros(0), None
    for step in steps:
        if step.number != number:
            number, is_open = step.number, step.before == engine.mask_id
        missing = engine.size - len(step.before)  # a response's last block may be shorter
        ids.append([[*both.tolist(), *[engine.refusal[-1]] * missing] for both in (step.before, step.after)])
        sums.append(torch.stack([engine.sums(step, is_open, first) for first in (True, False)]).numpy())
    return {"numbers": np.array([step.number for step in steps]), "ids": np.array(ids), "sums": np.array(sums)}


def load_engine(guard_path: str | Path, path: str | Path) -> EngineGuard:
    """Read a guard for an engine and test it on the stored traces.

    Args:
        guard_path: the guard's file.
        path: what `export_engine` wrote for it.

    Raises:
        InputError: a torn or foreign file; GuardError, which is one, where the two don't belong together or a trace
            doesn't come out as it did, saying what differs.
    """
    guard = load(guard_path)
    about, tensors = load_tensors(path, EngineFile)
    if about.guard != guard.digest:
        raise GuardError(f"{path} was written for the guard {about.guard}, and {guard_path} is {guard.digest}.")
    engine = EngineGuard(guard, width=about.width, mask_id=about.mask_id, end_ids=about.end_ids, refusal=about.refusal)
    if about.block != engine.size:
        raise GuardError(f"{path} has blocks of {about.block}, and {guard_path} was fitted on blocks of {engine.size}.")
    for kind in KINDS:
        try:
            numbers, ids, sums = (torch.from_numpy(tensors[f"{kind}.{name}"]) for name in ("numbers", "ids", "sums"))
            steps = [
                BlockStep(int(number), before, after, pooled=both)
                for number, (before, after), both in zip(numbers, ids, sums, strict=True)
            ]
            decision, stored = engine.replay(steps), about.scores[kind]
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise GuardError(f"{path} holds no {kind} trace that can be replayed: {str(error).rstrip('.')}.") from None
        close = decision.score is not None and abs(decision.score - stored) <= CLOSE
        if decision.stop != (kind == "flagged") or not close:
            raise GuardError(
                f"the self-test failed: the {kind} trace of {path} has the score {decision.score} here and {stored} "
                f"there, with the threshold {guard.threshold}."
            )
    logger.info("%s is armed by %s: both traces came out right", guard.name, guard_path)
    return engine
