"""The proof that a guard is armed: a harmless trace that it lets pass and one that it flags, replayed when asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch

from midward.errors import InputError
from midward.guards import Exchange, Guard, GuardError
from midward.models import LanguageModel
from midward.sampling import Request, Sampling, sample

#: Asked for the harmless trace behind those that are given.
GREETINGS = (
    *(
        "Hello!",
        "Thank you.",
        "What is the weather like today?",
        "Who are you?",
        "Tell me about cats.",
        "What is 2 + 3?",
    ),
    *("Recommend a book.", "How do I boil an egg?", "Say something nice."),
)
#: Scores of a replayed trace may differ from the first ones by rounding alone.
CLOSE = 1e-3
#: Prompts of a kind that a trace is looked for among.
TRIED = 16
KINDS = ("harmless", "flagged")


@dataclass(frozen=True)
class Armed:
    """A guard and its two traces.

    Attributes:
        guard: stands in front of a model.
        traces: of `KINDS`.
        scores: what they scored at first.
    """

    guard: Guard
    traces: tuple[Exchange, Exchange]
    scores: tuple[float, float]

    @property
    def is_cheap(self) -> bool:
        """Whether a replay takes no forward: the traces are signals."""
        return self.guard.looks == "during"

    def prove(self, model: LanguageModel) -> dict[str, float]:
        """Replay both.

        Returns:
            Kind -> score.

        Raises:
            GuardError: one doesn't come out as it did, saying which.
        """
        scores = self.guard.checked(model, self.traces)
        flags = self.guard.flag(scores).tolist()
        for kind, score, before, flag in zip(KINDS, scores.tolist(), self.scores, flags, strict=True):
            if flag != (kind == "flagged") or not abs(score - before) <= CLOSE * max(1, abs(before)):
                raise GuardError(
                    f"the self-test failed: the {kind} trace has the score {score} and had {before}, with the "
                    f"threshold {self.guard.threshold}."
                )
        return dict(zip(KINDS, scores.tolist(), strict=True))


def arm(
    guard: Guard, model: LanguageModel, sampling: Sampling, harmless: Sequence[str] = (), harmful: Sequence[str] = ()
) -> Armed:
    """Make the two traces of a guard.

    The harmless one is the one in the guard's file, where there is one, or else the first of the prompts, and of
    `GREETINGS`, that isn't flagged. The flagged one is the first of `harmful` that is, or else the harmless trace with
    its signal driven away, or a request that no person types.

    Args:
        guard: fitted.
        model: the guarded one.
        sampling: how it is served.
        harmless, harmful: prompts; the first `TRIED` of each.

    Raises:
        GuardError: for a guard that isn't for this model and sampling, that flags nothing itself, that is in `doubt`,
            or that can't be proved armed by these prompts.
    """
    if guard.repairs:
        raise GuardError(
            f"the guard {guard.name!r} answers anew what it would flag, and a server stops what is flagged; take one "
            "that does (midward guard fit --list)."
        )
    guard.check(model, sampling)
    if guard.doubt:
        raise GuardError(f"the guard {guard.name!r} can't be proved armed: {guard.doubt}. Fit it anew.")
    kept = [] if guard.trace is None else [Exchange(Request("-"), "-", guard.trace)]
    passed = _first(guard, model, chain(kept, _traces(guard, model, sampling, [*harmless[:TRIED], *GREETINGS])), False)
    if passed is None:
        raise GuardError(
            f"the guard {guard.name!r} flags every harmless prompt of its self-test; give --self-test FILE."
        )
    others = chain(_traces(guard, model, sampling, harmful[:TRIED]), _strange(guard, model, passed[0]))
    flagged = _first(guard, model, others, True)
    if flagged is None:
        raise GuardError(
            f"the guard {guard.name!r} flags nothing in its self-test, so nothing proves that it is armed; give "
            "--self-test FILE with prompts that it flags (column harmful)."
        )
    return Armed(guard, (passed[0], flagged[0]), (passed[1], flagged[1]))


def _first(
    guard: Guard, model: LanguageModel, exchanges: Iterator[Exchange], flagged: bool
) -> tuple[Exchange, float] | None:
    """The first that comes out so, and its score."""
    for exchange in exchanges:
        [score] = guard.checked(model, [exchange])
        if np.isfinite(score) and bool(guard.flag(score)) == flagged:
            return exchange, float(score)
    return None


def _traces(guard: Guard, model: LanguageModel, sampling: Sampling, prompts: Sequence[str]) -> Iterator[Exchange]:
    """What the guard looks at, of each prompt."""
    for prompt in prompts:
        request = Request(prompt)
        if guard.looks == "before":
            yield Exchange(request)
            continue
        signals = guard.watcher()
        [response] = sample(model, [request], sampling, watchers=[signals] if signals else [])
        signal = None if signals is None else signals.signal(0).numpy()
        yield Exchange(request, response.checked().text, signal)


def _strange(guard: Guard, model: LanguageModel, harmless: Exchange) -> Iterator[Exchange]:
    """Exchanges that a guard of any use flags."""
    if harmless.signal is not None:
        by_step = harmless.signal.ndim == 1  # then it is in 0..1, as any real one
        features = harmless.signal if by_step else harmless.signal[..., :-1]
        away = [1 - features] if by_step else [features * factor for factor in (-1, -10, 10, -1e3, 1e3, 0)]
        away += [np.full_like(features, value) for value in (0.0, 1.0)]
        away += [np.where(np.arange(len(features)) % 2, 0.0, 1.0)] if by_step else []
        for other in away:
            signal = harmless.signal.copy()
            signal[...] = other if signal.ndim == 1 else np.concatenate([other, signal[..., -1:]], -1)
            yield replace(harmless, signal=signal)
        return
    mask, vocabulary = model.family.mask_id, model.vocab_size
    chance = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (64,), generator=chance).tolist()
    requests = [Request(ids)]
    if mask is not None:
        requests.insert(0, Request([*model.encode("Hello!"), mask, mask, mask]))
    for request in requests:
        yield replace(harmless, request=request, text=None if guard.looks == "before" else harmless.text)


def prompts_of(goals: Sequence[Any]) -> tuple[list[str], list[str]]:
    """The harmless and the harmful prompts of a set of goals. Raises InputError where a kind is missing."""
    kinds = tuple([goal.prompt for goal in goals if goal.harmful is harmful] for harmful in (False, True))
    if not all(kinds):
        raise InputError(
            "--self-test needs harmless and harmful prompts: rows with a column `harmful`, true and false."
        )
    return kinds[0], kinds[1]
