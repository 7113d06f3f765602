"""The scheduler: who shares a batch, whose error it is, who may leave, and when a model is let go."""

import gc
import shutil
import threading
import time
import weakref
from concurrent.futures import CancelledError
from dataclasses import dataclass

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midward.serving import scheduler as _scheduler
from midward.serving.engine import shared
from midward.serving.scheduler import Scheduler, SchedulerClosed, results


@dataclass(frozen=True)
class Squares:
    """Runs without a forward, that note their batches; equal where `name` is."""

    name: str
    batches: list

    def start(self, tickets, leaves):
        items = [ticket.item for ticket in tickets]
        self.batches.append((self.name, items))
        if "bad" in items:
            raise ValueError("a bad item")
        leaves({place: item**2 for place, item in enumerate(items)})
        yield from ()

    def __hash__(self):
        return hash(self.name)

    def __eq__(self, other):
        return type(other) is Squares and self.name == other.name


class Gate:
    """A call that holds the thread until it is let go, so that work queues up behind it."""

    def __init__(self):
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self):
        self.entered.set()
        assert self.open.wait(20)
        return "done"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.open.set()


def held(scheduler):
    """A gate that has the scheduler's thread."""
    gate = Gate()
    scheduler.call(gate)
    assert gate.entered.wait(20)
    return gate


def test_a_batch_is_of_one_work_the_oldest_first_and_alike_in_size():
    scheduler, batches = Scheduler(), []
    with held(scheduler):
        futures = [
            scheduler.submit(Squares(name, batches), size, size=size, limit=2)
            for name, size in [("a", 1), ("b", 7), ("a", 100), ("a", 2), ("b", 8), ("a", 99), ("b", 9)]
        ]
    assert [future.result(20) for future in futures] == [1, 49, 10000, 4, 64, 9801, 81]
    assert batches == [("a", [1, 2]), ("b", [7, 8]), ("a", [99, 100]), ("b", [9])]


def test_different_limits_do_not_mix():
    scheduler, batches = Scheduler(), []
    with held(scheduler):
        futures = [scheduler.submit(Squares("a", batches), i, limit=1 + i % 2 * 7) for i in range(6)]
    assert [future.result(20) for future in futures] == [i**2 for i in range(6)]
    assert sorted(len(items) for _, items in batches) == [1, 1, 1, 3]


@settings(max_examples=25, derandomize=True)
@given(
    jobs=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50) | st.just("bad"), st.booleans()), max_size=30),
    limit=st.integers(1, 8),
)
def test_everyone_gets_their_own_result_or_error(jobs, limit):
    scheduler, batches = Scheduler(), []
    with held(scheduler):
        futures = [
            scheduler.submit(Squares(name, batches), item, size=item if item != "bad" else 25, limit=limit)
            for name, item, _ in jobs
        ]
        for future, (*_, leaves) in zip(futures, jobs, strict=True):
            if leaves:
                assert future.cancel()
    for future, (_, item, leaves) in zip(futures, jobs, strict=True):
        if leaves:
            assert future.cancelled()
        elif item == "bad":
            with pytest.raises(ValueError, match="a bad item"):
                future.result(20)
        else:
            assert future.result(20) == item**2
    assert all(len(items) <= limit for _, items in batches)
    done = [item for _, items in batches for item in items if "bad" not in items]
    assert sorted(done) == sorted(item for _, item, leaves in jobs if not leaves and item != "bad")


def test_callers_on_several_loops_and_threads():
    scheduler, batches, found = Scheduler(), [], {}

    async def ask(start):
        async def one(i):
            [found[i]] = await results([scheduler.submit(Squares("a", batches), i, size=i, limit=16)])

        async with anyio.create_task_group() as group:
            for i in range(start, start + 40):
                group.start_soon(one, i)

    threads = [threading.Thread(target=anyio.run, args=(ask, 40 * n)) for n in range(3)]
    with held(scheduler):
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 20
        while len(scheduler._waiting) < 120 and time.monotonic() < deadline:
            time.sleep(0.01)
    for thread in threads:
        thread.join(20)
    assert found == {i: i**2 for i in range(120)}
    assert len(batches) == 8  # all full: nobody's loop kept to itself


def test_a_cancelled_caller_leaves_the_queue_unless_its_item_runs():
    scheduler, batches = Scheduler(), []

    async def leave(submit, inside):
        with anyio.move_on_after(30) as scope:
            async with anyio.create_task_group() as group:
                futures = [submit()]
                group.start_soon(results, futures)
                await anyio.to_thread.run_sync(inside)
                scope.cancel()
        return futures[0]

    with held(scheduler) as gate:
        waiting = anyio.run(leave, lambda: scheduler.submit(Squares("a", batches), 3), lambda: None)
        assert waiting.cancelled()
        later = scheduler.submit(Squares("a", batches), 4)
        gate.open.set()
        assert later.result(20) == 16
    assert batches == [("a", [4])]
    with Gate() as second:
        running = anyio.run(leave, lambda: scheduler.call(second), second.entered.wait)
        assert not running.cancelled()
        second.open.set()
        assert running.result(20) == "done"


def test_one_of_several_failing_cancels_the_rest():
    scheduler, batches = Scheduler(), []

    async def ask():
        with held(scheduler) as gate:
            futures = [scheduler.submit(Squares("a", batches), "bad")]
            blocker = Gate()
            scheduler.call(blocker)
            futures.append(scheduler.submit(Squares("b", batches), 2))
            gate.open.set()
            with blocker, pytest.raises(ValueError, match="a bad item"):
                await results(futures)
        assert futures[1].cancelled()

    anyio.run(ask)
    assert batches == [("a", ["bad"])]


def test_a_closed_queue_ends_its_waiting_and_takes_nothing():
    scheduler = Scheduler()
    with held(scheduler) as gate:
        waiting = scheduler.submit(Squares("a", []), 1)
        closing = threading.Thread(target=scheduler.close)
        closing.start()
        with pytest.raises(CancelledError):
            waiting.result(20)
        gate.open.set()
        closing.join(20)
    with pytest.raises(SchedulerClosed):
        scheduler.submit(Squares("a", []), 1)


def test_an_unused_queue_ends_its_thread_and_starts_again(monkeypatch):
    monkeypatch.setattr(_scheduler, "IDLE", 0.05)
    scheduler = Scheduler()
    assert scheduler.submit(Squares("a", []), 3).result(20) == 9
    thread = scheduler._worker
    thread.join(20)
    assert not thread.is_alive()
    assert scheduler.submit(Squares("a", []), 4).result(20) == 16


def test_one_engine_a_model_until_nobody_holds_it_or_it_is_written_anew(llada_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(llada_folder, folder)
    first = shared(str(folder), None, "cpu", "float32")
    assert shared(str(folder), None, "cpu", "float32") is first
    assert shared(str(folder), None, "cpu", "bfloat16") is not first
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content)
    again = shared(str(folder), None, "cpu", "float32")
    assert again is not first and again.fingerprint == first.fingerprint
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None
