"""How edits are made while a batch is filled, whoever asks for them, and how steps are shown: of all samplers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from midward.errors import InputError

from .canvas import Canvas
from .requests import Edit, Edited, Place, check_edit
from .step import Editor, Step, Watcher


def mark(line: torch.Tensor, edited: Edited) -> None:
    """Say in a row's [length] which tokens somebody else than the model wrote, after an edit."""
    line[list(edited.remasked)] = False
    line[list(edited.written)] = True


class Planned:
    """The requests' own edits, as an `Editor`.

    left: of each row of the canvas, those that are still to be made.
    """

    def __init__(self, canvas: Canvas) -> None:
        self.canvas = canvas
        self.left = [list(row.request.edits) for row in canvas.rows]
        self.rows = {row.index: place for place, row in enumerate(canvas.rows)}

    def number(self, row: int, index: int) -> int:
        """Of a row's step. With a threshold a row counts its own, which are counted before they are shown."""
        return index if self.canvas.sampling.threshold is None else self.canvas.steps_taken[row] - 1

    def edits(self, step: Step) -> Mapping[int, Sequence[Edit]]:
        """Those that are due, which are left no more."""
        due = {}
        for request in step.rows:
            row = self.rows[request]
            number, left = self.number(row, step.index), self.left[row]
            due[request] = [edit for edit in left if edit.step == number]
            self.left[row] = [edit for edit in left if edit.step != number]
        return due


class Filling:
    """One batch being filled: its steps are edited and shown here, and a sampler says where its rows stand."""

    def __init__(self, canvas: Canvas, watchers: Sequence[Watcher]) -> None:
        self.canvas = canvas
        self.watchers = watchers
        self.every_step = any(watcher.needs_all_steps for watcher in watchers)
        self.planned = Planned(canvas)
        self.editors: list[Editor] = [self.planned] if any(self.planned.left) else []
        self.editors += [watcher for watcher in watchers if isinstance(watcher, Editor)]
        self.is_shown = bool(self.editors or watchers)

    def committed(self, rows: list[int]) -> torch.Tensor:
        """What stands in these rows of the canvas [B, length]."""
        raise NotImplementedError

    def place(self, row: int, number: int) -> tuple[tuple[int, int], int]:
        """The `block` and the steps `left` (see `Place`) of a row after its step of this number."""
        raise NotImplementedError

    def changed(self, row: int, edited: Edited, step: Step) -> None:
        """Follow what an edit did to a row of the canvas."""
        raise NotImplementedError

    def show(self, step: Step) -> set[int]:
        """Make the edits of a step, then show it as it is with them. Returns the requests that are to be stopped."""
        step.place = partial(self._place, step.index)
        step = self._edited(step) if self.editors else step
        for watcher in self.watchers:
            watcher.on_step(step)
        return step.stopped

    def _place(self, index: int, request: int) -> Place:
        """Where a request's row stands after the step of this index."""
        row = self.planned.rows[request]
        kept = self.canvas.forced[row].nonzero()[:, 0].tolist()
        return Place(*self.place(row, self.planned.number(row, index)), set(kept))

    def _edited(self, step: Step) -> Step:
        """The step after the edits that are asked for."""
        plain, rows = step, [self.planned.rows[request] for request in step.rows]
        written = torch.zeros_like(step.new)
        for editor in self.editors:
            asked = {request: edits for request, edits in editor.edits(step).items() if edits}
            for request, edits in asked.items():
                if request not in step.rows:
                    raise InputError(f"{type(editor).__name__} edits request {request}, which takes no such step.")
                at = step.rows.index(request)
                for edit in edits:
                    mark(written[at], self._edit(editor, rows[at], edit, step))
            if asked:
                step = plain.edited(self.canvas.ids[rows], self.committed(rows), written)
        return step

    def _edit(self, editor: Editor, row: int, edit: Edit, step: Step) -> Edited:
        """Make an edit; one that wasn't checked with its request is checked here."""
        if editor is not self.planned:
            request = self.canvas.rows[row]
            edit = replace(edit, step=self.planned.number(row, step.index))
            try:
                place = step.place(request.index)
                check_edit(self.canvas.model, request.request, edit, place, self.canvas.sampling)
            except InputError as error:
                raise InputError(f"{type(editor).__name__}, request {request.index}: {error}") from None
        edited = self.canvas.edit(row, edit, self.committed([row])[0])
        self.changed(row, edited, step)
        return edited
