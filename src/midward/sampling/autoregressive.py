"""The left-to-right sampler of autoregressive models: one token a step, with a key-value cache.

Rows are filled together as long as they stand at the same position. One that an edit changes behind it, or cuts back,
leaves them: it goes on by itself (or with those that do the same) from where it stands then, with a cache of its own.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import torch
from transformers import DynamicCache

from . import _bans
from .canvas import Canvas
from .choose import choose, probability, read
from .edits import Filling, mark
from .noise import uniform
from .passes import Pass, Passes
from .requests import Edited
from .step import Reduce, Step, Watcher


def run(canvas: Canvas, watchers: Sequence[Watcher]) -> Passes[None]:
    """Fill the canvas from left to right; rows leave the batch (and the cache) at their end token."""
    return _Autoregressive(canvas, watchers).run()


class _Autoregressive(Filling):
    """One batch being filled."""

    def __init__(self, canvas: Canvas, watchers: Sequence[Watcher]) -> None:
        super().__init__(canvas, watchers)
        self.model = canvas.model
        self.sampling = canvas.sampling
        self.device = canvas.ids.device
        self.to_the_end = self.sampling.end != "stop" or self.every_step
        ends = list(self.model.family.end_ids)
        self.end_ids = torch.tensor(ends, device=self.device)
        self.forbidden = ends if self.sampling.end == "forbid" else []
        self.mask = canvas.mask if canvas.mask is not None else torch.ones_like(canvas.ids)
        self.given = canvas.forced.clone()  # [B, length], what the model doesn't choose
        self.next = [0] * len(canvas.rows)  # the position of each row's next step
        self.stale: set[int] = set()  # rows whose cache holds what stands no more

    def run(self) -> Passes[None]:
        """Fill all rows, a group of them at a time."""
        groups = [list(range(len(self.canvas.rows)))]
        while groups:
            groups += yield from self._together(groups.pop(0))

    def _together(self, group: list[int]) -> Passes[list[list[int]]]:
        """Fill rows that stand at the same position. Returns those that left the others, by where they go on."""
        canvas = self.canvas
        apart: dict[tuple[int, int], list[int]] = defaultdict(list)
        cache = DynamicCache(config=self.model.config)
        rows = torch.tensor(group, device=self.device)
        first = self.next[group[0]]
        fresh = canvas.ids[rows, : canvas.width + first]  # what the cache hasn't seen yet
        for position in range(first, self.sampling.length):
            column = canvas.width + position
            states = yield Pass(partial(self.model.hidden, fresh, self.mask[rows, :column], cache))
            hidden = states[:, -1]  # [B, D]
            index = canvas.steps_taken[group[0]]
            token, score = self._choose(rows, position, hidden)
            canvas.broken[rows] |= score.isnan()
            canvas.ids[rows, column] = torch.where(self.given[rows, position], canvas.ids[rows, column], token)
            for row in group:
                self.next[row] = position + 1
                canvas.steps_taken[row] += 1
                canvas.forwards[row] += 1
            stopped = self.show(self._step(index, position, rows, score, hidden)) if self.is_shown else set()

            done = self._done(rows).tolist()
            kept, gone = [], list[int]()
            for place, row in enumerate(group):
                if canvas.rows[row].index in stopped or (done[place] and not self.planned.left[row]):
                    gone.append(row)
                    continue
                if row in self.stale:
                    apart[index, self.next[row]].append(row)
                else:
                    kept.append(place)
            self.stale.clear()
            if gone:
                canvas.leave(gone)
            if not kept:
                break
            if len(kept) < len(group):
                rows, group = rows[kept], [group[place] for place in kept]
                cache.batch_select_indices(torch.tensor(kept, device=self.device))
            fresh = canvas.ids[rows, column][:, None]
        return list(apart.values())

    def _choose(self, rows: torch.Tensor, position: int, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and scores [B] at a position of these rows, for their states [B, D]."""
        canvas, temperature = self.canvas, self.sampling.temperature
        uniforms = None
        if temperature > 0:
            uniforms = uniform(canvas.seeds[rows], position, torch.full_like(rows, position))
        token, score, _ = choose(self.model, hidden, uniforms, temperature=temperature, forbidden=self.forbidden)
        for i, row in enumerate(rows.tolist()):
            bans = canvas.rows[row].request.bans
            if not bans:
                continue
            given = self.given[row].tolist()
            line = canvas.ids[row, canvas.width :].tolist()
            decided = [line[p] if p < position or given[p] else None for p in range(canvas.length)]
            avoid = _bans.banned_at(bans, position, decided)
            if avoid:
                this = slice(i, i + 1)
                token[this], score[this], _ = choose(
                    self.model,
                    hidden[this],
                    None if uniforms is None else uniforms[this],
                    temperature=temperature,
                    forbidden=[*self.forbidden, *avoid],
                )
        return token, score

    def _done(self, rows: torch.Tensor) -> torch.Tensor:
        """Whether these rows [B] are full, or their text is final."""
        stands = self._stands(rows.tolist())
        if self.to_the_end:
            return stands.all(-1)
        ends = torch.isin(self.canvas.ids[rows, self.canvas.response], self.end_ids)
        return stands.all(-1) | (stands & ends).any(-1) | self.canvas.broken[rows]

    def _stands(self, rows: list[int]) -> torch.Tensor:
        """The positions before each row's next [B, length]."""
        behind = torch.tensor([self.next[row] for row in rows], device=self.device)
        return torch.arange(self.canvas.length, device=self.device) < behind[:, None]

    def committed(self, rows: list[int]) -> torch.Tensor:
        return self._stands(rows) | self.given[rows]

    def place(self, row: int, number: int) -> tuple[tuple[int, int], int]:
        return (0, self.next[row]), self.canvas.length - number

    def changed(self, row: int, edited: Edited, step: Step) -> None:
        """A row goes on from the first position that is masked again; what the cache has of it is worth nothing."""
        mark(self.given[row], edited)
        if min(edited.remasked + edited.written, default=self.next[row]) < self.next[row]:
            self.stale.add(row)
        self.next[row] = min((self.next[row], *edited.remasked))

    def _step(self, index: int, position: int, rows: torch.Tensor, score: torch.Tensor, hidden: torch.Tensor) -> Step:
        canvas = self.canvas
        ids, given = canvas.ids[rows], self.given[rows]
        here = torch.arange(canvas.length, device=self.device) == position

        def predictions() -> tuple[torch.Tensor, torch.Tensor]:
            confidence = torch.where(here & ~given, probability(score)[:, None], 1.0)
            return ids[:, canvas.response], confidence

        def reading(reduce: Reduce) -> torch.Tensor:
            values = read(self.model, hidden, reduce).float()
            readings = torch.full((len(rows), canvas.length, values.shape[-1]), torch.nan, device=self.device)
            readings[:, position] = values.masked_fill(given[:, position, None], torch.nan)
            return readings

        new, committed = here & ~given, self.committed(rows.tolist())
        return Step(
            index=index,
            of=None if self.editors else canvas.length,  # one that is cut back takes more
            blocks=[(position, position + 1)] * len(rows),
            rows=[canvas.rows[row].index for row in rows.tolist()],
            ids=ids,
            response=canvas.response,
            hidden_positions=slice(position, position + 1),
            _new=lambda: new,
            _committed=lambda: committed,
            _hidden=lambda: hidden[:, None],
            _predict=predictions,
            _active=lambda: hidden[:, None],
            _read=reading,
        )
