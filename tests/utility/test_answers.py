"""What is kept: nothing is asked twice, and no setting meets another's answers."""

from dataclasses import replace

import numpy as np
import pytest

from midward.guards import STUB
from midward.guards.guard import Guard
from midward.guards.masks import MaskFilter
from midward.sampling import Sampling
from midward.utility import Answers, answers
from midward.utility.answers import Question

SAMPLING = Sampling(length=6, steps=3)
PROMPTS = [(5, 60, 7), (9, 61), (5, 60, 7, 88)]


@pytest.fixture
def forwards(lively, monkeypatch):
    """Rows of every forward of the lively model."""
    rows = []
    hidden = lively.hidden
    monkeypatch.setattr(lively, "hidden", lambda ids, *more: rows.append(len(ids)) or hidden(ids, *more))
    return rows


class Refuses(Guard):
    """Flags prompts that hold the token `wanted`."""

    name, about, looks = "refuses", "for tests", "before"
    Settings = MaskFilter.Settings
    wanted = 61

    def score(self, model, exchanges, *, batch_size=8):
        return np.array([float(self.wanted in exchange.request.prompt) for exchange in exchanges])


@pytest.fixture
def guard(lively):
    guard = Refuses()
    guard.bind(lively)
    guard.threshold = 0.5
    return guard


def ask(model, folder, sampling=SAMPLING, **settings):
    return Answers(model, folder=folder, **settings).texts([Question(prompt, sampling) for prompt in PROMPTS])


def test_the_same_is_not_asked_twice(lively, tmp_path, forwards):
    first = ask(lively, tmp_path)
    assert len(forwards) > 0
    forwards.clear()
    assert ask(lively, tmp_path, batch_size=1) == first
    assert not forwards


@pytest.mark.parametrize(
    "other",
    [
        replace(SAMPLING, steps=6),
        replace(SAMPLING, block=3),
        replace(SAMPLING, seed=1),
        replace(SAMPLING, order="random"),
        replace(SAMPLING, temperature=1.0),
    ],
)
def test_another_setting_is_asked_anew(lively, tmp_path, forwards, other):
    ask(lively, tmp_path)
    forwards.clear()
    again = ask(lively, tmp_path, other)
    assert forwards
    assert again == ask(lively, None, other)  # and it is what that setting gives


def test_a_likelihood_knows_its_draws_and_seed(lively, tmp_path, forwards):
    pair = [(PROMPTS[0], (30, 31, 40, 41))]
    found = set()
    for settings in ({"draws": 4}, {"draws": 5}, {"draws": 4, "seed": 1}):
        forwards.clear()
        found.add(Answers(lively, folder=tmp_path, **settings).log_probs(pair)[0].total)
        assert forwards
        forwards.clear()
        Answers(lively, folder=tmp_path, **settings).log_probs(pair)
        assert not forwards
    assert len(found) == 3


def test_a_guard_answers_with_its_stub_and_for_itself_alone(lively, guard, tmp_path, forwards):
    bare = ask(lively, tmp_path)
    forwards.clear()
    lively.guard = guard
    behind = ask(lively, tmp_path)
    assert [one.flagged for one in behind] == [False, True, False]
    assert behind[1].text == STUB
    assert (behind[0], behind[2]) == (bare[0], bare[2])
    assert forwards  # the bare model's answers aren't the guarded one's
    lively.guard = None
    assert ask(lively, tmp_path) == bare


def test_a_killed_run_goes_on(lively, tmp_path, forwards, monkeypatch):
    monkeypatch.setattr(answers, "CHUNK", 1)
    whole = ask(lively, None)

    def die(what, done, of):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(lively, tmp_path, progress=die)
    with (tmp_path / "answers-0.jsonl").open("a") as file:
        file.write('{"key": "torn')
    forwards.clear()
    told = []
    assert ask(lively, tmp_path, progress=lambda *now: told.append(now)) == whole
    assert told == [("3 texts", 2, 3), ("3 texts", 3, 3)]
    assert set(forwards) == {1}


def test_repeated_samples_differ(lively):
    warm = replace(SAMPLING, temperature=1.0)
    questions = [Question(PROMPTS[0], warm, seed) for seed in range(4)]
    texts = [one.text for one in Answers(lively).texts(questions)]
    assert len(set(texts)) > 1
    assert texts[0] == Answers(lively).texts([Question(PROMPTS[0], warm)])[0].text


def test_draws_must_be_two_or_more(lively):
    with pytest.raises(ValueError, match="draws must be an integer, 2 or more; received 1"):
        Answers(lively, draws=1)
