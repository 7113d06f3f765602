"""Guards that step into the sampling: their answers are their own, their edits can be seen, and none flags."""

from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from guard_world import LENGTH, fit, prompts
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import midward
from midward.dynamics import answer_states, direction
from midward.errors import InputError
from midward.guards import CSD, RAEC, Exchange, GuardError, Labelled, Sizes, csd, load, make
from midward.guards.arms import Progress
from midward.sampling import Ban, Edit, Forced, Request, Sampling, sample

ASKED = [
    Request("t30 t31"),
    Request("t40 t41 t42", (Forced(1, (44, 45)), Forced(9, (46,)))),
    Request("t50", bans=(Ban((60, 61), 2),)),
    *map(Request, prompts(300, 5)),
]
#: Arms that step in often on a random model, and the same at a strength of nought.
EAGER = {
    "raec": "raec:rho=1;looks=1;window=9",
    "csd": "csd:rho=1",
    "csd-steer": "csd:rho=1;arm=steer;beta=2",
    "csd-remask": "csd:arm=remask",
    "csd-copy": "csd:copy=true",
    "sad": "sad:last=1",
    "ablation": "ablation:beta=2",
    "ablation-random": "ablation:direction=random;beta=3",
}
IDLE = (
    "raec:rho=0",
    "raec:looks=999",
    "csd:beta=0;rounds=0",
    "csd:arm=steer;rho=0",
    "csd:arm=remask;rounds=0",
    *("ablation:beta=0", "sad:eta=0", "sad:last=0"),
)
SCHEDULES = {"schedule": {}, "blocks": {"block": 4, "end": "keep"}, "threshold": {"steps": LENGTH, "threshold": 0.3}}


@pytest.fixture(scope="module")
def arms(model, sampling, tmp_path_factory):
    """name -> (a fitted arm that steps in often, its file)."""
    guards = {name: make(spec) for name, spec in EAGER.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csd, "QUANTILE", 0.5)  # half of all positions, or a random model is hardly ever touched
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
    assert any(response.edits for response in together) or name in ("csd-steer", "sad", "ablation", "ablation-random")
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


@pytest.mark.parametrize(
    "spec", ["raec:rho=2", "raec:looks=0", "raec:wordz=[a]", "csd:arm=stear", "csd:beta=-1", "csd:rho=2"]
)
def test_a_bad_setting_is_an_error(spec):
    with pytest.raises(InputError, match=spec.split(":")[0]):
        make(spec)


@pytest.mark.parametrize("name", ["raec", "csd"])
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
        guard.tokens = torch.arange(model.vocab_size)
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
    assert guard.tokens.tolist() == wanted[:2]
    assert set(wanted) <= set(RAEC().learn(model, labelled).tokens.tolist())
    assert not set(model.tokens("t50 t60")) & set(guard.tokens.tolist())
    with pytest.raises(GuardError, match="no opening"):
        RAEC().learn(model, Labelled(said("t40"), (), ()))


def test_raec_takes_words_in_the_place_of_labelled_answers(model, sampling, tmp_path):
    guard = make("raec:words=[t40, ' t41']")
    path = fit(model, {"raec": guard}, tmp_path, sampling, sizes=Sizes(2, 2, 4))["raec"]
    assert set(guard.tokens.tolist()) == {*model.tokens("t40"), *model.tokens(" t41")}
    assert not (tmp_path / "labelled.jsonl").exists() and torch.equal(load(path, model).tokens, guard.tokens)


# --- CSD ----------------------------------------------------------------------------------------------------


def states(model, request, ids):
    prompt = model.encode(request.prompt)
    return model.hidden(torch.tensor([[*prompt, *ids]]))[0, len(prompt) :].detach()


def test_answer_states_are_those_of_the_models_own_tokens(model, sampling):
    request = Request("t30 t31", (Forced(0, (44, 45)),))
    text = model.text([44, 45, 50, 51])
    [own] = answer_states(model, [(request, text)], sampling)
    ids = [44, 45, 50, 51, model.family.end_ids[0]] + [model.family.mask_id] * (LENGTH - 5)
    assert torch.allclose(own, states(model, request, ids)[2:4], atol=1e-5)
    way = direction([own, own[:1]], [torch.zeros(1, own.shape[1]), torch.zeros(0, own.shape[1])])
    mean = (own.mean(0) + own[0]) / 2
    assert torch.allclose(way, mean / mean.norm(), atol=1e-5)
    with pytest.raises(InputError, match="no direction between them"):
        direction([own], [own])
    with pytest.raises(InputError, match="one kind has none"):
        direction([own], [own[:0]])


def test_steering_takes_what_is_beyond_theta_from_the_states_that_tokens_are_chosen_from(model, sampling, arms):
    """In one step: the tokens are those of h - beta max(<h, v> - theta, 0) v."""
    once = replace(sampling, steps=1, end="keep")
    guard = bound("csd:arm=steer;beta=50", model, once, arms["csd"][0])
    request = Request("t30 t31", (Forced(3, (44,)),))
    blank = [model.family.mask_id] * LENGTH
    blank[3] = 44
    hidden = states(model, request, blank)
    guard.thetas = torch.tensor([float((hidden @ guard.direction).median()), 0.0], dtype=torch.float64)
    excess = (hidden @ guard.direction - guard.thetas[0]).clamp(min=0)
    tokens = model.head(hidden - 50 * excess[:, None] * guard.direction).argmax(-1).tolist()
    [response] = guard.answer(model, [Exchange(request)], once)
    assert [token for at, token in enumerate(response.raw_ids) if at != 3] == tokens[:3] + tokens[4:]
    steered = [at for at in range(LENGTH) if excess[at] > 0 and at != 3]
    assert 0 < len(steered) < LENGTH - 1 and response.verdict.score == len(steered)
    assert response.raw_ids != sample(model, [request], once)[0].raw_ids and not response.edits


def test_what_lies_beyond_theta_in_a_full_block_is_masked_again(model, arms):
    sampling = Sampling.for_model(model, length=LENGTH, threshold=0.05, end="keep")
    request = Request("t30 t31", (Forced(3, (44,)),))
    [bare] = sample(model, [request], sampling)
    for rounds in (1, 2):
        guard = bound(f"csd:arm=remask;rounds={rounds}", model, sampling, arms["csd"][0])
        [response] = guard.answer(model, [Exchange(request)], sampling)
        end = model.end_of(bare.raw_ids)
        beyond = states(model, request, bare.raw_ids) @ guard.direction > guard.thetas[1]
        wanted = [at for at in range(LENGTH if end is None else end + 1) if beyond[at] and at != 3]
        assert list(response.edits[0].remasked) == wanted and len(response.edits) <= rounds
        assert response.nfe == response.steps + rounds and response.steps > bare.steps


def test_the_prompts_copy_takes_nothing_of_the_response_and_is_not_put_behind_masks(model, sampling, arms):
    guard = bound("csd:copy=true;beta=0;rounds=0", model, sampling, arms["csd"][0])
    requests = [Request("t30 t31"), Request("t30 <|mdm_mask|>")]
    answers = guard.answer(model, [Exchange(request) for request in requests], sampling)
    doubled = Request([*model.encode("t30 t31"), *model.tokens("t30 t31")])
    copied, masked = sample(model, [doubled, requests[1]], sampling)
    assert [answer.raw_ids for answer in answers] == [copied.raw_ids, masked.raw_ids]
    assert answers[0].prompt_ids == model.encode("t30 t31") and answers[1].prompt_ids == masked.prompt_ids


def test_csd_says_which_kind_of_answer_is_lacking(model):
    with pytest.raises(GuardError, match="'refused': 0"):
        CSD().learn(model, Labelled([Exchange(Request("t30"), "t31")], (), ()))


def test_states_are_steered_in_masked_diffusion_alone(llama_folder):
    class Steering(Progress):
        def steered(self, states, rows, positions):
            return states

    with pytest.raises(InputError, match="Steering changes states of masked diffusion"):
        causal = midward.load(llama_folder, device="cpu")
        sample(causal, ["t30"], Sampling.for_model(causal, length=4), watchers=[Steering()])


def test_what_is_taken_out_is_the_direction_and_nothing_else(model, sampling, arms):
    seen = {}

    def watched(name):
        defence = arms[name][0].defence()
        whole = defence.steered
        defence.steered = lambda states, *place: seen.setdefault(name, (states, whole(states, *place)))[1]
        sample(model, ASKED[:1], replace(sampling, steps=1), watchers=[defence])
        return defence.vector, *seen[name]

    refusal, random = (watched(name) for name in ("ablation", "ablation-random"))
    for beta, (vector, before, after) in ((2, refusal), (3, random)):
        torch.testing.assert_close(after @ vector, (1 - beta) * (before @ vector), rtol=1e-3, atol=1e-3)
        others = torch.eye(len(vector)) - torch.outer(vector, vector)
        torch.testing.assert_close(after @ others, before @ others, rtol=1e-3, atol=1e-3)
    assert abs(float(refusal[0] @ random[0])) < 0.9


def test_what_texts_like_the_canvas_have_at_a_place_becomes_less_probable(model, sampling):
    """Against a plain loop over texts and places."""
    guard = make("sad:last=1;eta=2")
    texts = [[40, 41, 42, 43, 44], [40, 51, 52], [60, 61, 62, 63, 64]]
    guard.texts = torch.tensor([line + [-1] * (LENGTH - len(line)) for line in texts])
    defence, vocabulary = guard.defence(), 90
    request = Request("t30 t31", (Forced(0, (40, 41)),))
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(0))
    seen = []

    class Once:
        needs_all_steps = False

        def on_start(self, canvas):
            rows, positions = torch.tensor([0]), torch.tensor([3])
            seen.append(defence.adjusted(logits, rows, positions))

        def on_step(self, step):
            pass

        def on_end(self, canvas):
            pass

    sample(model, [request], replace(sampling, steps=1), watchers=[defence, Once()])
    masks, least, places = (LENGTH - 2) / LENGTH, 1 / (vocabulary - 1), []
    for line in texts:
        whole = 0.0
        for place, token in enumerate(line):
            if place > 1:
                whole += np.log(masks)
            else:
                same = token == (40, 41)[place]
                whole += np.log((1 - masks) * ((1 - least) if same else least))
        places.append((whole / len(line), sum(token in (40, 41) for token in line[:2]) / 2))
    weights = np.exp([score for score, _ in places])
    weights /= weights.sum()
    strength = 2 * sum(weight * agreed for weight, (_, agreed) in zip(weights, places, strict=True))
    unsafe = np.full(vocabulary, 1e-6)
    unsafe[43], unsafe[63] = weights[0], weights[2]
    log = logits[0].log_softmax(-1).double().numpy()
    np.testing.assert_allclose(seen[0][0], log + strength * (log - np.log(unsafe)), rtol=1e-3, atol=1e-3)
