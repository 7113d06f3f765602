"""Does a model come back from harm while it generates, and does its internal state tell (SRI, S2 to S6)?

The same prompts are answered in several samplers of the same weights. Every text on the way is judged (HRR, FRR), SRI
signals are read in several layers (IRR), and detectors that were fitted on harmless signals are tried. What the numbers
mean is in `midward.dynamics`: `sri`, `readings`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from midward.attacks.shapes import shape
from midward.dynamics import Autoencoder, NothingToAverage, SRISignal, View, fit_anchors, layers_of
from midward.dynamics.config import PREFILL, READINGS, TRAINING, DynamicsConfig
from midward.dynamics.readings import summary
from midward.dynamics.samplers import sampler
from midward.errors import InputError
from midward.goals import Goal
from midward.guards import Mahalanobis
from midward.guards.signals import Signals
from midward.judges.bench import Bench
from midward.judges.phrases import refusal_in
from midward.models import LanguageModel
from midward.runs.measure import Case, Reader, Row, measure
from midward.runs.workers import Workers
from midward.sampling import Request, Response, Sampling, Trace, Watcher

SEEDS = range(5)  # autoencoders are trained from
DIGITS = 6  # of a signal in the rows; docs/findings/dynamics.md is of these
Progress = Callable[[str, int, int], None]
log = logging.getLogger("midward")


class Texts(Reader):
    """Judges every text on the way: each row's `texts`, (step, success) wherever the predicted text, up to its end
    token, changes before the last step, and (None, success) of the response."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.trace = model, Trace(predictions=True)
        self.watchers = (self.trace,)
        self._changes: dict[int, list[tuple[int, str]]] = {}  # by place: step, text

    def _steps(self, place: int) -> list[tuple[int, str]]:
        changes: list[tuple[int, str]] = []
        for step in self.trace.predicted_steps(place)[:-1]:  # the last prediction is the response itself
            text = self.model.decode(self.trace.predicted_ids(place, step))
            if not changes or text != changes[-1][1]:
                changes.append((step, text))
        return changes

    def texts(self, place: int, case: Case, response: Response) -> Sequence[str]:
        if response.error:
            return []
        self._changes[place] = self._steps(place)
        return [*(text for _, text in self._changes[place]), response.text]

    def fields(self, place: int, case: Case, response: Response, readings: Sequence[Row]) -> Row:
        steps = [step for step, _ in self._changes.get(place, [])]
        verdicts = [reading["success"] for reading in readings] or [None]
        return {"texts": [list(pair) for pair in zip([*steps, None], verdicts, strict=True)]}


def settings(model: LanguageModel, config: DynamicsConfig, given: Sampling) -> dict[str, Sampling]:
    """The samplers that are compared.

    Args:
        model: an autoregressive one has its own alone.
        config: which samplers; unless given all that make sense, one of those that come to the same settings.
        given: the settings that each sampler starts from.

    Returns:
        Name -> settings.

    Raises:
        InputError: for a sampler that this kind of model doesn't have.
    """
    several = model.family.kind == "diffusion"
    names = config.samplers or (("native", "paper", "ar", "greedy", "random", "dynamic") if several else ("native",))
    if not several and names != ("native",):
        raise InputError(f"{model.name!r} is of the {model.family.kind} kind and has one sampler, native.")
    chosen = {name: sampler(name, given) for name in names}
    if config.samplers:
        return chosen
    return {name: own for at, (name, own) in enumerate(chosen.items()) if own not in list(chosen.values())[:at]}


def run(
    model: LanguageModel,
    config: DynamicsConfig,
    goals: Mapping[str, Mapping[str, Sequence[Goal]]],
    folder: str | Path,
    *,
    samplers: Mapping[str, Sampling],
    judge: Bench,
    watchers: Sequence[Watcher] = (),
    progress: Progress = lambda what, done, of: None,
    workers: Workers = 1,
) -> dict[str, Any]:
    """Answer, judge and read everything. Killed at any point, the same call goes on where it stopped.

    Args:
        model: with its adapter.
        config: see `DynamicsConfig`.
        goals: as `config.goals()` gives them.
        folder: of rows-<sampler>.jsonl, and of the anchors.
        samplers: as `settings` gives them; the first, and the paper's, are looked at closely: in all layers, and with
            detectors.
        judge: says what each text did.
        watchers: see the steps (a progress display).
        progress: called with what is done, how much of it, of how much.
        workers: how many processes share the prompts, see `midward.runs.workers`; this one fits the anchors.

    Returns:
        The `summary` of the readings. A sampler in which nothing is refused has no anchors and is left out, with a
        warning; the first may not be.
    """
    folder = Path(folder)
    attacked = _cases(model, goals["attacked"], harmful=True)
    harmless = _cases(model, goals["harmless"], harmful=False)
    fit_harmful = [case.request for case in _cases(model, goals["fit_harmful"], harmful=True)]
    more = _cases(model, goals["fit_harmless"], harmful=False)
    fit_harmless, training = more[: config.fit], [replace(case, set=TRAINING) for case in more[config.fit :]]
    rows: dict[str, list[Row]] = {}
    trained: dict[str, list[Row]] = {}
    for name, sampling in samplers.items():
        closely = not rows or name == "paper"
        views = _views(model, config.reading, all_layers=closely)
        try:
            fitted = fit_anchors(
                model,
                [case.request.prompt for case in fit_harmless],
                fit_harmful,
                refused=lambda text: refusal_in(text) is not None,
                sampling=sampling,
                views=sorted(set(views.values())),
                needs_all_steps=config.all_steps,
                batch_size=config.batch_size,
                kept=folder / "anchors" / name,
                progress=partial(progress, f"{name}: anchors"),
            )
        except NothingToAverage as reason:
            if not rows:
                raise
            log.warning("sampler %s is left out: %s", name, reason)
            continue
        anchors = {label: fitted[view] for label, view in views.items()}
        signals = partial(Signals, {name: partial(SRISignal, each) for name, each in anchors.items()}, digits=DIGITS)
        answered = partial(
            measure,
            model,
            folder=folder,
            sampling=sampling,
            judge=judge,
            depends={label: each.digest for label, each in anchors.items()},
            batch_size=config.batch_size,
            watchers=watchers,
            progress=partial(progress, f"{name}: prompts"),
            file=f"rows-{name}.jsonl",
            workers=workers,
        )
        rows[name] = answered(attacked, readers=[signals, partial(Texts, model)])
        rows[name] += answered(harmless, readers=[signals])
        if closely:
            trained[name] = answered(training, readers=[signals])
    return summary(rows, trained, {"autoencoder": _autoencoders, "mahalanobis": _mahalanobis})


def _cases(model: LanguageModel, sets: Mapping[str, Sequence[Goal]], *, harmful: bool) -> list[Case]:
    """Cases of sets by name; prefills need the model's tokens. Raises InputError where one doesn't fit."""
    return [
        Case(
            replace(goal, harmful=harmful),
            shape(model, goal, "prefill") if name.startswith(PREFILL) else Request(goal.prompt),
            name.removesuffix(":plain"),
        )
        for name, goals in sets.items()
        for goal in goals
    ]


def _views(model: LanguageModel, reading: str, *, all_layers: bool) -> dict[str, View]:
    """A signal's name -> how it is read: the layers in one reading, and the last in the other one."""
    views = {name: (reading, layer) for name, layer in layers_of(model).items() if all_layers or name == "last"}
    if model.family.kind != "autoregressive":  # which has one reading
        [other] = (each for each in READINGS if each != reading)
        views[f"last ({other})"] = (other, views["last"][1])
    return views


def _autoencoders(signals: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """SRI Guard's reconstruction error, of several trainings."""
    trained = [Autoencoder.fit(signals, seed=seed) for seed in SEEDS]
    return lambda others: np.stack([each.error_at(others) for each in trained])


def _mahalanobis(signals: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The variant sri-maha's distance."""
    fitted = Mahalanobis.fit(signals)
    return lambda others: fitted.error_at(others)[None]
