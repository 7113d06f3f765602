"""Every attack as an Inspect solver: reads the goal, searches, and leaves the best prompt, reply and a full record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from inspect_ai.log import transcript
from inspect_ai.model import ModelOutput, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import LimitExceededError

from midward.attacks.attack import AttackInfo, Attempt, Offer, run_search
from midward.attacks.capabilities import check
from midward.attacks.record import KEY, Record, goal_of
from midward.attacks.roles import Roles
from midward.attacks.target import Target, chat
from midward.errors import InputError
from midward.judges.scorers import KEY as TEXTS_KEY

REPLAY_SEED = 1_000_003  # added to the seeds of a fresh replay


def solver_of(info: AttackInfo) -> Callable[..., Solver]:
    """The Inspect solver of an attack.

    Args:
        info: the attack.

    Returns:
        A solver whose options are the attack's settings, and: seed, of the search, the target and the roles; budget,
        the most queries to the target for one goal (what the settings can reach unless given); replay, whether the best
        prompt is put once more with fresh seeds for the judges (not counted in the budget; where no seed has a say in
        the reply, it is the one known already). It raises InputError for a setting there isn't or a value out of range.
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
                for follower in list(_followers):
                    follower()

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
                    state.messages = chat(best.replies[-1].ask.turns)
                    state.output = ModelOutput.from_content(target.name, best.text)
                    state.messages.append(state.output.message)
                state.store.set(TEXTS_KEY, dict(texts))
                record = Record.of(info, configured, attempt, time.monotonic() - started)
                state.store.set(KEY, record.model_dump(mode="json"))

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
            transcript().info({"nodes": [offer.record() for offer in attempt.tried]}, source=f"midward/{info.name}")
            state.completed = True
            return state

        return solve

    return solver(name=info.name)(attack)


async def _again(best: Offer, target: Target, seed: int) -> tuple[str | None, str]:
    """The winning prompt's text with fresh seeds (None where it can't be put together anew), and "known" where every
    reply in it was settled before, so that nothing was asked, else "asked"."""
    asks = [reply.ask for reply in best.replies]
    asks = [replace(ask, seed=(seed if ask.seed is None else ask.seed) + REPLAY_SEED) for ask in asks]
    known = [target.settled(ask) for ask in asks]
    rest = [ask for ask, reply in zip(asks, known, strict=True) if reply is None]
    fresh = iter(await Target(target.model).respond(*rest) if rest else ())
    texts = [(reply or next(fresh)).text for reply in known]
    text = await best.compose(texts) if best.compose else texts[-1]
    return text, "asked" if rest else "known"


_followers: list[Callable[[], None]] = []


@contextmanager
def following(follower: Callable[[], None]) -> Iterator[None]:
    """Call `follower` after every attempt that ends inside the block, whether it went well or not.

    For a progress display: an Inspect hook would do, but announces itself on the user's terminal.
    """
    _followers.append(follower)
    try:
        yield
    finally:
        _followers.remove(follower)
