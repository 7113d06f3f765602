"""Judges as Inspect scorers: what they read from a sample, what a log holds, what is counted."""

import math

import pytest
from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import read_eval_log
from inspect_ai.model import ModelName, ModelOutput, get_model
from inspect_ai.solver import TaskState, solver

from midward.judges import (
    JUDGES,
    TEXTS,
    JudgeInfo,
    Verdict,
    harmfulness,
    oracle,
    refusal,
    scorer_of,
    strongreject,
    texts_of,
)
from midward.judges.labelled import labelled
from midward.judges.scorers import goal_of
from midward.world import ASSISTANT

ROWS = {row.id: row for row in labelled()}


@solver
def replay():
    """Leaves in the sample what its metadata says: the output, and the texts."""

    async def solve(state, generate):
        state.output = ModelOutput.from_content("mock", state.metadata["response"])
        if "left" in state.metadata:
            state.store.set("texts", state.metadata["left"])
        return state

    return solve


def run(samples, scorers, tmp_path, **roles):
    """The log, as read back from the disk."""
    task = Task(dataset=MemoryDataset(samples), solver=replay(), scorer=scorers)
    [log] = eval(
        task,
        model="mockllm/model",
        model_roles=roles or None,
        log_dir=str(tmp_path),
        display="none",
        log_realtime=False,
    )
    assert log.status == "success", log.error
    return read_eval_log(log.location)


def sample(name, **left):
    row = ROWS[name]
    metadata = {**row.metadata, "response": row.response}
    return Sample(id=name, input=row.goal, metadata={**metadata, "left": left} if left else metadata)


def results(log, judge):
    """Text name -> (mean, scored, unscored) of one judge."""
    return {
        score.name: (score.metrics["mean"].value, score.scored_samples, score.unscored_samples)
        for score in log.results.scores
        if score.scorer == judge
    }


def test_an_eval_with_every_offline_judge(tmp_path):
    names = ["procedure-0", "cut-after-3", "disavowal-0", "refusal-0", "garbled-0", "empty-0", "hiding-0"]
    log = run(
        [sample(name) for name in names],
        [harmfulness(), strongreject(), oracle(), refusal()],
        tmp_path,
        judge=get_model(ASSISTANT),
    )
    for each in log.samples:
        row = ROWS[each.id]
        values = {judge: score.value["reply"] for judge, score in each.scores.items()}
        assert values == {
            "harmfulness": row.success,
            "strongreject": row.full,
            "oracle": row.success,
            "refusal": row.refused,
        }
        assert all(math.isnan(score.value["replay"]) for score in each.scores.values())
        assert all(score.metadata["unscored"] == [] for score in each.scores.values())
    mean, scored, unscored = results(log, "harmfulness")["reply"]
    assert (mean, scored, unscored) == (pytest.approx(4 / 7), 7, 0)
    [first] = [each for each in log.samples if each.id == "procedure-0"]
    metadata = first.scores["strongreject"].metadata
    assert metadata["hash"] == JUDGES["strongreject"].hash and metadata["version"] == JUDGES["strongreject"].version
    assert metadata["verdicts"]["reply"]["details"]["specific"] == 5
    assert metadata["verdicts"]["reply"]["details"]["model"]


def test_each_text_is_judged_apart(tmp_path):
    harm, no = ROWS["procedure-0"].response, ROWS["refusal-0"].response
    log = run([sample("procedure-0", reply=harm, replay=no, authored=harm)], [oracle()], tmp_path)
    score = log.samples[0].scores["oracle"]
    assert score.value == {"reply": 1, "replay": 0, "authored": 1}
    assert score.metadata["verdicts"]["replay"]["refused"] is True


def test_unscored_is_counted_and_is_in_no_mean(tmp_path, judge_that_says):
    model, _ = judge_that_says("SCORE: 5")
    bad, _ = judge_that_says("?")
    samples = [sample("procedure-0"), sample("procedure-1")]
    assert results(run(samples, [harmfulness()], tmp_path, judge=model), "harmfulness")["reply"] == (1.0, 2, 0)
    log = run(samples, [harmfulness()], tmp_path, judge=bad)
    mean, scored, unscored = results(log, "harmfulness")["reply"]
    assert math.isnan(mean) and (scored, unscored) == (0, 2)
    score = log.samples[0].scores["harmfulness"]
    assert score.reason == "grader_failed" and score.metadata["unscored"] == ["reply"]
    assert score.metadata["verdicts"]["reply"]["success"] is None


def test_a_text_that_could_not_be_made_is_unscored_one_left_out_is_not(tmp_path):
    harm = ROWS["procedure-0"].response
    samples = [sample("procedure-0", replay=None), sample("procedure-1", replay=ROWS["procedure-1"].response)]
    log = run([*samples, sample("refusal-0", authored=harm)], [oracle()], tmp_path)
    assert results(log, "oracle")["replay"] == (1.0, 1, 2)
    unscored = {each.id: each.scores["oracle"].metadata["unscored"] for each in log.samples}
    assert unscored == {"procedure-0": ["replay"], "procedure-1": [], "refusal-0": []}


def test_equal_texts_are_asked_about_once(tmp_path, judge_that_says):
    model, prompts = judge_that_says("SCORE: 5")
    harm = ROWS["procedure-0"].response
    log = run([sample("procedure-0", replay=harm, authored=harm)], [harmfulness()], tmp_path, judge=model)
    assert set(log.samples[0].scores["harmfulness"].value.values()) == {1} and len(prompts) == 1


def test_a_sample_of_no_sandbox_is_unscored_by_the_oracle(tmp_path):
    log = run([Sample(id="x", input="a goal", metadata={"response": "a text"})], [oracle()], tmp_path)
    assert results(log, "oracle")["reply"][1:] == (0, 1)


def test_a_judge_of_ones_own_has_its_options_in_the_log(tmp_path):
    def factory(word: str):
        async def judge(goal, response, metadata):
            return Verdict("wordy", word in response)

        return judge

    wordy = scorer_of(JudgeInfo("wordy", "7", "about", "nothing", factory))
    log = run([sample("procedure-0")], [wordy(word="Step 2")], tmp_path)
    score = log.results.scores[0]
    assert (score.scorer, score.params) == ("wordy", {"word": "Step 2"}) and results(log, "wordy")["reply"][0] == 1
    with pytest.raises(TypeError, match="wrod"):
        wordy(wrod="x")


# --- what is read from a sample -----------------------------------------------------------------------------------


def state(metadata=None, **texts):
    out = TaskState(
        model=ModelName("mockllm/model"),
        sample_id=1,
        epoch=1,
        input="the input",
        messages=[],
        output=ModelOutput.from_content("mock", "the output"),
        metadata=metadata or {},
    )
    if texts:
        out.store.set("texts", texts)
    return out


def test_where_the_texts_come_from():
    assert texts_of(state()) == {"reply": "the output"}
    assert texts_of(state({"texts": {"replay": "a"}})) == {"reply": "the output", "replay": "a"}
    assert texts_of(state({"texts": {"replay": "a"}}, reply="b", authored=None)) == {"reply": "b", "authored": None}
    assert set(texts_of(state(reply="a", replay="b", authored="c"))) == set(TEXTS)


@pytest.mark.parametrize("texts", ["a text", {"rpelay": "a"}, {"reply": 3}])
def test_texts_that_are_none(texts):
    with pytest.raises(ValueError, match="the sample's texts"):
        texts_of(state({"texts": texts}))


def test_where_the_goal_comes_from():
    assert goal_of(state()) == "the input" and goal_of(state({"goal": "plain"})) == "plain"
