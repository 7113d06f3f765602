"""A model's answers to utility tasks: texts behind its guard, log-probabilities, and a file that keeps both.

An answer is known by a hash of all it depends on: weights and adapter, guard, every sampling setting, prompt and
continuation as ids, draws and seed. So no setting meets another's answers, and nothing is asked twice.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from midward.errors import InputError
from midward.models import LanguageModel, ModelError
from midward.sampling import Request, Sampling, Span, Watcher, sample, span_log_probs
from midward.store import RowFile, key_of
from midward.utility import processes
from midward.utility.stops import Stops

CHUNK = 64  # answers between two writes

T = TypeVar("T")
Ids = tuple[int, ...]
Progress = Callable[[str, int, int], None]  # what is being done, done so far, of how many


@dataclass(frozen=True)
class Question:
    """A text that is wanted. seed: sets apart repeated samples of one prompt; 0 for the only one. until: stop texts
    behind which nothing is wanted; the text may go on behind one, or end there."""

    prompt: Ids
    sampling: Sampling
    seed: int = 0
    until: tuple[str, ...] = ()


@dataclass(frozen=True)
class Text:
    """A response: its text, its ids up to the first end token, and whether the guard put a stub in its place."""

    text: str
    ids: list[int]
    flagged: bool


@dataclass(frozen=True)
class LogProb:
    """Log-probability (nats) of a continuation, its standard error over the drawn masks, and whether greedy decoding
    gives it (None where nobody asked)."""

    total: float
    stderr: float
    greedy: bool | None


class Answers:
    """What one model answers. guard: a fitted `midward.guards.Guard` in front of its generations, or None.

    folder: where answers are kept, a file a process (`answers-0.jsonl`); None keeps them in memory.
    draws: masks of a Monte-Carlo likelihood, 2 or more. seed: of these masks; sampling has its own.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        folder: str | Path | None = None,
        batch_size: int = 8,
        draws: int = 128,
        seed: int = 0,
        watchers: Sequence[Watcher] = (),
        progress: Progress = lambda what, done, of: None,
    ) -> None:
        if not isinstance(draws, int) or draws < 2:
            raise InputError(f"draws must be an integer, 2 or more; received {draws!r}.")
        self.model = model
        self.batch_size = batch_size
        self.draws, self.seed = draws, seed
        self.watchers, self.progress = watchers, progress
        self.rows: dict[str, dict] = {}
        self.file: RowFile | None = None
        if folder is not None:
            for path in sorted(Path(folder).glob("answers-*.jsonl")):
                self.rows |= RowFile(path).rows
            processes.barrier()  # nobody writes before all have read
            self.file = RowFile(Path(folder) / f"answers-{processes.rank()}.jsonl")

    def texts(self, questions: Sequence[Question]) -> list[Text]:
        """A response to every question, in their order."""
        guard = getattr(self.model, "guard", None)
        common = {"kind": "text", "model": self.model.fingerprint, "guard": guard and guard.digest}
        settings = {sampling: asdict(sampling) for sampling in {one.sampling for one in questions}}
        keys = [
            key_of(**common, prompt=one.prompt, sampling=settings[one.sampling], seed=one.seed, until=one.until)
            for one in questions
        ]
        # Of one sampling each, and of similar length, so that chunks make full batches.
        missing = self._missing(keys, questions)
        missing.sort(key=lambda pair: (str(settings[pair[1].sampling]), pair[1].until, len(pair[1].prompt)))
        what, done = f"{len(keys)} texts", len(keys) - len(missing)
        self.progress(what, done, len(keys))
        for chunk in _chunks(missing, lambda one: (one.sampling, one.until)):
            requests = [
                Request(one.prompt) if one.seed == 0 else Request(one.prompt, seed=one.seed) for _, one in chunk
            ]
            run = sample if guard is None else guard.sample
            watchers = [*self.watchers, *self._stops(chunk[0][1].until)]
            responses = run(self.model, requests, chunk[0][1].sampling, batch_size=self.batch_size, watchers=watchers)
            self._keep(
                [
                    {
                        "key": key,
                        "text": response.checked().text,  # a task can't be scored without
                        "ids": response.ids,
                        "flagged": response.verdict is not None and response.verdict.flagged,
                    }
                    for (key, _), response in zip(chunk, responses, strict=True)
                ]
            )
            done += len(chunk)
            self.progress(what, done, len(keys))
        return [Text(row["text"], row["ids"], row["flagged"]) for row in (self.rows[key] for key in keys)]

    def _stops(self, until: Sequence[str]) -> list[Watcher]:
        """Ends rows at their stop texts. Not before a guard, who must see what it was fitted on, and not where what
        stands may fall again."""
        if not any(until) or getattr(self.model, "guard", None) or self.model.family.kind == "canvas":
            return []
        return [Stops(self.model, until)]

    def log_probs(self, pairs: Sequence[tuple[Ids, Ids]], *, greedy: bool = True) -> list[LogProb]:
        """How probable each continuation (one token or more) is behind its prompt, with nothing behind itself.

        An autoregressive model: exactly. A diffusion model: the mean over masked counts l of n / l times the masked
        tokens' log-probability (LLaDA, Nie et al. 2025, eq. 6), over all masks where there are no more than `draws`,
        else over `draws` random ones with even counts. Masks are seeded by the request alone. The guard has no say.
        greedy: also decode greedily where one look at the model doesn't tell.
        """
        common = {
            "kind": "log-prob",
            "model": self.model.fingerprint,
            "draws": self.draws,
            "seed": self.seed,
            "greedy": greedy,
        }
        keys = [key_of(**common, prompt=prompt, ids=ids) for prompt, ids in pairs]
        missing = self._missing(keys, pairs)
        what, done = f"{len(keys)} likelihoods", len(keys) - len(missing)
        self.progress(what, done, len(keys))
        for chunk in _chunks(missing, lambda pair: 2 ** len(pair[1]) - 1 <= self.draws):
            spans = [Span(prompt, 0, ids) for _, (prompt, ids) in chunk]
            found = span_log_probs(
                self.model,
                spans,
                mode="all" if 2 ** len(spans[0].ids) - 1 <= self.draws else "even",
                length=None,
                samples=self.draws,
                seed=self.seed,
                batch_size=self.batch_size,
            )
            if any(math.isnan(score.total) for score in found):
                raise ModelError(f"{self.model.name!r} computes NaN or infinite numbers, so tasks can't be scored.")
            one_look = self.model.family.kind == "autoregressive"
            looked = [score.top if one_look or len(span.ids) == 1 else None for span, score in zip(spans, found)]
            if greedy:
                looked = self._decoded(spans, looked)
            self._keep(
                [
                    {"key": key, "total": score.total, "stderr": score.stderr, "greedy": is_greedy}
                    for (key, _), score, is_greedy in zip(chunk, found, looked, strict=True)
                ]
            )
            done += len(chunk)
            self.progress(what, done, len(keys))
        return [LogProb(row["total"], row["stderr"], row["greedy"]) for row in (self.rows[key] for key in keys)]

    def _decoded(self, spans: Sequence[Span], known: list[bool | None]) -> list[bool | None]:
        """Fill in what isn't known: whether decoding greedily, a token a step, gives just the span."""
        by_length = defaultdict(list)
        for index, (span, is_greedy) in enumerate(zip(spans, known, strict=True)):
            if is_greedy is None:
                by_length[len(span.ids)].append(index)
        base = Sampling.for_model(self.model)
        for length, indices in by_length.items():
            sampling = replace(
                base,
                length=length,
                steps=length,
                block=base.block and min(base.block, length),
                threshold=None,
                temperature=0.0,
                guidance=0.0,
                cache=None,
                end="keep",
            )
            requests = [Request(spans[index].prompt) for index in indices]
            for index, response in zip(
                indices, sample(self.model, requests, sampling, batch_size=self.batch_size), strict=True
            ):
                known[index] = tuple(response.raw_ids) == spans[index].ids
        return known

    def _missing(self, keys: Sequence[str], items: Sequence[T]) -> list[tuple[str, T]]:
        """What has no answer yet, each once."""
        wanted = {key: item for key, item in zip(keys, items, strict=True) if key not in self.rows}
        return list(wanted.items())

    def _keep(self, rows: Sequence[dict]) -> None:
        self.rows |= {row["key"]: row for row in rows}
        if self.file is not None:
            self.file.extend(rows)


def _chunks(items: Sequence[tuple[str, T]], alike: Callable[[T], object]) -> list[list[tuple[str, T]]]:
    """Up to CHUNK items each, neighbours that are alike."""
    chunks: list[list[tuple[str, T]]] = []
    for item in items:
        if not chunks or len(chunks[-1]) == CHUNK or alike(chunks[-1][0][1]) != alike(item[1]):
            chunks.append([])
        chunks[-1].append(item)
    return chunks
