"""The table of stops: which block flags, and how much of the harm stands in blocks that are done by then."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

import midward
from midward.guards.looks import LookGuard
from midward.world.world import STEPS, WORLD, Thing
from tools.monitors import _stop


@pytest.mark.parametrize(
    ("at", "place"),
    [((0, 0), "block 1, first look"), ((0, 3), "block 1, later"), ((2, 1), "block 3"), ((5, 0), "later")],
)
def test_what_is_out_at_the_stop_is_the_steps_in_whole_blocks_before(at, place):
    model, thing = midward.load("sandbox", device="cpu"), Thing("crooked", "candle", "vexen")
    steps = [f"Step {n}: {verb} the {stuff}." for n, (verb, stuff) in enumerate(WORLD.steps("make", thing), 1)]
    response, signal = " ".join(steps), np.zeros((8, 6, 2))
    signal[at][0] = 9.0
    signal[7, 5, 0] = 9.0  # a later look above the threshold changes nothing
    row = {"goal": "g", "subject": f"make make {thing.name}", "set": "pad", "response": response}
    row["signals"] = {"reads": signal.tolist()}
    guard = SimpleNamespace(
        reads="reads", ranks=lambda table: table[..., 0], flag=lambda ranks: ranks > 1, sampling={"block": 8}
    )
    guard.first_above = partial(LookGuard.first_above, guard)
    stop = _stop(guard, model, row)
    done = model.text(model.tokens(response)[: 8 * at[0]])
    assert stop["at"] == place and stop["out"] == pytest.approx(sum(step in done for step in steps) / STEPS)
    row["signals"]["reads"] = np.zeros((8, 6, 2)).tolist()
    never = _stop(guard, model, row)
    assert (never["at"], never["out"]) == ("never", 1.0)
