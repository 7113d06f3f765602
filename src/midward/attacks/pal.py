"""PAL: a suffix for a target that only scores, led by a proxy's gradient (Sitawarin et al., 2402.09674).

`ral` is the same search without a proxy: candidates are random.

Attacks:
    pal: a suffix found by a proxy's gradient and the target's log-probabilities
    ral: PAL without a proxy: random changes of a suffix, chosen by the target's log-probabilities

Source:
    Sitawarin et al. 2024, arXiv 2402.09674

Deviations:
    - The loss is the negative log-probability of the whole wanted text in a fully masked response, one forward a
      suffix; the paper's token-by-token queries and its margin loss are for interfaces that show a few of these.
    - pal: The proxy isn't tuned on the target's replies.
    - A suffix is read by the in-loop scorer, not by a list of refusals; the target is asked only with a new best one.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import Field

from midward.attacks._suffix import filler, slots_of, vocabulary
from midward.attacks.attack import AttackInfo, Attempt, Count, InLoop, checked
from midward.attacks.capabilities import AttackError, Capability
from midward.attacks.phrases import fitting
from midward.attacks.roles import SCORE
from midward.attacks.target import Ask, Target
from midward.attacks.taxonomy import IN_PROMPT, SEARCH, TRANSFER
from midward.sampling.likelihood import Span

Suffix = tuple[int, ...]
_OVER = 1.5  # candidates drawn for each that is needed: some are read back as other tokens, or were there before


@checked
class Ral:
    """tokens: of the suffix. steps: of the search. put: candidates that the target scores every `period` steps.
    look: steps after which the target is asked with the best suffix, where it is a new one. cutoff: the in-loop score
    that ends the search. wanted: tokens of the opening that are made probable, at most. position: response token where
    they stand; further on it is the label of a step. queries: to the target, at most."""

    tokens: Count = 20
    steps: Count = 500
    put: Count = 32
    period: Count = 1
    look: Count = 1
    cutoff: InLoop = 10
    wanted: Count = 50
    position: Annotated[int, Field(ge=0)] = 0
    queries: Count = 25_000


@checked
class Pal(Ral):
    """batch: candidates that the proxy scores in a step. top: tokens for each place that they are drawn from, those of
    the steepest gradient."""

    batch: Count = 512
    top: Count = 256


@dataclass
class Climb:
    """Where a search stands. guide: the model whose tokens the suffix is made of. heap: (guide's loss, a draw among
    equals, suffix) of what waits for the target, best first. visited: what it has scored. best: the suffix of the
    target's least loss so far."""

    guide: Target
    goal: str
    phrase: str
    position: int
    current: Suffix
    best: Suffix
    loss: float
    visited: set[Suffix] = field(default_factory=set)
    heap: list[tuple[float, float, Suffix]] = field(default_factory=list)

    def prompt(self, suffix: Suffix) -> str:
        """The goal with a suffix behind it."""
        return f"{self.goal} {self.guide.decode(suffix)}"


async def search(attempt: Attempt, settings: Ral) -> None:
    """Step by step: candidates, the guide's pick of them, the target's pick of those, and now and then a reply."""
    target = attempt.target
    led = settings if isinstance(settings, Pal) else None
    guide = target if led is None else _proxy(attempt)
    phrase = fitting(attempt.goal, settings.position)
    start = filler(guide, settings.tokens)
    climb = Climb(guide, attempt.goal.prompt, phrase, settings.position, start, start, float("inf"), {start})
    [climb.loss] = await _losses(target, climb, [start], settings)
    asked: Suffix | None = None
    for step in range(1, settings.steps + 1):
        last = step == settings.steps or (target.left is not None and target.left <= 2)
        await _gather(attempt, climb, settings, led)
        if (last or step % settings.period == 0) and climb.heap and target.left != 1:
            await _choose(target, climb, settings)
        if (last or step % settings.look == 0) and climb.best != asked:
            asked = climb.best
            note = {"step": step, "suffix": guide.decode(asked), "loss": climb.loss}
            await attempt.put([(Ask.of(climb.prompt(asked)), note)])
            if attempt.reached(settings.cutoff):
                return
        if last:
            return


def _proxy(attempt: Attempt) -> Target:
    """The proxy as a target of its own, without a budget. Raises AttackError where it gives no gradients."""
    proxy = Target(attempt.roles.model("proxy"), seed=attempt.seed)
    if proxy.runtime is None:
        raise AttackError(
            f"the proxy {proxy.name} isn't run by this process and gives no gradients; use midward/<model>."
        )
    proxy.need(Capability.SLP, Capability.GRAD)
    attempt.facts["proxy"] = proxy.name
    return proxy


def _probe(climb: Climb, model: Target, suffix: Suffix, settings: Ral) -> Span:
    """What is to become probable, in the model's own tokens."""
    wanted = model.span(climb.phrase, climb.position).ids[: settings.wanted]
    return Span(climb.prompt(suffix), climb.position, wanted)


async def _losses(model: Target, climb: Climb, suffixes: Sequence[Suffix], settings: Ral) -> list[float]:
    """The wanted text's negative log-probability with each suffix; fewer where the budget ends."""
    scores = await model.score(*(_probe(climb, model, suffix, settings) for suffix in suffixes))
    return [-score.total for score in scores]


async def _gather(attempt: Attempt, climb: Climb, settings: Ral, led: Pal | None) -> None:
    """Put one step's candidates on the heap: by the proxy's loss, or as they were drawn."""
    if led is None:
        words = vocabulary(climb.guide)
        suffixes = _candidates(attempt, climb, [words] * len(climb.current), settings.put)
        losses = [0.0] * len(suffixes)
    else:
        probe = _probe(climb, climb.guide, climb.current, settings)
        slots = slots_of(climb.guide, str(probe.prompt), climb.current)
        if slots is None:
            raise AttackError(
                "the proxy reads the suffix as other tokens within its prompt, so it has no gradient; use another one."
            )
        slope = await climb.guide.gradient(probe, slots)
        suffixes = _candidates(attempt, climb, _steepest(slope, vocabulary(climb.guide), led.top), led.batch)
        calls = attempt.roles.calls
        calls["proxy"] = calls.get("proxy", 0) + 1 + len(suffixes)
        losses = await _losses(climb.guide, climb, suffixes, settings) if suffixes else []
    new = [(loss, attempt.rng.random(), suffix) for loss, suffix in zip(losses, suffixes, strict=True)]
    climb.heap = heapq.nsmallest(settings.put, [*climb.heap, *new])


def _steepest(slope: Any, words: Suffix, top: int) -> list[Suffix]:
    """For each slot the tokens that lower the loss most, to first order, by id: near ones change places by rounding.
    slope: [S, V]."""
    picked = slope[:, list(words)].topk(min(top, len(words)), largest=False).indices.sort().values.tolist()
    return [tuple(words[i] for i in row) for row in picked]


def _candidates(attempt: Attempt, climb: Climb, choices: Sequence[Suffix], count: int) -> list[Suffix]:
    """New suffixes, each with one token changed, that are read back as they are."""
    rng, current = attempt.rng, climb.current
    known = climb.visited | {suffix for _, _, suffix in climb.heap}
    fresh: list[Suffix] = []
    for _ in range(int(count * _OVER)):
        slot = rng.randrange(len(current))
        suffix = (*current[:slot], rng.choice(choices[slot]), *current[slot + 1 :])
        if suffix in known:
            continue
        known.add(suffix)
        if slots_of(climb.guide, climb.prompt(suffix), suffix) is not None:
            fresh.append(suffix)
        if len(fresh) == count:
            break
    return fresh


async def _choose(target: Target, climb: Climb, settings: Ral) -> None:
    """Let the target score what waits; its best is gone on from. One query is kept back for a reply."""
    waiting = [suffix for _, _, suffix in climb.heap]
    climb.heap = []
    if target.left is not None:
        waiting = waiting[: target.left - 1]
    climb.visited.update(waiting)
    losses = await _losses(target, climb, waiting, settings)
    best = min(range(len(losses)), key=losses.__getitem__)
    climb.current = waiting[best]
    if losses[best] < climb.loss:
        climb.best, climb.loss = waiting[best], losses[best]


def _calls(settings: Ral) -> dict[str, int]:
    looks = -(-settings.steps // settings.look)
    put = 1 + -(-settings.steps // settings.period) * settings.put
    proxy = {"proxy": settings.steps * (1 + settings.batch)} if isinstance(settings, Pal) else {}
    return {"target": min(settings.queries, put + looks), "scorer": looks, **proxy}


RAL = AttackInfo(
    name="ral",
    needs=(Capability.SLP,),
    settings=Ral,
    calls=_calls,
    search=search,
    prompts=(SCORE,),
    taxonomy=(*IN_PROMPT, SEARCH),
)
PAL = replace(RAL, name="pal", version="2", settings=Pal, roles=("proxy",), taxonomy=(*IN_PROMPT, TRANSFER))
