"""What a probe is: one record, which `midward probe NAME` and `run` know how to measure, sum up and compare.

A probe of a package of its own is one file: a `Probe`, named by an entry point of the group `midward.probes`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from reprlib import repr
from typing import Any

from midward._hints import differing
from midward._plugins import check_types, checking
from midward._tables import grouped
from midward.errors import InputError
from midward.goals import Goal
from midward.judges.bench import Bench, bench
from midward.models import LanguageModel
from midward.probes.configs import Attacking, ProbeConfig
from midward.runs.compare import differences, load, records
from midward.runs.measure import Case, Reader, measure
from midward.runs.run import ROWS, Run
from midward.runs.workers import Workers
from midward.sampling import Sampling, Watcher
from midward.stats import rate_of

Row = dict[str, Any]
Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


class ProbeError(InputError):
    """A probe can't be had."""


@dataclass(frozen=True)
class Probe:
    """A probe on the list.

    Attributes:
        name: as in `midward probe NAME`.
        config: its settings, a frozen dataclass whose fields have a `Flag`; its docstring begins with the question that
            the probe answers. One that is `Attacking` has its responses judged.
        cases: model, goals, config, sampling -> what is asked; raises InputError for what can't be, and runs no model.
        summary: rows, config, sampling -> `cells` (a row a condition: its fields, and records of `midward.stats`),
            `findings` (sentences), and whatever else the probe shows. The config names the judge that was asked.
        readers: model, config, sampling -> what reads more of a generation than its response, for
            `midward.runs.measure`.
        prepare: model, cases, config, sampling, folder, progress, workers -> the cases that are asked: a search,
            resumable by files of its own in the folder.
        cell, measures, means: fields of rows by which `against` compares two runs: what tells cells apart, the
            verdicts that are paired, and numbers without ends whose differences are averaged.
        same: settings that two runs must share to be compared.
        write: folder, summary -> writes more files there, and says what may be done with them (`next` of the summary).
        cost: model, cases, config, sampling -> what `prepare` takes, in words, where a config has a `plan`.
        sampling: settings of its responses that it has otherwise than the model, where none are given.
    """

    name: str
    config: type[ProbeConfig]
    cases: Callable[[LanguageModel, Sequence[Goal], Any, Sampling], list[Case]]
    summary: Callable[[Sequence[Row], Any, Sampling], dict[str, Any]]
    readers: Callable[[LanguageModel, Any, Sampling], Sequence[Callable[[], Reader]]] = lambda *given: ()
    prepare: Callable[[LanguageModel, Sequence[Case], Any, Sampling, Path, Progress, Workers], list[Case]] | None = None
    cell: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    means: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    write: Callable[[Path, Row], str] | None = None
    cost: Callable[[LanguageModel, Sequence[Case], Any, Sampling], str] | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ready:
    """What a run needs beside the model: goals, a judge (None where none is asked), and by folder the runs that are
    compared with it."""

    goals: list[Goal]
    judge: Bench | None
    others: Mapping[str, tuple[Run, list[Row]]]

    @property
    def counts(self) -> dict[str, int]:
        """Set -> how many goals of it."""
        return dict(Counter(goal.source for goal in self.goals))

    def notes(self, sampling: Sampling) -> list[str]:
        """A line for each other run that was sampled with other settings, which a model's defaults may be."""
        unlike = {name: differing(other.sampling or {}, asdict(sampling)) for name, (other, _) in self.others.items()}
        return [f"{name} was sampled otherwise: {'; '.join(what)}" for name, what in unlike.items() if what]


def ready(probe: Probe, config: ProbeConfig, goals: list[Goal] | None = None) -> Ready:
    """Everything that can be checked before a model is loaded.

    Args:
        probe, config: what is run.
        goals: what `config.load` gives, where it was called already.

    Raises:
        InputError: goals, judge or a file can't be had; or a folder to compare with holds no finished run of this
            probe, or one by another judge or with another of the settings that must be the `same`: what differs then
            isn't the model.
    """
    goals = config.load() if goals is None else goals
    judge = None
    if isinstance(config, Attacking):
        judge = bench([goal for goal in goals if goal.harmful], config.judges, config.judge)
    others = {str(folder): _comparable(probe, folder, config, judge) for folder in config.compare or ()}
    return Ready(goals, judge, others)


def _comparable(probe: Probe, folder: Path, config: ProbeConfig, judge: Bench | None) -> tuple[Run, list[Row]]:
    other, rows = load(folder)
    if other.verb != f"probe {probe.name}" or other.finished is None:
        raise InputError(f"{folder} holds no finished run of midward probe {probe.name}; run it first.")
    if judge and (unlike := differing(other.judges[0], judge.key)):
        raise InputError(f"{folder} was judged otherwise ({'; '.join(unlike)}), so it can't be compared.")
    before, now = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["settings"], settings_of(config)
    if unlike := differing(*({name: settings[name] for name in probe.same} for settings in (before, now))):
        raise InputError(f"{folder} was run with other settings, so it can't be compared: {'; '.join(unlike)}.")
    return other, rows


def cases_of(
    probe: Probe, model: LanguageModel, goals: Sequence[Goal], config: ProbeConfig, sampling: Sampling
) -> list[Case]:
    """What a probe asks. Raises ProbeError for what is no case; else what `probe.cases` raises."""
    cases = probe.cases(model, goals, config, sampling)
    with checking("probe", probe.name, ProbeError):
        for case in cases:
            check_types(case, Case, "asks by a case that ")
            json.dumps(dict(case.about))
    return cases


def run(
    probe: Probe,
    model: LanguageModel,
    config: ProbeConfig,
    folder: str | Path,
    *,
    sampling: Sampling | None = None,
    asked: Ready | None = None,
    cases: Sequence[Case] | None = None,
    watchers: Sequence[Watcher] = (),
    progress: Progress = lambda what, done, of: None,
    workers: Workers = 1,
) -> dict[str, Any]:
    """Ask every case and sum up. Killed at any point, the same call goes on where it stopped.

    Args:
        probe: see `midward.probes.registry.find`.
        model: with its adapter.
        config: the probe's settings.
        folder: where rows.jsonl stands, and what `prepare` keeps.
        sampling: of every response; the probe's or the model's own unless given.
        asked: what `ready` gives.
        cases: what `cases_of` gives.
        watchers: see the steps (a progress display).
        progress: called as cases are prepared and answered.
        workers: how many processes share the cases, see `midward.runs.workers`.

    Returns:
        The probe's summary with its `settings` and, by folder, what `against` says of other runs (`compared`).

    Raises:
        InputError: something can't be asked (before the first forward), or two runs share nothing.
        ProbeError: rows without what tells cells apart, or a summary that can't be kept; the rows stay.
    """
    sampling = sampling or Sampling.for_model(model, **probe.sampling)
    asked = asked or ready(probe, config)
    cases = cases_of(probe, model, asked.goals, config, sampling) if cases is None else cases
    if probe.prepare:
        cases = probe.prepare(model, cases, config, sampling, Path(folder), progress, workers)
    rows = measure(
        model,
        cases,
        folder,
        sampling=sampling,
        judge=asked.judge,
        readers=probe.readers(model, config, sampling),
        batch_size=config.batch_size,
        watchers=watchers,
        progress=lambda done, of: progress("responses", done, of),
        workers=workers,
    )
    kept = f" The rows stay in {Path(folder) / ROWS}: the same command goes on from there."
    with checking("probe", probe.name, ProbeError, kept):
        if lacks := [name for name in probe.cell if not any(name in row for row in rows)]:
            raise InputError(f"has {lacks[0]!r} in its cell, and no row has that field.")
    compared = {name: against(probe, rows, theirs) for name, (_, theirs) in asked.others.items()}
    judged = config
    if isinstance(config, Attacking) and asked.judge:
        judged = replace(config, judges=asked.judge.info.name)
    summary = probe.summary(rows, judged, sampling)
    with checking("probe", probe.name, ProbeError, kept):
        cells = isinstance(summary, Mapping) and (summary.get("cells") or summary.get("sets"))
        if not cells or not isinstance(summary.get("findings"), list):
            raise InputError(f"gave a summary that is {repr(summary)}, no mapping with lists of cells and findings.")
        json.dumps(summary, allow_nan=False)
    summary = {"settings": settings_of(config), **summary, "compared": compared}
    return summary | ({"next": probe.write(Path(folder), summary)} if probe.write else {})


def settings_of(config: ProbeConfig) -> dict[str, Any]:
    """A config as JSON."""
    return dict(json.loads(json.dumps(asdict(config), default=str)))


def against(probe: Probe, rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """These rows minus another run's, cell by cell and measure by measure, paired by what both were asked.

    Args:
        probe: what both ran; its `cell`, `measures` and `means` count.
        rows: this run's.
        others: the other run's.

    Returns:
        A row each: the fields of the cell, `measure`, and a record of `Paired`, or of `Mean` for a number without ends.
        p is corrected (Holm) over all of them.

    Raises:
        InputError: the runs share nothing that was asked.
    """
    return records(differences(rows, others, probe.cell, probe.measures, probe.means))


# --- parts of summaries --------------------------------------------------------------------------------------


def groups(rows: Iterable[Row], *by: str) -> dict[tuple[Any, ...], list[Row]]:
    """The rows by some of their fields, in the order in which these first appear."""
    return grouped(rows, lambda row: tuple(row[name] for name in by))


def shares(rows: Sequence[Row], **fields: str) -> dict[str, Row | None]:
    """name -> the record of a field's rate over the rows; None where no row has it."""
    rates = {name: rate_of(rows, field) for name, field in fields.items()}
    return {name: share.record() if share.n else None for name, share in rates.items()}
