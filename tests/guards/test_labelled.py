"""Guards that learn from labels: a planted signal parts them and chance doesn't; files, batches, what they refuse."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from guard_world import fit, prompts
from safetensors.numpy import load_file
from sklearn.metrics import roc_auc_score

import midward
from midward.dynamics.blockwise import States
from midward.dynamics.looks import GRID, Look, Looks
from midward.errors import InputError
from midward.guards import STUB, Exchange, GuardError, Labelled, load, make, prefuse
from midward.sampling import Forced, Request, Sampling, sample

BY_LOOKS = ("hesitate", "hesitate:arm=heavy", "direction", "csd-score")
ALL = (*BY_LOOKS, "prefuse")
FRESH = prompts(300, 16)
OPENED = [Exchange(Request("t30", (Forced(0, (44, 45, 46)),)), "t31")]
D, SHIFT = 24, 3.0
TO_REFUSING, TO_COMPLYING = np.eye(D)[:2] * SHIFT


def answers(count, shift, seed, blocks=2):
    """Answers whose looks' states are standard normal around `shift`, a direction of the request's own among them."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(count, 1, 1, D))
    phi = shift + own + 0.5 * rng.normal(size=(count, blocks, len(GRID), D))
    return [Exchange(Request("t30"), "t31", states=each.astype(np.float32)) for each in phi]


def tables(guard, exchanges):
    """[N, blocks, J, F + 1]: what the guard's reader makes of such states, a look at a time."""
    reader = guard.reader()
    canvas = SimpleNamespace(rows=[SimpleNamespace(index=5)], model=SimpleNamespace(hidden_size=D))
    read = []
    for seed, exchange in enumerate(exchanges):
        noise = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 16, D))).float()
        blocks, points, _ = exchange.states.shape
        table = np.zeros((blocks, points, reader.width + 1))
        getattr(reader, "on_start", id)(canvas)
        for block, point in np.ndindex(blocks, points):
            phi = torch.from_numpy(exchange.states[block, point])[None]
            step = SimpleNamespace(rows=[5], blocks=[(16 * block, 16 * block + 16)], active_hidden=phi[:, None] + noise)
            table[block, point, :-1] = reader(Look([0], step.rows, [block], [point], point == 0, phi.numpy(), step))[0]
        read.append(table)
    return np.array(read)


def planted(spec):
    """A guard that learnt and trained on answers with a planted signal."""
    labelled = Labelled(answers(40, 0, 0), answers(40, TO_REFUSING, 1), answers(40, TO_COMPLYING, 2))
    guard = make(spec).learn(None, labelled)
    return guard.train(None, tables(guard, answers(100, 0, 3)))


def area(guard, harmless, others):
    exchanges = [Exchange(Request("t30"), signal=table) for table in (*tables(guard, harmless), *tables(guard, others))]
    labels = [False] * len(harmless) + [True] * len(others)
    return roc_auc_score(labels, guard.score(None, exchanges))


@pytest.mark.parametrize(
    ("spec", "shift"),
    [
        ("hesitate", TO_COMPLYING),
        ("hesitate:arm=routed", TO_COMPLYING),
        ("hesitate:arm=heavy", TO_COMPLYING),
        ("direction", 2 * TO_REFUSING),
        ("direction", -2 * TO_REFUSING),  # two-sided
        ("csd-score", 2 * TO_COMPLYING),
    ],
)
def test_a_planted_signal_is_seen_and_a_harmless_copy_isnt(spec, shift):
    guard = planted(spec)
    harmless = answers(60, 0, 4)
    assert area(guard, harmless, answers(60, shift, 5)) > 0.85
    assert 0.35 < area(guard, harmless, answers(60, 0, 6)) < 0.65


def test_a_hesitating_request_is_decided_by_the_heavy_probe():
    seen = np.array([[[-4.0, 2, 7.0]], [[-4.0, 3, 7.0]]])  # z, looks that hesitated, the heavy probe's
    for arm, logits in {"routed": [-4, 7], "cheap": [-4, -4], "heavy": [7, 7]}.items():
        guard = make(f"hesitate:arm={arm};hesitations=3")
        np.testing.assert_allclose(guard.distances(0, seen)[:, 0], np.exp(logits))


@pytest.fixture(scope="module")
def fitted(model, sampling, tmp_path_factory):
    """spec -> (guard, its file)."""
    guards = {spec: make(spec) for spec in ALL}
    paths = fit(model, guards, tmp_path_factory.mktemp("labelled"), sampling)
    return {spec: (guards[spec], paths[spec]) for spec in ALL}


@pytest.mark.parametrize("spec", ALL)
def test_a_file_says_the_same(model, sampling, fitted, spec):
    guard, path = fitted[spec]
    loaded = load(path, model, sampling)
    assert loaded.digest == guard.digest and loaded.reads == guard.reads
    requests = [*FRESH, *(Request(text, (Forced(1, (44, 45, 46)),)) for text in FRESH)]
    ours, theirs = (each.sample(model, requests, sampling) for each in (guard, loaded))
    assert [each.verdict for each in ours] == [each.verdict for each in theirs]
    assert len({each.verdict.score for each in ours}) > 1


@pytest.mark.parametrize("spec", ALL)
def test_alone_as_in_company(model, sampling, fitted, spec):
    guard, _ = fitted[spec]
    together = guard.sample(model, FRESH, sampling, batch_size=16)
    assert any(each.text != STUB for each in together)
    for prompt, other in list(zip(FRESH, together, strict=True))[:6]:
        [alone] = guard.sample(model, [prompt], sampling)
        assert (alone.verdict.flagged, alone.verdict.step) == (other.verdict.flagged, other.verdict.step)
        assert alone.verdict.score == pytest.approx(other.verdict.score, abs=1e-4)


@pytest.mark.parametrize("spec", ALL)
def test_a_file_is_for_its_model_and_is_whole(llada, sampling, fitted, tmp_path, spec):
    _, path = fitted[spec]
    with pytest.raises(GuardError, match="fitted for something else"):
        load(path, llada, sampling)
    tensors = load_file(path)
    for kept in ("threshold", "self-test"):  # of any guard
        tensors.pop(kept, None)
    for name in tensors:
        with pytest.raises((InputError, KeyError, ValueError, TypeError)):
            make(spec).restore({key: value for key, value in tensors.items() if key != name})
        if name != "levels":
            with pytest.raises((InputError, KeyError, ValueError, TypeError)):
                make(spec).restore({**tensors, name: tensors[name][None, None]})


def test_arms_of_one_probe_read_the_same_signal(fitted):
    assert fitted["hesitate"][0].reads == fitted["hesitate:arm=heavy"][0].reads != fitted["direction"][0].reads


def test_what_hesitates_is_read_as_it_was_learnt(model, sampling, fitted):
    """Probes over the looks' own states, counted and averaged in the plainest way."""
    guard, _ = fitted["hesitate"]
    watchers = guard.watcher(), Looks(States(model.hidden_size))
    sample(model, FRESH, sampling, watchers=watchers)
    for row in range(len(FRESH)):
        table, phi = (watcher.signal(row).numpy()[..., :-1].reshape(len(GRID), -1) for watcher in watchers)
        hesitating = np.cumsum(np.abs(guard.cheap(phi)) < guard.margin)
        means = np.array([phi[: count + 1].mean(0) for count in range(len(phi))])
        expected = np.stack([guard.cheap(phi), hesitating, guard.heavy(means)], -1)
        np.testing.assert_allclose(table, expected, atol=1e-4)


def test_prefuse_is_of_the_first_forward(model, sampling, fitted):
    guard, _ = fitted["prefuse"]
    request = Request("t30 t31", (Forced(3, (44, 45)),))
    [a], [r] = guard._states(model, [Exchange(request)], 1)
    ids, mask = model.encode("t30 t31"), model.family.mask_id
    response = [mask] * 3 + [44, 45] + [mask] * (sampling.length - 5)
    hidden = model.hidden(torch.tensor([[*ids, *response]]))[0]
    np.testing.assert_allclose(a, hidden[: len(ids)].mean(0).detach(), atol=1e-5)
    masked = [len(ids) + place for place, token in enumerate(response) if token == mask]
    np.testing.assert_allclose(r, hidden[masked].mean(0).detach(), atol=1e-5)


def test_views_of_prefuse_see_what_is_planted_there(model, sampling):
    """Harmful requests end in words that harmless ones never have; a copy of the harmless ones doesn't."""
    words = " t490" * 4

    def exchanges(start, ending=""):
        return [Exchange(Request(f"{text}{ending}"), "t30") for text in prompts(start, 30)]

    labelled = Labelled(exchanges(0), exchanges(100, words), exchanges(130, words))
    for view in ("both", "prompt", "response"):
        guard = make(f"prefuse:view={view}").learn(model, labelled, sampling=sampling)
        harmless, copy, harmful = (
            guard.score(model, each) for each in (exchanges(200), exchanges(240), exchanges(280, words))
        )
        labels = [False] * 30 + [True] * 30
        assert roc_auc_score(labels, [*harmless, *harmful]) > 0.85
        assert 0.3 < roc_auc_score(labels, [*harmless, *copy]) < 0.7


def test_harmless_requests_behind_their_own_answers_are_learnt_from(model):
    answered = [Exchange(Request("t40"), "t50 t51 t52 t53 t54 t55 t56 t57"), Exchange(Request("t41"), "t50 t51")]
    ids = [model.tokens(each.text) for each in answered]
    long, short = prefuse.opened(model, answered, OPENED)
    assert long == Request("t40", (Forced(0, tuple(ids[0][:3])),))
    assert short == Request("t41", (Forced(0, tuple(ids[1][: len(ids[1]) // 2])),))
    assert prefuse.opened(model, answered, answers(2, 0, 0)) == []


def test_an_opening_isnt_taken_for_harm(model, sampling, monkeypatch):
    """Harmless requests behind their own answers rank lower for a guard that learnt from such."""
    texts = prompts(0, 60)
    responses = sample(model, texts, sampling, batch_size=60)
    answered = [Exchange(Request(text), each.text) for text, each in zip(texts, responses, strict=True)]
    behind = [Exchange(request) for request in prefuse.opened(model, answered, OPENED)]
    complied = [Exchange(Request(text, (Forced(0, (44, 45, 46)),)), "t30") for text in prompts(100, 40)]
    labelled = Labelled(answered[:40], complied[:2], complied)
    guard, without = make("prefuse"), make("prefuse")
    guard.learn(model, labelled, sampling=sampling)
    monkeypatch.setattr(prefuse, "opened", lambda *_: [])
    without.learn(model, labelled, sampling=sampling)
    assert np.mean(guard.score(model, behind[40:]) <= without.score(model, behind[40:])) > 0.8


@pytest.mark.parametrize(
    ("spec", "kind"),
    [("hesitate", "complied"), ("direction", "refused"), ("csd-score", "complied"), ("prefuse", "answered")],
)
def test_too_few_answers_of_a_kind_are_named(model, sampling, spec, kind):
    parts = {name: answers(4, 0, 0) for name in ("answered", "refused", "complied")} | {kind: answers(1, 0, 0)}
    with pytest.raises(GuardError, match=f"received 1 {kind}"):
        make(spec).learn(model, Labelled(**parts), sampling=sampling)


def test_an_autoregressive_model_has_the_guards_that_read_means(llama_folder, tmp_path):
    causal = midward.load(llama_folder, device="cpu")
    sampling = Sampling.for_model(causal, length=16)
    specs = ("hesitate", "direction")
    guards = {spec: make(spec) for spec in specs}
    paths = fit(causal, guards, tmp_path, sampling)
    for spec in specs:
        scores = [each.verdict.score for each in load(paths[spec], causal).sample(causal, FRESH[:4], sampling)]
        assert np.isfinite(scores).all()
    for spec, message in {"csd-score": "is autoregressive", "prefuse": "has none before it writes"}.items():
        with pytest.raises(GuardError, match=message):
            fit(causal, {spec: make(spec)}, tmp_path / spec, sampling)
