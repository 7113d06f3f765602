"""Numbers with their intervals: what a reader may conclude from goals and seeds that were drawn."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom, binom, binomtest, norm

from midward.errors import InputError
from midward.stats import (
    COUNTS,
    FEW,
    MANY,
    Bound,
    area,
    corrected,
    from_record,
    holm,
    mean,
    paired,
    rate,
    rate_of,
    together,
)

VERDICTS = st.lists(st.sampled_from([True, False, None]), max_size=60)
SIDE = st.sampled_from([True, False, None])


@st.composite
def crossed(draw):
    """Verdicts of up to 8 goals x 4 seeds, some asked twice, some unscored."""
    rows = st.tuples(st.integers(0, 7), st.integers(0, 3), st.sampled_from([True, False, False, None]))
    return draw(st.lists(rows, min_size=1, max_size=50))


def ends(number):
    return number.low, number.high


def of(rows):
    goals, seeds, verdicts = zip(*rows, strict=True)
    return rate(verdicts, goals, seeds)


# --- a share -------------------------------------------------------------------------------------------------


@given(VERDICTS)
def test_unscored_verdicts_never_count(verdicts):
    scored = [verdict for verdict in verdicts if verdict is not None]
    with_them, without = rate(verdicts), rate(scored)
    assert with_them.unscored == len(verdicts) - len(scored)
    assert with_them.n == len(scored) and with_them.hits == sum(scored)
    assert ends(with_them) == ends(without)
    assert with_them.record()["value"] == without.record()["value"]


@given(st.integers(0, 200), st.integers(1, 200))
def test_a_verdict_a_goal_and_one_seed_give_wilsons_interval(hits, n):
    hits = min(hits, n)
    found = rate([True] * hits + [False] * (n - hits))
    wilson = binomtest(hits, n).proportion_ci(method="wilson")
    assert ends(found) == pytest.approx((wilson.low, wilson.high), abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high <= 1


@given(crossed(), st.randoms(use_true_random=False))
def test_neither_order_nor_labels_nor_what_is_asked_for_change_an_interval(rows, random):
    found = of(rows)
    mixed = random.sample(rows, len(rows))
    assert ends(of(mixed)) == pytest.approx(ends(found))
    relabelled = [(f"goal {-goal}", f"seed {7 - seed}", verdict) for goal, seed, verdict in rows]
    assert ends(of(relabelled)) == pytest.approx(ends(found))
    turned = of([(goal, seed, None if hit is None else not hit) for goal, seed, hit in rows])
    assert ends(turned) == pytest.approx((1 - found.high, 1 - found.low), abs=1e-9)
    assert 0 <= found.low < found.high <= 1


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(2, 5))
def test_goals_asked_again_with_the_same_answer_dont_narrow(verdicts, times):
    goals = list(range(len(verdicts))) * times
    again = rate(verdicts * times, goals)
    assert ends(again) == pytest.approx(ends(rate(verdicts)))
    assert again.n == times * len(verdicts) and again.goals == len(verdicts)
    as_seeds = rate(verdicts * times, goals, np.repeat(range(times), len(verdicts)).tolist())
    assert ends(as_seeds) == pytest.approx(ends(rate(verdicts)))  # seeds that agree in all add nothing


def test_seeds_that_differ_widen():
    goals = list(range(60)) * 3
    seeds = np.repeat([0, 1, 2], 60).tolist()
    apart = rate([False] * 60 + [True] * 20 + [False] * 40 + [True] * 40 + [False] * 20, goals, seeds)
    assert apart.high - apart.low > 0.5 and str(apart).endswith("(n 180, 60 goals, 3 seeds)")


def test_nothing_scored_is_no_rate():
    nothing = rate([None, None])
    assert nothing.value is None and (nothing.low, nothing.high) == (0.0, 1.0)
    assert nothing.record()["value"] is None and nothing.record()["unscored"] == 2
    assert str(nothing) == "- (n 0, unscored 2)"


def test_a_rate_is_printed_with_interval_n_and_unscored():
    assert str(rate([True] * 9 + [False] + [None])) == "90.0 % [59.6, 98.2] (n 10, unscored 1)"


@pytest.mark.parametrize(
    ("goals", "seeds", "of_goals", "of_seeds"),
    [(100, 3, 1.5, 0.0), (100, 3, 1.5, 0.3), (100, 3, 1.0, 0.5), (60, 5, 1.5, 0.2), (60, 5, 1.5, 0.6)],
)
def test_the_interval_of_goals_and_seeds_covers(goals, seeds, of_goals, of_seeds):
    """Probit answers with effects of both; seeds' rates have a standard deviation of 0 to 15 points."""
    rng = np.random.default_rng(1)
    asked, of_model = np.repeat(range(goals), seeds).tolist(), list(range(seeds)) * goals
    truth = norm.cdf(-0.8 / np.sqrt(1 + of_goals**2 + of_seeds**2))
    inside = 0
    for _ in range(500):
        goal, seed = of_goals * rng.normal(size=(goals, 1)), of_seeds * rng.normal(size=seeds)
        hits = goal + seed + rng.normal(size=(goals, seeds)) > 0.8
        found = rate(hits.ravel().tolist(), asked, of_model)
        inside += found.low <= truth <= found.high
    assert 0.92 <= inside / 500 <= 0.97


# --- a mean --------------------------------------------------------------------------------------------------


def test_a_mean_has_students_interval_over_goals_and_none_without_width():
    values = [1.0, 2.0, 4.0, 5.0]
    found = mean(values)
    half = 3.182446305284263 * np.std(values, ddof=1) / 2
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))
    assert mean(values * 3, list(range(4)) * 3).low == pytest.approx(found.low)
    assert str(found) == f"3.00 [{3 - half:.2f}, {3 + half:.2f}] (n 4)"
    assert mean([2.0, 2.0]).low is None and str(mean([2.0])) == "2.00 (n 1)"


# --- an area -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_an_area_is_the_share_of_pairs_won_and_turns_round(positives, negatives):
    found = area(positives, negatives)
    gap = np.subtract.outer(positives, negatives)
    assert found.value == pytest.approx(((gap > 0) + 0.5 * (gap == 0)).mean())
    assert 0 <= found.low <= found.value + 1e-9 and found.value - 1e-9 <= found.high <= 1
    assert found.high - found.low > 0.05
    turned = area(negatives, positives)
    assert (turned.low, turned.high) == pytest.approx((1 - found.high, 1 - found.low))
    again = area(positives * 2, negatives * 2, [*range(len(positives))] * 2, [*range(50, 50 + len(negatives))] * 2)
    assert (again.low, again.high) == pytest.approx((found.low, found.high))
    seeds = area([positives] * 3, [negatives] * 3)  # detectors that agree in all add nothing
    assert (seeds.low, seeds.high, seeds.seeds) == pytest.approx((found.low, found.high, 3))


def test_an_area_leaves_unscored_ones_out_and_needs_both_sides():
    assert area([], [1.0]) is None and area([np.nan], [1.0]) is None
    found = area([3.0, np.nan, 4.0], [1.0, 2.0])
    assert (found.value, found.positives, found.negatives) == (1.0, 2, 2) and found.high == 1.0


@pytest.mark.parametrize(("goals", "seeds", "of_seeds"), [(100, 1, 0.0), (60, 5, 0.4), (100, 3, 0.4)])
def test_the_interval_of_an_area_covers(goals, seeds, of_seeds):
    rng = np.random.default_rng(2)
    truth = norm.cdf(1.2 / np.sqrt(4 + of_seeds**2))
    inside = 0
    for _ in range(500):
        shift, sides = of_seeds * rng.normal(size=(seeds, 1)), rng.normal(size=(2, 1, goals))
        positive, negative = sides + rng.normal(size=(2, seeds, goals))
        found = area(1.2 + shift + positive, negative)
        inside += found.low <= truth <= found.high
    assert 0.92 <= inside / 500 <= 0.97


# --- a difference --------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=50))
def test_one_seed_a_side_is_paired_by_goal_and_p_is_exact_mcnemar(pairs):
    first = {f"g{number}": a for number, (a, _) in enumerate(pairs)}
    second = {f"g{number}": b for number, (_, b) in reversed(list(enumerate(pairs)))}  # order is no matter
    found = paired([{**first, "only here": True}], [{**second, "only there": True}])
    scored = [(a, b) for a, b in pairs if a is not None and b is not None]
    assert found.n == len(scored)
    if not scored:
        assert found.value is found.p is None and str(found) == "- (n 0)"
        return
    b, c = scored.count((True, False)), scored.count((False, True))
    assert found.p == pytest.approx(min(1.0, 2 * binom.cdf(min(b, c), b + c, 0.5)))
    assert found.value == pytest.approx(np.mean([a - b for a, b in scored]))
    assert -1 <= found.low <= found.value + 1e-9 and found.value - 1e-9 <= found.high <= 1
    assert found.high - found.low > 0.01
    turned = paired([second], [first])
    assert turned.value == pytest.approx(-found.value) and turned.p == pytest.approx(found.p)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize(("goals", "moved"), [(1, 1), (3, 3), (5, 5), (20, 5), (20, 0), (40, 30)])
def test_rows_of_a_goal_make_p_no_smaller_than_sign_flips_of_goals_allow(goals, moved, rows, seeds):
    asked = [(goal, row) for goal in range(goals) for row in range(rows)]
    first, second = ({of: of[0] < most for of in asked} for most in (moved, 0))
    number = paired([first] * seeds, [second], lambda of: of[0])
    least = float(binomtest(moved, moved).pvalue) if moved else 1.0  # all of them one way: no other flips are as far
    assert least <= number.p <= 1 and (number.p == least or moved > FEW)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=8, max_size=40), st.integers(2, 4))
def test_one_goal_in_several_sets_is_one_goal(pairs, sets):
    once = [paired(*([dict(enumerate(side))] for side in zip(*pairs, strict=True)))]
    pooled = [
        {(name, goal): verdict for name in range(sets) for goal, verdict in enumerate(side)}
        for side in zip(*pairs, strict=True)
    ]
    found = paired([pooled[0]], [pooled[1]], goal_of=lambda asked: asked[1])
    assert (found.low, found.high) == pytest.approx((once[0].low, once[0].high))
    assert (found.n, found.goals) == (sets * len(pairs), len(pairs))
    apart = paired([pooled[0]], [pooled[1]])
    assert apart.high - apart.low < found.high - found.low
    least = min(1.0, 2 * 0.5 ** sum(first != second for first, second in pairs))
    assert found.p >= least
    assert found.p == least or (found.p < 0.05) == (found.low > 0 or found.high < 0)  # interval and p are of one rule


def test_several_seeds_count_by_their_mean_and_a_seed_that_differs_widens():
    base = [{f"g{n}": True for n in range(20)}]
    alike = [{f"g{n}": n >= 10 for n in range(20)} for _ in range(3)]
    mosa = [alike[0], {f"g{n}": False for n in range(20)}, alike[2]]
    found = paired(mosa, base)
    assert found.value == pytest.approx(-2 / 3) and (found.n, found.seeds) == (20, 3)
    assert found.low < paired(alike, base).low and found.high > -0.5
    assert paired(alike, base).low == pytest.approx(paired(alike[:1], base).low)
    assert paired([*mosa[1:], mosa[0]], base) == found  # which seed is which is no matter
    same = paired(base, base)
    assert same.value == 0 and same.p == 1


@pytest.mark.parametrize(("seeds", "of_seeds"), [((1, 1), 0.0), ((3, 1), 0.4), ((3, 3), 0.3)])
def test_the_interval_of_a_difference_covers_and_its_p_holds_its_level(seeds, of_seeds):
    rng = np.random.default_rng(3)
    inside = small = 0
    for _ in range(500):
        goal = 1.2 * rng.normal(size=80)
        sides = [
            [
                dict(enumerate((goal + (count > 1) * of_seeds * rng.normal() + rng.normal(size=80) > 0).tolist()))
                for _ in range(count)
            ]
            for count in seeds
        ]
        found = paired(*sides)
        inside += found.low <= 0 <= found.high
        small += found.p < 0.05
    assert 0.92 <= inside / 500 <= 0.97
    assert small / 500 <= 0.08


@pytest.mark.parametrize("count", [1, 3, 100])
@pytest.mark.parametrize(("a", "b", "gap"), [(False, False, 0), (True, False, 1), (False, True, -1)])
def test_goals_that_are_all_alike_leave_room_for_those_not_seen(count, a, b, gap):
    found = paired([dict.fromkeys(range(count), a)], [dict.fromkeys(range(count), b)])
    assert found.value == gap and found.low <= gap <= found.high
    more = paired([dict.fromkeys(range(count + 1), a)], [dict.fromkeys(range(count + 1), b)])
    assert found.high - found.low > more.high - more.low > 0.01


def test_sides_without_a_shared_goal_are_refused():
    with pytest.raises(InputError, match="share no goal"):
        paired([{"a": True}], [{"b": True}])


# --- many comparisons ----------------------------------------------------------------------------------------


@given(st.lists(st.none() | st.floats(0, 1), max_size=30))
def test_holm_rejects_what_the_step_down_procedure_rejects(values):
    found = holm(values)
    tested = [p for p in values if p is not None]
    assert [p is None for p in found] == [p is None for p in values]
    for level in (0.01, 0.05, 0.3):
        # Step down: the smallest against level / m, the next against level / (m - 1), ... until one fails.
        rejected = 0
        for p in sorted(tested):
            if p * (len(tested) - rejected) > level:
                break
            rejected += 1
        bar = sorted(tested)[rejected - 1] if rejected else -1
        assert [p <= level for p in found if p is not None] == [p <= bar for p in tested]


def test_comparisons_of_one_table_say_how_many_they_are():
    pairs = [paired([dict.fromkeys(range(n), True)], [dict.fromkeys(range(n), False)]) for n in (6, 8)]
    first, second = corrected(pairs)
    assert (first.family, second.family) == (2, 2)
    assert first.holm == pytest.approx(first.p) and second.holm == pytest.approx(2 * second.p)
    assert str(first) == "+100.0 points [+21.9, +100.0] (n 6, p 0.031, Holm 0.031)"


# --- as text and JSON ----------------------------------------------------------------------------------------


def test_a_number_comes_back_from_its_record_and_a_stranger_is_refused():
    pair = corrected([paired([{"a": True, "b": False}], [{"a": False, "b": None}])])[0]
    for number in (rate([True, None]), rate([None]), mean([1.0, 2.0]), area([2.0], [1.0, 3.0]), pair):
        record = json.loads(json.dumps(number.record() | {"set": "mine"}, allow_nan=False))
        assert from_record(record) == number and str(from_record(record)) == str(number)
    for stranger in ({}, {"stat": "rate"}, {"stat": "median", "value": 1.0}):
        with pytest.raises(InputError, match="no record of a number"):
            from_record(stranger)


@pytest.mark.parametrize(
    ("n", "moved", "why"), [(FEW, 0, "not told apart from no change"), (3, 3, "too few goals to tell"), (FEW, FEW, "")]
)
def test_a_difference_says_why_it_is_not_told_from_none(n, moved, why):
    assert paired([{g: g < moved for g in range(n)}], [dict.fromkeys(range(n), False)]).untold == why


@given(st.lists(st.floats(1, 5), min_size=1, max_size=12))
def test_the_mean_of_a_scale_stays_on_it_and_in_its_interval(scores):
    number = mean(scores, ends=(1, 5))
    assert 1 <= number.low <= number.value + 1e-9 and number.value - 1e-9 <= number.high <= 5


@given(st.lists(st.integers(0, 300), min_size=1, max_size=12))
def test_the_mean_of_counts_has_students_interval_cut_at_none(counts):
    number, free = mean(counts, ends=COUNTS), mean(counts)
    assert number.value == free.value and number.high == free.high
    assert number.low == (None if free.low is None else max(0.0, free.low))


def test_a_scale_of_verdicts_has_the_interval_of_their_rate():
    verdicts = [True, False, True, True, False]
    number, share = mean(map(float, verdicts), ends=(0, 1)), rate(verdicts)
    assert (number.low, number.high) == (share.low, share.high)


# --- a share against a bound ---------------------------------------------------------------------------------

BOUNDS = st.builds(Bound, st.floats(0.01, 0.99), st.booleans())


@given(crossed(), BOUNDS)
def test_a_verdict_says_where_the_whole_interval_lies(rows, bound):
    found = of(rows)
    standing = bound.standing(found)
    low, high = ends(found) if bound.most else (1 - found.high, 1 - found.low)
    share = bound.share if bound.most else 1 - bound.share
    assert standing != "held" or high <= share + 1e-12
    assert standing != "broken" or low >= share - 1e-12
    assert standing != "unclear" or found.value is None or low <= share <= high
    if found.unscored and bound.standing(found, found.unscored) != "unclear":
        assert bound.standing(found, found.unscored) == standing  # they may unsettle it, and turn nothing


@given(st.integers(0, 80), st.integers(1, 80), st.integers(0, 30), BOUNDS)
def test_with_unscored_verdicts_it_holds_whichever_way_they_fall(hits, n, unscored, bound):
    hits = min(hits, n)
    scored = [True] * hits + [False] * (n - hits)
    found = bound.standing(rate([*scored, *[None] * unscored]), unscored)
    fallen = {bound.standing(rate([*scored, *[True] * k, *[False] * (unscored - k)])) for k in range(unscored + 1)}
    assert found == (fallen.pop() if len(fallen) == 1 else "unclear")


@given(st.integers(2, 5), st.integers(1, 30), BOUNDS)
def test_of_several_seeds_the_number_alone_doesnt_say_how_unscored_ones_fall(seeds, unscored, bound):
    number = rate([False] * 60 * seeds, [*range(60)] * seeds, [seed for seed in range(seeds) for _ in range(60)])
    assert bound.standing(number, unscored) == "unclear"


@given(st.lists(st.sampled_from(["held", "broken", "unclear"]), max_size=5))
def test_several_are_held_where_all_are_and_broken_where_one_is(standings):
    found = together(standings)
    assert (found == "broken") is ("broken" in standings)
    assert (found == "held") is (set(standings) == {"held"})


def pilot(hits, n):
    return [{"goal": f"g{i}", "hit": i < hits} for i in range(n)]


def decided(bound, hits, n):
    """Wilson's interval of each of many runs of n goals, and whether it leaves the bound out."""
    z = norm.ppf(0.975)
    middle, half = (hits + z**2 / 2) / (n + z**2), z / (n + z**2) * np.sqrt(hits * (n - hits) / n + z**2 / 4)
    return (middle + half <= bound.share) | (middle - half > bound.share)


@pytest.mark.parametrize(("n", "share"), [(20, 0.1), (60, 0.1), (100, 0.02), (50, 0.5)])
def test_the_goals_that_are_named_decide_in_nine_of_ten_runs(n, share):
    """In runs that go on where a pilot stopped: at the rate that was seen, and at rates drawn from the posterior's own
    prior before the pilot, of those whose pilot was unclear."""
    rng, bound, settled, weight = np.random.default_rng(5), Bound(share), 0.0, 0.0
    for hits in range(n + 1):
        rows = pilot(hits, n)
        if bound.standing(rate_of(rows, "hit")) != "unclear":
            continue
        steady, surely = bound.needed(rows, "hit")
        if steady is not None:
            more = rng.binomial(steady - n, hits / n, 2000)
            assert decided(bound, hits + more, steady).mean() > 0.88  # 0.9 less the chance of 2000 draws
            assert surely is None or surely >= steady
        truth = rng.beta(hits + 0.5, n - hits + 0.5, 4000)  # given these hits
        chance = betabinom.pmf(hits, n, 0.5, 0.5)  # of them
        settled += chance * decided(bound, hits + rng.binomial(surely - n, truth), surely).mean()
        weight += chance
    assert settled / weight > 0.88


def test_at_the_bound_itself_no_number_of_goals_decides_more_than_the_interval_errs():
    rng, bound = np.random.default_rng(6), Bound(0.1)
    for n in (100, 1000, 100_000):
        assert decided(bound, rng.binomial(n, 0.1, 20_000), n).mean() < 0.07
    assert bound.needed(pilot(10, 100), "hit")[0] is None  # as far as it can be seen, it is there


@settings(max_examples=20)
@given(st.integers(0, 60), st.integers(1, 60), BOUNDS)
def test_what_is_needed_is_the_same_from_either_side(hits, n, bound):
    hits = min(hits, n)
    turned = Bound(1 - bound.share, not bound.most)
    sides = [bound.needed(pilot(hits, n), "hit"), turned.needed(pilot(n - hits, n), "hit")]
    named, others = ([MANY if count is None else count for count in side] for side in sides)
    assert named == pytest.approx(others, rel=0.05)


def test_more_goals_dont_make_up_for_seeds_that_differ():
    rows = [{"goal": f"g{i}", "seed": seed, "hit": i < hits} for seed, hits in enumerate((0, 12, 6)) for i in range(60)]
    assert Bound(0.1).standing(rate_of(rows, "hit")) == "unclear" and Bound(0.1).needed(rows, "hit")[1] is None
    alike = [{**row, "hit": int(row["goal"][1:]) < 6} for row in rows]
    assert Bound(0.11).needed(alike, "hit") == Bound(0.11).needed(pilot(6, 60), "hit")


def test_needed_of_nothing_scored_is_nothing():
    assert Bound(0.1).needed([{"goal": "g", "hit": None}], "hit") == (None, None)
