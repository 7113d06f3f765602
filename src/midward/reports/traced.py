"""From a trace to what the step player shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from midward.errors import InputError
from midward.guards.guard import Verdict, user_text
from midward.models import LanguageModel
from midward.reports.stepplayer import MASK, NEVER, VERDICT, Generation, stands
from midward.sampling import Request, Trace


def of_trace(
    trace: Trace,
    row: int,
    model: LanguageModel,
    *,
    title: str,
    signal: Sequence[float] | None = None,
    verdict: Verdict | Mapping[str, Any] | None = None,
    scores: Sequence[float | None] | None = None,
    note: str = "",
) -> Generation:
    """A request of a trace, as the step player shows it.

    Args:
        trace: one that kept its predictions.
        row: which request.
        model: what it was made with; its tokenizer and family are used.
        title: what tells it from the one beside it.
        signal: [T], the SRI signal; by default the verdict's.
        verdict: the guard's.
        scores: [T], the guard's score after each step.
        note: a line below.

    Raises:
        InputError: the trace has no predictions, or ids that the model's vocabulary lacks.
        KeyError: the request wasn't traced.
    """
    about = dict(verdict) if isinstance(verdict, Mapping) else verdict.record() if verdict else None
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
    if model.family.kind == "canvas" and steps and not (about and about["flagged"]):
        # Nothing is committed for good there: the last step's most probable canvas is the response.
        commit = [steps[-1] if at == NEVER else at for at in commit]
    places: dict[int | None, int] = {model.family.mask_id: MASK, None: MASK}
    tokens: list[tuple[str, bool]] = []
    for token in (token for line in ids for token in line):
        if token is not None and token not in places:
            places[token] = len(tokens)
            text = model.tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            tokens.append((text, token in model.family.end_ids))
    if signal is None and about:
        signal = about.get("signal")
    return Generation(
        title=title,
        prompt=user_text(model, Request(trace.prompt_ids[row])),
        tokens=tuple(tokens),
        steps=tuple(steps),
        frames=tuple(tuple(places[token] for token in line) for line in ids),
        commit_step=tuple(commit),
        confidence=_finite(trace.confidence[row].tolist()),
        total=trace.of,
        signal=None if signal is None else tuple(float(value) for value in signal),
        scores=None if scores is None else _finite(scores),
        verdict=None if about is None else {name: about[name] for name in VERDICT},
        note=note,
    )


def _finite(values: Sequence[float | None]) -> tuple[float | None, ...]:
    return tuple(None if value is None or not math.isfinite(value) else value for value in values)
