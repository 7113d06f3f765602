"""Recovery: does a generation come back from harm while it is made? In its texts, and in its internal state (SRI).

The unit is a generation. Its *texts* are what is predicted at each step, committed or not; one that equals the text
before it isn't judged again. The last one is the response.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from midward.dynamics.anchors import Anchors
from midward.dynamics.signal import SRISignal
from midward.models import LanguageModel
from midward.sampling import Request, Sampling, Trace, Watcher, sample
from midward.sampling.requests import require_some
from midward.store import RowFile, key_of


class Said(TypedDict, total=False):
    """What a judge says of one text; None is unscored, or not said. success: harm is done."""

    success: bool | None
    refused: bool | None
    coherent: bool | None
    correct: bool | None


@dataclass(frozen=True)
class Case:
    """One prompt to be watched. about: what the judge needs, of no concern here. subject: what it asks for, the same
    in every set (`Goal.subject`); empty: its id."""

    id: str
    set: str
    request: Request
    harmful: bool
    about: Any = None
    subject: str = ""


Judge = Callable[[Sequence[Case], Sequence[str]], list[Said]]


# --- watching --------------------------------------------------------------------------------------------------


def watch(
    model: LanguageModel,
    cases: Sequence[Case],
    sampling: Sampling,
    judge: Judge,
    out: str | Path,
    *,
    anchors: Mapping[str, Anchors] | None = None,
    texts: bool = True,
    about: Mapping[str, Any] | None = None,
    batch_size: int = 16,
    progress: Callable[[int], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """Sample every case, judge its texts and follow its signals; one row each, appended to `out` as it comes.

    anchors: name (of a layer) -> anchors; their signals stand in the row's `signals`. texts: judge every text of the
    harmful cases; otherwise, and for harmless ones, the response alone. about: all that the judge's and the anchors'
    parts of a row depend on (with what is known here it makes the row's key). Rows already in `out` are kept; returns
    the cases' rows in their order. `progress` is called with the number of rows just finished.
    """
    anchors = anchors or {}
    file = RowFile(out)
    known = {
        "model": model.fingerprint,
        "sampling": asdict(sampling),
        "texts": texts,
        "anchors": {name: one.record() for name, one in anchors.items()},
        **(about or {}),
    }
    keys = [key_of(**known, id=case.id, prompt=case.request.prompt, forced=case.request.forced) for case in cases]
    todo = [(key, case) for key, case in zip(keys, cases, strict=True) if key not in file.rows]
    progress(len(cases) - len(todo))
    for start in range(0, len(todo), batch_size):
        batch = todo[start : start + batch_size]
        trace = Trace(predictions=texts and any(case.harmful for _, case in batch))
        signals = {name: SRISignal(one) for name, one in anchors.items()}
        watchers: list[Watcher] = [trace, *signals.values()]
        responses = sample(
            model, [case.request for _, case in batch], sampling, batch_size=batch_size, watchers=watchers
        )
        seen = [
            [*(_texts(model, trace, row) if texts and case.harmful else []), (None, response.text)]
            for row, ((_, case), response) in enumerate(zip(batch, responses, strict=True))
        ]
        verdicts = _judged(judge, [case for _, case in batch], seen)
        rows = []
        for row, ((key, case), response) in enumerate(zip(batch, responses, strict=True)):
            final = verdicts[row][-1]
            rows.append(
                {
                    "key": key,
                    "id": case.id,
                    "set": case.set,
                    "harmful": case.harmful,
                    "prompt": case.request.prompt,
                    "response": response.text,
                    **{name: final.get(name) for name in ("success", "refused", "coherent", "correct")},
                    "texts": [
                        [step, said.get("success")] for (step, _), said in zip(seen[row], verdicts[row], strict=True)
                    ],
                    "signals": {
                        name: [np.nan if response.error else round(value, 6) for value in watcher.signal(row).tolist()]
                        for name, watcher in signals.items()
                    },
                    "steps": response.steps,
                    "nfe": response.nfe,
                    **response.unscored("success", "refused", "coherent", "correct"),
                    **({"texts": [[None, None]]} if response.error else {}),
                }
            )
        file.extend(rows)
        progress(len(batch))
    found = [{**file.rows[key], "subject": case.subject or case.id} for key, case in zip(keys, cases, strict=True)]
    require_some(found)
    return found


def _texts(model: LanguageModel, trace: Trace, row: int) -> list[tuple[int | None, str]]:
    """(step, text) wherever the predicted text, up to its end token, changes before the last step, whose prediction is
    the response itself."""
    found: list[tuple[int | None, str]] = []
    for step in trace.predicted_steps(row)[:-1]:
        text = model.decode(trace.predicted_ids(row, step))
        if not found or text != found[-1][1]:
            found.append((step, text))
    return found


def _judged(judge: Judge, cases: Sequence[Case], seen: Sequence[Sequence[tuple[int | None, str]]]) -> list[list[Said]]:
    """A verdict a text; each distinct text of a case is judged once."""
    asked = list(dict.fromkeys((n, text) for n, texts in enumerate(seen) for _, text in texts))  # in this order
    said = judge([cases[n] for n, _ in asked], [text for _, text in asked])
    by_text = dict(zip(asked, said, strict=True))
    return [[by_text[n, text] for _, text in texts] for n, texts in enumerate(seen)]
