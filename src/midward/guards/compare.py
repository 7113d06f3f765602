"""Guards side by side: what each lets through, what it stops that it shouldn't, and what it costs.

1. Every case is answered once, without any guard (`Comparison.answers`).
2. Each guard says of the same answers what it would have done, so that guards are compared on equal generations; one
   that repairs answers anew (`Comparison.decisions`). A test checks that the guard in front does the same.
3. The answers and decisions become rates with intervals, and these a summary (`midward.guards.defences`).

Rows are appended as they come; running again goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from anyio.from_thread import start_blocking_portal
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.util import collect

from midward._asking import bounded, unavailable
from midward._tables import write_table
from midward.errors import InputError
from midward.guards.config import GuardError
from midward.guards.defences import summary, table
from midward.guards.exchange import Exchange, around
from midward.guards.guard import Guard
from midward.guards.signals import Signals, signals_of
from midward.judges.bench import Bench
from midward.models import LanguageModel
from midward.runs.measure import Answers, Case, Row, measure
from midward.runs.workers import Workers
from midward.sampling import Request, Response, Sampling, sample
from midward.store import RowFile, key_of

CHUNK = 32  # rows that are scored between two writes
Progress = Callable[[str, int, int], None]


# --- what is asked ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Behind:
    """Another model, whose answers are guarded by a surrogate (SRI, S9): the guards' own model answers the same prompts
    beside it, and what they make of that decides. ask: prompts -> answers, None where it failed."""

    name: str
    ask: Callable[[Sequence[str]], Sequence[str | None]]


@contextmanager
def behind(name: str) -> Iterator[Behind]:
    """Any Inspect model as `Behind`, at temperature 0. Raises GuardError where it can't be had."""
    try:
        model = bounded(get_model(name, memoize=False))
    except Exception as error:  # whatever a provider raises over a missing key or package
        raise GuardError(f"{name}: {unavailable(error)}") from error
    settings = GenerateConfig(temperature=0.0, seed=0)

    async def answer_of(prompt: str) -> str | None:
        try:
            return (await model.generate(prompt, config=settings)).completion
        except Exception:  # whatever a provider raises once Inspect's own retries are spent
            return None

    async def answers_of(prompts: Sequence[str]) -> list[str | None]:
        return list(await collect(*(answer_of(prompt) for prompt in prompts)))

    with start_blocking_portal() as portal:
        yield Behind(str(model), lambda prompts: portal.call(answers_of, prompts))


def _plain(model: LanguageModel, request: Request) -> bool:
    """Whether any model can be asked this: a text, nothing forced, no mask in it."""
    mask_id = model.family.mask_id
    if not isinstance(request.prompt, str) or request.forced or request.bans or request.edits:
        return False
    return mask_id is None or mask_id not in model.encode(request.prompt)


def _filled(model: LanguageModel) -> Answers:
    """What is judged: the response; behind the filled user turn where the prompt held masks."""
    head, _ = around(model)

    def text(case: Case, response: Response) -> str:
        ids = model.encode(case.request.prompt) if isinstance(case.request.prompt, str) else []
        if model.family.mask_id not in ids:
            return response.text
        filled = model.text(response.prompt_ids[len(head) :])
        return f"{filled} {response.text}".strip()

    return lambda cases, responses: [text(case, each) for case, each in zip(cases, responses, strict=True)]


@dataclass(frozen=True)
class Comparison:
    """Guards on the same answers. Rows are appended as they come, so a second time nothing is asked again.

    Attributes:
        model: the guards' own.
        cases: what is asked; `about` has `plain`, the goal behind the attack.
        guards: label -> guard, fitted.
        folder: of the rows, and of scores.csv, a row for each guard and answer.
        sampling: of every answer.
        judge: says what each did.
        other: whose answers are judged and guarded; `model` then is its surrogate, a guard that repairs only refuses,
            and costs aren't measured.
        batch_size: rows of a forward.
        progress: called with what is done, how many are, and of how many.
        workers: that answer; this process scores and measures costs.
    """

    model: LanguageModel
    cases: Sequence[Case]
    guards: Mapping[str, Guard]
    folder: Path
    sampling: Sampling
    judge: Bench
    other: Behind | None = None
    batch_size: int = 16
    progress: Progress = lambda what, done, of: None
    workers: Workers = 1

    def run(self, repeats: int = 5) -> dict[str, Any]:
        """Answer, decide, measure what it costs, and sum up (see `summary`). repeats: of the costs' measurement.

        Raises:
            InputError: where a case is no plain prompt (forced spans, masks): another model can't be asked that.
            ModelError: where none has an answer.
        """
        rows = self.answers()
        decisions = self.decisions(rows)
        costs = None if self.other else self.overhead(rows, decisions, repeats)
        write_table(self.folder / "scores", table(rows, decisions))
        return summary(rows, decisions, self.guards, costs)

    # --- 1. answers -----------------------------------------------------------------------------------------

    def answers(self) -> list[Row]:
        """Answer every case without a guard, with the SRI signals that the guards look at.

        Returns:
            Rows as `measure` makes them, with `signals` by what the guards read. The response of a prompt with
            masks is the filled turn and the reply.
        """
        watching = {guard.reads: guard.watcher for guard in self.guards.values() if guard.reads}
        text, other = _filled(self.model), self.other
        if other is not None:
            if shaped := next((case for case in self.cases if not _plain(self.model, case.request)), None):
                raise InputError(
                    f"the set {shaped.set!r} forces tokens or sends masks, which {other.name} can't be asked; use "
                    "plain prompts."
                )
            ask = other.ask
            text = lambda cases, responses: ask([str(case.request.prompt) for case in cases])  # noqa: E731
        return self._measured(
            "answers",
            readers=[lambda: Signals(watching)],  # type: ignore[arg-type]
            text=text,
            depends={"anchors": sorted(watching), "behind": other and other.name},
        )

    def _measured(self, what: str, **how: Any) -> list[Row]:
        return measure(
            self.model,
            self.cases,
            self.folder,
            sampling=self.sampling,
            judge=self.judge,
            batch_size=self.batch_size,
            progress=partial(self.progress, what),
            workers=self.workers,
            **how,
        )

    # --- 2. decisions ---------------------------------------------------------------------------------------

    def decisions(self, rows: Sequence[Row]) -> dict[str, list[Row]]:
        """What each guard does about each answer.

        Args:
            rows: as `answers` gives them.

        Returns:
            label -> a decision for each row: score, seeds (the score by each seed of what was trained, where there are
            several), flagged, step (after which it stops the generation, -1 for before it; None where it doesn't, or
            where the response was over by then), and seconds. Of a guard that repairs also response, success, refused
            and correct of its own answer.
        """
        decisions: dict[str, list[Row]] = {}
        for label, guard in self.guards.items():
            repairs = guard.repairs and not self.other
            scores = self._repaired(label, guard) if repairs else self._scores(label, guard, rows)
            flags = guard.flag(np.array([score["score"] for score in scores], dtype=float)).tolist()
            stops: Sequence[int | None] = [-1 if guard.looks == "before" else None] * len(rows)
            if guard.reads and rows:
                stops = guard.stops(signals_of(rows, guard.reads))
                if self.sampling.threshold is not None:  # of a schedule some steps are skipped, and not counted
                    pairs = zip(stops, rows, strict=True)
                    stops = [None if stop is None or stop >= row["steps"] else stop for stop, row in pairs]
                early = guard.flag(np.array([score.pop("early", None) for score in scores], dtype=float)).tolist()
                stops = [-1 if is_early else stop for is_early, stop in zip(early, stops, strict=True)]
            decisions[label] = [
                {**score, "flagged": None if row.get("error") else flagged, "step": step if flagged else None}
                for row, score, flagged, step in zip(rows, scores, flags, stops, strict=True)
            ]
        return decisions

    def _repaired(self, label: str, guard: Guard) -> list[Row]:
        """What a guard that repairs answers, told the goal behind each attack, which only an evaluation knows."""
        plain = {key_of(request=case.request.record()): case.about.get("plain") for case in self.cases}

        def answer(model: LanguageModel, requests: Sequence[Request], sampling: Sampling, **how: Any) -> list[Response]:
            exchanges = [Exchange(request, plain=plain[key_of(request=request.record())]) for request in requests]
            return guard.answer(model, exchanges, sampling, **how)

        front = SimpleNamespace(digest=guard.digest, sample=answer)
        text, file = _filled(self.model), f"answers-{label}.jsonl"
        rows = self._measured(f"{label}: answers", guard=front, text=text, file=file)
        kept = ("response", "success", "refused", "correct", "nfe", "seconds")
        return [{"score": (row.get("guard") or {}).get("score"), **{name: row[name] for name in kept}} for row in rows]

    def _scores(self, label: str, guard: Guard, rows: Sequence[Row]) -> list[Row]:
        """Score every answer; a row each in a file of the guard's, kept as long as the fitted guard is the same."""
        file = RowFile(self.folder / f"scores-{label}.jsonl")
        keys = [key_of(row=row["key"], guard=guard.digest) for row in rows]
        todo = [i for i, key in enumerate(keys) if key not in file.rows]
        signals = signals_of(rows, guard.reads) if guard.reads else [None] * len(rows)
        for start in range(0, len(todo), CHUNK):
            chunk = todo[start : start + CHUNK]
            exchanges = [
                Exchange(case.request, rows[i]["response"] or "", signals[i], case.about.get("plain"))
                for i, case in ((i, self.cases[i]) for i in chunk)
            ]
            started = time.process_time()
            early = guard.early(self.model, exchanges, batch_size=self.batch_size) if guard.reads else None
            seconds = (time.process_time() - started) / len(chunk)
            if early is not None:
                exchanges = [replace(each, early=own) for each, own in zip(exchanges, early, strict=True)]
            scores = guard.scores_by_seed(self.model, exchanges, batch_size=self.batch_size)
            if early is None:  # else the rest is what its watcher takes
                seconds = (time.process_time() - started) / len(chunk)
            written = []
            for place, (i, by_seed) in enumerate(zip(chunk, scores.T.tolist(), strict=True)):
                unknown = rows[i].get("error") or np.isnan(by_seed[0])
                seeds = {"seeds": None if unknown else by_seed} if len(by_seed) > 1 else {}
                more = {} if early is None or not early.size else {"early": float(np.nanmax(early[place]))}
                written.append(
                    {"key": keys[i], "score": None if unknown else by_seed[0], **seeds, **more, "seconds": seconds}
                )
            file.append(*written)
            self.progress(f"{label}: scores", len(rows) - len(todo) + start + len(chunk), len(rows))
        return [dict(file.rows[key]) for key in keys]

    # --- what it costs --------------------------------------------------------------------------------------

    def overhead(
        self, rows: Sequence[Row], decisions: Mapping[str, Sequence[Row]], repeats: int = 5
    ) -> dict[str, float]:
        """Extra time of each guard, as a share of answering requests without one.

        A guard that looks before or after costs what its scores took, one that repairs what its answers took beyond
        the model's. One that looks at signals costs what its watcher takes of a generation, with the threshold out of
        reach so that it stops none, and what it makes of the request alone. That is a few per mille: the difference of
        two whole runs would measure the machine.

        Args:
            rows, decisions: as `answers` and `decisions` give them.
            repeats: generations of which the median is taken, each watched by all guards that look at signals.
        """
        prompts = [row["prompt"] for row in rows if not row["harmful"]] or [row["prompt"] for row in rows]
        prompts = prompts[: 2 * self.batch_size]
        runs = []
        for number in range(repeats):
            self.progress("costs", number, repeats)
            runs.append(self._seconds(prompts))
        self.progress("costs", repeats, repeats)
        bare = np.median([seconds for seconds, _ in runs])
        costs = {}
        for label, guard in self.guards.items():
            seconds = np.mean([decision["seconds"] for decision in decisions[label]])
            if guard.reads:
                costs[label] = float(np.median([watching[label] / without for without, watching in runs]))
                costs[label] += float(seconds * len(prompts) / bare)  # of members that look at the request
            elif guard.repairs:
                costs[label] = float(seconds / np.mean([row["seconds"] for row in rows])) - 1
            else:
                costs[label] = float(seconds * len(prompts) / bare)
        return costs

    def _seconds(self, prompts: Sequence[Any]) -> tuple[float, dict[str, float]]:
        """CPU seconds of answering but for guards' watchers, which stop nothing, and those that each watcher took."""
        watchers: dict[str, Any] = {}
        for label, guard in self.guards.items():
            if guard.reads:
                unreached = copy(guard)
                unreached.threshold = np.inf
                watchers[label] = unreached.watcher({})
        spent = {label: _timed(watcher) for label, watcher in watchers.items()}
        started = time.process_time()
        sample(self.model, prompts, self.sampling, batch_size=self.batch_size, watchers=list(watchers.values()))
        whole = time.process_time() - started
        watching = {label: sum(seconds) for label, seconds in spent.items()}
        return whole - sum(watching.values()), watching


def _timed(watcher: Any) -> list[float]:
    """Make a watcher count its own CPU seconds, which other load on the machine hardly moves; they are appended."""
    spent: list[float] = []

    def timed(call: Callable[[Any], None]) -> Callable[[Any], None]:
        def run(argument: Any) -> None:
            started = time.process_time()
            call(argument)
            spent.append(time.process_time() - started)

        return run

    for name in ("on_start", "on_step", "on_end"):
        setattr(watcher, name, timed(getattr(watcher, name)))
    return spent
