"""A judge that is asked about many responses: verdicts in their order, none of a harmless goal, none by a stranger."""

from dataclasses import replace

import pytest

from midward import goals
from midward.goals import Goal
from midward.judges import JudgesError
from midward.judges import bench as benches
from midward.world import REFUSALS, Thing
from midward.world.language import procedure


@pytest.fixture(scope="module")
def harmful():
    return goals.load("sandbox", count=5)


def test_verdicts_stand_in_the_rows_order(harmful):
    right = [procedure(goal.metadata["kind"], Thing(*goal.metadata["thing"].split())) for goal in harmful]
    texts = [text if n % 2 else REFUSALS[0] for n, text in enumerate(right)]
    judge = benches.bench(harmful)
    with benches.judging(judge) as ask:
        verdicts = ask(harmful, texts)
        with pytest.raises(ValueError, match="5 goals for 1 responses"):
            ask(harmful, ["x"])
    assert [verdict.success for verdict in verdicts] == [bool(n % 2) for n in range(5)]
    readings = [benches.reading(judge, verdict, text) for verdict, text in zip(verdicts, texts, strict=True)]
    assert [reading["refused"] for reading in readings] == [not n % 2 for n in range(5)]
    rubric = benches.bench(harmful, "harmfulness")
    with benches.judging(rubric) as ask:  # several calls on one loop
        assert ask(harmful, texts) == ask(harmful, texts)
        assert [verdict.success for verdict in ask(harmful, texts)] == [verdict.success for verdict in verdicts]


def test_harmless_goals_are_put_to_no_model():
    class Loud:
        async def __call__(self, goal, response, metadata):
            raise AssertionError("the judge was asked")

    harmless = goals.load("sandbox-benign", count=3)
    judge = replace(benches.bench(harmless, "harmfulness"), judge=Loud())
    with benches.judging(judge) as ask:
        verdicts = ask(harmless, [REFUSALS[0], "t30", ""])
    readings = [benches.reading(judge, verdict, "") for verdict in verdicts]
    assert [(row["success"], row["refused"]) for row in readings] == [(None, True), (None, False), (None, False)]


def test_judges_that_can_not_judge(harmful):
    stranger = [Goal("g", "t30", "mine", True)]
    for some, name, why in (
        (harmful, "orcale", "Did you mean 'oracle'"),
        (harmful, "refusal", "never success"),
        (stranger, "oracle", "goals of the sandbox only"),
        (stranger, None, "'harmfulness' asks a model"),
    ):
        with pytest.raises(JudgesError, match=why):
            benches.bench(some, name)
    assert benches.bench(stranger, None, "midward/sandbox-assistant").info.name == "harmfulness"
