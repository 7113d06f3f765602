"""One model's scores on all tasks that were asked for, and what several scores say together."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from midward._tables import grouped
from midward.errors import InputError
from midward.guards import Guard
from midward.models import LanguageModel
from midward.models.loading import adapter_folder
from midward.runs.measure import Row
from midward.runs.run import ROWS
from midward.runs.workers import Workers
from midward.sampling import Sampling
from midward.store import RowFile, key_of
from midward.utility import harness, readings, sandbox
from midward.utility.asked import Asked


def models_of(adapters: Sequence[tuple[str, str]], guarded: bool = False) -> list[tuple[str, int, str | None]]:
    """Label, seed (a number among those of one label) and adapter of each model that a run is of.

    Args:
        adapters: label (may be empty) and folder of each. One without a label is measured alone, several beside the
            bare model.
        guarded: whether a guard stands in front.

    Raises:
        ModelError: there is no such adapter.
        InputError: several models are to stand behind one guard.
    """
    for _, folder in adapters:
        adapter_folder(folder)
    if len(adapters) < 2 and not any(label for label, _ in adapters):
        return [("", 0, adapters[0][1] if adapters else None)]
    if guarded:
        raise InputError("--guard goes with one model: it was fitted for one adapter, or for none.")
    labels = [label or Path(folder).name for label, folder in adapters]
    seeds = [labels[:place].count(label) for place, label in enumerate(labels)]
    return [("base", 0, None), *zip(labels, seeds, (folder for _, folder in adapters), strict=True)]


def score(
    model: LanguageModel,
    asked: Asked,
    folder: str | Path,
    own: Sequence[str],
    loaded: harness.Loaded | None,
    *,
    given: Mapping[str, Any],
    sampling: Sampling,
    guard: Guard | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, of: None,
    say: Callable[[str], None] = lambda text: None,
    workers: Workers = 1,
) -> tuple[list[Row], dict[str, Any]]:
    """A row for each sample and measure of all tasks, appended to the folder as they come.

    Under `torchrun` the processes share the harness's samples; the first one alone asks the sandbox's.

    Args:
        own: of `asked.OWN`.
        loaded: of `harness.load`; None for none of its tasks.
        given: the settings of `Sampling` that go before a task's own.
        sampling: of the sandbox's tasks.
        about: fields of every row, such as the model's label.
        workers: how many processes share the sandbox's samples, see `midward.runs.workers`.

    Returns:
        The rows, and what the harness itself reports by task; both empty but in the first process.
    """
    rows: list[Row] = []
    reports: dict[str, Any] = {}
    if loaded:
        from midward.utility.lm import MidwardLM

        chat = not asked.plain and bool(getattr(model.tokenizer, "chat_template", None))
        say(f"prompts   {'through the chat template' if chat else 'as they are'}")
        if chat and "humaneval" in loaded.tasks:
            say("humaneval asks for a function's continuation; of a chat model ask humaneval_instruct, or give --plain")
        lm = MidwardLM(
            model,
            guard=guard,
            sampling=given,
            folder=folder,
            batch_size=asked.batch_size,
            draws=asked.draws,
            seed=sampling.seed,
            progress=progress,
            say=lambda text: say(f"harness   {text}"),
        )
        samples, reports = harness.run(lm, loaded, limit=asked.limit, fewshot=asked.fewshot, chat=chat)
        settings = {"model": model.fingerprint, "guard": guard and guard.digest, "given": given, "chat": chat}
        rows = [{"key": key_of(row=row, **settings), **(about or {}), **row} for row in samples]
        file = RowFile(Path(folder) / ROWS)
        file.append(*(row for row in rows if row["key"] not in file.rows))
    if own and os.environ.get("RANK", "0") == "0":
        rows += sandbox.run(
            model,
            own,
            folder,
            sampling=sampling,
            count=asked.limit or sandbox.COUNT,
            guard=guard,
            about=about,
            batch_size=asked.batch_size,
            progress=lambda done, total: progress(f"{total} exercises", done, total),
            workers=workers,
        )
    return rows, reports


def summarise(rows: Sequence[Row], reports: Mapping[str, Any], others: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """What summary.json holds.

    Args:
        rows: of all models and their training seeds.
        reports: what the harness itself reports.
        others: folder of another run -> its rows.

    Returns:
        cells, of `readings.cells`; compared, records of `readings.against`, by what was subtracted: the first model,
        where there are several, and each other run; harness, the reports.
    """
    models = grouped(rows, lambda row: str(row.get("model", "")))
    compared = {}
    if len(models) > 1:
        (first, base), *rest = models.items()
        compared[first] = readings.against(dict(rest), base)
    for folder, theirs in others.items():
        compared[folder] = readings.against(models, theirs)
    return {"cells": readings.cells(rows), "compared": compared, "harness": dict(reports)}
