"""The masked-diffusion sampler.

At temperature 0 its tokens are those of the published algorithm, with less work: the output head runs only on
the masked positions of the active block, steps with nothing to commit are skipped, and a row leaves the batch
once its text is final. Shapes: B rows in a step, L = P + length positions, D hidden size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import groupby

import torch

from midward.errors import InputError
from midward.models.language_model import Read

from . import _bans
from ._computed import Computed, Places, within
from .cache import ExactCache, block_cache
from .canvas import Canvas
from .choose import choose, probability, read
from .edits import Filling, mark
from .noise import uniform
from .passes import Forward, Passes
from .requests import Edited
from .schedules import SCHEDULES
from .settings import block_offset
from .step import Adjuster, Reduce, Steerer, Step, Watcher

_ORDER_STEP = -1  # the step number that the random order's draws are made under
_ANNEAL = 0.3  # share of chance in the first step of a block of the annealed order (DiffuGuard's alpha_0 for LLaDA)


def run(canvas: Canvas, watchers: Sequence[Watcher]) -> Passes[None]:
    """Fill the canvas."""
    return _Diffusion(canvas, watchers).run()


class _Diffusion(Filling):
    """One batch being filled (LLaDA, Nie et al. 2025, algorithms 4 and 5; Dream's and DiffuGuard's orders besides)."""

    def __init__(self, canvas: Canvas, watchers: Sequence[Watcher]) -> None:
        super().__init__(canvas, watchers)
        self.model = canvas.model
        self.sampling = canvas.sampling
        self.mask_id = canvas.mask_id
        self.device = canvas.ids.device
        coordinates, device = canvas.coordinates, canvas.ids.device
        self.coordinates = coordinates
        self.columns = torch.arange(len(coordinates), device=device)[None]
        # Small tensors of host numbers, of which most steps need those of the step before. None of them holds `self`,
        # which would keep its caches until the next collection of cycles.
        self._numbers = lru_cache(maxsize=8)(partial(torch.tensor, device=device))
        self._before = lru_cache(maxsize=2)(lambda stops: coordinates < torch.tensor(stops, device=device)[:, None])
        self._low = lru_cache(maxsize=2)(lambda rows: torch.full((rows, len(coordinates)), -torch.inf, device=device))
        self._first = lru_cache(maxsize=2)(
            lambda quota: torch.arange(max(quota), device=device) < torch.tensor(quota, device=device)[:, None]
        )
        self.given = canvas.ids != self.mask_id  # what the unconditional forward doesn't see
        self.masked = canvas.ids, ~self.given
        self.alive = list(range(len(canvas.rows)))
        self.steerers = [watcher for watcher in watchers if isinstance(watcher, Steerer)]
        self.adjusters = [watcher for watcher in watchers if isinstance(watcher, Adjuster)]
        self.forbidden = self._forbidden()
        self.offsets = self._offsets()
        self.cache = block_cache(canvas, watchers)
        self.blocks: dict[int, tuple[int, int]] = {}  # that rows were in at their last step
        self.reduces = [reduce for watcher in watchers if (reduce := getattr(watcher, "reduce", None)) is not None]
        self.windows = [_bans.windows(row.request.bans) for row in canvas.rows]
        # What each step reads of the device, in one go: how many masks each row has, and whether its numbers aren't
        # finite. Of the masks behind its block it is known before.
        before = (~self.given).cumsum(-1).tolist()
        self.masks = [[0, *counts] for counts in before]  # before a column, as the canvas starts
        self.open = {row: (self.masks[row][-1], False) for row in self.alive}
        self.begun_full: dict[int, bool] = {}  # rows whose block began with no mask before it
        # Whose states are read: behind a cache those that tokens are chosen from; without one of the active blocks, as
        # long as no mask stands before them (fewer would save a hundredth, and a guard looks at blocks); or all.
        needs = {getattr(watcher, "needs_states", "") for watcher in watchers}
        cached = self.cache is not None
        self.reads_masks = cached and needs <= {"none"} and not self.editors and not any(self.windows)
        some = needs <= {"none", "block"} and not self.editors and not cached
        self.reads_blocks = some and self.model.family.attention == "full"
        # The first column of each row that isn't padding: with shifted logits it keeps its own.
        self.first = torch.tensor([canvas.width - len(row.prompt_ids) for row in canvas.rows], device=self.device)

    def run(self) -> Passes[None]:
        """Take every step, of the schedule or until all are above the threshold."""
        if self.sampling.threshold is not None:
            yield from self._run_by_threshold()
            return
        self.plans = self._schedule()
        self.steps = max(len(plan) for plan in self.plans)
        for index in range(self.steps):
            planned = {row: self.plans[row][index] for row in self.alive if index < len(self.plans[row])}
            working = [row for row, (_, quota) in planned.items() if quota or self._takes_part(row, index)]
            if working:
                blocks, quota = zip(*(planned[row] for row in working), strict=True)
                yield from self._step(index, list(blocks), working, list(quota))

    def _run_by_threshold(self) -> Passes[None]:
        blocks = [self.sampling.blocks_after(offset) for offset in self.offsets]
        index = 0
        for number in range(max(len(each) for each in blocks)):
            block_of = {row: each[number] for row, each in enumerate(blocks) if number < len(each)}
            while working := self._with_masks(block_of):
                yield from self._step(index, [block_of[row] for row in working], working, [1] * len(working))
                index += 1

    # --- known before the first step ---------------------------------------------------------------------

    def _forbidden(self) -> list[int]:
        """Ids that are never chosen.

        The published algorithm may choose the mask token itself, which leaves the position masked. That stays
        where tokens must equal the published ones; elsewhere it only harms (a threshold would never be done).
        """
        sampling = self.sampling
        ids = list(self.model.family.end_ids) if sampling.end == "forbid" else []
        published = (
            sampling.temperature == 0
            and sampling.threshold is None
            and sampling.order != "left_to_right"
            and sampling.cache is None
        )
        return ids if published else [*ids, self.mask_id]

    def _offsets(self) -> list[int]:
        """How many of each prompt's last positions share the first block: some, with block-causal attention."""
        lengths = (len(row.prompt_ids) for row in self.canvas.rows)
        return [block_offset(self.model.family, self.sampling, length) for length in lengths]

    def _schedule(self) -> list[list[tuple[tuple[int, int], int]]]:
        """Block and commits per row and step: known in advance, so that no step waits for the device."""
        sampling = self.sampling
        plans = []
        self.chance: list[list[float]] = []  # what the annealed order draws by, per row and step
        for masked, offset in zip((~self.given).cpu(), self.offsets, strict=True):
            plan: list[tuple[tuple[int, int], int]] = []
            chance: list[float] = []
            blocks = sampling.blocks_after(offset)
            for block, steps in zip(blocks, sampling.steps_after(offset), strict=True):
                count = self._count(masked, block)
                plan += [(block, quota) for quota in SCHEDULES[sampling.schedule](count, steps)]
                chance += [_ANNEAL * (1 - i / max(1, steps - 1)) for i in range(steps)]
            plans.append(plan)
            self.chance.append(chance)
        return plans

    def _count(self, masked: torch.Tensor, block: tuple[int, int]) -> int:
        """Of a row's masks [L] those that a block has to fill; the first may have to fill the prompt's, too."""
        width = self.canvas.width
        count = int(masked[width + block[0] : width + block[1]].sum())
        if block[0] == 0 and self.sampling.prompt_masks == "joint":
            count += int(masked[:width].sum())
        return count

    # --- one step ----------------------------------------------------------------------------------------

    def _left(self, row: int, stop: int) -> int:
        """A row's masks before a response position, unless somebody edits."""
        masks, behind = self.masks[row], self.canvas.width + stop
        return self.open[row][0] + masks[behind] - masks[-1]

    def _stands_before(self, working: list[int], blocks: list[tuple[int, int]]) -> bool:
        """Whether no mask stands before the blocks of these rows, unless somebody edits."""
        for row, block in zip(working, blocks, strict=True):
            if self.blocks.get(row) != block:  # at its first step all that was committed stands before it
                self.begun_full[row] = self._left(row, block[0]) == 0
        return all(self.begun_full[row] for row in working)

    def _with_masks(self, blocks: dict[int, tuple[int, int]]) -> list[int]:
        """The rows that still have a mask before the end of their block."""
        if not self.editors:
            left = {row: self._left(row, blocks[row][1]) for row in self.alive if row in blocks}
            return [row for row, count in left.items() if count and not self.open[row][1]]
        stops = [blocks[row][1] if row in blocks else -self.canvas.width for row in range(len(self.offsets))]
        before = self._before(tuple(stops))
        any_left = (((self.canvas.ids == self.mask_id) & before).any(-1) & ~self.canvas.broken).tolist()
        last = self.canvas.length  # a row that is full waits for its edits
        return [
            row
            for row in self.alive
            if any_left[row] or (self.planned.left[row] and blocks.get(row, (0, 0))[1] == last)
        ]

    def _step(self, index: int, blocks: list[tuple[int, int]], working: list[int], quota: list[int]) -> Passes[None]:
        """One denoising step.

        index: its number. working [B]: rows of the canvas. blocks [B]: each row's, in response positions. quota [B]:
        how many positions each row commits.
        """
        canvas = self.canvas
        rows = self._numbers(tuple(working))
        # All of them, where every row works and nobody writes there but the sampler; else a copy.
        ids = canvas.ids if len(working) == len(canvas.rows) and not self.editors else canvas.ids[rows]
        # 1. What may be committed: masks up to the end of the row's block, those of the prompt included.
        known, masked = self.masked  # of the step before
        masked = masked if ids is known else ids == self.mask_id  # [B, L]
        stops = [stop for _, stop in blocks]
        eligible = masked & self._before(tuple(stops))  # [B, L]
        if self.editors:
            row, column = eligible.nonzero(as_tuple=True)
        else:  # how many there are is known, so nothing waits
            count = sum(self._left(number, stop) for number, stop in zip(working, stops, strict=True))
            row, column = torch.nonzero_static(eligible, size=count).unbind(-1)
        places = row, column
        # 2. Hidden states of the canvas as it stands.
        forward = yield from self._compute(index, blocks, working, ids, places)
        # 3. A token for each of them, and how sure the model is of it.
        tokens, scores, ranks = self._predict(forward, eligible, places, self.reduces)
        # 4. Commit the first of each row in the order asked for; the others stay masks. (What isn't eligible has the
        # canvas' own tokens.)
        commit = self._select(self._rank(forward, eligible, ranks), quota)
        after = torch.where(commit, tokens, forward.ids)
        # Never in place: watchers may hold what they were shown.
        canvas.ids = after if forward.ids is canvas.ids else canvas.ids.index_put((forward.rows,), after)
        # 5. Count, edit and show the step, and let go of rows that are stopped or whose text is final.
        before = self.alive
        self.blocks.update(zip(working, blocks, strict=True))
        for number in working:
            canvas.steps_taken[number] += 1
            canvas.forwards[number] += 1 if forward.unguided is None else 2
        stops_early = self.sampling.end == "stop" and not self.every_step
        state = None if self.editors else self._state(after, scores, stops_early)
        readings = None
        if self.is_shown:
            step = self._report(forward, after, masked, eligible, tokens, scores)
            step.waits = state
            if stopped := self.show(step):
                self.alive = [each for each in self.alive if canvas.rows[each].index not in stopped]
            readings = step.fetched
        if readings is None:
            if state is None:  # of what the editors left
                state = self._state(canvas.ids[forward.rows], scores, stops_early)
            readings = state.tolist()
        finished = set()
        for number, (left, score, *final) in zip(working, readings, strict=True):
            is_broken = math.isnan(score) or self.open[number][1]  # for good
            if is_broken:
                canvas.broken[number] = True
            self.open[number] = int(left), is_broken
            if (any(final) or (is_broken and stops_early)) and not self.planned.left[number]:
                finished.add(number)
        if finished:
            self.alive = [number for number in self.alive if number not in finished]
        if len(self.alive) < len(before):
            canvas.leave([each for each in before if each not in self.alive])

    def _state(self, ids: torch.Tensor, scores: torch.Tensor, stops_early: bool) -> torch.Tensor:
        """Of rows as they stand [B, L]: how many masks there are, the largest score (NaN where one is), and, where that
        stops a row, whether the text is final: [B, 2 or 3]. Small, for it is all that a step reads of the device."""
        self.masked = ids, ids == self.mask_id
        left, most = self.masked[1].sum(-1), scores.amax(-1)
        return torch.stack([left, most, *([self.canvas.finished(ids)] if stops_early else [])], -1)

    def _takes_part(self, row: int, index: int) -> bool:
        """Whether a row that commits nothing in a step of the schedule takes it nevertheless: to be shown, to be
        edited, or, with an approximate cache, for the whole forward that its block begins with."""
        if self.every_step or any(edit.step == index for edit in self.planned.left[row]):
            return True
        begins = index == 0 or self.plans[row][index - 1][0] != self.plans[row][index][0]
        return begins and self.cache is not None and not self.cache.exact and self._comes(row, index)

    def _comes(self, row: int, index: int) -> bool:
        """Whether a row commits anything more in the block of a step of the schedule, behind that step."""
        return any(quota for block, quota in self.plans[row][index + 1 :] if block == self.plans[row][index][0])

    def committed(self, rows: list[int]) -> torch.Tensor:
        return self.canvas.ids[rows, self.canvas.response] != self.mask_id

    def place(self, row: int, number: int) -> tuple[tuple[int, int], int]:
        block = self.blocks[row]
        if self.sampling.threshold is not None:
            return block, self.sampling.length - number
        return block, sum(later == block for later, _ in self.plans[row][number + 1 :])

    def changed(self, row: int, edited: Edited, step: Step) -> None:
        """What somebody else wrote is given, as a forced span is, and no more once it is masked."""
        mark(self.given[row, self.canvas.response], edited)
        if isinstance(self.cache, ExactCache) and (changed := edited.remasked + edited.written):
            self.cache.forget(row, self.canvas.width + min(changed))
        if self.sampling.threshold is None:
            self._replan(row, step.index)

    def _replan(self, row: int, index: int) -> None:
        """Spread the masks that a row has after a step over the steps that each block has left."""
        plan, masked = self.plans[row], (self.canvas.ids[row] == self.mask_id).cpu()
        for block, rest in groupby(range(index + 1, len(plan)), lambda step: plan[step][0]):
            steps = list(rest)
            quotas = SCHEDULES[self.sampling.schedule](self._count(masked, block), len(steps))
            plan[steps[0] : steps[-1] + 1] = [(block, quota) for quota in quotas]

    def _compute(
        self, index: int, blocks: list[tuple[int, int]], working: list[int], ids: torch.Tensor, places: Places
    ) -> Passes[Computed]:
        canvas, rows = self.canvas, self._numbers(tuple(working))
        draws = [index] * len(working)
        if self.sampling.threshold is not None:  # rows take different numbers of steps: each counts its own
            draws = [canvas.steps_taken[row] for row in working]
        seen, mask = self._inputs(rows, ids)
        starts, columns, slots = [0], self.columns, None
        if self.cache is not None:
            staying = self.alive if self.cache.exact else working  # in this block
            if not self.cache.exact and self.sampling.threshold is None:
                staying = sorted({*working, *(row for row in self.alive if self._comes(row, index))})
            seen, mask, columns, starts = self.cache.inputs(seen, mask, working, blocks, staying)
            slots = self.cache.slots
        read: Read | None = None
        if self.reads_masks:
            row, column = places
            at = within(starts, row, self._source(rows, row, column))
            read = row, at
            if len(seen) > len(working):
                read = torch.cat([row, row + len(working)]), torch.cat([at, at])
        elif self.reads_blocks and self._stands_before(working, blocks):
            first = canvas.width + min(blocks)[0] - int(self.model.family.shift)
            stop = canvas.width + max(blocks)[1]
            if stop - first < seen.shape[1]:
                read, starts = slice(first - starts[0], stop - starts[0]), [first]
        hidden = yield Forward(self.model, seen, mask, columns, slots, read)
        count = seen.shape[1]
        return Computed(index, blocks, rows, working, draws, ids, starts, count, read, *self._halves(hidden), places)

    def _inputs(self, rows: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What a forward of these rows sees, ids and mask; with guidance the unconditional rows behind the others."""
        mask = None if self.canvas.mask is None else self.canvas.mask[rows]
        if self.sampling.guidance > 0:
            ids = torch.cat([ids, torch.where(self.given[rows], self.mask_id, ids)])
            mask = None if mask is None else mask.repeat(2, 1)
        return ids, mask

    def _halves(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Conditional and unconditional states of a forward."""
        if self.sampling.guidance == 0:
            return hidden, None
        count = len(hidden) // 2
        return hidden[:count], hidden[count:]

    def _predict(
        self, forward: Computed, wanted: torch.Tensor, at: Places, reduces: Sequence[Reduce] = ()
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens, scores and ranks [B, L] at the `wanted` positions [B, L], by row and column `at` [N]; the canvas and
        -inf elsewhere. What `reduces` make of the logits is kept in `forward.readings`."""
        tokens, low = forward.ids, self._low(len(forward.ids))
        scores = ranks = low
        row, column = at
        if len(row):
            seen: list[list[torch.Tensor]] = []
            see = (lambda logits: seen.append([reduce(logits) for reduce in reduces])) if reduces else None
            token, score, rank = self._choose(forward, row, column, self.forbidden, see)
            tokens, scores = tokens.masked_scatter(wanted, token), low.masked_scatter(wanted, score)
            ranks = scores if rank is score else low.masked_scatter(wanted, rank)
            forward.readings.update(
                (reduce, torch.cat(parts)) for reduce, parts in zip(reduces, zip(*seen, strict=True))
            )
            self._apply_bans(forward, wanted, tokens, scores, ranks)
        return tokens, scores, ranks

    def _choose(
        self,
        forward: Computed,
        row: torch.Tensor,
        column: torch.Tensor,
        forbidden: list[int],
        see: Callable[[torch.Tensor], None] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens, scores and ranks [N] at N positions, given by row of the pass and column."""
        uniforms = None
        if self.sampling.temperature > 0:
            draws = self._numbers(tuple(forward.draws))
            uniforms = uniform(self.canvas.seeds[forward.rows][row], draws[row], self.coordinates[column])
        hidden, unguided = self._sources(forward, row, column)
        if self.steerers or self.adjusters:
            place = forward.rows[row], self.coordinates[column]
        for steerer in self.steerers:
            hidden = steerer.steered(hidden, *place)

        def adjust(logits: torch.Tensor, part: slice) -> torch.Tensor:
            for adjuster in self.adjusters:
                logits = adjuster.adjusted(logits, place[0][part], place[1][part])
            return logits

        return choose(
            self.model,
            hidden,
            uniforms,
            order=self.sampling.order,
            temperature=self.sampling.temperature,
            forbidden=forbidden,
            unguided=unguided,
            guidance=self.sampling.guidance,
            see=see,
            adjust=adjust if self.adjusters else None,
        )

    def _sources(
        self, forward: Computed, row: torch.Tensor, column: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The states that tokens at N positions are chosen from; with shifted logits, those before them."""
        if row is forward.places[0] and isinstance(forward.read, tuple):
            return forward.hidden, forward.unguided
        return forward.states(row, self._source(forward.rows, row, column))

    def _source(self, rows: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        """The columns [N] whose states the tokens at N positions are chosen from."""
        return torch.maximum(column - 1, self.first[rows][row]) if self.model.family.shift else column

    def _read(self, forward: Computed, wanted: torch.Tensor, reduce: Reduce) -> torch.Tensor:
        """See `Step.read`. wanted: positions [B, L]."""
        row, column = forward.places
        if (values := forward.readings.get(reduce)) is None:
            hidden, unguided = self._sources(forward, row, column)
            values = read(self.model, hidden, reduce, unguided=unguided, guidance=self.sampling.guidance)
        readings = torch.full((*wanted.shape, values.shape[-1]), torch.nan, device=self.device)
        readings[row, column] = values.float()
        return readings[:, self.canvas.response]

    def _apply_bans(
        self, forward: Computed, wanted: torch.Tensor, tokens: torch.Tensor, scores: torch.Tensor, ranks: torch.Tensor
    ) -> None:
        """Choose again in the bans' windows, left to right: no mask, and nothing that completes a ban."""
        width = self.canvas.width
        for i, number in enumerate(forward.numbers):
            if not self.windows[number]:
                continue
            bans = self.canvas.rows[number].request.bans
            is_open = wanted[i, width:].tolist()
            decided = [None if token == self.mask_id else token for token in forward.ids[i, width:].tolist()]
            for start, stop in self.windows[number]:
                for position in range(start, stop):
                    if is_open[position]:
                        row, column = torch.tensor([[i], [width + position]], device=self.device)
                        avoid = [*self.forbidden, self.mask_id, *_bans.banned_at(bans, position, decided)]
                        token, scores[i, column], ranks[i, column] = self._choose(forward, row, column, avoid)
                        tokens[i, column] = token
                        decided[position] = int(token)

    def _rank(self, forward: Computed, eligible: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
        """What decides which positions are committed first [B, L]: larger first, -inf where not eligible."""
        if self.sampling.order == "random":
            rank = uniform(self.canvas.seeds[forward.rows][:, None], _ORDER_STEP, self.coordinates[None])
        elif self.sampling.order == "annealed":
            shares = [[self.chance[row][forward.index]] for row in forward.numbers]
            chance = torch.tensor(shares, device=self.device)  # [B, 1]
            # Not the numbers that tokens are drawn by.
            numbers = _ORDER_STEP - 1 - self._numbers(tuple(forward.draws))[:, None]
            drawn = uniform(self.canvas.seeds[forward.rows][:, None], numbers, self.coordinates[None])
            rank = (1 - chance) * probability(ranks) + chance * drawn
        elif self.sampling.order == "left_to_right":
            rank = -self.coordinates.float().expand(eligible.shape)
        else:
            rank = ranks
        if rank is not ranks:  # which are -inf elsewhere
            rank = torch.where(eligible, rank, -torch.inf)
        elif any(self.windows):
            rank = rank.clone()
        for i, number in enumerate(forward.numbers):
            for start, stop in self.windows[number]:
                # A position never outranks an open one to its left in its window, so never goes before it.
                window = (i, slice(self.canvas.width + start, self.canvas.width + stop))
                kept = rank[window].masked_fill(~eligible[window], torch.inf).cummin(-1).values
                rank[window] = kept.masked_fill(~eligible[window], -torch.inf)
        return rank

    def _select(self, rank: torch.Tensor, quota: list[int]) -> torch.Tensor:
        """The positions to commit [B, L]: the first `quota` of each row, or also all above the threshold.

        Equal ranks go from left to right.
        """
        if set(quota) == {1}:
            commit = self.columns == rank.argmax(-1, keepdim=True)  # NaN before all, as in the sort
        else:
            first = rank.sort(dim=-1, descending=True, stable=True).indices[:, : max(quota)]
            within = self._first(tuple(quota))[:, : first.shape[1]]
            commit = torch.zeros_like(rank, dtype=torch.bool).scatter_(1, first, within)
        if (p := self.sampling.threshold) is not None:
            # Log-odds against log-odds, because p itself would round to 1.
            commit |= rank >= (math.inf if p == 1 else math.log(p / (1 - p)))
        return commit

    def _whole(self, forward: Computed) -> Computed:
        """The whole forward, where not all columns were computed or read; with an approximate cache as it is."""
        approximate = self.cache is not None and not self.cache.exact
        if forward.read is None and (approximate or forward.count == len(self.coordinates)):
            return forward
        if approximate:
            raise InputError(
                f"a watcher reads states that cache={self.sampling.cache!r} didn't compute, since every watcher has "
                "needs_states='none'; leave that out."
            )
        if forward.whole is None:
            hidden, unguided = self._halves(self.model.hidden(*self._inputs(forward.rows, forward.ids)))
            count = len(self.coordinates)
            forward.whole = replace(forward, starts=[0], count=count, read=None, hidden=hidden, unguided=unguided)
        return forward.whole

    def _report(
        self,
        forward: Computed,
        after: torch.Tensor,
        masked: torch.Tensor,
        eligible: torch.Tensor,
        tokens: torch.Tensor,
        scores: torch.Tensor,
    ) -> Step:
        width, response = self.canvas.width, self.canvas.response
        shown = slice(0, self.canvas.length)
        if self.cache is not None and not self.cache.exact:  # all rows in one block
            first = max(forward.starts[0], width)
            shown = slice(first - width, forward.starts[0] + forward.count - width)

        def hidden() -> torch.Tensor:
            whole = self._whole(forward)
            start = whole.starts[0]
            return whole.hidden[:, width + shown.start - start : width + shown.stop - start]

        def predictions() -> tuple[torch.Tensor, torch.Tensor]:
            far = masked & ~eligible
            if shown.stop < self.canvas.length and far.any():
                raise InputError(
                    f"cache={self.sampling.cache!r} computes the active block alone, so nothing is predicted behind "
                    "it; use cache='prefix' or none."
                )
            row, column = far.nonzero(as_tuple=True)
            far_tokens, far_scores, _ = self._predict(self._whole(forward), far, (row, column))
            confidence = probability(torch.where(eligible, scores, far_scores)).masked_fill(~masked, 1.0)
            return torch.where(eligible, tokens, far_tokens)[:, response], confidence[:, response]

        def active() -> torch.Tensor:
            blocks = forward.blocks
            whole = self._whole(forward) if isinstance(forward.read, tuple) else forward
            # A block of several of block-causal attention's own: an exact cache computes those that aren't final.
            low = [width + start for start, _ in blocks] if len(whole.starts) > 1 else [width + min(blocks)[0]]
            if any(start < first for first, start in zip(whole.starts, low, strict=True)):
                whole = self._whole(forward)
            if len(whole.starts) == 1 and blocks == blocks[:1] * len(blocks):
                first = width - whole.starts[0]
                return whole.hidden[:, first + blocks[0][0] : first + blocks[0][1]]
            most = max(stop - start for start, stop in blocks)
            columns = [[width + min(start + i, stop - 1) for i in range(most)] for start, stop in blocks]
            column = torch.tensor(columns, device=self.device)  # [B, n]
            row = torch.arange(len(columns), device=self.device)[:, None].expand_as(column)
            return whole.states(row.reshape(-1), column.reshape(-1))[0].view(*column.shape, -1)

        def committed() -> torch.Tensor:
            return after[:, response] != self.mask_id

        return Step(
            index=forward.index,
            of=None if self.sampling.threshold is not None else self.steps,
            blocks=forward.blocks,
            rows=[self.canvas.rows[row].index for row in forward.numbers],
            ids=after,
            response=response,
            hidden_positions=shown,
            _new=lambda: masked[:, response] & committed(),
            _committed=committed,
            _hidden=hidden,
            _predict=predictions,
            _active=active,
            _read=partial(self._read, forward, eligible),
        )
