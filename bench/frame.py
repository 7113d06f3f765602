"""What the benches share: interleaved rounds, rows that are printed and written as they are done, and one record.

python bench/frame.py build/bench.json        # put a record's table between its markers of docs/benchmarks.md
"""

import argparse
import json
import os
import platform
import re
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch

from midward._tables import grouped
from midward.store import write_text

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
SHOWN = ("midward", "torch", "transformers", "peft", "numpy")  # versions beside the table; the record has all


@dataclass
class Row:
    """A figure at a setting: a value a round. least, most: what it shall reach, or not exceed."""

    figure: str
    setting: str = ""
    values: list[float] = field(default_factory=list)
    form: str = "{:.2f}x"
    least: float | None = None
    most: float | None = None
    note: str = ""
    state: str = ""  # "left out" or "failed"
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def cells(self) -> list[str]:
        """As the table shows it."""
        bar = ""
        if self.least is not None or self.most is not None:
            kept = self.least is None or self.median >= self.least, self.most is None or self.median <= self.most
            words = "at least " if self.most is None else "at most "
            bar = words + self.form.format(self.least if self.most is None else self.most)
            bar += "" if all(kept) else ": **missed**"
        told = [self.figure, self.setting]
        if self.values:
            low, high = (self.form.format(end(self.values)) for end in (min, max))
            told += [self.form.format(self.median), f"{low} to {high}" if len(self.values) > 1 else "", bar]
            told.append(str(len(self.values)))
        else:
            told += [""] * 4
        return [each.replace("|", "/") for each in (*told, ": ".join(filter(None, (self.state, self.note))))]

    def line(self) -> str:
        return f"| {' | '.join(self.cells())} |"


HEAD = ["figure", "setting", "median", "least to most", "to reach", "rounds", "tokens, notes"]


class Skipped(Exception):
    """A row that doesn't fit into what is left of the time, or that the alarm ended."""


@dataclass
class Runs:
    """One job's rounds: seconds of each, what the last gave, and the most GB that it held on a GPU."""

    seconds: list[float] = field(default_factory=list)
    result: Any = None
    peak: float | None = None

    def over(self, other: "Runs", scale: float = 1.0) -> list[float]:
        """How many times the other's seconds this one took, round by round."""
        return [scale * mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True)]


class Watch:
    """The time that is left, and a clock: CPU time of the process, which other load on the machine hardly moves; of a
    GPU, whose work is asynchronous, the wall clock once it has come to rest."""

    def __init__(self, device: str, minutes: float) -> None:
        self.device, self.start, self.limit = device, time.perf_counter(), 60 * minutes
        signal.signal(signal.SIGALRM, self._alarm)

    def _alarm(self, *_: Any) -> None:
        raise Skipped("the time was up")

    def left(self) -> float:
        return self.limit - (time.perf_counter() - self.start)

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Raise Skipped where no time is left, and inside once it is over."""
        if self.left() <= 0:
            raise Skipped("no time was left")
        signal.setitimer(signal.ITIMER_REAL, self.left())
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def now(self) -> float:
        return clock(self.device)

    def interleaved(self, jobs: dict[str, Callable[[], Any]], rounds: int, warm: Callable[[], Any] | None = None):
        """Run all jobs in turn, `rounds` times, every other round backwards, so that a drift of the machine hits all:
        name -> `Runs`. A round is the last one where another would take a third of the time that is left, and one that
        the alarm ends doesn't count."""
        if warm is not None:
            warm()
        runs, taken = {name: Runs() for name in jobs}, []
        try:
            while len(taken) < rounds and (not taken or taken[-1] < self.left() / 3):
                started = time.perf_counter()
                for name, job in [*jobs.items()][:: 1 - 2 * (len(taken) % 2)]:
                    if self.device != "cpu":
                        torch.cuda.reset_peak_memory_stats()
                    start = self.now()
                    result = job()
                    runs[name].seconds.append(self.now() - start)
                    runs[name].result = result
                    if self.device != "cpu":
                        runs[name].peak = torch.cuda.max_memory_allocated() / 1e9
                taken.append(time.perf_counter() - started)
        except Skipped:
            if not taken:
                raise
        for each in runs.values():
            del each.seconds[len(taken) :]
        return runs


def clock(device: str) -> float:
    """Seconds, as `Watch.now`."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@cache
def packages() -> dict[str, str]:
    """Versions of what was imported."""
    owners = packages_distributions()
    names = {owner for module in list(sys.modules) for owner in owners.get(module, ())}
    return {name: version(name) for name in sorted(names, key=str.lower)}


def machine(device: str) -> str:
    """What it runs on, in words."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), name)
    kernels = torch.backends.cpu.get_cpu_capability()
    return f"{name} ({kernels}), {os.cpu_count()} cores, {torch.get_num_threads()} thread"


class Record:
    """The rows so far, in OUT.json and, as a table, in OUT.md: a run that is cut short keeps what it has."""

    def __init__(self, name: str, watch: Watch, out: Path | None, command: str) -> None:
        self.watch, self.out, self.rows = watch, out, list[Row]()
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
        self.finished = False
        self.facts = {
            "name": name,
            "command": command,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": machine(watch.device),
            "load": [round(os.getloadavg()[0], 1)],
            "python": platform.python_version(),
        }

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(row.line(), flush=True)
        self.write()

    def write(self) -> None:
        if self.out is not None:
            text = json.dumps(self.as_json(), indent=1)
            write_text(self.out.with_suffix(".json"), f"{text}\n")
            write_text(self.out.with_suffix(".md"), f"{table(json.loads(text))}\n")

    def as_json(self) -> dict[str, Any]:
        minutes = (time.perf_counter() - self.watch.start) / 60
        facts = {**self.facts, "load": [*self.facts["load"], round(os.getloadavg()[0], 1)], "minutes": minutes}
        facts["finished"] = self.finished
        return {**facts, "packages": packages(), "rows": [asdict(row) for row in self.rows]}

    def run(self, jobs: Iterable[tuple[str, Callable[[], Iterable[Row]]]]) -> int:
        """Run jobs, each a generator of rows, in their order; the exit status. One that doesn't fit is left out, and
        where one fails the others follow."""
        print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
        for figure, job in jobs:
            print(f"now {figure} ...", file=sys.stderr, flush=True)
            try:
                with self.watch.bounded():
                    for row in job():
                        self.add(row)
            except Skipped as reason:
                self.add(Row(figure, state="left out", note=str(reason)))
            except Exception as error:  # an hour isn't lost for one row
                traceback.print_exc()
                reason = next(iter(str(error).splitlines()), "")
                self.add(Row(figure, state="failed", note=f"{type(error).__name__}: {reason}"))
            if self.watch.device != "cpu":
                torch.cuda.empty_cache()
        self.finished = True
        self.write()
        return int(any(row.state == "failed" for row in self.rows))


def table(record: dict[str, Any]) -> str:
    """A record's rows, a table for each setting, and under them what they were measured on."""
    versions = ", ".join(f"{name} {record['packages'][name]}" for name in SHOWN if name in record["packages"])
    load = " to ".join(map(str, record["load"]))
    facts = (
        f"Measured on {record['date']} by `{record['command']}` in {record['minutes']:.1f} minutes"
        f"{'' if record.get('finished') else ' (not finished)'}: "
        f"{record['machine']}; Python {record['python']}, {versions}; load {load}."
    )
    lines = []
    for setting, rows in grouped((Row(**row).cells() for row in record["rows"]), lambda cells: cells[1]).items():
        lines += [f"**{setting}**", ""] if setting else []
        cells = [[figure, *others] for figure, _, *others in (HEAD, *rows)]
        lines += [f"| {' | '.join(each)} |" for each in (cells[0], ["---"] * len(cells[0]), *cells[1:])] + [""]
    return "\n".join([*lines, facts])


def place(record: dict[str, Any], page: Path = PAGE) -> None:
    """Put the table between the record's markers of a page."""
    begin, end = (f"<!-- {mark}bench: {record['name']} -->" for mark in ("", "/"))
    text, count = re.subn(
        f"(?s)({begin}\n).*?({end})",
        lambda match: f"{match[1]}\n{table(record)}\n\n{match[2]}",
        page.read_text(encoding="utf-8"),
    )
    if count != 1:
        sys.exit(f"error: {page} has {count} places between {begin} and {end}; it needs one.")
    write_text(page, text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    given = parser.parse_args()
    try:
        record = json.loads(given.record.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        parser.error(f"{given.record} is no record of bench/measure.py: {error}.")
    place(record)
