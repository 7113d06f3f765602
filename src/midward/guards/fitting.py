"""Fitting guards: anchors, harmless signals, and one calibration of all guards on the same held-out prompts.

Every generation is a row of `rows.jsonl`, appended as it comes; running again goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from midward.dynamics import Anchors, SRISignal, View, fit_anchors
from midward.dynamics.blockwise import look_states
from midward.guards.config import GuardError, Sizes, conformal_order
from midward.guards.exchange import Exchange, Labelled, prompt_hash
from midward.guards.files import save
from midward.guards.guard import Guard
from midward.guards.signals import Signals, signals_of
from midward.models import LanguageModel
from midward.runs.measure import Case, measure
from midward.sampling import Forced, Sampling

#: What is forced in front of the answer to a harmful prompt whose goal has no target.
OPENING = "Sure, here is how to do it:"

Progress = Callable[[str, int, int], None]  # what is being done, done so far, of how many


def harmless_of(guards: Mapping[str, Guard], sizes: Sizes) -> int:
    """How many harmless prompts these guards are fitted on."""
    if any(guard.trains for guard in guards.values()):
        return sizes.harmless
    return sizes.held_out + (sizes.anchors if any(guard.reads_labels for guard in guards.values()) else 0)


def answers_of(
    model: LanguageModel, guards: Mapping[str, Guard], harmless: Sequence[Case], harmful: Sequence[Case], sizes: Sizes
) -> dict[str, int]:
    """What `fit_guards` samples for all of them -> how many answers; a guard may sample more itself."""
    kinds, opened = min(sizes.anchors, len(harmless)) + len(harmful), model.family.kind != "canvas"
    asked = {
        "anchors": kinds * any(guard.view(model) for guard in guards.values()),
        "labels": (kinds + len(harmful) * opened) * any(guard.reads_labels for guard in guards.values()),
        "training": sizes.train * any(guard.trains for guard in guards.values()),
        "the threshold": sizes.held_out,
    }
    return {what: count for what, count in asked.items() if count}


def require_prompts(
    guards: Mapping[str, Guard],
    harmless: Sequence[Case],
    harmful: Sequence[Case],
    sizes: Sizes,
    alpha: float,
    certain: float | None = None,
) -> None:
    """Raise GuardError where there are too few prompts to fit these guards; see `fit_guards` for the arguments."""
    if not guards:
        raise GuardError("there is no guard to fit; name one or more.")
    conformal_order(sizes.held_out, alpha, certain)
    signals = any(guard.trains for guard in guards.values())
    labels = any(guard.reads_labels for guard in guards.values())
    least = harmless_of(guards, sizes)
    if len(harmless) < least:
        parts = f"{sizes.anchors} for anchors and labelled answers (--anchors), " if signals or labels else ""
        parts += f"{sizes.train} to train on (--train), " if signals else ""
        raise GuardError(
            f"{len(harmless)} harmless prompts, and {least} are needed: {parts}{sizes.held_out} held out (--held-out). "
            "Give more (--harmless), smaller parts, or an earlier --draw."
        )
    if (signals or labels) and not harmful:
        what = "SRI Guard's anchors need" if signals else "labelled answers take"
        raise GuardError(f"{what} harmful prompts that the model refuses; give some (--harmful).")


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
    certain: float | None = None,
    sizes: Sizes | None = None,
    batch_size: int = 16,
    progress: Progress = lambda what, done, of: None,
) -> dict[str, Path]:
    """Fit every guard and write it to `folder`/<label>.safetensors.

    Args:
        model: the one that is to be guarded.
        guards: label -> guard, not fitted.
        harmless: `harmless_of` these guards or more, in any order: the first ones make anchors and labelled answers,
            the next train, the last calibrate.
        harmful: for the anchors, of which those count that the model refuses, and for labelled answers.
        folder: of the guards, the anchors, and the rows.
        refused: tells from a text whether it refuses.
        sampling: the model's own unless given.
        alpha, certain: the false-positive rate, see `conformal_order`.
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
    require_prompts(guards, harmless, harmful, sizes, alpha, certain)
    trained = {label: guard for label, guard in guards.items() if guard.trains}
    views = {label: view for label, guard in guards.items() if (view := guard.view(model))}
    # 1. Harmless prompts, each used for one thing.
    for_anchors, harmful = harmless[: sizes.anchors], harmful[: sizes.anchors]
    train = harmless[sizes.anchors : sizes.anchors + sizes.train] if trained else []
    held_out = harmless[len(harmless) - sizes.held_out :]
    labelled = {label: guard for label, guard in guards.items() if guard.reads_labels}
    for guard in labelled.values():
        guard.bind(model, sampling)  # one that isn't for such a model says so before anything is sampled
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
    how: dict[str, Any] = {"sampling": sampling, "batch_size": batch_size}
    if labelled:
        answers = _labelled(
            model, for_anchors, harmful, folder, refused, progress=partial(progress, "labelled answers"), **how
        )
    # 3. Guards that take labels learn from answers of known kinds.
    for guard in labelled.values():
        guard.learn(model, answers, **how)
    # 4. Answers to the others, with their signals.
    reads = {label: anchors[view].digest for label, view in views.items()}
    reads |= {label: guard.reads or label for label, guard in trained.items() if label not in views}
    watching: dict[str, Any] = {each.digest: partial(SRISignal, each) for each in anchors.values()}
    watching |= {reads[label]: guard.watcher for label, guard in trained.items() if label not in views}
    rows = measure(
        model,
        [
            replace(case, set=part, about={"place": place})
            for part, cases in (("held out", held_out), ("train", train))
            for place, case in enumerate(cases)
        ],
        folder,
        readers=[lambda: Signals(watching)],
        depends={"anchors": sorted(watching)},
        progress=partial(progress, "harmless prompts"),
        **how,
    )
    if failed := next((row for row in rows if row.get("error")), None):
        raise GuardError(f"a harmless prompt has no response to fit on: {failed['error']}")
    # 5. Each guard learns from those to train on, and is calibrated on those held out.
    paths: dict[str, Path] = {}
    for number, (label, guard) in enumerate(guards.items()):
        progress("calibrating", number, len(guards))
        exchanges = [
            Exchange(case.request, row["response"], plain=prompt if isinstance(prompt, str) else None)
            for case, row, prompt in zip(held_out, rows, (case.request.prompt for case in held_out), strict=False)
        ]
        if label in trained:
            signals = signals_of(rows, reads[label])
            others = [guards[other] for other in paths if other in views]
            guard.train(anchors[views[label]] if label in views else None, signals[sizes.held_out :], others)
            exchanges = [replace(each, signal=signal) for each, signal in zip(exchanges, signals, strict=False)]
        guard.fit(model, exchanges, alpha=alpha, certain=certain, **how)
        used = [*held_out, *(train if label in trained else [])]
        used += [*for_anchors, *harmful] if label in views or label in labelled else []
        guard.fitted_on = tuple(sorted({prompt_hash(case.request.prompt) for case in used}))
        paths[label] = save(guard, folder / f"{label}.safetensors")
    progress("calibrating", len(guards), len(guards))
    return paths


def _labelled(
    model: LanguageModel,
    harmless: Sequence[Case],
    harmful: Sequence[Case],
    folder: Path,
    refused: Callable[[str], bool],
    *,
    sampling: Sampling,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> Labelled:
    """The model's answers to these prompts, to the harmful ones also behind a forced opening: their goal's target."""

    def opened(case: Case) -> Case:
        opening = model.tokens(case.goal.target or OPENING)[: sampling.length // 2]
        return replace(case, request=replace(case.request, forced=(Forced(0, tuple(opening)),)))

    forces = model.family.kind != "canvas"  # such a model follows no forced opening, so none complies
    cases = [*harmless, *harmful, *(opened(case) for case in harmful if forces)]
    answers = look_states(
        model,
        [case.request for case in cases],
        sampling,
        batch_size=batch_size,
        kept=folder / "states",
        progress=lambda done: progress(done, len(cases)),
    )
    exchanges = [
        Exchange(case.request, each.text, plain=case.goal.prompt, states=each.phi)
        for case, each in zip(cases, answers, strict=True)
    ]
    ends = len(harmless), len(harmless) + len(harmful)
    parts = exchanges[: ends[0]], exchanges[ends[0] : ends[1]], exchanges[ends[1] :]
    kept = [
        [each for each in part if each.text is not None and refused(each.text) is wanted]
        for part, wanted in zip(parts, (False, True, False), strict=True)
    ]
    return Labelled(*kept)
