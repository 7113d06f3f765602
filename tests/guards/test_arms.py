"""Guards that step into the sampling: their answers are their own, their edits can be seen, and none flags."""

from copy import copy
from dataclasses import replace

import numpy as np
import pytest
from guard_world import LENGTH, fit, prompts
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import midward
from midward.errors import InputError
from midward.guards import RAEC, Exchange, GuardError, Labelled, Sizes, load, make
from midward.guards.arms import Progress
from midward.sampling import Ban, Edit, Forced, Request, Sampling, sample

ASKED = [
    Request("t30 t31"),
    Request("t40 t41 t42", (Forced(1, (44, 45)), Forced(9, (46,)))),
    Request("t50", bans=(Ban((60, 61), 2),)),
    *map(Request, prompts(300, 5)),
]
#: Arms that step in often on a random model, and the same at a strength of nought.
EAGER = {"raec": "raec:rho=1;looks=1;window=9"}
IDLE = ("raec:rho=0", "raec:looks=999")
SCHEDULES = {"schedule": {}, "blocks": {"block": 4, "end": "keep"}, "threshold": {"steps": LENGTH, "threshold": 0.3}}


@pytest.fixture(scope="module")
def arms(model, sampling, tmp_path_factory):
    """name -> (a fitted arm that steps in often, its file)."""
    guards = {name: make(spec) for name, spec in EAGER.items()}
    paths = fit(model, guards, tmp_path_factory.mktemp("arms"), sampling, sizes=Sizes(12, 2, 4))
    return {name: (guards[name], paths[name]) for name in guards}


def bound(spec, model, sampling, like=None):
    """A guard of these settings with what another one learnt."""
    guard = make(spec)
    if like is not None:
        guard.restore(like.tensors())
    return guard.fit(model, (), sampling=sampling)


def plain(responses):
    return [replace(response, verdict=None) for response in responses]


@pytest.mark.parametrize("spec", IDLE)
@pytest.mark.parametrize("options", SCHEDULES.values(), ids=SCHEDULES)
def test_without_strength_the_tokens_are_the_samplers(model, sampling, arms, spec, options):
    sampling = replace(sampling, **options)
    guard = bound(spec, model, sampling, arms[spec.split(":")[0]][0])
    assert plain(guard.sample(model, ASKED, sampling)) == sample(model, ASKED, sampling)


@pytest.mark.parametrize("name", EAGER)
@pytest.mark.parametrize("options", SCHEDULES.values(), ids=SCHEDULES)
def test_an_arm_fills_everything_and_its_batch_makes_no_difference(model, sampling, arms, name, options):
    sampling = replace(sampling, **options)
    guard = bound(EAGER[name], model, sampling, arms[name][0])
    together = guard.sample(model, ASKED, sampling)
    assert guard.sample(model, ASKED[::-1], sampling, batch_size=1)[::-1] == together
    assert any(response.edits for response in together)
    for request, response in zip(ASKED, together, strict=True):
        for span in request.forced:
            assert tuple(response.raw_ids[span.position :][: len(span.ids)]) == span.ids
        until = len(response.ids) if response.ended else LENGTH
        assert model.family.mask_id not in response.raw_ids[:until]
        assert not response.verdict.flagged and response.verdict.score <= LENGTH
    changed = [response for response in together if response.verdict.score]
    assert changed and any(
        a.raw_ids != b.raw_ids for a, b in zip(together, sample(model, ASKED, sampling), strict=True)
    )


@pytest.mark.parametrize("name", EAGER)
def test_an_arm_comes_back_from_its_file(model, sampling, arms, name, llada):
    guard, path = arms[name]
    again = load(path, model, sampling)
    assert again.digest == guard.digest
    assert again.sample(model, ASKED, sampling) == guard.sample(model, ASKED, sampling)
    exchanges = [Exchange(request) for request in ASKED[:3]]
    scores = [response.verdict.score for response in guard.sample(model, ASKED[:3], sampling)]
    assert again.score(model, exchanges).tolist() == scores
    with pytest.raises(GuardError, match="was fitted for something else"):
        load(path, llada)
    with pytest.raises(GuardError, match=f"length {LENGTH} there, 12 here"):
        again.sample(model, ["t30"], replace(sampling, length=12))
    with safe_open(path, "numpy") as file:
        about = file.metadata()
    learnt = load_file(path)
    for tensor in learnt.keys() - {"threshold"}:
        other = path.with_name("other.safetensors")
        save_file({**learnt, tensor: learnt[tensor][None].astype(np.float16)}, other, metadata=about)
        with pytest.raises(GuardError, match="is no guard that can be used"):
            load(other)


@pytest.mark.parametrize("spec", ["raec:rho=2", "raec:looks=0", "raec:size=0", "raec:wordz=[a]"])
def test_a_bad_setting_is_an_error(spec):
    with pytest.raises(InputError, match=spec.split(":")[0]):
        make(spec)


@pytest.mark.parametrize("name", EAGER)
def test_other_kinds_of_models_are_refused_before_anything_is_sampled(model, llama_folder, name, tmp_path, monkeypatch):
    monkeypatch.setattr("midward.runs.measure.sample", None)
    canvas = copy(model)
    canvas.family = replace(model.family, kind="canvas")
    for other, words in ((midward.load(llama_folder, device="cpu"), "is autoregressive"), (canvas, "random canvases")):
        with pytest.raises(GuardError, match=words):
            fit(other, {name: make(name)}, tmp_path, Sampling(length=4, steps=4), sizes=Sizes(2, 2, 4))
        with pytest.raises(GuardError, match=words):
            make(name).answer(other, [Exchange(Request("t30"))], Sampling(length=4, steps=4))


# --- RAEC ---------------------------------------------------------------------------------------------------


class Predictions(Progress):
    """seen: step -> the tokens that it predicts in the first row."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def on_step(self, step):
        self.seen[step.index] = step.predictions[0][0].tolist()


def test_raec_commits_what_was_predicted_long_enough_at_the_head_alone(model, sampling):
    """With every token a refusal's: after `looks` steps all of the window stands as that step predicted it."""
    whole = replace(sampling, end="keep")
    request = Request("t30 t31", (Forced(0, (44, 45)),))
    for looks in (1, 3):
        guard = RAEC(rho=1, looks=looks, window=5)
        guard.tokens = tuple(range(model.vocab_size))
        guard.fit(model, (), sampling=whole)
        watch = Predictions()
        [response] = guard.answer(model, [Exchange(request)], whole, watchers=[watch])
        [edited] = response.edits
        assert edited.step == looks - 1 and set(edited.written) <= set(range(2, 7))
        [bare] = sample(model, [request], whole)
        assert [response.raw_ids[at] for at in edited.written] == [watch.seen[looks - 1][at] for at in edited.written]
        assert response.verdict.score == len(edited.written) and response.written == set(edited.written)
        assert response.steps <= bare.steps
        hijack = replace(request, edits=(Edit(looks, (), tuple(edited.written)),))
        [again] = guard.answer(model, [Exchange(hijack)], whole)
        assert again.edits[1].remasked == edited.written  # what it commits isn't frozen


def test_raec_learns_what_opens_refusals_and_not_answers(model, sampling):
    def said(*texts):
        return [Exchange(Request("t30"), text) for text in texts]

    labelled = Labelled(said("t50 t51 t60", "t51 t52"), said("t40 t51 t41", "t40 t42 t51", "t40 t41"), ())
    wanted = [model.tokens(text)[0] for text in ("t40", " t41", " t42")]
    guard = RAEC(size=2).learn(model, labelled)
    assert list(guard.tokens) == wanted[:2]
    assert set(wanted) <= set(RAEC().learn(model, labelled).tokens)
    assert not set(model.tokens("t50 t60")) & set(guard.tokens)
    with pytest.raises(GuardError, match="no opening"):
        RAEC().learn(model, Labelled(said("t40"), (), ()))


def test_raec_takes_words_in_the_place_of_labelled_answers(model, sampling, tmp_path):
    guard = make("raec:words=[t40, ' t41']")
    path = fit(model, {"raec": guard}, tmp_path, sampling, sizes=Sizes(2, 2, 4))["raec"]
    assert set(guard.tokens) == {*model.tokens("t40"), *model.tokens(" t41")}
    assert not (tmp_path / "labelled.jsonl").exists() and load(path, model).tokens == guard.tokens
