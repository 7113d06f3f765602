"""What a person sees while a verb runs. Everything goes to stderr, so that stdout holds results only."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event, Thread, current_thread, main_thread
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from typer import Exit

from midward._hints import printable

if TYPE_CHECKING:
    from midward.cli._run import Result

LINES_EVERY = 30.0  # seconds between lines where there is no terminal


_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


def begin(*, quiet: bool, verbose: bool) -> None:
    """Of a verb: how much it tells. verbose: what libraries log as well."""
    _quiet.set(quiet)
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", force=True)


def is_quiet() -> bool:
    """Whether --quiet was given."""
    return _quiet.get()


def console(*, loud: bool = False) -> Console:
    """The terminal; silent on all but the first process under torchrun, and with --quiet unless it is loud."""
    quiet = os.environ.get("RANK", "0") != "0" or (_quiet.get() and not loud)
    return Console(stderr=True, highlight=False, quiet=quiet)


def say(text: str) -> None:
    """A line on stderr; of an error or a warning with --quiet too. Never read as markup: it may hold model output or
    paths."""
    console(loud=text.startswith(("error", "warning"))).print(printable(text), markup=False, soft_wrap=True)


def result(shown: Result, *, as_json: bool) -> None:
    """What a verb returned: on stdout the result, on stderr what was written and why it is none. Raises Exit with
    status 1 where it is none, or with the result's own."""
    if shown.data is not None and (as_json or shown.text):
        out(shown.json() if as_json else shown.text)
    if shown.files:
        say(shown.files)
    if shown.then and not as_json:
        say(f"next      {shown.then}")
    if shown.failed:
        say(f"error: {shown.failed}")
        raise Exit(1)
    if shown.status:
        raise Exit(shown.status)


def out(text: str) -> None:
    """A result on stdout: as it is into a pipe, without control characters onto a terminal."""
    sys.stdout.write(f"{printable(text) if sys.stdout.isatty() else text}\n")
    sys.stdout.flush()


@contextmanager
def bar() -> Iterator[Progress]:
    """A progress display, gone when done; where stderr is no terminal, a line for each unfinished task now and then."""
    where = console()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=where, transient=True, disable=not where.is_terminal) as progress:
        if where.is_terminal:
            yield progress
            return
        over = Event()
        lines = Thread(target=_tell, args=(progress, over), daemon=True)
        lines.start()
        try:
            yield progress
        finally:
            over.set()
            lines.join()


def _tell(progress: Progress, over: Event) -> None:
    while not over.wait(LINES_EVERY):
        for task in progress.tasks:
            if task.completed < (task.total or 0) and not task.fields.get("brief"):
                done = f"{task.description}: {task.completed:.0f} of {task.total:.0f}"
                say(f"{done} after {task.elapsed or 0:.0f} s")


@contextmanager
def following() -> Iterator[Callable[[str, int, int], None]]:
    """(what, done, of) on a progress display, one task a thing that is done."""
    with bar() as progress:
        yield tasks_of(progress)


def tasks_of(progress: Progress) -> Callable[[str, int, int], None]:
    """What `following` yields, on a display that is there."""
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: int, of: int) -> None:
        if what not in tasks:
            tasks[what] = progress.add_task(what, total=of)
        progress.update(tasks[what], completed=done, total=of)

    return show


@contextmanager
def interrupted() -> Iterator[Event]:
    """An event that the first Ctrl-C of the block sets, so that what runs stops where nothing is lost; the second one
    stops it at once, and so does the first under torchrun, whose processes stop together."""
    stopped = Event()

    def stop(*_: Any) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)
        # not in this thread, which may be writing a line
        Thread(target=say, args=("stopping  once this step is kept; Ctrl-C again stops at once",)).start()

    before = signal.getsignal(signal.SIGINT)
    if "RANK" not in os.environ and before is signal.default_int_handler and current_thread() is main_thread():
        signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        if signal.getsignal(signal.SIGINT) is stop:
            signal.signal(signal.SIGINT, before)


class CurveBar:
    """Shows a training run on a task of a progress display, or line by line where there is none."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.task = progress, progress.add_task("align", total=None)

    def start(self, steps: int, line: str) -> None:
        say(f"          {line}")
        self.progress.update(self.task, total=steps)

    def row(self, row: dict[str, float]) -> None:
        shown: tuple[str, ...] = ("reward", "safe", "harmful", "ce_harmful", "ce_benign", "end_harmful", "kl")
        shown += ("over_refusal", "margin", "accuracy", "safe_gain", "harmful_gain", "safety", "useful")
        names = [name for name in shown if name in row]
        values = [f"{name.replace('_', '-')} {row[name]:.3g}" for name in names]
        line = f"step {row['step']:>5}  {'  '.join(values)}"
        self.progress.update(self.task, completed=row["step"], description=line)
        if self.progress.disable:
            say(line)


class StepBar:
    """A watcher that shows the denoising step of the batch on a task of a progress display."""

    needs_all_steps = False
    needs_states = "none"

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task: TaskID = progress.add_task("step", total=None, brief=True)

    def on_start(self, canvas: Any) -> None:
        self.progress.reset(self.task, description=f"step ({len(canvas.rows)} rows)")

    def on_step(self, step: Any) -> None:
        self.progress.update(self.task, completed=step.index + 1, total=step.of)

    def on_end(self, canvas: Any) -> None:
        pass


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The rows as lines of aligned columns; on a terminal no wider than it, with cells that fold."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    if sys.stdout.isatty() and sum(widths) + 2 * len(widths) > shutil.get_terminal_size().columns:
        from midward.reports import render
        from midward.reports.blocks import Table

        return render.terminal([Table("", "", rows[0], rows[1:])]).splitlines()
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
