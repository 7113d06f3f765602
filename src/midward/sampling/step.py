"""`Step`: what watchers see of one denoising step, and `Watcher`: what a watcher is.

Shapes: B rows still being filled (others have left the batch), L = P + length positions, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from midward.errors import InputError

from .canvas import Canvas
from .requests import Edit, Place


def _unplaced(request: int) -> Place:
    raise InputError(f"request {request} has no place: the step is shown by no sampler.")


#: Reduces logits [N, V], float32, which it may overwrite, to [N, K].
Reduce = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Later:
    """Values of the device that are read along with others. read: they, on the host, once that was."""

    values: torch.Tensor
    read: np.ndarray | None = None

    def __call__(self) -> np.ndarray:
        return np.asarray(self.values.cpu().numpy()) if self.read is None else self.read


@dataclass
class Step:
    """One step, after its commits. Its tensors are the sampler's own: don't change them, and reduce what is large.
    Nobody writes to `ids` and states later.

    index: number of the step, from 0; skipped steps (nothing to commit) leave gaps.
    of: steps in all, or None if that depends on the data (threshold).
    blocks: (start, stop) response positions of each row's active block [B]; of an autoregressive step, its position.
    rows: the request index (in the call to `sample`) of each row [B].
    ids [B, L]: the canvas after this step. response: where the response stands in it.
    written [B, length] bool: written by an edit in this step, after its commits; None where no row was edited.
    place: where the row of a request (its index) stands, as an edit of it is checked against.
    waits [B, W]: what the sampler reads of the device after this step; None where it is nothing, or may be changed
        before. fetched: the same on the host, once `fetch` has read it.
    unseen: request indices of which a watcher hasn't looked at all that stands; nobody behind it shows that to others.
    hidden_positions: the response positions that `hidden` covers: all of them, the one that an autoregressive step
        predicts, or with an approximate cache those that this step computed.
    stopped: request indices that a watcher wants no more of; add to it, and those rows leave the batch after this
        step with whatever masks they still hold. The other rows' tokens don't change.
    """

    index: int
    of: int | None
    blocks: list[tuple[int, int]]
    rows: list[int]
    ids: torch.Tensor
    response: slice
    hidden_positions: slice
    _new: Callable[[], torch.Tensor]
    _committed: Callable[[], torch.Tensor]
    _hidden: Callable[[], torch.Tensor]
    _predict: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    _active: Callable[[], torch.Tensor]
    _read: Callable[[Reduce], torch.Tensor]
    stopped: set[int] = field(default_factory=set)
    unseen: set[int] = field(default_factory=set)
    written: torch.Tensor | None = None
    place: Callable[[int], Place] = _unplaced
    waits: torch.Tensor | None = None
    fetched: list[list[float]] | None = None
    _later: list["Later"] = field(default_factory=list)

    @cached_property
    def new(self) -> torch.Tensor:
        """Committed in this step [B, length] bool."""
        return self._new()

    @cached_property
    def committed(self) -> torch.Tensor:
        """All that stand now [B, length] bool, forced ones included."""
        return self._committed()

    @property
    def block(self) -> tuple[int, int]:
        """(start, stop) response positions that the rows' active blocks cover."""
        return min(start for start, _ in self.blocks), max(stop for _, stop in self.blocks)

    @cached_property
    def hidden(self) -> torch.Tensor:
        """Hidden states after the final norm [B, positions, D] of this step's forward: a view, not a copy.

        They were computed before this step's commits. Some are left out by a block-causal model's exact cache, which a
        watcher turns off that says it `needs_states` of the whole "response", or because every watcher said that it
        needs fewer: first use then costs a forward.
        """
        return self._hidden()

    @cached_property
    def predictions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [B, length] and confidences [B, length] (probabilities, float32).

        Where a token stood before this step it is that token, with confidence 1; at masked positions it is
        what this step predicts. Positions outside the active block are predicted on first use only, which
        costs the output head on them. Raises InputError where the dual cache left them out.
        """
        return self._predict()

    @cached_property
    def active_hidden(self) -> torch.Tensor:
        """As `hidden`, of each row's active block [B, n, D], n that of the longest; behind a shorter one is its last.

        They cost no forward, whatever the cache, unless every watcher said that it needs none; but for an exact one
        where a block is several of block-causal attention's own, whose first ones may be final.
        """
        return self._active()

    def read(self, reduce: Reduce) -> torch.Tensor:
        """What `reduce` makes of the model's own logits (temperature 1, nothing forbidden) at the open positions of the
        active blocks [B, length, K] float32; NaN where nothing was open before this step's commits.

        It costs the output head on these positions, a chunk of them at a time, unless the watcher has it as its
        `reduce`: then it sees the very logits that tokens are chosen from, and must leave them as they are. No logits
        are kept.
        """
        return self._read(reduce)

    def probabilities(self, ids: Sequence[int]) -> torch.Tensor:
        """How probable these tokens are at the active blocks' open positions [B, length, len(ids)]; see `read`."""
        return self.read(lambda logits: logits.log_softmax(-1)[:, list(ids)].exp())

    @cached_property
    def entropy(self) -> torch.Tensor:
        """In nats, at the open positions of the active blocks [B, length]; see `read`."""
        return self.read(lambda logits: torch.special.entr(logits.softmax(-1)).sum(-1, keepdim=True))[..., 0]

    def fetch(self, values: torch.Tensor) -> np.ndarray:
        """Values [N, K] on the host, float32 or wider: one reading of the device, in the place of the sampler's own
        after this step where there is one."""
        later, self._later = self._later, []
        tensors = [values, *(each.values for each in later), *([] if self.waits is None else [self.waits])]
        if len(tensors) == 1:
            return np.asarray(values.cpu().numpy())
        together, start, read = torch.cat([tensor.flatten() for tensor in tensors]).cpu().numpy(), 0, []
        for tensor in tensors:
            read.append(together[start : start + tensor.numel()].reshape(tensor.shape))
            start += tensor.numel()
        for each, part in zip(later, read[1:], strict=False):
            each.read = part
        if self.waits is not None:
            self.waits, self.fetched = None, read[-1].tolist()
        return read[0]

    def later(self, values: torch.Tensor) -> "Later":
        """Values [N, K] that `fetch` reads along with whatever it reads of this step next."""
        self._later.append(Later(values))
        return self._later[-1]

    def edited(self, ids: torch.Tensor, committed: torch.Tensor, written: torch.Tensor) -> "Step":
        """The step as it is shown after its edits: what stands in `ids` [B, L] now, `written` by them or not."""

        def predict() -> tuple[torch.Tensor, torch.Tensor]:
            tokens, confidence = self.predictions
            return torch.where(written, ids[:, self.response], tokens), confidence.masked_fill(written, 1.0)

        return replace(
            self,
            ids=ids,
            written=written,
            _new=lambda: self.new & committed & ~written,
            _committed=lambda: committed,
            _hidden=lambda: self.hidden,
            _predict=predict,
        )


class Watcher(Protocol):
    """Something that sees every step.

    needs_all_steps: turns off the early end-of-text stop and the skipping of steps.
    needs_states (may be missing): of what it reads states: "none"; the active "block"s; or in every step the whole
        "response", so that an exact cache is off, and an approximate one refused. The last layer ends on what all of
        them need; one that doesn't say may read any.
    reduce (may be missing, or None): what it reads at every step, see `Step.read`.
    A call to `sample` may run several batches: each gives on_start, its steps, and on_end (always, even on an
    error).
    """

    needs_all_steps: bool

    def on_start(self, canvas: Canvas) -> None:
        """A batch begins; `canvas.rows` tells which requests."""

    def on_step(self, step: Step) -> None:
        """A step was taken."""

    def on_end(self, canvas: Canvas) -> None:
        """The batch is over."""


@runtime_checkable
class Editor(Protocol):
    """Something that writes to the canvas between steps: a request's own edits, or a watcher that is a defence.

    Among the watchers an editor is asked before the step is shown, in the order given and after the request's own
    edits, so that every watcher, itself included, sees the edited canvas. It is asked at the steps that a row takes,
    all of them if it `needs_all_steps`. What it writes isn't in the request, so whoever keeps results must name it in
    their key.
    """

    def edits(self, step: Step) -> Mapping[int, Sequence[Edit]]:
        """What is changed now, by request index; the `step` of these edits isn't read.

        step: after its commits and the edits so far. An edit that can't be made there is an InputError, as in a
        request; with a threshold, and of autoregressive models, one that masks again is refused once the row has taken
        as many steps as it has positions, so that every row comes to its end.
        """


@runtime_checkable
class Steerer(Protocol):
    """A watcher that is a defence and changes the states that tokens are chosen from; of masked diffusion alone.

    Those that a `Step` shows are as the model computed them. As with an `Editor`, whoever keeps results must name it in
    their key.
    """

    def steered(self, states: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """What stands in the place of `states` [N, D], after the final norm, of N masked positions.

        rows [N]: of the canvas. positions [N]: of the response, negative in the prompt; in the active block, or
        wherever `Step.predictions` is asked for. With guidance only the conditional states are asked about.
        """


@runtime_checkable
class Adjuster(Protocol):
    """The same of logits: a watcher that is a defence and changes what tokens are chosen by; of masked diffusion alone.
    Readers of logits see them changed."""

    def adjusted(self, logits: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """What stands in the place of `logits` [N, V], float32, of N masked positions; rows and positions as of
        `Steerer.steered`. Those given must be left as they are."""
