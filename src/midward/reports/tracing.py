"""Generations for the step player: sampled with everything recorded, or read from a trace.

What a trace's tokens don't tell (title, verdict, signal, scores) stands in its notes, so a recorded trace shows what
was shown when it was made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from midward import guards
from midward.dynamics import Anchors, SRISignal
from midward.errors import InputError
from midward.guards.exchange import user_text
from midward.models import LanguageModel
from midward.reports.stepplayer import MASK, NEVER, VERDICT, Generation, stands
from midward.sampling import Forced, Request, Sampling, Trace, Watcher, sample


def record(
    model: LanguageModel,
    sampling: Sampling,
    prompt: str,
    *,
    forced: Sequence[tuple[int, str]] = (),
    guard_files: Sequence[Path] = (),
    anchor_files: Sequence[Path] = (),
    path: Path | None = None,
    suffix: str = "",
    watchers: Sequence[Watcher] = (),
) -> Generation:
    """Sample once with everything recorded.

    Args:
        model: what answers.
        sampling: its settings.
        prompt: what it is asked.
        forced: (response token, text that stands there from the start).
        guard_files, anchor_files: the first of each that was fitted for this model and sampling watches.
        path: where the trace is kept, if it is.
        suffix: of the generation's title.
        watchers: see the steps as well.

    Raises:
        InputError: the prompt or a forced text can't be followed.
    """
    request = Request(prompt, forced=tuple(Forced.text(model, at, text) for at, text in forced))
    guard, no_guard = _first(guard_files, guards.load, model, sampling)
    anchors, no_anchors = _first(anchor_files, Anchors.load, model, sampling)
    watching = {"guard": no_guard, "signal": no_anchors}
    trace = Trace(predictions=True)
    signal = SRISignal(anchors) if anchors is not None else None
    run = sample if guard is None else guard.sample
    [response] = run(model, [request], sampling, watchers=[trace, *([signal] if signal else []), *watchers])
    response.checked()
    verdict = None if response.verdict is None else response.verdict.record()
    seen = verdict and verdict["signal"]
    names = [Path(model.name).name, *([f"+ {Path(model.adapter).name}"] if model.adapter else [])]
    trace.notes = {
        "model": model.name,
        "adapter": model.adapter,
        "title": " ".join(names) + (f", {suffix}" if suffix else ""),
        "note": " ".join(f"No {what} here: {why}" for what, why in watching.items() if why),
        "verdict": verdict,
        "signal": seen or _values(signal),
        "scores": guard.scores_so_far(seen) if guard is not None and guard.reads_signals and seen else None,
    }
    if 0 not in trace.commit_step:  # the guard let nothing be generated
        nothing = (NEVER,) * sampling.length
        return Generation(trace.notes["title"], prompt, (), (), (), nothing, (None,) * len(nothing), verdict=verdict)
    if path is not None:
        trace.save(path)
    return of_trace(trace, 0, model)


def read(
    model: LanguageModel, traces: Sequence[tuple[Path, Trace]], row: int, tell: Callable[[str], None]
) -> list[Generation]:
    """Recorded traces as generations.

    Args:
        model: whose tokens they are.
        traces: file -> what it holds.
        row: which request of them.
        tell: called with a line where a trace is of another model.
    """
    for path, trace in traces:
        made_with = trace.notes.setdefault("model", model.name)
        trace.notes.setdefault("title", path.stem)
        if made_with != model.name:
            tell(f"{path} was made with {made_with}; its tokens are read with those of {model.name}.")
    return [of_trace(trace, row, model) for _, trace in traces]


def load(path: Path, row: int) -> Trace:
    """A recorded trace. Raises InputError where it has no request `row`."""
    trace = Trace.load(path)
    if row not in trace.commit_step:
        raise InputError(f"{path} holds no request {row}; it has {', '.join(map(str, sorted(trace.commit_step)))}.")
    return trace


def of_trace(trace: Trace, row: int, model: LanguageModel) -> Generation:
    """A request of a trace, as the step player shows it.

    Args:
        trace: one that kept its predictions. Of its notes are taken: title; note, a line below; verdict, a guard's as
            JSON; signal [T], the SRI signal, by default the verdict's; scores [T], the guard's score after each step.
        row: which request.
        model: what it was made with; its tokenizer and family are used.

    Raises:
        InputError: the trace has no predictions, or ids that the model's vocabulary lacks.
        KeyError: the request wasn't traced.
    """
    verdict = trace.notes.get("verdict")
    commit = trace.commit_step[row].tolist()
    steps = trace.predicted_steps(row)
    if not steps and any(step >= 0 for step in commit):
        raise InputError("the trace kept no predictions; make it with Trace(predictions=True).")
    ids: list[list[int | None]] = [trace.predicted_ids(row, step).tolist() for step in steps]
    known = [*trace.prompt_ids[row], *(token for line in ids for token in line if token is not None)]
    largest = max(known, default=0)
    if largest >= model.vocab_size:
        raise InputError(
            f"the trace holds token {largest}, and {model.name!r} has {model.vocab_size}; give the model that it was "
            "made with."
        )
    if model.family.kind == "autoregressive":  # what isn't there yet isn't predicted either
        ids = [
            [token if stands(at, step) else None for token, at in zip(line, commit, strict=True)]
            for step, line in zip(steps, ids, strict=True)
        ]
    if model.family.kind == "canvas" and steps and not (verdict and verdict["flagged"]):
        # Nothing is committed for good there: the last step's most probable canvas is the response.
        commit = [steps[-1] if at == NEVER else at for at in commit]
    places: dict[int | None, int] = {model.family.mask_id: MASK, None: MASK}
    tokens: list[tuple[str, bool]] = []
    for token in (token for line in ids for token in line):
        if token is not None and token not in places:
            places[token] = len(tokens)
            text = model.tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            tokens.append((text, token in model.family.end_ids))
    signal, scores = (trace.notes.get(name) for name in ("signal", "scores"))
    signal = verdict.get("signal") if signal is None and verdict else signal
    return Generation(
        title=str(trace.notes.get("title", "")),
        prompt=user_text(model, Request(trace.prompt_ids[row])).strip("\n"),
        tokens=tuple(tokens),
        steps=tuple(steps),
        frames=tuple(tuple(places[token] for token in line) for line in ids),
        commit_step=tuple(commit),
        confidence=_finite(trace.confidence[row].tolist()),
        total=trace.of,
        signal=None if signal is None else tuple(float(value) for value in signal),
        scores=None if scores is None else _finite(scores),
        verdict=None if verdict is None else {name: verdict[name] for name in VERDICT},
        note=str(trace.notes.get("note", "")),
    )


def _first(paths: Sequence[Path], read: Callable[[Path], Any], *fitted_for: Any) -> tuple[Any, str]:
    """The first that was fitted for the model and sampling, and otherwise why the last one wasn't."""
    why = ""
    for path in paths:
        fitted = read(path)
        try:
            fitted.check(*fitted_for)
        except ValueError as error:
            why = str(error)
        else:
            return fitted, ""
    return None, why


def _values(signal: SRISignal | None) -> list[float] | None:
    """The signal of the one request; None where it took part in no step."""
    values = None if signal is None else signal.signals()
    known = values is not None and len(values) and not values[0].isnan().any()
    return values[0].tolist() if values is not None and known else None


def _finite(values: Sequence[float | None]) -> tuple[float | None, ...]:
    return tuple(None if value is None or not math.isfinite(value) else value for value in values)
