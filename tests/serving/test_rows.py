"""The engine: rows come in and leave between steps, and nobody's tokens depend on who else is there."""

import random
import threading
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from pydantic.dataclasses import dataclass as settings_class

import midward
from midward.dynamics.looks import Looks
from midward.guards import STUB, Guard, GuardError
from midward.sampling import Ban, Forced, Request, Sampling, sample
from midward.serving.engine import Engine
from midward.serving.scheduler import SchedulerClosed

SAMPLING = Sampling(length=24, block=8, steps=24)


@pytest.fixture(scope="module")
def model(lively_folder):
    return midward.load(lively_folder, device="cpu")


@pytest.fixture
def engine(model):
    engine = Engine(model)
    yield engine
    engine.scheduler.close()


def prompt(n, words=4):
    return " ".join(f"t{30 + (n * 7 + i * 13) % 400}" for i in range(words))


def asked(engine, n, words=4, **changes):
    return Request(engine.encode(prompt(n, words)), seed=n, **changes)


def slowed(model, monkeypatch, seconds=0.005):
    """Every forward takes a while, so that others come in meanwhile; gives the rows of each."""
    rows, hidden = [], model.hidden

    def wait(ids, *rest):
        rows.append(len(ids))
        time.sleep(seconds)
        return hidden(ids, *rest)

    monkeypatch.setattr(model, "hidden", wait)
    return rows


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# --- a guard that stops a row at a step that its prompt says -------------------------------------------------


@settings_class(frozen=True)
class Nothing:
    """No settings."""


@dataclass
class Clock:
    """Stops a row after so many steps, by the request's seed; -1 never, -2 raises."""

    at: dict
    stopped: dict | None
    needs_all_steps: ClassVar[bool] = False

    def on_start(self, canvas):
        self.limits = {row.index: self.at.get(row.request.seed, -1) for row in canvas.rows}
        self.taken = dict.fromkeys(self.limits, 0)

    def on_step(self, step):
        for row in step.rows:
            if self.limits[row] == -2:
                raise RuntimeError("the guard is broken")
            self.taken[row] += 1
            if self.taken[row] == self.limits[row] and self.stopped is not None:
                step.stopped.add(row)
                self.stopped[row] = self.taken[row] - 1

    def on_end(self, canvas):
        pass

    def signal(self, row):
        return torch.tensor([0 < self.limits[row] <= self.taken[row]]).float()


class ClockGuard(Guard):
    """Flags by the requests' seeds."""

    name, about, looks, Settings = "clock", "stops at a step", "during", Nothing
    decides_at_steps = True
    tied_to = ()

    def __init__(self, at):
        super().__init__()
        self.at, self.threshold = at, 0.5

    def watcher(self, stopped=None):
        return Clock(self.at, stopped)

    def score(self, model, exchanges, *, batch_size=8):
        return np.array([each.signal.max() for each in exchanges], dtype=float)

    def stops(self, signals):
        return [0 if signal.max() > 0.5 else None for signal in signals]


def clock(model, at):
    guard = ClockGuard(at)
    guard.bind(model, SAMPLING)
    return guard


# --- the same tokens ------------------------------------------------------------------------------------------


def mixture(engine, count, rng):
    """Requests of many settings, lengths and kinds."""
    kinds = [
        SAMPLING,
        replace(SAMPLING, length=9, block=3, steps=9),
        replace(SAMPLING, threshold=0.02),
        replace(SAMPLING, temperature=1.0, order="random"),
        replace(SAMPLING, guidance=0.5),
        replace(SAMPLING, cache="dual"),
    ]
    for n in range(count):
        changes = {}
        if n % 5 == 3:
            changes["forced"] = (Forced(2, (44, 45)),)
        if n % 7 == 4:
            changes["bans"] = (Ban((50,), 0),)
        yield asked(engine, n, rng.randint(1, 12), **changes), kinds[n % len(kinds)]


def test_whoever_comes_and_goes_everyone_has_the_tokens_that_they_have_alone(engine, model, monkeypatch):
    rows, rng = slowed(model, monkeypatch, 0.001), random.Random(3)
    pairs, tickets = list(mixture(engine, 24, rng)), []
    for request, sampling in pairs:
        tickets.append(engine.submit(request, sampling, batch_size=8))
        time.sleep(rng.choice((0, 0, 0.003, 0.02)))
    together = [ticket.result(60) for ticket in tickets]
    assert len(rows) < 0.7 * sum(response.nfe for response in together)  # most forwards were of several
    for (request, sampling), response in zip(pairs, together, strict=True):
        [alone] = sample(model, [request], sampling)
        assert (response.raw_ids, response.nfe, response.steps) == (alone.raw_ids, alone.nfe, alone.steps)


@pytest.mark.parametrize("kind", ["sandbox-ar", "sandbox-block"])
def test_models_with_a_cache_of_their_own_take_turns(kind):
    model = midward.load(kind, device="cpu")
    engine, own = Engine(model), Sampling.for_model(model, length=16)
    requests = [Request(model.encode(text), seed=0) for text in ("How is bread baked?", "What is the capital?", "Hi.")]
    tickets = []
    for request in requests:
        tickets.append(engine.submit(request, own, batch_size=4))
        time.sleep(0.02)
    assert [each.result(60).raw_ids for each in tickets] == [sample(model, [each], own)[0].raw_ids for each in requests]
    engine.scheduler.close()


def test_a_short_request_beside_a_long_one_is_done_first(engine, model, monkeypatch):
    slowed(model, monkeypatch)
    order, long = [], replace(SAMPLING, length=120, block=8, steps=120)
    first = engine.submit(asked(engine, 1), long, batch_size=4)
    first.add_done_callback(lambda future: order.append("long"))
    until(lambda: engine.scheduler.rows == 1)
    second = engine.submit(asked(engine, 2), replace(SAMPLING, length=4, block=4, steps=4), batch_size=4)
    second.add_done_callback(lambda future: order.append("short"))
    first.result(60)
    assert order == ["short", "long"]


def test_no_more_rows_at_once_than_were_asked_for(engine, model, monkeypatch):
    rows = slowed(model, monkeypatch, 0.001)
    tickets = [engine.submit(asked(engine, n), SAMPLING, batch_size=3) for n in range(11)]
    for ticket in tickets:
        ticket.result(60)
    assert 1 < max(rows) <= 3


# --- who leaves -----------------------------------------------------------------------------------------------


def test_one_who_leaves_frees_the_row_and_changes_nobody_elses_tokens(engine, model, monkeypatch):
    slowed(model, monkeypatch)
    long = replace(SAMPLING, length=64, block=8, steps=64, end="keep")
    tickets = [engine.submit(asked(engine, n), long, batch_size=4) for n in range(3)]
    waiting = engine.submit(asked(engine, 9), long, batch_size=3)
    until(lambda: engine.scheduler.rows == 3)
    tickets[1].leave()
    waiting.leave()
    until(lambda: engine.scheduler.rows == 2)
    assert waiting.cancelled() and engine.scheduler.waiting == 0
    for n in (0, 2):
        assert tickets[n].result(60).raw_ids == sample(model, [asked(engine, n)], long)[0].raw_ids
    until(lambda: engine.scheduler.rows == 0)


def test_a_closed_engine_ends_what_runs(engine, model, monkeypatch):
    slowed(model, monkeypatch)
    ticket = engine.submit(asked(engine, 1), replace(SAMPLING, length=120, steps=120), batch_size=4)
    until(lambda: engine.scheduler.rows == 1)
    engine.scheduler.close()
    with pytest.raises(SchedulerClosed):
        ticket.result(20)


# --- the guard, and what is shown before the end ----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_shown_that_the_guard_has_not_passed_and_nothing_shown_is_changed(engine, model, seed):
    """Random arrivals, settings and stops."""
    rng = random.Random(seed)
    at = {n: rng.choice((-1, rng.randint(1, 20))) for n in range(14)}
    guard, shown, tickets = clock(model, at), {n: [] for n in at}, {}
    for n in at:
        sampling = rng.choice((SAMPLING, replace(SAMPLING, threshold=0.02), replace(SAMPLING, temperature=1.0)))
        note = lambda ids, n=n: shown[n].append(list(ids)) is None  # noqa: E731
        tickets[n] = engine.submit(asked(engine, n), sampling, batch_size=6, guard=guard, on_prefix=note), sampling
        time.sleep(rng.choice((0, 0, 0.005)))
    for n, (ticket, sampling) in tickets.items():
        response = ticket.result(60)
        [bare] = sample(model, [asked(engine, n)], sampling)
        assert response.verdict.flagged == (0 < at[n] <= bare.steps)
        assert all(long[: len(short)] == short for short, long in zip(shown[n], shown[n][1:], strict=False))
        for ids in shown[n]:
            assert ids == bare.raw_ids[: len(ids)] and model.end_of(ids) is None
        if response.verdict.flagged:
            assert response.text == STUB and response.verdict.step == at[n] - 1
            steps = len(shown[n][-1]) if shown[n] and sampling.threshold is None else 0
            assert steps < at[n]  # a token a step: only what stood before the step that was stopped
        else:
            assert response.raw_ids == bare.raw_ids and (shown[n] or bare.ids == [])


def test_in_the_shadow_nothing_is_stopped_and_the_verdict_says_what_would_have_been(engine, model):
    guard = clock(model, {1: 3})
    flagged, passed = (
        engine.submit(asked(engine, n), SAMPLING, batch_size=2, guard=guard, shadow=True).result(60) for n in (1, 2)
    )
    assert flagged.verdict.flagged and flagged.verdict.step == 0 and not passed.verdict.flagged
    assert flagged.raw_ids == sample(model, [asked(engine, 1)], SAMPLING)[0].raw_ids


def test_whoever_wants_no_more_is_done_with_the_block(engine, model):
    lengths = []
    first = lambda ids: lengths.append(len(ids))  # noqa: E731 (None: no more)
    sampling = replace(SAMPLING, end="keep")
    response = engine.submit(asked(engine, 1), sampling, batch_size=2, on_prefix=first).result(60)
    assert lengths == [8] and response.steps == 8 and not response.ended


def test_a_guard_that_raises_fails_its_own_request_alone(engine, model):
    guard = clock(model, {3: -2})
    tickets = [engine.submit(asked(engine, n), SAMPLING, batch_size=8, guard=guard) for n in range(6)]
    for n, ticket in enumerate(tickets):
        if n == 3:
            with pytest.raises(RuntimeError, match="the guard is broken"):
                ticket.result(60)
        else:
            assert ticket.result(60).raw_ids == sample(model, [asked(engine, n)], SAMPLING)[0].raw_ids


def test_a_guard_of_another_model_answers_nobody(engine, model):
    guard = ClockGuard({})
    with pytest.raises(GuardError, match="isn't fitted yet"):
        engine.submit(asked(engine, 1), SAMPLING, batch_size=2, guard=guard).result(60)


def test_a_forward_that_fails_together_is_done_alone(engine, model, monkeypatch):
    """As where the memory is too small for all."""
    hidden, gate = model.hidden, threading.Event()

    def narrow(ids, *rest):
        gate.wait(20)
        if len(ids) > 2:
            raise RuntimeError("out of memory")
        return hidden(ids, *rest)

    requests = [asked(engine, n) for n in range(5)]
    wanted = [sample(model, [request], SAMPLING)[0].raw_ids for request in requests]
    monkeypatch.setattr(model, "hidden", narrow)
    tickets = [engine.submit(request, SAMPLING, batch_size=8) for request in requests]
    gate.set()
    assert [ticket.result(60).raw_ids for ticket in tickets] == wanted


def test_a_causal_run_is_not_done_twice_where_one_beside_it_fails(llama, monkeypatch):
    """Its cache grows with each of its forwards."""
    engine, own = Engine(llama), Sampling.for_model(llama, length=12, end="keep")
    asked = [Request(llama.encode(prompt(n)), seed=0) for n in range(3)]
    pairs = [(asked[0], own), *[(request, replace(own, temperature=1.0)) for request in asked[1:]]]
    wanted = [sample(llama, [request], sampling)[0].raw_ids for request, sampling in pairs]
    hidden, seen, gate = llama.hidden, [], threading.Event()

    def hidden_but_once(ids, *rest):
        gate.wait(20)
        seen.append(len(ids))
        if len(ids) == 2 and seen.count(2) == 4:
            raise RuntimeError("out of memory")
        return hidden(ids, *rest)

    monkeypatch.setattr(llama, "hidden", hidden_but_once)
    tickets = [engine.submit(request, sampling, batch_size=8) for request, sampling in pairs]
    gate.set()
    assert [ticket.result(60).raw_ids for ticket in tickets] == wanted
    assert seen.count(2) >= 4  # or nothing failed
    engine.scheduler.close()


def test_of_a_causal_model_no_token_is_shown_before_its_look(llama):
    """A guard by blocks looks at some tokens' steps alone."""
    looked, shown = [0], []

    class Blocks(ClockGuard):
        def watcher(self, stopped=None):
            def read(look):
                return np.zeros((len(look.rows), 1))

            read.width = 1
            note = lambda taken, followed: looked.append(followed[0].taken) or ()  # noqa: E731
            return Looks(read, on_look=note)

        def score(self, model, exchanges, *, batch_size=8):
            return np.zeros(len(exchanges))

        def stops(self, signals):
            return [None] * len(signals)

        def seen(self, verdict, exchange, step):
            return verdict

    guard, engine = Blocks({}), Engine(llama)
    own = Sampling.for_model(llama, length=40, end="keep")
    guard.bind(llama, own)
    note = lambda ids: shown.append((len(ids), looked[-1])) is None  # noqa: E731
    request = Request(llama.encode(prompt(1)), seed=0)
    response = engine.submit(request, own, batch_size=2, guard=guard, on_prefix=note).result(60)
    assert len(response.raw_ids) == 40 and len(shown) > 4
    assert all(told == seen for told, seen in shown)
    engine.scheduler.close()
