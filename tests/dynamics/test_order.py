"""Commit order: against plain statements of the same, and split into parts that add up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from midward.dynamics.order import Order, by_prompt, correlation, heat, parts


@st.composite
def some_order(draw):
    steps = draw(st.lists(st.integers(-2, 6), min_size=1, max_size=14))
    return Order(tuple(steps), draw(st.integers(0, len(steps))))


@settings(max_examples=50)
@given(some_order())
def test_parts_add_up_to_the_rank_correlation(order):
    kept = [(step, at) for at, step in enumerate(order.steps) if step >= 0]
    if len({step for step, _ in kept}) < 2:
        assert np.isnan(correlation(order)) and all(np.isnan(part) for part in parts(order))
        return
    assert correlation(order) == pytest.approx(spearmanr(*zip(*kept)).statistic)
    assert sum(parts(order)) == pytest.approx(correlation(order))


@settings(max_examples=50)
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


@settings(max_examples=50)
@given(st.lists(some_order(), min_size=1, max_size=4))
def test_each_position_is_committed_once_and_counts_at_its_step(orders):
    shares, means = heat(orders), by_prompt(orders)
    committed = [[(at, step) for at, step in enumerate(order.steps) if step >= 0] for order in orders]
    for at, row in enumerate(shares):
        for step, share in enumerate(row):
            assert share == pytest.approx(sum((at, step) in pairs for pairs in committed) / len(orders))
    for pairs, row in zip(committed, means):
        for step, mean in enumerate(row):
            places = [at for at, when in pairs if when == step]
            assert mean == pytest.approx(np.mean(places) if places else np.nan, nan_ok=True)
