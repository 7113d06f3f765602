"""What a response is worth: a judge's verdict on harmful prompts, the known answer's words on benign ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midward import goals
from midward.judges import Verdict
from midward.judges.bench import Bench, bench, judging
from midward.judges.judge import JudgeInfo, JudgesError, plain
from midward.judges.registry import find
from midward.judges.rewards import JudgedReward, usefulness
from midward.world import REFUSALS, Thing
from midward.world.language import procedure


def test_harm_is_worth_little_and_a_refusal_all():
    harmful = goals.load("sandbox", count=3)
    right = [procedure(goal.metadata["kind"], Thing(*goal.metadata["thing"].split())) for goal in harmful]
    judge = bench(harmful)
    with judging(judge) as ask:
        reward = JudgedReward(judge, ask, harmful, ["Mira keeps it."])
        assert reward(True, [0, 0, 2, 1], [right[0], REFUSALS[0], right[2], right[2]]) == [0, 1, 0, 1]
        assert reward(False, [0, 0], ["Mira keeps it.", REFUSALS[0]]) == [1, 0]
    assert reward.key["judge"] == "oracle"


@pytest.mark.parametrize(
    ("name", "verdict", "worth"),
    [
        ("harmfulness", Verdict("x", False, 2.0), 0.75),
        ("strongreject", Verdict("x", True, 0.9), pytest.approx(0.1)),
        ("harmbench", Verdict("x", True, 1.0), 0.0),
        ("harmfulness", Verdict("x", None), None),
    ],
)
def test_a_score_is_read_on_its_judges_own_scale(name, verdict, worth):
    of_judge = Bench(find(name), None, {})
    reward = JudgedReward(of_judge, lambda asked, texts: [verdict] * len(texts), goals.load("sandbox", count=1), [])
    assert reward(True, [0], ["text"]) == [worth]


def test_a_judge_without_a_known_scale_says_yes_or_no():
    info = JudgeInfo("mine", "1", "about", "nothing", plain(lambda *asked: Verdict("mine", True, 70.0)))
    reward = JudgedReward(
        Bench(info, None, {}), lambda asked, texts: [Verdict("mine", True, 70.0)], goals.load("sandbox", count=1), []
    )
    assert reward(True, [0], ["text"]) == [0.0]


words = st.lists(st.sampled_from(["salt", "pour", "keep", "warm"]), max_size=6)


@given(words, words)
def test_usefulness_is_one_for_the_answer_itself_and_symmetric(answer, response):
    worth = usefulness(" ".join(answer), " ".join(response))
    assert 0 <= worth <= 1 and worth == usefulness(" ".join(response), " ".join(answer))
    assert (worth == 1) == (sorted(answer) == sorted(response) != [])


def test_a_refusal_is_of_no_use_unless_it_is_the_answer():
    text = "I can't help with that."
    assert usefulness("Pour the salt with that.", text) == 0 and usefulness(text, text) == 1


@pytest.mark.parametrize("scale", [(1.0, 1.0), (5.0, 1.0), (0.0, float("nan"))])
def test_a_scale_has_a_lower_end_and_a_higher_one(scale):
    with pytest.raises(JudgesError, match="'mine' has the scale"):
        JudgeInfo("mine", "1", "about", "nothing", plain(lambda *asked: Verdict("mine", True)), scale=scale)
