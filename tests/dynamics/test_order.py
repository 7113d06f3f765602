"""Commit order: against plain statements of the same, and split into parts that add up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from midward.dynamics.order import Order, by_prompt, correlation, heat, mean_positions, orders, parts
from midward.sampling import Forced, Request, Sampling, Trace, sample

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14], [15, 16, 17, 18]]


@st.composite
def some_order(draw):
    steps = draw(st.lists(st.integers(-2, 6), min_size=1, max_size=14))
    return Order(tuple(steps), draw(st.integers(0, len(steps))))


@settings(deadline=None, max_examples=50)
@given(some_order())
def test_parts_add_up_to_the_rank_correlation(order):
    kept = [(step, at) for at, step in enumerate(order.steps) if step >= 0]
    if len({step for step, _ in kept}) < 2:
        assert np.isnan(correlation(order)) and all(np.isnan(part) for part in parts(order))
        return
    assert correlation(order) == pytest.approx(spearmanr(*zip(*kept)).statistic)
    assert sum(parts(order)) == pytest.approx(correlation(order))


@settings(deadline=None, max_examples=50)
@given(some_order())
def test_padding_doesnt_count_in_the_text(order):
    cut = Order(order.steps[: order.end], order.end)
    ours, theirs = correlation(order, text=True), correlation(cut)
    assert ours == pytest.approx(theirs, nan_ok=True)


def test_known_orders():
    assert correlation(Order(tuple(range(10)), 10)) == pytest.approx(1)
    assert correlation(Order(tuple(range(9, -1, -1)), 10)) == pytest.approx(-1)
    text_then_padding = Order((1, 0, 3, 2, 9, 8, 7, 6), 4)
    text, padding, between = parts(text_then_padding)
    assert text > 0 > padding and between > 0
    all_text = Order((0, 0, 1, 1), 4)
    assert parts(all_text)[1:] == (0, 0)


@pytest.mark.parametrize("block", [None, 4])
def test_orders_are_those_of_the_trace(exact, block):
    sampling = Sampling(length=12, steps=6, block=block)
    found = orders(exact, PROMPTS, sampling, batch_size=3)
    trace = Trace(needs_all_steps=True)
    responses = sample(exact, PROMPTS, sampling, watchers=[trace])
    for row, (order, response) in enumerate(zip(found, responses)):
        assert list(order.steps) == trace.commit_step[row].tolist()
        assert response.raw_ids[: order.end] == response.ids
    assert np.allclose(mean_positions(found), trace.mean_positions().numpy())
    assert np.nanmean(by_prompt(found), axis=0) == pytest.approx(mean_positions(found))  # two each, everywhere
    shares = heat(found)
    assert shares.shape == (12, 6) and np.allclose(shares.sum(1), 1)


def test_forced_positions_are_in_no_order(exact):
    [order] = orders(exact, [Request([5], forced=(Forced(2, (40, 41)),))], Sampling(length=6, steps=3))
    assert [at for at, step in enumerate(order.steps) if step < 0] == [2, 3]
    assert np.allclose(heat([order]).sum(1), [1, 1, 0, 0, 1, 1])


def test_a_threshold_has_the_rows_own_steps(exact):
    sampling = Sampling(length=12, block=4, threshold=0.3)
    alone = [orders(exact, [prompt], sampling)[0] for prompt in PROMPTS]
    assert orders(exact, PROMPTS, sampling, batch_size=4) == alone
