"""`Chat`: the model of the rooms below, with a guard in front and an answer."""

from types import MappingProxyType

import pytest

import midward
from midward import models
from midward.chat import Chat, Conversation
from midward.cli._options import SamplingOptions
from midward.guards import STUB, Exchange, MaskFilter, save
from midward.sampling import Request, Sampling

SETTINGS = {"length": 8, "steps": 4}


def test_the_rooms_model_neither_generates_nor_has_a_guard(llada_folder):
    plain = models.load(llada_folder, device="cpu")
    assert not hasattr(plain, "generate") and not hasattr(plain, "guard")
    model = Chat(plain)
    assert isinstance(model, midward.LanguageModel) and model.guard is None
    assert model.fingerprint == plain.fingerprint and model.network is plain.network
    assert midward.sample(plain, ["t30"], Sampling(**SETTINGS)) == model.generate("t30", **SETTINGS)


def test_a_guard_answers_in_front(llada, llada_folder, tmp_path):
    guard = MaskFilter().fit(llada, [Exchange(Request("t30"))] * 3, alpha=0.5)
    guard.threshold = -1.0  # everything is flagged
    path = save(guard, tmp_path / "guard.safetensors")
    model = midward.load(llada_folder, device="cpu", guard=path)
    [response] = model.generate("t30", **SETTINGS)
    assert response.text == STUB and response.verdict.flagged
    [bare] = midward.sample(model, ["t30"], Sampling(**SETTINGS))
    assert bare.verdict is None


def test_a_turn_that_cannot_be_answered_is_no_part_of_the_talk(llada):
    talk = Conversation(llada, Sampling(**SETTINGS))
    first = talk.say("t30")
    with pytest.raises(ValueError, match="shorten one of them"):
        talk.say("t31 " * 5000)
    assert [turn["content"] for turn in talk.turns] == ["t30", first.text]
    asked = [*talk.turns, {"role": "user", "content": "t32"}]
    assert talk.say("t32") == llada.generate(asked, **SETTINGS)[0]


def test_steps_switch_off_the_threshold_that_a_guard_was_fitted_under(llada_folder, monkeypatch):
    model, seen = midward.load(llada_folder, device="cpu"), []

    fitted_for = {"length": 8, "steps": 8, "threshold": 0.9}

    class Front:
        sampling = MappingProxyType(fitted_for)

        def sample(self, model, requests, sampling, **how):
            seen.append((sampling.steps, sampling.threshold))

    model.guard = Front()
    for given in ({}, {"steps": 4}, {"steps": 4, "threshold": 0.5}):
        model.generate("t30", **given)
    assert seen == [(8, 0.9), (4, None), (4, 0.5)]
    options = SamplingOptions(steps=4)
    assert options.settings(model, fitted_for).threshold is None
