"""Guards side by side: a comparison on the same answers says what each guard does in front of the model."""

import json
from dataclasses import replace

import numpy as np
import pytest
from guard_world import LENGTH, STEPS, asked, fit, prompts
from hypothesis import given
from hypothesis import strategies as st

import midward
from midward.attacks.cases import SHAPES
from midward.attacks.cases import cases as sandbox_cases
from midward.errors import InputError
from midward.guards import DiffuGuard, Exchange, MaskFilter, SRIGuard, compare
from midward.guards.defences import defences, summary
from midward.judges.bench import Bench
from midward.judges.judge import JudgeInfo, Verdict
from midward.runs import measure as loop
from midward.runs.measure import Case
from midward.sampling import Forced, Request, Sampling, sample

FRESH = prompts(300, 16)
MASK = "<|mdm_mask|>"


def judging(said):
    """A judge that says of a text (success, refused)."""

    async def judge(goal, response, metadata):
        success, refused = said(response)
        return Verdict("said", success, None, refused)

    return Bench(JudgeInfo("said", "1", "says", "nothing", lambda: judge), judge, {"judge": "said"})


def test_a_surrogate_guards_another_models_answers(model, sampling, fitted, tmp_path):
    """The signals are the surrogate's, the answers the other's; one that failed is unscored, not safe."""
    guard, _ = fitted
    cases = [*asked(FRESH[:2], set="benign"), *asked(FRESH[2:4], harmful=True, set="attacked")]
    other = compare.Behind("mock/other", lambda texts: [None if text == FRESH[3] else f"!{text}" for text in texts])
    judge = judging(lambda text: (text.startswith("!"), False))

    def comparison(folder, behind):
        return compare.Comparison(model, cases, {"sri": guard}, tmp_path / folder, sampling, judge, behind)

    rows, own = comparison("behind", other).answers(), comparison("own", None).answers()
    assert [row["response"] for row in rows] == [*(f"!{text}" for text in FRESH[:3]), None]
    assert [row["signals"] for row in rows] == [row["signals"] for row in own]
    assert rows[2]["success"] is True and rows[3]["success"] is None
    decisions = comparison("behind", other).decisions(rows)
    none, _ = defences(rows, decisions)
    assert (none["asr"]["all"].n, none["asr"]["all"].unscored) == (1, 1)
    cases = [Case(cases[0].goal, Request(FRESH[0], (Forced(0, (5,)),)), "prefill")]
    with pytest.raises(InputError, match="'prefill' forces tokens or sends masks"):
        comparison("shaped", other).answers()


def test_any_inspect_model_can_be_behind_a_surrogate(llada_folder):
    name = f"midward/{llada_folder}"
    with compare.behind(name) as other:
        assert other.name == name
        said = other.ask(["one", "two"])
    plain = midward.load(llada_folder, device="cpu")
    assert said == [response.text for response in sample(plain, ["one", "two"])]


def test_a_comparison_says_what_the_guard_in_front_does(model, sampling, fitted, tmp_path, monkeypatch):
    guard, _ = fitted
    masks = MaskFilter()
    masks.bind(model, sampling)
    masks.threshold = 0.0
    guards = {"sri": guard, "masks": masks}
    texts = [*FRESH, f"t30 {MASK} t31", f"t32 {MASK}"]
    cases = [*asked(texts[::2], set="benign"), *asked(texts[1::2], harmful=True, set="attacked")]
    judge = judging(lambda text: (len(text) % 3 > 0, len(text) % 3 == 0))

    def measured():
        comparison = compare.Comparison(model, cases, guards, tmp_path, sampling, judge, batch_size=7)
        rows = comparison.answers()
        return rows, comparison.decisions(rows)

    rows, decisions = measured()
    in_front = guard.sample(model, [case.request for case in cases], sampling)
    without = sample(model, [case.request for case in cases], sampling)
    for row, decision, guarded, bare in zip(rows, decisions["sri"], in_front, without, strict=True):
        assert decision["flagged"] == guarded.verdict.flagged
        if decision["step"] is not None:
            assert row["steps"] - max(bare.steps - guarded.steps, 0) == min(decision["step"] + 1, bare.steps)
    none, sri, _ = defences(rows, decisions, {"sri": 0.1, "masks": 0.0})
    attacked = [(row, decision) for row, decision in zip(rows, decisions["sri"], strict=True) if row["harmful"]]
    assert none["asr"]["all"].hits == sum(bool(row["success"]) for row, _ in attacked)
    assert sri["asr"]["all"].hits == sum(row["success"] and not decision["flagged"] for row, decision in attacked)
    assert sri["gain"].value == pytest.approx(none["asr"]["all"].value - sri["asr"]["all"].value)
    assert sri["flags"]["benign"].n == 9 and none["saved"] is None
    assert decisions["masks"][-1]["score"] == 1 and MASK not in rows[-1]["response"]
    assert sri["caught_at_1"] is None  # nine harmless answers don't tell what one in a hundred would score
    told = json.loads(json.dumps(summary(rows, decisions, guards), allow_nan=False))
    assert told["alphas"] == {"sri": 0.25, "masks": None} and told["roc"]["sri"]["benign"][-1] == [1, 1]
    [signals] = told["signals"].values()
    assert signals["benign"]["n"] == 9 and len(signals["benign"]["median"]) == STEPS
    told = []
    again = compare.Comparison(
        model, cases, {"sri": guard}, tmp_path, sampling, judge, progress=lambda *done: told.append(done)
    )
    costs = again.overhead(rows, decisions, repeats=2)
    assert told == [("costs", 0, 2), ("costs", 1, 2), ("costs", 2, 2)]  # minutes of a large model
    assert costs["sri"] > 0 and np.isfinite(guard.threshold)

    monkeypatch.setattr(loop, "sample", None)
    monkeypatch.setattr(SRIGuard, "scores_by_seed", None)
    assert measured() == (rows, decisions)  # all of it was kept


def test_with_a_threshold_each_row_is_judged_by_its_own_steps(model, tmp_path):
    sampling = Sampling.for_model(model, length=LENGTH, block=LENGTH // 2, threshold=0.1)
    guard = SRIGuard(epochs=40, seeds=1)
    fit(model, {"sri": guard}, tmp_path / "guard", sampling)
    cases = asked(FRESH)
    without = sample(model, FRESH, sampling)
    assert len({response.steps for response in without}) > 2  # rows wait for each other, and it mustn't show
    together = guard.sample(model, FRESH, sampling, batch_size=8)
    alone = guard.sample(model, FRESH, sampling, batch_size=1)
    judge = judging(lambda text: (False, False))
    comparison = compare.Comparison(model, cases, {"sri": guard}, tmp_path, sampling, judge)
    decisions = comparison.decisions(comparison.answers())["sri"]
    assert any(response.verdict.step is not None for response in alone)
    for plain, one, other, decision in zip(without, together, alone, decisions, strict=True):
        step = other.verdict.step
        assert one.verdict.flagged == other.verdict.flagged == decision["flagged"]
        assert one.verdict.step == step == decision["step"]
        assert other.steps == (plain.steps if step is None else step + 1)
        assert other.verdict.flagged or replace(one, verdict=None) == replace(other, verdict=None) == plain


def test_cases_are_the_sandboxs_sets_and_shapes_of_attacks(model):
    wrapped = sandbox_cases(model, "wrappers", 4)
    assert all(case.goal.harmful and case.about["plain"] != case.request.prompt for case in wrapped)
    assert [case.about["plain"] for case in wrapped] == [
        case.request.prompt for case in sandbox_cases(model, "plain", 4)
    ]
    assert not any(case.goal.harmful for case in sandbox_cases(model, "benign-wrapped", 4))
    for shape in SHAPES:
        [case] = sandbox_cases(model, shape, 1)
        assert case.goal.harmful and (case.request.forced or MASK in case.request.prompt)
    with pytest.raises(ValueError, match="Did you mean 'benign-wrapped'"):
        sandbox_cases(model, "benign-wraped", 1)


def test_a_guard_that_repairs_is_judged_by_what_it_answers(model, sampling, tmp_path):
    guard = DiffuGuard(oracle=True)
    guard.bind(model, sampling)
    guard.threshold = 0.0
    cases = [
        replace(case, request=Request(case.request.prompt, (Forced(1, (44,)),)))
        for case in asked(FRESH[:2], harmful=True, set="attacked")
    ]
    judge = judging(lambda text: (len(text) % 2 == 0, False))
    comparison = compare.Comparison(model, cases, {"it": guard}, tmp_path, sampling, judge)
    rows = comparison.answers()
    decisions = comparison.decisions(rows)["it"]
    exchanges = [Exchange(case.request, plain=case.goal.text) for case in cases]
    answers = [response.text for response in guard.answer(model, exchanges, sampling)]
    assert [decision["response"] for decision in decisions] == answers
    assert all(decision["flagged"] for decision in decisions)
    assert all(decision["nfe"] > row["nfe"] for decision, row in zip(decisions, rows, strict=True))
    _, mine = defences(rows, {"it": decisions})
    assert mine["asr"]["all"].hits == sum(len(text) % 2 == 0 for text in answers)


def test_a_goal_in_several_sets_is_one_draw_and_guards_are_one_family():
    def answered(sets):
        return [
            {
                "set": name,
                "goal": f"{name}-{n}",
                "subject": f"thing {n}",
                "harmful": True,
                "success": n % 4 > 0,
                "refused": False,
                "steps": 8,
            }
            for name in sets
            for n in range(40)
        ]

    def says(rows, every):
        return [{"score": float(n % every), "flagged": (n % 40) % every == 0, "step": None} for n in range(len(rows))]

    one, many = (
        defences(rows, {"a": says(rows, 5), "b": says(rows, 3)})
        for rows in (answered(["x"]), answered(["x", "y", "z"]))
    )
    assert (many[1]["gain"].n, many[1]["gain"].goals) == (120, 40)
    for single, pooled in zip(one, many, strict=True):
        assert (pooled["asr"]["all"].low, pooled["asr"]["all"].high) == pytest.approx(
            (single["asr"]["all"].low, single["asr"]["all"].high)
        )
        if single["gain"] and single["gain"].value:
            assert (pooled["gain"].low, pooled["gain"].high) == pytest.approx((single["gain"].low, single["gain"].high))
    assert [row["gain"].family for row in many[1:]] == [2, 2]


@given(stops=st.lists(st.integers(0, 7), min_size=2, max_size=5))
def test_a_stop_saves_no_less_than_nothing_and_no_more_than_all_steps(stops):
    asked = {"set": "x", "harmful": True, "success": True, "refused": False, "steps": 8}
    rows = [{**asked, "goal": str(n), "subject": str(n)} for n in range(len(stops))]
    _, guarded = defences(rows, {"a": [{"score": 1.0, "flagged": True, "step": step} for step in stops]})
    saved = guarded["saved"]
    assert 0 <= saved.low <= saved.value <= saved.high <= 8 and saved.value == pytest.approx(7 - np.mean(stops))


def test_what_no_judge_scored_stays_unscored_behind_a_guard_that_flags_it():
    asked = {"set": "x", "harmful": True, "refused": False, "steps": 8}
    rows = [{**asked, "goal": str(n), "subject": str(n), "success": None if n < 3 else True} for n in range(4)]
    flags = [{"score": 1.0, "flagged": n in (0, 3), "step": None} for n in range(4)]
    none, guarded = defences(rows, {"a": flags})
    assert (none["asr"]["all"].n, none["asr"]["all"].hits) == (1, 1)
    assert (guarded["asr"]["all"].n, guarded["asr"]["all"].hits, guarded["asr"]["all"].unscored) == (1, 0, 3)
