"""Rates with their intervals, and paired comparisons."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from midward.evaluation import Rate, paired, rate

VERDICTS = st.lists(st.sampled_from([True, False, None]), max_size=60)


@settings(deadline=None)
@given(VERDICTS)
def test_unscored_verdicts_never_count(verdicts):
    scored = [verdict for verdict in verdicts if verdict is not None]
    with_them, without = rate(verdicts), rate(scored)
    assert with_them.unscored == len(verdicts) - len(scored)
    assert with_them.n == len(scored) and with_them.hits == sum(scored)
    assert with_them.interval == without.interval
    assert with_them.record()["value"] == without.record()["value"]


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(1, 400))
def test_the_interval_is_wilsons(hits, n):
    hits = min(hits, n)
    z, p = 1.959963984540054, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert Rate(hits, n).interval == pytest.approx((middle - half, middle + half), abs=1e-9)


@settings(deadline=None)
@given(st.integers(0, 100), st.integers(1, 100))
def test_the_interval_holds_the_rate_and_turns_round_with_it(hits, n):
    hits = min(hits, n)
    low, high = Rate(hits, n).interval
    assert 0 <= low <= hits / n <= high <= 1
    assert Rate(n - hits, n).interval == pytest.approx((1 - high, 1 - low))


def test_nothing_scored_is_no_rate():
    nothing = rate([None, None])
    assert math.isnan(nothing.value) and nothing.interval == (0.0, 1.0)
    assert nothing.record() == {"value": None, "low": 0.0, "high": 1.0, "hits": 0, "n": 0, "unscored": 2}
    assert str(nothing) == "- (n 0, unscored 2)"


def test_a_rate_is_printed_with_interval_n_and_unscored():
    assert str(rate([True] * 9 + [False] + [None])) == "90.0 % [59.6, 98.2] (n 10, unscored 1)"


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([True, False, None])] * 2), min_size=1, max_size=50))
def test_pairs_are_counted_by_goal_and_p_is_exact_mcnemar(pairs):
    first = {f"g{number}": a for number, (a, _) in enumerate(pairs)}
    second = {f"g{number}": b for number, (_, b) in reversed(list(enumerate(pairs)))}  # order is no matter
    found = paired({**first, "only here": True}, {**second, "only there": True})

    scored = [(a, b) for a, b in pairs if a is not None and b is not None]
    b, c = scored.count((True, False)), scored.count((False, True))
    assert (found.only_first, found.only_second, found.n) == (b, c, len(scored))
    assert found.p == pytest.approx(min(1.0, 2 * binom.cdf(min(b, c), b + c, 0.5)))
    if scored:
        assert found.difference == pytest.approx(np.mean([a - b for a, b in scored]))

    # Half a goal in each cell of the table, then the plain Wald interval of a mean.
    cells = {(1, 0): b, (0, 1): c, (1, 1): scored.count((True, True)), (0, 0): scored.count((False, False))}
    differences = np.array([x - y for x, y in cells])
    weights = np.array(list(cells.values())) + 0.5
    mean = np.average(differences, weights=weights)
    half = 1.96 * math.sqrt(np.average((differences - mean) ** 2, weights=weights) / weights.sum())
    assert found.interval == pytest.approx((max(-1, mean - half), min(1, mean + half)))

    turned = paired(second, first)
    assert turned.interval == pytest.approx((-found.interval[1], -found.interval[0]))
    assert turned.p == pytest.approx(found.p)


def test_sides_without_a_shared_goal_are_refused():
    with pytest.raises(ValueError, match="share no goal"):
        paired({"a": True}, {"b": True})
