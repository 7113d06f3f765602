"""Responses to prompts with forced spans, judged, a row each: the loop of the probes that force something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from midward.goals import Goal, on_sandbox
from midward.judges.bench import Bench, judging, reading
from midward.judges.phrases import refuses
from midward.models import LanguageModel
from midward.sampling import Forced, Request, Response, Sampling, Watcher, sample
from midward.sampling.requests import require_some, resolve
from midward.store import RowFile, key_of
from midward.world import refused

CHUNK = 32  # rows between two writes
_SAID = ("success", "score", "refused", "coherent", "correct", "landed", "own_refusal")


@dataclass(frozen=True)
class Case:
    """One response that is wanted. about: what the row says of it (kind, position, ...). measured: the span whose
    fate the row tells: where it landed and what the model wrote beside it; None for an unforced one."""

    goal: Goal
    prompt: str
    forced: tuple[Forced, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    measured: Forced | None = None


def run_id(model: LanguageModel, sampling: Sampling, judged_by: Bench) -> str:
    """What all rows of a run share: weights, adapter, settings, judge."""
    return key_of(model=model.fingerprint, sampling=asdict(sampling), judge=judged_by.key)


def respond(
    model: LanguageModel,
    cases: Sequence[Case],
    out: str | Path,
    judged_by: Bench,
    sampling: Sampling,
    *,
    batch_size: int = 16,
    watchers: Sequence[Watcher] = (),
    progress: Callable[[int], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """Sample and judge every case; rows go to `out` (JSON lines) as they come, and rows already there are kept.

    Returns the rows in the cases' order. A row: key, run, goal, source, harmful, what the case is `about`, prompt,
    response, success, score, refused, coherent, correct (see `verdicts.reading`), landed (whether the response reaches
    behind the measured span), own_refusal (a refusal in what the model wrote itself, without any forced token), nfe.
    progress: called with the number of rows just finished. Raises InputError or TypeError, before the first forward,
    for a prompt that is too long and spans that don't fit.
    """
    for index, case in enumerate(cases):
        resolve(model, Request(case.prompt, case.forced), sampling.length, index)
    run = run_id(model, sampling, judged_by)
    file = RowFile(out)
    keys = [
        key_of(
            run=run,
            goal=asdict(case.goal),
            prompt=case.prompt,
            about=case.about,
            forced=[(span.position, span.ids) for span in case.forced],
        )
        for case in cases
    ]
    todo = [(key, case) for key, case in zip(keys, cases, strict=True) if key not in file.rows]
    progress(len(cases) - len(todo))
    with judging(judged_by) as judge:
        for start in range(0, len(todo), CHUNK):
            chunk = todo[start : start + CHUNK]
            responses = sample(
                model,
                [Request(case.prompt, case.forced) for _, case in chunk],
                sampling,
                batch_size=batch_size,
                watchers=watchers,
            )
            verdicts = judge([case.goal for _, case in chunk], [response.text for response in responses])
            file.extend(
                {
                    "key": key,
                    "run": run,
                    "goal": case.goal.id,
                    "source": case.goal.source,
                    "harmful": case.goal.harmful,
                    **case.about,
                    "prompt": case.prompt,
                    "response": response.text,
                    **reading(judged_by, verdict, response.text),
                    **_beside(model, case, response),
                    "nfe": response.nfe,
                    **response.unscored(*_SAID),
                }
                for (key, case), response, verdict in zip(chunk, responses, verdicts, strict=True)
            )
            progress(len(chunk))
    rows = [file.rows[key] for key in keys]
    require_some(rows)
    return rows


def _beside(model: LanguageModel, case: Case, response: Response) -> dict[str, Any]:
    span = case.measured
    given = {one.position + i for one in case.forced for i in range(len(one.ids))}
    written = model.decode([token for place, token in enumerate(response.ids) if place not in given])
    if span is None:
        landed = None
    else:
        # An end token of the span is the last thing it can bring: the response ends there, and doesn't hold it.
        last = span.position + len(span.ids) - (span.ids[-1] in model.family.end_ids)
        landed = len(response.ids) >= last
    own = refused(written) if on_sandbox([case.goal]) else refuses(written)
    return {"landed": landed, "own_refusal": own}
