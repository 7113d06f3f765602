"""A guard in front of a model: what it flags at the request is never sampled, and what it flags later isn't handed
out; the stub stands in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from midward.guards.config import GuardError
from midward.guards.exchange import Exchange, Verdict
from midward.models import LanguageModel
from midward.sampling import Response, Sampling, Watcher
from midward.sampling import fill as sampled
from midward.sampling.passes import Pass, Passes
from midward.sampling.requests import resolve

if TYPE_CHECKING:
    from midward.guards.guard import Guard

#: What stands in the place of a flagged response.
STUB = "I can't help with that."


def fill(
    guard: Guard,
    model: LanguageModel,
    requests: Sequence[Any],
    sampling: Sampling | None,
    *,
    batch_size: int,
    watchers: Sequence[Watcher],
    shadow: bool,
    leaves: Callable[[dict[int, Response]], None] | None,
) -> Passes[list[Response]]:
    """See `Guard.fill`."""
    sampling = Sampling.for_model(model, **guard.sampling) if sampling is None else sampling
    guard.check(model, sampling)
    pairs = [resolve(model, request, sampling, index) for index, request in enumerate(requests)]
    exchanges = [Exchange(request) for request, _ in pairs]
    if guard.repairs:
        if shadow:
            raise GuardError(f"the guard {guard.name!r} answers anew, so it can't only look on.")
        answers: list[Response] = yield Pass(
            lambda: guard.answer(model, exchanges, sampling, batch_size=batch_size, watchers=watchers)
        )
        if leaves:
            leaves(dict(enumerate(answers)))
        return answers
    finished: dict[int, Response] = {}

    def finish(responses: Mapping[int, Response | None], verdicts: Mapping[int, Verdict]) -> None:
        """Hand out responses; None of a request that wasn't sampled."""
        handed_out = {
            i: _handed_out(model, response, verdicts[i], pairs[i][1], shadow) for i, response in responses.items()
        }
        finished.update(handed_out)
        if leaves and handed_out:
            leaves(handed_out)

    # 1. What the requests alone say; those that are flagged aren't sampled.
    early = guard.early(model, exchanges, batch_size=batch_size, briefly=not shadow)
    exchanges = [replace(each, early=scores) for each, scores in zip(exchanges, early, strict=True)]
    before = {
        i: guard.seen(verdict, exchanges[i], None) for i, verdict in enumerate(guard.verdicts(largest(early), "before"))
    }
    refused = {i: None for i, verdict in before.items() if verdict.flagged and not shadow}
    finish(refused, before)
    stopped: dict[int, int] = {}
    signals = guard.watcher(None if shadow else stopped)

    # 2. What the generations say.
    def hand_out(responses: Mapping[int, Response]) -> None:
        if guard.looks == "before":
            finish(responses, before)
            return
        exchanged = {}
        for i, response in responses.items():
            signal = None if signals is None else signals.signal(i).numpy()
            if i in stopped and signal is not None and signal.ndim == 1:
                signal = signal[: stopped[i] + 1]
            exchanged[i] = replace(exchanges[i], text=response.text, signal=signal)
        verdicts = guard.verdicts(guard.checked(model, list(exchanged.values()), batch_size=batch_size))
        seen = {
            i: guard.seen(verdict, each, _stop(guard, each) if shadow else stopped.get(i))
            for (i, each), verdict in zip(exchanged.items(), verdicts, strict=True)
        }
        at_request = {i: before[i] for i in seen if before[i].flagged}  # in the shadow, where they were sampled
        finish(responses, seen | at_request)

    asked = [request for request, _ in pairs]
    watchers = [*([signals] if signals else []), *watchers]
    responses = yield from sampled(
        model,
        asked,
        sampling,
        batch_size=batch_size,
        watchers=watchers,
        skipped=refused.keys(),
        leaves=hand_out if leaves else None,
    )
    if not leaves:
        hand_out(dict(zip([i for i in range(len(asked)) if i not in refused], responses, strict=True)))
    return [finished[i] for i in range(len(pairs))]


def largest(scores: np.ndarray) -> np.ndarray:
    """The largest of each row [N] of scores [N, K]; NaN where none is known."""
    return np.asarray(np.fmax.reduce(scores, axis=1, initial=np.nan))


def _stop(guard: Guard, exchange: Exchange) -> int | None:
    """The step that a whole signal would have been stopped at."""
    return None if exchange.signal is None else guard.stops(exchange.signal[None])[0]


def _handed_out(
    model: LanguageModel, response: Response | None, verdict: Verdict, prompt_ids: list[int], shadow: bool = False
) -> Response:
    """The response as it leaves the guard: with its verdict, or the stub. An error stays one, unscored."""
    if response is not None and response.error is not None:
        return replace(response, verdict=replace(verdict, flagged=False, score=None))
    if response is not None and (shadow or not verdict.flagged):
        return replace(response, verdict=verdict)
    ids = model.tokens(STUB)
    nfe, steps = (response.nfe, response.steps) if response else (0, 0)
    return Response(STUB, ids, list(ids), True, nfe, steps, list(prompt_ids), verdict)
