"""SRI Guard in front of a model: the same tokens where it doesn't flag, and nothing of what it does."""

from dataclasses import replace

import numpy as np
import pytest
from guard_world import LENGTH, STEPS, asked, fit, prompts
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

import midward
from midward.dynamics import Autoencoder
from midward.guards import (
    STUB,
    Detector,
    Exchange,
    GuardError,
    Mahalanobis,
    MaskFilter,
    Sizes,
    SRIGuard,
    SRIMahalanobisGuard,
    Verdict,
    fit_guards,
    load,
    sampling_of,
)
from midward.runs import measure as loop
from midward.sampling import Edit, Forced, Request, Sampling, sample

FRESH = prompts(300, 40)


def bare(response):
    return replace(response, verdict=None)


def test_unflagged_responses_have_the_same_tokens_and_flagged_ones_hold_nothing(model, sampling, fitted):
    guard, _ = fitted
    without = sample(model, FRESH, sampling)
    behind = guard.sample(model, FRESH, sampling)
    flagged = [one.verdict.flagged for one in behind]
    assert 0 < sum(flagged) < len(FRESH)
    for one, other, prompt in zip(without, behind, FRESH, strict=True):
        if not other.verdict.flagged:
            assert bare(other) == one
        else:
            assert other.text == STUB and model.decode(other.raw_ids) == model.decode(other.ids)
            assert other.prompt_ids == model.encode(prompt)
            assert other.steps <= one.steps
    assert any(other.verdict.step is not None and other.steps < one.steps for one, other in zip(without, behind))


def test_alone_in_company_and_offline_say_the_same(model, sampling, fitted):
    guard, _ = fitted
    together = guard.sample(model, FRESH[:12], sampling, batch_size=12)
    signals = []
    for prompt, one in zip(FRESH, together, strict=False):
        [alone] = guard.sample(model, [prompt], sampling)
        assert alone.verdict.flagged == one.verdict.flagged and alone.verdict.step == one.verdict.step
        assert alone.verdict.score == pytest.approx(one.verdict.score, rel=1e-3, abs=1e-6)
        watcher = guard.watcher()
        sample(model, [prompt], sampling, watchers=[watcher])
        signals.append(watcher.signal(0).numpy())
    flags = guard.flag(guard.score_signals(np.array(signals)))
    assert flags.tolist() == [one.verdict.flagged for one in together]
    stops = guard.stops(np.array(signals))
    for stop, one in zip(stops, together, strict=True):
        assert one.verdict.step in (None, stop)  # one that ended before is flagged by what its signal would become


def test_a_guard_sees_the_canvas_as_it_was_edited(model, sampling, fitted):
    guard, _ = fitted
    prompt, step = prompts(700, 1)[0], 3
    edit = Edit(step, (Forced(0, (40, 41, 42)),), "all")
    signals, texts = [], []
    for request in (Request(prompt, seed=1), Request(prompt, edits=(edit,), seed=1)):
        watcher = guard.watcher()
        [response] = sample(model, [request], sampling, watchers=[watcher])
        signals.append(watcher.signal(0).numpy())
        texts.append(response.text)
        [guarded] = guard.sample(model, [request], sampling)
        assert guarded.verdict.flagged or guarded.text == response.text
    plain, edited = signals
    assert np.allclose(plain[:step], edited[:step]) and not np.allclose(plain[step:], edited[step:])
    assert texts[0] != texts[1]


def test_the_last_look_of_a_streaming_guard_is_the_batch_score(fitted):
    guard, _ = fitted
    signals = np.random.default_rng(0).uniform(size=(30, STEPS))
    [trained] = guard.detectors
    whole = ((trained.fitted(signals) - signals) ** 2).mean(1)
    assert np.allclose(trained.fitted.error_at(signals), whole)
    at_end = SRIGuard(early=False)
    at_end.detectors = (trained,)
    assert np.allclose(at_end.score_signals(signals), whole / trained.scale[-1])
    running = [trained.ratio_at(signals[:, : t + 1]) for t in range(STEPS)]
    assert np.allclose(guard.score_signals(signals), np.max(running, axis=0))


def test_the_networks_forward_is_scikit_learns():
    signals = np.random.default_rng(1).uniform(size=(80, STEPS))
    ours = Autoencoder.fit(signals, epochs=3, seed=4)
    theirs = MLPRegressor(
        hidden_layer_sizes=(32, 8, 32), alpha=0.0, batch_size=64, max_iter=3, n_iter_no_change=3, random_state=4
    )
    with pytest.warns(ConvergenceWarning):
        theirs.fit(signals, signals)
    assert np.allclose(ours(signals), theirs.predict(signals))


@pytest.mark.parametrize("steps", ["first", "later"])
def test_ablations_look_at_their_steps_only(fitted, steps, model, sampling):
    guard, _ = fitted
    signals = np.random.default_rng(2).uniform(size=(60, STEPS))
    part = SRIGuard(steps=steps, epochs=5).train(guard.anchors, signals)
    part.bind(model, sampling)
    part.calibrate(part.score_signals(signals), 0.2)
    other = signals.copy()
    if steps == "first":
        other[:, 1:] = 0
    else:
        other[:, 0] = 0
    assert np.array_equal(part.score_signals(other), part.score_signals(signals))
    flagged = [one.verdict for one in part.sample(model, FRESH, sampling) if one.verdict.step is not None]
    assert all((one.step == 0) == (steps == "first") for one in flagged)


@pytest.mark.parametrize("steps", ["all", "first", "later"])
def test_scores_by_step_are_those_the_guard_decides_by(steps):
    signals = np.random.default_rng(0).random((40, 6))
    guard = SRIGuard(steps=steps, epochs=5)
    seen = signals[:, {"all": slice(None), "first": slice(0, 1), "later": slice(1, None)}[steps]]
    guard.detectors = (Detector.of(Autoencoder.fit(seen, hidden=(4,), epochs=5, seed=0), seen),)
    for signal, score in zip(signals[:5], guard.score_signals(signals[:5]), strict=True):
        found = guard.scores_so_far(signal)
        known = [value for value in found if value is not None]
        assert len(found) == 6 and max(known) == pytest.approx(score)
        guard.threshold = sorted(known)[len(known) // 2] - 1e-9
        stop = guard.stops(signal[None])[0]
        assert found[stop] > guard.threshold
        assert all(value is None or value <= guard.threshold for value in found[:stop])


def test_a_guard_at_the_end_stops_nothing(model, sampling, fitted):
    guard, _ = fitted
    at_end = SRIGuard(early=False)
    at_end.anchors, at_end.detectors, at_end.bound, at_end.threshold = (
        guard.anchors,
        guard.detectors,
        guard.bound,
        0.0,
    )
    found = at_end.sample(model, FRESH[:6], sampling)
    whole = sample(model, FRESH[:6], sampling)
    assert all(one.verdict.flagged and one.verdict.step is None for one in found)
    assert [one.steps for one in found] == [one.steps for one in whole]


def test_a_response_that_is_all_forced_is_unscored_and_passes(model, sampling, fitted):
    guard, _ = fitted
    given = Request("t30", (Forced(0, tuple(range(40, 40 + LENGTH))),))
    found = guard.sample(model, [given, "t31 t32"], sampling)
    assert found[0].verdict.score is None and not found[0].verdict.flagged
    assert found[0].raw_ids == list(range(40, 40 + LENGTH))


def test_load_puts_it_in_front_of_generate(lively_folder, sampling, fitted, model):
    guard, path = fitted
    guarded = midward.load(lively_folder, device="cpu", guard=path)
    found = guarded.generate(FRESH, length=LENGTH, steps=STEPS)
    assert found == guard.sample(model, FRESH, sampling)
    assert isinstance(found[0].verdict, Verdict)
    with pytest.raises(GuardError, match="length 16 there, 12 here"):
        guarded.generate("t30", length=12, steps=STEPS)


def test_anchors_that_change_the_sampling_are_refused(fitted):
    guard, _ = fitted
    with pytest.raises(GuardError, match="needs_all_steps=False"):
        SRIGuard().train(replace(guard.anchors, needs_all_steps=True), np.zeros((4, STEPS)))


def test_fitting_goes_on_where_it_stopped(model, sampling, fitted, tmp_path, monkeypatch):
    guard, _ = fitted
    calls = []

    def stops(*args, **kwargs):
        calls.append(len(args[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(*args, **kwargs)

    monkeypatch.setattr(loop, "sample", stops)
    with pytest.raises(KeyboardInterrupt):
        fit(model, {"sri": SRIGuard(epochs=40, seeds=1)}, tmp_path, sampling)
    done, calls[:] = calls[0], [0, 0]
    again = SRIGuard(epochs=40, seeds=1)
    fit(model, {"sri": again}, tmp_path, sampling)
    assert sum(calls) == 80 - done
    assert again.threshold == guard.threshold and again.digest == guard.digest


def test_too_few_prompts_are_told_before_anything_is_sampled(model, sampling, tmp_path, monkeypatch):
    monkeypatch.setattr("midward.dynamics.anchors.sample", None)
    some = asked(prompts(0, 50))
    with pytest.raises(GuardError, match="50 harmless prompts, and 92 are needed"):
        fit_guards(model, {"sri": SRIGuard()}, some, some, tmp_path, refused=bool, alpha=0.25, sizes=Sizes(12, 60, 20))
    with pytest.raises(GuardError, match="takes 99 held-out"):
        fit_guards(model, {"sri": SRIGuard()}, some, some, tmp_path, refused=bool, sizes=Sizes(12, 60, 20))


def test_scoring_without_a_signal_or_before_fitting_is_an_error(model, sampling, fitted):
    guard, _ = fitted
    with pytest.raises(GuardError, match="an exchange has none"):
        guard.score(model, [Exchange(Request("t30"))])
    with pytest.raises(GuardError, match="has no score by step"):
        MaskFilter().scores_so_far([0.5])
    with pytest.raises(GuardError, match="isn't fitted yet"):
        SRIGuard().sample(model, ["t30"], sampling)


def test_an_autoregressive_model_is_guarded_too(llama_folder, tmp_path):
    causal = midward.load(llama_folder, device="cpu")
    sampling = Sampling.for_model(causal, length=8)
    guard = SRIGuard(epochs=10, seeds=1)
    fit(causal, {"sri": guard}, tmp_path, sampling, alpha=0.3, sizes=Sizes(8, 20, 12))
    without = sample(causal, FRESH, sampling)
    behind = guard.sample(causal, FRESH, sampling)
    assert any(one.verdict.flagged for one in behind)
    assert all(bare(b) == a for a, b in zip(without, behind, strict=True) if not b.verdict.flagged)


def test_several_readings_are_fitted_from_the_same_generations_and_a_file_knows_its_own(
    model, sampling, tmp_path, monkeypatch
):
    sampled = []
    monkeypatch.setattr(loop, "sample", lambda *args, **kwargs: sampled.append(len(args[1])) or sample(*args, **kwargs))
    guards = {
        "sri": SRIGuard(epochs=5, seeds=2),
        "sri-generated": SRIGuard(epochs=5, reading="generated", seeds=1),
        "sri-maha-end": SRIMahalanobisGuard(early=False),
    }
    paths = fit(model, guards, tmp_path, sampling)
    assert sum(sampled) == 80
    loaded = {label: load(path, model, sampling) for label, path in paths.items()}
    for label, guard in loaded.items():
        assert guard.settings == guards[label].settings and guard.digest == guards[label].digest
    assert [guard.anchors.reading for guard in loaded.values()] == ["response", "generated", "response"]
    signals = np.random.default_rng(0).uniform(size=(30, STEPS))
    by_seed = loaded["sri"].scores_by_seed(model, [Exchange(Request("t30"), signal=signal) for signal in signals])
    assert by_seed.shape == (2, 30) and np.array_equal(by_seed[0], loaded["sri"].score_signals(signals))
    assert not np.allclose(by_seed[0], by_seed[1])


def test_the_distance_is_scikit_learns_shrunk_one_and_its_prefixes_are_their_own():
    from scipy.special import expit
    from sklearn.covariance import LedoitWolf

    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, STEPS)) @ rng.normal(size=(STEPS, STEPS)) + 3
    fitted = Mahalanobis.fit(expit(logits))
    other = rng.normal(size=(10, STEPS))
    for known in (1, 3, STEPS):
        theirs = LedoitWolf().fit(logits)
        centred = other[:, :known] - theirs.location_[:known]
        inverse = np.linalg.inv(theirs.covariance_[:known, :known])
        wanted = np.einsum("nt,ts,ns->n", centred, inverse, centred) / known
        assert np.allclose(fitted.error_at(expit(other)[:, :known]), wanted, rtol=1e-5)
    detector = Detector.of(fitted, expit(logits))
    assert np.quantile(detector.ratios(expit(logits)), 0.99, axis=0) == pytest.approx(1)
    alike = np.ones((5, STEPS))  # and beyond what a logit can say
    saturated = Detector.of(Mahalanobis.fit(alike), alike)
    assert np.isfinite(saturated.ratios(np.array([np.zeros(STEPS), np.ones(STEPS)]))).all()


@pytest.mark.parametrize("early", [True, False])
def test_the_distance_guards_as_the_autoencoder_does(early, model, sampling, fitted):
    guard, _ = fitted
    signals = np.random.default_rng(0).uniform(size=(30, STEPS))
    other = SRIMahalanobisGuard(early=early).train(guard.anchors, signals)
    other.bind(model, sampling)
    without = sample(model, FRESH[:12], sampling)
    other.threshold = 0.0
    assert all(one.verdict.flagged for one in other.sample(model, FRESH[:12], sampling))
    other.threshold = np.inf
    behind = other.sample(model, FRESH[:12], sampling)
    assert [bare(one) for one in behind] == without
    assert all((one.verdict.score is not None) and one.verdict.guard == "sri-maha" for one in behind)


def test_a_guard_knows_the_sampling_it_was_fitted_for(lively_folder, sampling, fitted, model):
    guard, path = fitted
    assert sampling_of(path) == guard.sampling and guard.sampling["length"] == LENGTH
    assert guard.sample(model, FRESH[:4]) == guard.sample(model, FRESH[:4], sampling)
    guarded = midward.load(lively_folder, device="cpu", guard=path)
    assert guarded.generate(FRESH[:4]) == guard.sample(model, FRESH[:4], sampling)
    masks = MaskFilter()
    masks.bind(model, sampling)
    assert masks.sampling == {}  # goes with any


@pytest.mark.parametrize("name", ("autoencoder", "mahalanobis"))
def test_signals_of_different_lengths_are_judged_together_as_alone(name):
    """Where a threshold commits, rows are at different steps; what stands behind a row's own doesn't count."""
    rng = np.random.default_rng(0)
    signals, others = rng.uniform(0.05, 0.95, size=(40, 9)), rng.uniform(size=(5, 9))
    fitted = Autoencoder.fit(signals, epochs=3) if name == "autoencoder" else Mahalanobis.fit(signals)
    trained, known = Detector.of(fitted, signals), np.array([1, 9, 4, 4, 8])
    alone = [trained.ratio_at(row[None, :count])[0] for row, count in zip(others, known, strict=True)]
    for row, count in zip(others, known, strict=True):
        row[count:] = np.nan
    assert np.allclose(trained.ratio_at(others, known), alone, rtol=1e-9)
