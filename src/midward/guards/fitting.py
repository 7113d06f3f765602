"""Fitting guards: anchors, harmless signals, and one calibration of all guards on the same held-out prompts.

Every generation is a row of `rows.jsonl`, appended as it comes; running again goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from midward.dynamics import Anchors, View, fit_anchors
from midward.guards.config import Sizes, conformal_order
from midward.guards.files import save
from midward.guards.guard import Exchange, Guard, GuardError, prompt_hash
from midward.guards.signals import Signals, signals_of
from midward.models import LanguageModel
from midward.runs.measure import Case, measure
from midward.sampling import Sampling

Progress = Callable[[str, int, int], None]  # what is being done, done so far, of how many


def require_prompts(
    guards: Mapping[str, Guard], harmless: Sequence[Case], harmful: Sequence[Case], sizes: Sizes, alpha: float
) -> None:
    """Raise GuardError where there are too few prompts to fit these guards; see `fit_guards` for the arguments."""
    if not guards:
        raise GuardError("there is no guard to fit; name one or more.")
    conformal_order(sizes.held_out, alpha)
    signals = any(guard.reads_signals for guard in guards.values())
    least = sizes.harmless if signals else sizes.held_out
    if len(harmless) < least:
        parts = f"{sizes.anchors} for anchors (--anchors), {sizes.train} to train on (--train), " if signals else ""
        raise GuardError(
            f"{len(harmless)} harmless prompts, and {least} are needed: {parts}{sizes.held_out} held out (--held-out). "
            "Give more (--harmless), or smaller parts."
        )
    if signals and not harmful:
        raise GuardError("SRI Guard's anchors need harmful prompts that the model refuses; give some (--harmful).")


def fit_guards(
    model: LanguageModel,
    guards: Mapping[str, Guard],
    harmless: Sequence[Case],
    harmful: Sequence[Case],
    folder: str | Path,
    *,
    refused: Callable[[str], bool],
    sampling: Sampling | None = None,
    alpha: float = 0.01,
    sizes: Sizes | None = None,
    batch_size: int = 16,
    progress: Progress = lambda what, done, of: None,
) -> dict[str, Path]:
    """Fit every guard and write it to `folder`/<label>.safetensors.

    Args:
        model: the one that is to be guarded.
        guards: label -> guard, not fitted.
        harmless: `sizes.harmless` or more, in any order: the first ones make anchors, the next train, the last
            calibrate. Without a guard that looks at signals among them, only the last are used.
        harmful: for the anchors, of which those count that the model refuses.
        folder: of the guards, the anchors, and the rows.
        refused: tells from a text whether it refuses.
        sampling: the model's own unless given.
        alpha: the false-positive rate, see `conformal_threshold`.
        sizes: how many prompts each part takes; the paper's unless given.
        batch_size: rows of a forward.
        progress: called with what is done, how many are, and of how many.

    Returns:
        label -> path.

    Raises:
        GuardError: where there are too few prompts, before anything is sampled.
        AnchorsError: where the model answers none of the harmless prompts, or refuses none of the harmful ones.
    """
    folder = Path(folder)
    sampling, sizes = sampling or Sampling.for_model(model), sizes or Sizes()
    require_prompts(guards, harmless, harmful, sizes, alpha)
    views = {label: view for label, guard in guards.items() if (view := guard.view(model))}
    # 1. Harmless prompts, each used for one thing.
    for_anchors, harmful = harmless[: sizes.anchors], harmful[: sizes.anchors]
    train = harmless[sizes.anchors : sizes.anchors + sizes.train] if views else []
    held_out = harmless[len(harmless) - sizes.held_out :]
    # 2. Anchors in every view that some guard has.
    anchors: dict[View, Anchors] = {}
    if views:
        anchors = fit_anchors(
            model,
            [case.request for case in for_anchors],
            [case.request for case in harmful],
            refused=refused,
            sampling=sampling,
            views=sorted(set(views.values())),
            needs_all_steps=False,
            batch_size=batch_size,
            kept=folder / "anchors",
            progress=partial(progress, "anchors"),
        )
    # 3. Answers to the others, with their signals.
    by_digest = {each.digest: each for each in anchors.values()}
    rows = measure(
        model,
        [
            replace(case, set=part, about={"place": place})
            for part, cases in (("held out", held_out), ("train", train))
            for place, case in enumerate(cases)
        ],
        folder,
        sampling=sampling,
        readers=[lambda: Signals(by_digest)],
        depends={"anchors": sorted(by_digest)},
        batch_size=batch_size,
        progress=partial(progress, "harmless prompts"),
    )
    if failed := next((row for row in rows if row.get("error")), None):
        raise GuardError(f"a harmless prompt has no response to fit on: {failed['error']}")
    # 4. Each guard learns from those to train on, and is calibrated on those held out.
    paths: dict[str, Path] = {}
    for number, (label, guard) in enumerate(guards.items()):
        progress("calibrating", number, len(guards))
        exchanges = [
            Exchange(case.request, row["response"], plain=prompt if isinstance(prompt, str) else None)
            for case, row, prompt in zip(held_out, rows, (case.request.prompt for case in held_out), strict=False)
        ]
        if label in views:
            signals = signals_of(rows, anchors[views[label]].digest)
            known = signals[sizes.held_out :]
            trained = [guards[other] for other in paths if other in views]
            guard.train(anchors[views[label]], known[np.isfinite(known).all(1)], trained)
            exchanges = [replace(each, signal=signal) for each, signal in zip(exchanges, signals, strict=False)]
        guard.fit(model, exchanges, alpha=alpha, sampling=sampling, batch_size=batch_size)
        used = [*held_out, *([*for_anchors, *train, *harmful] if label in views else [])]
        guard.fitted_on = tuple(sorted({prompt_hash(case.request.prompt) for case in used}))
        paths[label] = save(guard, folder / f"{label}.safetensors")
    progress("calibrating", len(guards), len(guards))
    return paths
