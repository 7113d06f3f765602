"""`Canvas`: a batch of prompts and the responses being filled behind them.

Shapes: B rows, L = P + length positions: prompts left-padded to the width P, then the response.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from midward.models import LanguageModel

from .noise import row_seed
from .requests import SELECTORS, Edit, Edited, Request, Response
from .settings import Sampling

NOT_FINITE = "the model computed NaN or infinite numbers: damaged weights, or a dtype that is too narrow"


@dataclass
class Row:
    """One request of a call: its index there, the request and the ids of its prompt."""

    index: int
    request: Request
    prompt_ids: list[int]


class Canvas:
    """The state of one batch.

    ids [B, L] long: what stands where; `blank` where nothing does yet.
    mask_id: the family's; -1, which is no token, for models without one. blank: the mask, or the pad id without one.
    mask [B, L] long: 0 at padding; None if no row has any.
    seeds [B] int64: one a row, see `noise`.
    end_ids: the family's, as a tensor.
    forced [B, length] bool: written before the first step, or by an edit that froze it.
    edited: what the edits of each row have done so far.
    broken [B] bool: the logits of a step were no finite numbers; such a row has no response, only an error.
    on_leave: told of rows that take no further step, each at most once.
    """

    on_leave: Callable[[Sequence[int]], None] | None = None

    def __init__(self, model: LanguageModel, sampling: Sampling, rows: list[Row]) -> None:
        self.model = model
        self.sampling = sampling
        self.rows = rows
        self.length = sampling.length
        self.width = model.family.width(max(len(row.prompt_ids) for row in rows))
        device = model.device
        self.mask_id = -1 if model.family.mask_id is None else model.family.mask_id
        self.blank = model.family.pad_id if model.family.mask_id is None else self.mask_id

        padded = [[model.family.pad_id] * (self.width - len(row.prompt_ids)) + row.prompt_ids for row in rows]
        ids = torch.full((len(rows), self.width + self.length), self.blank)
        ids[:, : self.width] = torch.tensor(padded)
        forced = torch.zeros(len(rows), self.length, dtype=torch.bool)
        for i, row in enumerate(rows):
            for span in row.request.forced:
                place = slice(span.position, span.position + len(span.ids))
                ids[i, self.width :][place] = torch.tensor(span.ids)
                forced[i, place] = True
        self.ids = ids.to(device)
        self.forced = forced.to(device)
        self.end_ids = torch.tensor(model.family.end_ids, device=device)

        lengths = torch.tensor([len(row.prompt_ids) for row in rows])
        self.mask: torch.Tensor | None = None
        if (lengths < self.width).any():
            columns = torch.arange(self.width + self.length)
            self.mask = (columns >= self.width - lengths[:, None]).long().to(device)
        self.seeds = torch.tensor([row_seed(sampling.seed, row.request, row.prompt_ids) for row in rows], device=device)
        self.broken = torch.zeros(len(rows), dtype=torch.bool, device=device)
        self.edited: list[list[Edited]] = [[] for _ in rows]
        self.steps_taken = [0] * len(rows)
        self.forwards = [0] * len(rows)

    @property
    def response(self) -> slice:
        """Where the response stands in a row of `ids`."""
        return slice(self.width, self.width + self.length)

    @property
    def coordinates(self) -> torch.Tensor:
        """Response coordinate of each column [L]: negative in the prompt, the same for any padding."""
        return torch.arange(-self.width, self.length, device=self.ids.device)

    def edit(self, row: int, edit: Edit, committed: torch.Tensor) -> Edited:
        """Make an edit of a row in which `committed` [length] stand: mask again, then write. Noted in `edited`."""
        line, kept = self.ids[row, self.response].tolist(), self.forced[row].tolist()
        own = [stands and not is_kept for stands, is_kept in zip(committed.tolist(), kept, strict=True)]
        written = edit.written
        chosen: Iterable[int] = edit.positions
        if isinstance(edit.remask, str):
            chosen = SELECTORS[edit.remask](self.model, line, own, edit.step)
        again = [position for position in sorted(set(chosen)) if own[position] and position not in written]
        for position, token in {**dict.fromkeys(again, self.blank), **written}.items():
            line[position] = token
            kept[position] |= edit.freeze and position in written
        self.ids[row, self.response] = torch.tensor(line, device=self.ids.device)
        self.forced[row] = torch.tensor(kept, device=self.ids.device)
        self.edited[row].append(Edited(edit.step, tuple(sorted(written)), tuple(again)))
        return self.edited[row][-1]

    def finished(self, ids: torch.Tensor) -> torch.Tensor:
        """Whether, in rows [B, L], an end token of the response stands with no mask anywhere before it: [B]."""
        is_end = torch.isin(ids, self.end_ids)
        is_end[:, : self.width] = False
        masks_before = (ids == self.mask_id).cumsum(-1)
        return (is_end & (masks_before == 0)).any(-1)

    def leave(self, rows: Sequence[int]) -> None:
        """Rows take no further step."""
        if self.on_leave is not None:
            self.on_leave(rows)

    def responses(self, rows: Iterable[int] | None = None) -> list[Response]:
        """Return what stands in these rows, or in each, as `Response`s."""
        results = []
        numbers = list(range(len(self.rows)) if rows is None else rows)
        lines = torch.cat([self.ids, self.broken[:, None]], -1)[numbers].tolist() if numbers else []  # one reading
        for i, (*line, broken) in zip(numbers, lines, strict=True):
            row = self.rows[i]
            raw = line[self.width :]
            end = self.model.end_of(raw)
            ids = raw[:end] if end is not None and self.sampling.end != "keep" else raw
            if broken:
                ids = []
            results.append(
                Response(
                    text=self.model.text(ids),
                    ids=ids,
                    raw_ids=raw,
                    ended=end is not None and self.mask_id not in raw[:end] and not broken,
                    nfe=self.forwards[i],
                    steps=self.steps_taken[i],
                    prompt_ids=line[self.width - len(row.prompt_ids) : self.width],
                    error=f"{NOT_FINITE} ({self.model.dtype})".replace("torch.", "") if broken else None,
                    edits=tuple(self.edited[i]),
                )
            )
        return results
