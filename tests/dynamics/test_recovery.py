"""Recovery: the rates on known histories, texts judged once each, rows that resume, samplers as they are named."""

import json
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midward.dynamics import SRISignal, fit_anchors
from midward.dynamics.config import DynamicsConfig
from midward.dynamics.readings import gains, kind, measures, plane, separations, signals
from midward.dynamics.samplers import SAMPLERS, sampler
from midward.dynamics.sri import had_harm, internally_recovered, recovered, revised
from midward.goals import Goal
from midward.guards.signals import Signals
from midward.judges.bench import Bench
from midward.judges.judge import JudgeInfo, Verdict
from midward.probes import recovery
from midward.probes.recovery import Texts
from midward.runs.measure import Case, measure
from midward.sampling import Request, Sampling, Trace, sample

SAMPLING = Sampling(length=8, steps=4)
CASES = [Case(Goal(f"c{n}", f"goal {n}", "some", True), Request([20 + n, 30])) for n in range(6)]


@pytest.mark.parametrize(
    ("verdicts", "harm", "was_revised", "is_recovered"),
    [
        ([False, False], False, None, None),
        ([False, True], False, None, None),  # only in the response: nothing was on the way
        ([True, True], True, False, False),
        ([True, False, True], True, True, False),
        ([False, True, False], True, True, True),
        ([True, None, True], True, None, False),
        ([True, None], True, None, None),
        ([None, None, False], None, None, None),  # what nobody scored is not harmless
    ],
)
def test_rates_of_known_histories(verdicts, harm, was_revised, is_recovered):
    assert had_harm(verdicts) is harm
    if harm:
        assert revised(verdicts) is was_revised
        assert recovered(verdicts) is is_recovered


@settings(max_examples=50)
@given(st.lists(st.sampled_from([True, False, None]), min_size=2, max_size=8))
def test_full_recovery_is_a_revision(verdicts):
    if had_harm(verdicts) and recovered(verdicts):
        assert revised(verdicts)


def test_internal_recovery():
    assert internally_recovered([0.9, 0.4], 0.5) is True
    assert internally_recovered([0.9, 0.4], 0.25) is False
    assert internally_recovered([0.5, 0.1], 0.5) is False  # never above
    assert internally_recovered([0.2, 0.9], 0.5) is False
    assert internally_recovered([float("nan")], 0.5) is None
    assert internally_recovered([], 0.5) is None


@pytest.fixture(scope="module")
def anchors(exact):
    fitted = fit_anchors(
        exact,
        [[n, n + 1] for n in range(20, 26)],
        [[n] for n in range(40, 46)],
        refused=lambda text: len(text) % 2 == 0,
        sampling=SAMPLING,
        views=[("response", -1), ("response", 0)],
        needs_all_steps=False,
    )
    return {"last": fitted["response", -1], "first": fitted["response", 0]}


def even(asked):
    """A judge that calls an even number of letters harm, and notes what it is asked."""

    async def judge(goal, response, metadata):
        asked.append((goal, response))
        return Verdict("even", len(response) % 2 == 0)

    return Bench(JudgeInfo("even", "1", "counts", "nothing", lambda: judge), judge, {"judge": "even"})


def test_every_text_on_the_way_is_judged_once(exact, anchors, tmp_path):
    asked: list = []
    bench = even(asked)
    readers = [
        lambda: Signals({name: partial(SRISignal, each) for name, each in anchors.items()}),
        lambda: Texts(exact),
    ]
    rows = measure(exact, CASES, tmp_path, sampling=SAMPLING, judge=bench, readers=readers, batch_size=2)
    assert len(asked) == len(set(asked))
    trace = Trace(predictions=True)
    responses = sample(exact, [case.request for case in CASES], SAMPLING, watchers=[trace])
    for n, (row, response) in enumerate(zip(rows, responses, strict=True)):
        assert row["response"] == response.text and row["success"] == (len(response.text) % 2 == 0)
        texts = [exact.decode(trace.predicted_ids(n, step)) for step in trace.predicted_steps(n)[:-1]]
        changes = [text for at, text in enumerate(texts) if at == 0 or text != texts[at - 1]]
        assert [verdict for _, verdict in row["texts"]] == [len(text) % 2 == 0 for text in [*changes, response.text]]
        assert row["texts"][-1][0] is None
        assert {name: len(signal) for name, signal in row["signals"].items()} == {"last": 4, "first": 4}
        assert all(0 <= value <= 1 for value in row["signals"]["last"])


def test_samplers(exact):
    given_ = Sampling(length=12, steps=6, block=4, temperature=0.5, seed=3)
    for name in set(SAMPLERS) - {"paper"}:
        chosen = sampler(name, given_)
        assert (chosen.length, chosen.temperature, chosen.seed) == (12, 0.5, 3)
    assert sampler("native", given_) == given_
    paper = sampler("paper", given_)
    assert (paper.length, paper.steps, len(paper.blocks), paper.temperature) == (128, 32, 1, 0)
    trace = Trace()
    [response] = sample(
        exact, [[5]], sampler("ar", Sampling(length=12, steps=6, block=4, end="keep")), watchers=[trace]
    )
    assert trace.order(0) == list(range(12)) and response.steps == 12
    with pytest.raises(ValueError, match="Did you mean 'greedy'"):
        sampler("gredy", given_)


def test_samplers_that_come_to_the_same_are_measured_once_unless_they_are_named(exact):
    certain = Sampling(length=12, threshold=0.9)
    assert {"native", "ar"} <= recovery.settings(exact, DynamicsConfig(), certain).keys() - {"dynamic"}
    assert {"native", "dynamic"} <= recovery.settings(exact, DynamicsConfig(), Sampling(length=12, steps=6)).keys()
    assert [*recovery.settings(exact, DynamicsConfig(samplers=("native", "dynamic")), certain)] == ["native", "dynamic"]


def test_texts_on_the_way_have_the_steps_of_their_own_row(exact, tmp_path):
    sampling = Sampling(length=12, block=6, threshold=0.2)
    how = {"sampling": sampling, "judge": even([]), "readers": [lambda: Texts(exact)]}
    rows = [measure(exact, CASES, tmp_path / str(size), batch_size=size, **how) for size in (1, 6)]
    texts = [[row["texts"] for row in each] for each in rows]
    assert texts[0] == texts[1] and len({len(own) for own in texts[0]}) > 1


def row(n, set_, harmful, success, refused, signal, texts=((None, False),)):
    return {
        "goal": f"{n}",
        "subject": f"{set_} {n}",
        "set": set_,
        "harmful": harmful,
        "success": success,
        "refused": refused,
        "coherent": True,
        "correct": None if harmful else not refused,
        "texts": [list(text) for text in texts],
        "signals": {"last": signal},
    }


def test_measures_and_gains_of_known_rows():
    recovering = [(0, True), (None, False)]
    here = [
        row(0, "a", True, False, True, [0.9, 0.1], recovering),
        row(1, "a", True, True, False, [0.9, 0.9], [(0, True), (None, True)]),
        row(2, "b", True, None, False, [0.2, 0.2]),
        row(3, "calm", False, False, False, [0.9, 0.9]),
    ]
    there = [{**one, "success": True, "refused": False} if one["harmful"] else one for one in here]
    found = measures(here[:2])
    assert found["asr"]["value"] == found["rr"]["value"] == found["hrr"]["value"] == found["frr"]["value"] == 0.5
    assert found["irr-0.5"]["hits"] == 1 and found["irr-0.1"]["hits"] == 0
    assert measures(here[2:3])["asr"] == {**measures(here[2:3])["asr"], "value": None, "unscored": 1}
    assert measures(here[3:])["right"]["value"] == 1
    told = {(one["set"], one["measure"]): one for one in gains({"x": here, "ar": there})}
    assert told["a", "success"]["value"] == -0.5 and told["a", "refused"]["value"] == 0.5
    assert told["attacked", "success"]["n"] == 2  # the unscored one counts on no side
    assert told["calm", "correct"]["value"] == 0
    assert gains({"x": here}) == []
    assert [kind(one) for one in here] == ["refused", "jailbroken", None, "harmless"]
    json.dumps([found, list(told.values())])


def test_a_goal_in_several_sets_is_one_draw_and_gains_are_one_family():
    pooled = [
        {**row(n, name, True, n % 3 == 0, False, [0.9, 0.9]), "subject": f"thing {n}"}
        for name in ("a", "b")
        for n in range(30)
    ]
    alone = [one for one in pooled if one["set"] == "a"]
    both, single = measures(pooled)["asr"], measures(alone)["asr"]
    assert (both["low"], both["high"]) == pytest.approx((single["low"], single["high"]))
    assert (both["n"], both["goals"]) == (60, 30)
    other = [{**one, "success": True} for one in pooled]
    found = {(one["set"], one["measure"]): one for one in gains({"x": pooled, "ar": other})}
    attacked, a = found["attacked", "success"], found["a", "success"]
    assert (attacked["low"], attacked["high"]) == pytest.approx((a["low"], a["high"]))
    assert {one["family"] for one in found.values()} == {len(found)}
    assert all(one["holm"] >= one["p"] for one in found.values())


def test_separations_tell_what_stands_out_and_have_controls():
    rng = np.random.default_rng(1)

    def some(count, level, set_, harmful):
        return [
            row(n, set_, harmful, harmful, False, np.clip(rng.normal(level, 0.05, 6), 0, 1).tolist())
            for n in range(count)
        ]

    rows = some(20, 0.3, "attack", True) + some(20, 0.9, "calm", False) + some(20, 0.9, "dressed", False)

    def scorer(training):
        centre = training.mean(0)
        errors = lambda others: ((others - centre) ** 2).mean(1)  # noqa: E731
        return lambda others: np.stack([errors(others), 2 * errors(others)])  # two seeds

    found = separations(rows, some(20, 0.9, "training", False), {"error": scorer}, ["last"])
    by_name = {(one["reading"], one["positive"], one["negative"]): one for one in found}
    best = by_name["last", "jailbroken", "calm"]
    assert best["value"] == 1 and best["seeds"] == 2 and best["detector"] == "error"
    control = by_name["last", "dressed", "calm"]
    assert control["control"] and control["low"] < 0.5 < control["high"]
    assert {one["reading"] for one in found} == {"last", "first step alone", "without the first step"}
    refusing = [{**one, "success": False, "refused": True} for one in some(20, 0.6, "attack", True)]
    kinds = [*rows[:20], *rows[20:40], *refusing]
    parted = plane(kinds, "last")
    assert np.shape(parted["points"]) == (60, 2) and parted["accuracy"]["value"] > 0.9
    assert parted["majority"]["value"] == pytest.approx(1 / 3)
    assert parted["begun"]["jailbroken"]["value"] == pytest.approx(0.3, abs=0.1)
    assert "points" not in plane(kinds[:43], "last") and len(signals(kinds)) == 60
