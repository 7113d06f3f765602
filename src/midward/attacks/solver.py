"""Every attack as an Inspect solver: reads the goal, searches, and leaves the best prompt, reply and a full record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, cast

from inspect_ai.log import transcript
from inspect_ai.model import ModelOutput, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import LimitExceededError

from midward.attacks._following import ended
from midward.attacks.attack import AttackInfo, Attempt, Found, run_search
from midward.attacks.roles import Roles
from midward.attacks.target import Target, chat, check
from midward.errors import InputError
from midward.goals import Goal

RECORD = "attempt"  # the key of the record in a sample's store
REPLAY_SEED = 1_000_003  # added to the seeds of a fresh replay


def solver_of(info: AttackInfo) -> Callable[..., Solver]:
    """The Inspect solver of an attack. Its options: the attack's settings, seed, budget and replay.

    budget: the most queries to the target for one goal; what the settings can reach unless given. replay: whether the
    best prompt is put once more with fresh seeds, for the judges (not counted in the budget; where no seed has a say
    in the reply, it is the one known already).
    """

    def attack(*, seed: int = 0, budget: int | None = None, replay: bool = True, **settings: Any) -> Solver:
        configured = info.configure(settings)
        if budget is not None and budget < 1:
            raise InputError(f"{info.name}: budget must be 1 or more queries; received {budget}.")
        limit = info.calls(configured)["target"]
        limit = limit if budget is None else min(budget, limit)

        async def solve(state: TaskState, generate: Generate) -> TaskState:
            try:
                return await attempted(state)
            finally:
                ended()

        async def attempted(state: TaskState) -> TaskState:
            started = time.monotonic()
            target = Target(get_model(), budget=limit, seed=seed)
            check(target.name, target.capabilities, info.needs, info.name)
            attempt = Attempt(goal_of(state), target, Roles(seed), seed)
            texts: dict[str, str | None] = {"reply": None}  # where nothing was tried: unscored, no failure

            def leave() -> None:
                """Write down what there is."""
                if (best := attempt.best) is not None:
                    texts.update(reply=best.text, authored=best.authored)
                    if replay:
                        texts.setdefault("replay", None)  # a limit came before it
                    state.messages = chat(best.asks[-1].turns)
                    state.output = ModelOutput.from_content(target.name, best.text)
                    state.messages.append(state.output.message)
                state.store.set("texts", dict(texts))
                record = record_of(info, configured, attempt) | {"seconds": time.monotonic() - started}
                state.store.set(RECORD, record)

            try:
                await run_search(info, attempt, configured)
                if attempt.best is not None and replay:
                    texts["replay"], attempt.facts["replay"] = await _again(attempt.best, target, seed)
            except BaseException as error:
                # A limit of the sample ends the search too, and what was found until then is judged. It comes as an
                # error of its own or, a limit of time, by cancelling; any other error is the sample's.
                if isinstance(error, LimitExceededError) or not isinstance(error, Exception):
                    leave()
                raise
            leave()
            transcript().info(cast(Any, {"nodes": attempt.nodes}), source=f"midward/{info.name}")
            state.completed = True
            return state

        return solve

    return solver(name=info.name)(attack)


def goal_of(state: TaskState) -> Goal:
    """The sample's goal, from the metadata that `sample_of` writes."""
    about = state.metadata or {}
    known = {"goal", "source", "harmful", "target", "context", "category"}
    return Goal(
        str(state.sample_id),
        str(about.get("goal") or state.input_text),
        str(about.get("source", "")),
        bool(about.get("harmful", True)),
        about.get("target"),
        about.get("context"),
        about.get("category"),
        {key: value for key, value in about.items() if key not in known},
    )


def record_of(info: AttackInfo, settings: Any, attempt: Attempt) -> dict[str, Any]:
    """All that is kept of an attempt, as JSON; docs/attacks.md names the fields."""
    target, found = attempt.target, attempt.best
    return {
        "attack": info.name,
        "version": info.version,
        "hash": info.hash(settings),
        "access": info.access,
        "settings": asdict(settings),
        "goal": attempt.goal.id,
        "goal_text": attempt.goal.text,
        "source": attempt.goal.source,
        "target": target.name,
        "seed": attempt.seed,
        "budget": target.budget,
        "spent": attempt.spent,
        "capabilities": sorted(target.used),
        "queries": dict(target.queries),
        "nfe": target.nfe,
        "calls": dict(attempt.roles.calls),
        "failed": dict(attempt.roles.failed),
        "why": dict(attempt.roles.why),
        "score": None if found is None else found.score,
        "scored": found is not None and found.score is not None,
        "composite": found is not None and found.compose is not None,
        "asks": [] if found is None else [asdict(ask) for ask in found.asks],
        "response": None if found is None else found.text,
        "note": {} if found is None else dict(found.note),
        "tried": len(attempt.nodes),
        "prompts": sorted(attempt.prompts),
        **attempt.facts,
    }


async def _again(found: Found, target: Target, seed: int) -> tuple[str | None, str]:
    """The winning prompt's text with fresh seeds (None where it can't be put together anew), and "known" where every
    reply in it was settled before, so that nothing was asked, else "asked"."""
    asks = [replace(ask, seed=(seed if ask.seed is None else ask.seed) + REPLAY_SEED) for ask in found.asks]
    known = [target.settled(ask) for ask in asks]
    rest = [ask for ask, reply in zip(asks, known, strict=True) if reply is None]
    fresh = iter(await Target(target.model).respond(*rest) if rest else ())
    texts = [(reply or next(fresh)).text for reply in known]
    text = await found.compose(texts) if found.compose else texts[-1]
    return text, "asked" if rest else "known"
