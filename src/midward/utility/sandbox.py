"""The sandbox's own tasks, offline: sums, recall and programs, and harmless requests; its oracle says what is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from midward.goals import of_trial
from midward.judges.bench import bench
from midward.models import LanguageModel
from midward.runs.measure import Case, Front, Row, measure
from midward.sampling import Request, Sampling
from midward.world.trials import trials

COUNT = 200  # exercises of each, unless told


def run(
    model: LanguageModel,
    names: Sequence[str],
    folder: str | Path,
    *,
    sampling: Sampling,
    count: int = COUNT,
    guard: Front | None = None,
    about: Mapping[str, Any] | None = None,
    **how: Any,
) -> list[Row]:
    """Put the first `count` exercises of each task of `asked.OWN` to the model.

    Args:
        guard: in front of the model.
        about: fields of every row, such as the model's label.
        how: batch_size, watchers, progress and workers of `measure`.

    Returns:
        Rows of `measure`; what counts is `correct`.
    """
    cases = [
        Case(of_trial(trial, name), Request(trial.text), set=name) for name in names for trial in trials(name, count)
    ]
    judge = bench([case.goal for case in cases], "oracle")
    return measure(model, cases, folder, sampling=sampling, judge=judge, guard=guard, about=about, **how)
