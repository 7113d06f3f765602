"""Searches for suffixes, a case each: several at a time, resumable, in this process or in several."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event, Lock
from typing import Any

import torch

from midward.models import LanguageModel
from midward.models.threads import available_threads
from midward.probes.configs import Gcg
from midward.probes.evading import Evaded
from midward.probes.probe import Progress, Row
from midward.probes.suffix import Aim, Search, SuffixPrompt, drafts_of, forwards, search
from midward.runs.measure import Case, lent
from midward.runs.workers import Lost, Workers, spread
from midward.sampling import Request, Sampling
from midward.store import RowFile, key_of

VERSION = "2"  # raised whenever a row may come out otherwise
EVERY = 10  # iterations between two writes of a search under way
#: Settings that a search's result hangs on.
SETTINGS = ("tokens", "iterations", "width", "top", "stop_loss", "drafts")
#: What a search came to, as fields of a case's row.
FIELDS = ("suffix", "suffix_ids", "start_loss", "loss", "curve", "evaluated", "dropped")


def aim_of(case: Case) -> Aim:
    """What a case's search aims at."""
    return Aim(case.about["position"], case.about["phrase"], tuple(case.about["ids"]))


class _Stopped(Exception):
    """Another search failed, or the user has had enough."""


class _Searches:
    """The searches of a run, several at a time. Where each stands is a row of searches.jsonl, the last one of its key,
    until it has `ended`."""

    def __init__(
        self,
        model: LanguageModel,
        config: Gcg,
        sampling: Sampling,
        file: RowFile | None = None,
        total: int = 0,
        progress: Progress = lambda what, done, of: None,
    ) -> None:
        self.model, self.config, self.sampling = model, config, sampling
        self.evaded = Evaded.of(model, config, sampling)
        self.file, self.lock, self.stopped = file, Lock(), Event()
        self.total, self.done, self.progress = total * config.iterations, 0, progress

    def advance(self, iterations: int) -> None:
        with self.lock:
            self.done += iterations
            self.progress("iterations", self.done, self.total)

    def prepared(self, case: Case) -> Case:
        """The case with the suffix that is found for it; a control as it is."""
        return case if case.about["position"] is None else self.found(case, self.row(case, self.kept(case)))

    def found(self, case: Case, row: Row) -> Case:
        """The case with the suffix of its search's last row."""
        text = SuffixPrompt(self.model, case.goal.prompt).text(tuple(row["suffix_ids"]))
        about = {**case.about, **{name: row[name] for name in FIELDS}}
        if case.about["objective"]:
            drafts = max(1, self.config.draws(case.about["objective"]))
            about["forwards"] = forwards(row["evaluated"], row["curve"], drafts)
        return replace(case, request=Request(text), about=about)

    def kept(self, case: Case) -> Row | None:
        """Where the search of a case stands; None where it hasn't begun."""
        return self.file.rows.get(self.key(case)) if self.file else None

    def key(self, case: Case) -> str:
        """Of all that a search's result hangs on."""
        aim, objective = aim_of(case), case.about["objective"]
        further = {"objective": objective} if objective else {}
        further |= self.evaded.about if self.evaded and self.evaded.weight else {}  # else it is the plain search
        return key_of(
            version=VERSION,
            model=self.model.fingerprint,
            settings={name: getattr(self.config, name) for name in SETTINGS},
            sampling=asdict(self.sampling),
            goal=case.goal.id,
            prompt=case.goal.prompt,
            position=aim.position,
            ids=aim.ids,
            **further,
        )

    def row(self, case: Case, kept: Row | None) -> Row:
        """Search, from where it was left off."""
        goal, aim, config, sampling = case.goal, aim_of(case), self.config, self.sampling
        objective, key = case.about["objective"], self.key(case)
        if kept and kept["ended"]:
            self.advance(config.iterations)
            return kept
        prompt, state = SuffixPrompt(self.model, goal.prompt), Search.of(kept["state"]) if kept else None
        begun = time.perf_counter() - (kept["seconds"] if kept else 0.0)
        self.advance(len(state.curve) - 1 if state else 0)

        def note(state: Search, ended: bool) -> Row:
            row = {
                "key": key,
                "goal": goal.id,
                **case.about,
                "suffix": self.model.tokenizer.decode(list(state.best), clean_up_tokenization_spaces=False),
                "suffix_ids": list(state.best),
                "start_loss": state.curve[0],
                **{name: getattr(state, name) for name in ("loss", "curve", "evaluated", "dropped")},
                "seconds": round(time.perf_counter() - begun, 3),
                "ended": ended,
                "state": None if ended else asdict(state),
            }
            with self.lock:
                if self.file:
                    self.file.append(row)
            return row

        def watch(state: Search) -> None:
            if self.stopped.is_set():
                raise _Stopped
            self.advance(1)
            if (len(state.curve) - 1) % EVERY == 0:
                note(state, ended=False)

        start = prompt.ids(tuple(case.about["start_ids"]))
        drafts = drafts_of(self.model, start, aim, config.draws(objective), sampling, goal.id, objective)
        how: dict[str, Any] = {"length": sampling.length, "seed": sampling.seed, "key": goal.id, "drafts": drafts}
        how |= {"budget": config.budget or math.inf, "evaded": self.evaded}
        state = search(self.model, prompt, aim, config, state=state, watch=watch, **how)
        self.advance(config.iterations - (len(state.curve) - 1))
        return note(state, ended=True)


@dataclass(frozen=True)
class _Afar:
    """The searches of a worker, one at a time; whoever sent them keeps their rows."""

    model: LanguageModel
    config: Gcg
    sampling: Sampling
    device: str

    @contextmanager
    def ready(self) -> Iterator[Callable[[tuple[Case, Row | None]], Row]]:
        """What takes a case, and where its search stands, to the row that it ends with."""
        torch.set_num_threads(1)
        self.model.network.to(self.device)
        searches = _Searches(self.model, self.config, self.sampling)
        yield lambda piece: searches.row(*piece)


def searched(
    model: LanguageModel,
    asked: Sequence[Case],
    config: Gcg,
    sampling: Sampling,
    folder: Path,
    progress: Progress,
    workers: Workers = 1,
) -> list[Case]:
    """The cases with the suffixes that were found; called again it goes on where it stopped, to the same suffixes.

    As many searches at a time as the config has `searches` share torch's threads; small models use few threads well.
    Several workers do one each, and a search that its driver didn't see end begins anew.

    Args:
        model: whose gradient is followed.
        asked: as `cases` gives them.
        config: of the searches.
        sampling: of the responses; its length and seed count.
        folder: of searches.jsonl.
        progress: called with the iterations done, and of how many.
        workers: how many processes share the searches, see `midward.runs.workers`. A search whose worker is lost too
            often leaves its case with an error.
    """
    aimed = [case for case in asked if case.about["position"] is not None]
    searches = _Searches(model, config, sampling, RowFile(folder / "searches.jsonl"), len(aimed), progress)
    if workers != 1:
        return _by_workers(searches, asked, workers)
    own, threads = torch.get_num_threads(), available_threads()
    one_a_thread = threads if model.device.type == "cpu" else 1
    workers = one_a_thread if config.searches == 0 else config.searches or 1
    if workers > 1:
        torch.set_num_threads(max(1, threads // workers))
    with ThreadPoolExecutor(workers) as pool:
        coming = [pool.submit(searches.prepared, case) for case in asked]
        try:
            wait(coming, return_when=FIRST_EXCEPTION)
        finally:  # of a failure, or Ctrl-C: no search goes on behind it
            searches.stopped.set()
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(own)
    errors = [error for each in coming if not each.cancelled() and (error := each.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, _Stopped)):
        raise error  # what failed, and not a search that was stopped because of it
    return [each.result() for each in coming]


def _by_workers(searches: _Searches, asked: Sequence[Case], workers: Workers) -> list[Case]:
    """As `searched`. The searches' file is written by this process alone."""
    model, file = searches.model, searches.file
    assert file is not None
    rows = {place: searches.kept(case) for place, case in enumerate(asked) if case.about["position"] is not None}
    todo = [place for place, row in rows.items() if not (row and row["ended"])]
    searches.advance((len(rows) - len(todo)) * searches.config.iterations)
    work, lost = _Afar(model, searches.config, searches.sampling, model.device.type), {}
    with lent(model) as gpus:
        for at, row in spread(work.ready, [(asked[place], rows[place]) for place in todo], workers, gpus=gpus):
            if isinstance(row, Lost):
                lost[todo[at]] = row.why
            else:
                file.append(row)
                rows[todo[at]] = row
            searches.advance(searches.config.iterations)
    cases = []
    for place, case in enumerate(asked):
        kept = rows.get(place)
        cases.append(searches.found(case, kept) if kept and kept["ended"] else replace(case, error=lost.get(place)))
    return cases
