"""The one measuring loop: cases -> responses -> verdicts -> rows.

Generation over files, probes, dynamics, guards and the world's own tasks go through `measure` (attacks are Inspect's
evaluations, lm-evaluation-harness runs its own tasks). It answers what isn't answered yet, a chunk at a time; judges
the chunk; lets readers look at how its responses came about; and appends its rows with one write to the disk. Killed at
any point, the same call goes on where it stopped. Several workers share the chunks (`workers.spread`); the rows are the
same.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from midward.errors import InputError
from midward.goals import Goal
from midward.judges import Verdict
from midward.judges.bench import Bench, judging, reading
from midward.models import LanguageModel
from midward.runs.run import ROWS
from midward.runs.workers import Lost, Workers, spread
from midward.sampling import Request, Response, Sampling, Watcher, sample
from midward.sampling.requests import require_some, resolve
from midward.store import RowFile, key_of

Row = dict[str, Any]

#: Fields that a judge fills; None where it gave no verdict, or there was no response.
JUDGED = ("success", "score", "refused", "coherent", "correct")


@dataclass(frozen=True)
class Case:
    """One response that is wanted.

    Attributes:
        goal: what the judge is told of.
        request: what the model is asked, forced spans included.
        set: what the case is listed under; by default the goal's source.
        about: further fields of its row (kind, position, ...), as JSON.
        error: why it can't be asked at all; its row has this error and no response.
        bare: whether its row leaves the goal's fields out, of which nothing is known.
    """

    goal: Goal
    request: Request
    set: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    bare: bool = False


class Reader:
    """Reads more of a chunk's generations than their responses; a new one is made for each chunk.

    `place` is the case's place in the chunk, which is the request index that watchers see.
    """

    #: What sees the steps of the chunk.
    watchers: Sequence[Watcher] = ()

    def texts(self, place: int, case: Case, response: Response) -> Sequence[str]:
        """Texts of this generation that are judged beside the response, e.g. those of earlier steps."""
        return ()

    def fields(self, place: int, case: Case, response: Response, readings: Sequence[Row]) -> Row:
        """Fields of the row, as JSON. readings: what the judge says of `texts`, as the fields of JUDGED."""
        return {}


class Front(Protocol):
    """What may stand in front of a model: a `midward.guards.Guard`. digest: of all that its verdicts depend on."""

    @property
    def digest(self) -> str: ...

    def sample(
        self,
        model: LanguageModel,
        requests: Sequence[Any],
        sampling: Sampling,
        *,
        batch_size: int,
        watchers: Sequence[Watcher],
    ) -> list[Response]:
        """`midward.sample` behind it."""


Judging = Callable[[Sequence[Goal], Sequence[str]], list[Verdict]]
Answers = Callable[[Sequence[Case], Sequence[Response]], Sequence[str | None]]


def measure(
    model: LanguageModel,
    cases: Sequence[Case],
    folder: str | Path,
    *,
    sampling: Sampling,
    judge: Bench | None = None,
    guard: Front | None = None,
    readers: Sequence[Callable[[], Reader]] = (),
    text: Answers | None = None,
    about: Mapping[str, Any] | None = None,
    depends: Any = None,
    batch_size: int = 16,
    watchers: Sequence[Watcher] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
    file: str = ROWS,
    strict: bool = True,
    workers: Workers = 1,
) -> list[Row]:
    """Answer, judge and read every case; a row each, appended as it comes.

    Args:
        model: with its adapter, which is part of its fingerprint.
        cases: what is asked; the rows are returned in their order.
        folder: where `file` (JSON lines) stands. Rows that are there already, of an equal case, are kept.
        sampling: settings of every response.
        judge: says what each response did; without one the fields of JUDGED are left out.
        guard: stands in front of the model; its verdict is the row's `guard`.
        readers: each makes a `Reader` for a chunk.
        text: cases, responses -> what is judged and kept as the response; None where there is none. By default the
            responses' own texts.
        about: fields of every row of this call (the model's label, ...), as JSON.
        depends: what the readers' fields and `text` depend on beyond all this, as JSON; part of the rows' keys.
        batch_size: rows per forward, 1 or more.
        watchers: see the steps and add nothing to the rows (a progress display); none does with several workers.
        progress: called with the rows that are there and those wanted.
        strict: whether a request that can't be followed is raised before the first forward; else it is the error of its
            row.
        workers: how many processes share the chunks, each with a copy of model, guard and judge. A chunk whose worker
            is lost is done again by another, twice at most; then its rows have that for an error.

    Returns:
        Rows: key, set, goal (id), source, subject, harmful, prompt, response, ended, nfe, steps, seconds (its share of
        its chunk's), the fields of JUDGED, `guard`, `about`, the case's `about`, the readers' fields; `error` where
        there is no response.

    Raises:
        InputError or TypeError: before the first forward, for a request that can't be followed.
        ModelError: where no case has a response.
        InputError or WorkersError: see `midward.runs.workers.spread`.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more; received {batch_size}.")
    rows = RowFile(Path(folder) / file)
    about = dict(about or {})
    # 1. A row's key holds all that it depends on, so that a row of anything else is never taken for it.
    run = key_of(
        model=model.fingerprint,
        sampling=asdict(sampling),
        judge=judge and judge.key,
        guard=guard and guard.digest,
        about=about,
        depends=depends,
    )
    keys = [
        key_of(run=run, set=case.set, goal=asdict(case.goal), request=case.request.record(), about=case.about)
        for case in cases
    ]
    if len(set(keys)) < len(keys):
        raise InputError("two cases are equal in everything; give each what tells it apart in `about`.")
    missing = [i for i, key in enumerate(keys) if key not in rows.rows]
    cases = list(cases)
    for i in missing:
        try:
            if cases[i].error is None:
                resolve(model, cases[i].request, sampling, i)
        except (TypeError, ValueError) as error:
            if strict:
                raise
            cases[i] = replace(cases[i], error=str(error).replace("request", "row", 1))
    done = len(keys) - len(missing)
    progress(done, len(keys))
    seen = watchers if workers == 1 else ()
    threads = max(1, torch.get_num_threads() // workers) if isinstance(workers, int) else 1
    chunks = _Chunks(model, sampling, judge, guard, readers, text, batch_size, seen, model.device.type, threads)
    every = range(0, len(cases), 2 * batch_size)
    missing_of = [[i for i in missing if start <= i < start + 2 * batch_size] for start in every]
    places = [chunk for chunk in missing_of if chunk]
    with lent(model) if workers != 1 else nullcontext(0) as gpus:
        for at, result in spread(chunks.ready, [[cases[i] for i in chunk] for chunk in places], workers, gpus=gpus):
            if isinstance(result, Lost):
                written, tally = [chunks.without(cases[i], result.why) for i in places[at]], Counter[str | None]()
            else:
                written, tally = result
            rows.append(*({"key": keys[i], **about, **row} for i, row in zip(places[at], written, strict=True)))
            if judge:
                judge.tally.update(tally)
            done += len(written)
            progress(done, len(keys))
    measured = [rows.rows[key] for key in keys]
    require_some(measured)
    return measured


@contextmanager
def lent(model: LanguageModel) -> Iterator[int]:
    """Make room on the GPU, if the model is on one, for the workers' copies; how many GPUs there are for these."""
    if len(getattr(model.causal_lm, "hf_device_map", {})) > 1:
        raise InputError(f"{model.name} is spread over several devices, and each worker has one; use one worker.")
    device = model.device
    moves = device.type != "cpu" and not model.quantized
    if moves:
        model.network.to("cpu")
    try:
        yield torch.cuda.device_count() if device.type == "cuda" else 0
    finally:
        if moves:
            model.network.to(device)


@dataclass(frozen=True)
class _Chunks:
    """What is the same for every chunk of a call to `measure`."""

    model: LanguageModel
    sampling: Sampling
    judge: Bench | None
    guard: Front | None
    readers: Sequence[Callable[[], Reader]]
    text: Answers | None
    batch_size: int
    watchers: Sequence[Watcher]
    device: str
    threads: int

    @contextmanager
    def ready(self) -> Iterator[Callable[[Sequence[Case]], tuple[list[Row], Counter[str | None]]]]:
        """What makes the rows of a chunk, and counts the judge's verdicts as `Bench.tally` does."""
        torch.set_num_threads(self.threads)
        if self.device != self.model.device.type:  # a copy that came to a worker
            self.model.network.to(self.device)
        if self.judge is None:
            yield lambda cases: (self.rows(cases, None), Counter())
            return
        own = replace(self.judge, tally=Counter(self.judge.tally))
        with judging(own) as ask:

            def judged(cases: Sequence[Case]) -> tuple[list[Row], Counter[str | None]]:
                before = Counter(own.tally)
                return self.rows(cases, ask), own.tally - before

            yield judged

    def without(self, case: Case, why: str) -> Row:
        """The row of a case that has no response."""
        unjudged = dict.fromkeys(JUDGED) if self.judge else {}
        return _asked(case) | _NOTHING | unjudged | {"error": why}

    def rows(self, cases: Sequence[Case], ask: Judging | None) -> list[Row]:
        """The rows of a chunk of cases, without their keys. ask: goals, texts -> the judge's verdicts."""
        # 2. Sample those that can be asked. A case that can't has an error in its response's place.
        asked = [case for case in cases if case.error is None]
        readers = [make() for make in self.readers]
        watchers = [*(watcher for reader in readers for watcher in reader.watchers), *self.watchers]
        requests, run = [case.request for case in asked], sample if self.guard is None else self.guard.sample
        started = time.perf_counter()
        responses = run(self.model, requests, self.sampling, batch_size=self.batch_size, watchers=watchers)
        seconds = round((time.perf_counter() - started) / max(1, len(asked)), 4)
        answers = self.text(asked, responses) if self.text else [response.text for response in responses]
        # 3. Judge each distinct text of a case once: first what came, then what each reader names.
        texts = [
            [[answer or ""], *(list(reader.texts(place, case, response)) for reader in readers)]
            for place, (case, response, answer) in enumerate(zip(asked, responses, answers, strict=True))
        ]
        readings = self._readings(asked, texts, ask)
        # 4. A row each: what was asked, what came, what the judge and the readers say of it.
        unjudged, rows, places = dict.fromkeys(JUDGED) if self.judge else {}, [], iter(range(len(asked)))
        for case in cases:
            if case.error is not None:
                rows.append(self.without(case, case.error))
                continue
            place = next(places)
            response, answer, [[judged], *of_readers] = responses[place], answers[place], readings[place]
            row = _asked(case) | {"response": answer, "ended": response.ended, "nfe": response.nfe}
            row |= {"steps": response.steps, "seconds": seconds}
            row |= {} if response.verdict is None else {"guard": response.verdict.record()}
            row |= judged
            for reader, own in zip(readers, of_readers, strict=True):
                row |= reader.fields(place, case, response, own)
            error = response.error or ("no answer came from the model behind" if answer is None else None)
            rows.append(row if error is None else row | unjudged | {"response": None, "error": error})
        return rows

    def _readings(
        self, cases: Sequence[Case], texts: Sequence[Sequence[Sequence[str]]], ask: Judging | None
    ) -> list[list[list[Row]]]:
        """What the judge says of each text of each case, as the fields of JUDGED; empty fields without a judge."""
        fields: dict[tuple[int, str], Row] = {}
        if self.judge is not None and ask is not None:
            of = [(place, text) for place, by_reader in enumerate(texts) for own in by_reader for text in own]
            distinct = list(dict.fromkeys(of))
            verdicts = ask([cases[place].goal for place, _ in distinct], [text for _, text in distinct])
            for (place, text), verdict in zip(distinct, verdicts, strict=True):
                fields[place, text] = reading(self.judge, verdict, text)
        return [
            [[fields.get((place, text), {}) for text in own] for own in by_reader]
            for place, by_reader in enumerate(texts)
        ]


#: Of a case that can't be asked.
_NOTHING: Row = {"response": None, "ended": None, "nfe": 0, "steps": 0, "seconds": 0.0}


def _asked(case: Case) -> Row:
    goal = case.goal
    of_goal: Row = {"set": case.set or goal.source, "goal": goal.id, "source": goal.source, "subject": goal.subject}
    of_goal |= {"harmful": goal.harmful}
    return {**({} if case.bare else of_goal), **case.about, "prompt": case.request.prompt}
