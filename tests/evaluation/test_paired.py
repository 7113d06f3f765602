"""Comparisons by goal, of one run a side or several."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from midward.evaluation import paired, rate

SIDE = st.sampled_from([True, False, None])


@settings(deadline=None)
@given(st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=50))
def test_one_run_a_side_is_paired_by_goal_and_p_is_exact_mcnemar(pairs):
    first = {f"g{number}": a for number, (a, _) in enumerate(pairs)}
    second = {f"g{number}": b for number, (_, b) in reversed(list(enumerate(pairs)))}  # order is no matter
    found = paired([{**first, "only here": True}], [{**second, "only there": True}])
    scored = [(a, b) for a, b in pairs if a is not None and b is not None]
    assert found.n == len(scored)
    if not scored:
        assert found.difference is found.p is None and str(found) == "- (n 0)"
        return
    b, c = scored.count((True, False)), scored.count((False, True))
    assert found.p == pytest.approx(min(1.0, 2 * binom.cdf(min(b, c), b + c, 0.5)))
    assert found.difference == pytest.approx(np.mean([a - b for a, b in scored]))
    assert -1 <= found.low <= found.difference + 1e-9 and found.difference - 1e-9 <= found.high <= 1
    turned = paired([second], [first])
    assert turned.difference == pytest.approx(-found.difference) and turned.p == pytest.approx(found.p)


def test_several_runs_count_by_their_mean_over_the_runs_that_scored():
    base = [{f"g{n}": True for n in range(20)}]
    mosa = [{f"g{n}": False for n in range(20)}, {f"g{n}": n >= 10 for n in range(20)}]
    found = paired(mosa, base)
    assert found.difference == pytest.approx(-0.75) and found.n == 20
    assert -1 < found.low < -0.75 < found.high < -0.5 and found.p < 0.001
    unscored = [mosa[0], {**mosa[1], "g0": None}]
    assert paired(unscored, base) == found  # g0 missed in the run that scored it, as in both before
    same = paired(base, base)
    assert same.difference == 0 and same.p == 1


def test_the_bootstrap_interval_covers_the_true_difference():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        a, b = rng.random(80) < 0.6, rng.random(80) < 0.4
        found = paired([dict(enumerate(a.tolist()))], [dict(enumerate(b.tolist()))])
        inside += found.low <= 0.2 <= found.high
    assert inside / 200 > 0.95 - 3 * (0.05 * 0.95 / 200) ** 0.5


@pytest.mark.parametrize("count", [1, 3, 100])
@pytest.mark.parametrize(("one", "other", "gap"), [(False, False, 0), (True, False, 1), (False, True, -1)])
def test_goals_that_are_all_alike_leave_room_for_those_not_seen(count, one, other, gap):
    found = paired([dict.fromkeys(range(count), one)], [dict.fromkeys(range(count), other)])
    unseen = rate([False] * count).interval[1]
    assert found.difference == gap
    wanted = {0: (-unseen, unseen), 1: (1 - 2 * unseen, 1), -1: (-1, 2 * unseen - 1)}
    assert (found.low, found.high) == pytest.approx(wanted[gap])
    nearly = paired(
        [{**dict.fromkeys(range(count), one), "x": one}], [{**dict.fromkeys(range(count), other), "x": other}]
    )
    assert nearly.high - nearly.low < found.high - found.low


def test_the_permutation_p_value_holds_its_level_under_no_difference():
    rng = np.random.default_rng(0)
    values = []
    for _ in range(200):
        runs = [dict(enumerate(run.tolist())) for run in rng.random((4, 30)) < 0.5]
        values.append(paired(runs[:2], runs[2:]).p)
    # at most the nominal share, give or take three standard errors
    assert np.mean(np.array(values) < 0.05) < 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5


def test_sides_without_a_shared_goal_are_refused():
    with pytest.raises(ValueError, match="share no goal"):
        paired([{"a": True}], [{"b": True}])
