"""Pieces of work, done by this process or shared among Ray actors that each hold a copy of all that it takes.

What an actor works with (model, guard, judge, readers) travels to it as it is, in memory; results come back, and this
process alone keeps them. A lost actor's piece is done again by another one.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar

from midward.errors import InputError, MidwardError

Piece = TypeVar("Piece")
Result = TypeVar("Result")
#: Makes ready for the work, and gives what does a piece of it.
Work = Callable[[], AbstractContextManager[Callable[[Piece], Result]]]
#: One process, several on this machine, or "ray": the cluster at RAY_ADDRESS, one actor a GPU (or CPU).
Workers = int | str
CLUSTER = "ray"
AGAIN = 2  # times that a lost piece is tried once more


class WorkersError(MidwardError):
    """Workers can't be had, or can't do what they are asked."""


@dataclass(frozen=True)
class Lost:
    """In place of a piece's result: no worker lived to finish it. why: in words."""

    why: str


def workers_of(text: str) -> Workers:
    """What --workers says. Raises InputError for what `spread` would."""
    workers = int(text) if text.isdecimal() else text
    _check(workers)
    return workers


def require_ray() -> None:
    """Raise InputError where Ray isn't installed."""
    if find_spec("ray") is None:
        raise InputError("this needs Ray, which isn't installed: pip install 'midward[ray]'")


def _check(workers: Workers) -> None:
    if workers != CLUSTER and (isinstance(workers, str) or workers < 1):
        raise InputError(f"workers are a number, 1 or more, or {CLUSTER}; received {workers!r}.")
    if workers != 1:
        require_ray()
    if workers == CLUSTER and not os.environ.get("RAY_ADDRESS"):
        raise InputError(f"workers={CLUSTER} needs the cluster's address in RAY_ADDRESS; or give a number.")


def spread(
    work: Work[Piece, Result], pieces: Sequence[Piece], workers: Workers = 1, *, gpus: int = 0
) -> Iterator[tuple[int, Result | Lost]]:
    """Do every piece.

    Args:
        work: with several workers each has a copy, and enters it once.
        pieces: what is to be done.
        workers: see `Workers`. Those of an earlier call are used again.
        gpus: of this machine, which its workers share; 0 where the work needs none.

    Yields:
        A piece's place, and its result; as they come, which with several workers is in any order.

    Raises:
        InputError: no such number of workers, no Ray installed, or no cluster named.
        WorkersError: the cluster doesn't answer, a worker can't start, or the work can't be sent to one.
    """
    _check(workers)
    if workers == 1:
        with work() as run:
            yield from ((place, run(piece)) for place, piece in enumerate(pieces))
    elif pieces:
        yield from _pool(workers, gpus).results(work, pieces)


class _Worker:
    """The actor: keeps the work that it did last."""

    def __init__(self) -> None:
        self.work, self.run, self.entered = "", None, ExitStack()

    def start(self) -> None:
        """Answers once the actor stands."""

    def do(self, reference: list[Any], piece: Any) -> Any:
        """reference: to the work, in a list so that Ray doesn't read it anew for each piece."""
        import ray

        if self.work != reference[0].hex():
            self.work, self.run = "", None
            self.entered.close()  # room for the next one
            self.run = self.entered.enter_context(ray.get(reference[0])())
            self.work = reference[0].hex()
        assert self.run is not None
        return self.run(piece)


class _Pool:
    """Actors that stay from one call of `spread` to the next.

    Args:
        ray: the package, connected.
        count: how many there are at most.
        share: of a machine's resources that each takes, as Ray has them.
    """

    def __init__(self, ray: Any, count: int, **share: float) -> None:
        self.ray, self.count = ray, count
        self.new = ray.remote(max_restarts=0, **share)(_Worker).remote
        self.idle: list[Any] = []

    def results(self, work: Work[Piece, Result], pieces: Sequence[Piece]) -> Iterator[tuple[int, Result | Lost]]:
        """See `spread`."""
        ray, errors = self.ray, self.ray.exceptions
        try:
            reference = [ray.put(work)]
        except TypeError as error:
            raise WorkersError(f"this can't be sent to a worker, so only --workers 1 does it: {error}") from None
        todo, lost = deque(range(len(pieces))), Counter[int]()
        busy: dict[Any, tuple[Any, int | None]] = {}  # answer to come -> actor, and its piece; None while it starts
        try:
            while todo or any(place is not None for _, place in busy.values()):
                while todo and self.idle:
                    actor, place = self.idle.pop(), todo.popleft()
                    busy[actor.do.remote(reference, pieces[place])] = actor, place
                for _ in range(min(len(todo), self.count - len(busy))):
                    actor = self.new()
                    busy[actor.start.remote()] = actor, None
                [answer], _ = ray.wait(list(busy))
                actor, at = busy.pop(answer)
                result: Any = None
                try:
                    result = ray.get(answer)
                except errors.RayTaskError as error:  # raised by the work, as it would be here
                    raise error.cause from error
                except errors.RayError as error:  # the actor is no more
                    if at is None:
                        raise WorkersError(f"a worker can't start: {error}") from None
                    lost[at] += 1
                    if lost[at] <= AGAIN:
                        todo.appendleft(at)
                        continue
                    result = Lost(f"the worker was lost {lost[at]} times: {_first_line(error)}")
                else:
                    self.idle.append(actor)
                if at is not None:
                    yield at, result
        finally:
            for actor, _ in busy.values():  # none but those that weren't needed, unless this is broken off
                ray.kill(actor)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".:")


_pools: dict[tuple[Workers, int], _Pool] = {}


def _pool(workers: Workers, gpus: int) -> _Pool:
    ray = connected(workers == CLUSTER)
    if (workers, gpus) not in _pools:
        if isinstance(workers, int):
            share = 1e-4 * int(1e4 / -(-workers // gpus)) if gpus else 0
            pool = _Pool(ray, workers, num_cpus=0, num_gpus=share)
        else:
            kind = "GPU" if gpus else "CPU"
            count = int(ray.cluster_resources().get(kind, 0))
            if count < 1:
                raise WorkersError(f"the cluster has no {kind}, and the model is on one here.")
            pool = _Pool(ray, count, num_cpus=1, num_gpus=min(1, gpus))
        _pools[workers, gpus] = pool
    return _pools[workers, gpus]


def connected(cluster: bool) -> Any:
    """The package ray, connected to the cluster at RAY_ADDRESS, or to one of its own on this machine.

    Raises WorkersError where no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # stdout holds results; a lost worker is told in its rows
    import ray

    if not ray.is_initialized():
        _pools.clear()
        address = os.environ["RAY_ADDRESS"] if cluster else "local"
        dashboard = None if cluster else False  # of another's cluster it isn't ours to say
        try:
            ray.init(address, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise WorkersError(f"no Ray cluster answers at {address}: {_first_line(error)}") from None
    return ray
