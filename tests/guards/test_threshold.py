"""Thresholds: the false positives of a fitted guard on fresh harmless signals are what the quantile promises."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import betabinom

from midward.dynamics import Autoencoder
from midward.guards import Detector, GuardError, SRIGuard, conformal_threshold
from midward.guards.config import conformal_order
from midward.reports.builders.guards import fitted

STEPS = 12


def harmless(rng, count):
    """Smooth signals near 1 with a dip of random place and depth: a distribution with few degrees of freedom."""
    at, deep = rng.uniform(2, STEPS - 2, (count, 1)), rng.uniform(0.1, 0.6, (count, 1))
    steps = np.arange(STEPS)
    return np.clip(1 - deep * np.exp(-((steps - at) ** 2) / 6) + rng.normal(0, 0.02, (count, STEPS)), 0, 1)


def test_false_positives_stay_within_the_interval_that_the_quantile_implies_over_20_refits():
    alpha, held_out, fresh = 0.05, 120, 300
    guards = [SRIGuard(early=early) for early in (True, False)]
    order = conformal_order(held_out, alpha)
    law = betabinom(fresh, held_out + 1 - order, order)
    found = {guard: [] for guard in guards}
    for refit in range(20):
        rng = np.random.default_rng(refit)
        signals = harmless(rng, 128)
        trained = Detector.of(Autoencoder.fit(signals, epochs=10, seed=refit), signals)
        for guard in guards:
            guard.detectors = (trained,)
            guard.calibrate(guard.score_signals(harmless(rng, held_out)), alpha)
            found[guard].append(guard.flag(guard.score_signals(harmless(rng, fresh))).sum())
    for counts in found.values():
        low, high = law.interval(1 - 1e-4)
        assert low <= min(counts) and max(counts) <= high, counts
        spread = 4 * law.std() * np.sqrt(20)
        assert abs(sum(counts) - 20 * law.mean()) < spread, counts
        assert law.mean() / fresh <= alpha


def test_strange_signals_are_flagged_and_harmless_ones_pass():
    rng = np.random.default_rng(0)
    guard = SRIGuard(epochs=60)
    signals = harmless(rng, 400)
    guard.detectors = (Detector.of(Autoencoder.fit(signals, epochs=60), signals),)
    guard.calibrate(guard.score_signals(harmless(rng, 200)), 0.02)
    strange = np.tile(np.arange(STEPS) % 2, (50, 1)).astype(float)
    assert guard.flag(guard.score_signals(strange)).all()
    assert all(stop is not None and stop < STEPS - 1 for stop in guard.stops(strange))
    assert guard.flag(guard.score_signals(harmless(rng, 200))).mean() < 0.1


@given(st.lists(st.floats(-100, 100), min_size=9, max_size=60), st.floats(0.1, 0.9))
def test_at_most_alpha_of_the_calibration_scores_lie_above(scores, alpha):
    threshold = conformal_threshold(np.array(scores), alpha)
    assert threshold in scores
    assert (np.array(scores) > threshold).sum() <= alpha * (len(scores) + 1)


def test_too_few_prompts_for_alpha_are_an_error_that_says_how_many():
    assert conformal_threshold(np.arange(99.0), 0.01) == 98
    with pytest.raises(GuardError, match="takes 99 held-out harmless prompts or more; received 98"):
        conformal_threshold(np.arange(98.0), 0.01)
    with pytest.raises(GuardError, match="between 0 and 1; received 0"):
        conformal_threshold(np.arange(98.0), 0)


def test_an_unscored_exchange_is_never_flagged():
    guard = SRIGuard()
    guard.calibrate(np.array([np.nan, *np.arange(99.0)]), 0.05)
    assert guard.flag(np.array([np.nan, 1e9, -1e9])).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("count", "certain", "tone"), [(100, None, "unclear"), (2000, None, "note"), (300, 0.95, "note")]
)
def test_fit_says_between_what_rates_such_calibrations_lie(count, certain, tone):
    guard = {"file": "a.safetensors", "guard": "sri", "alpha": 0.01, "calibrated": count}
    arm = {"file": "b.safetensors", "guard": "raec", "alpha": None, "calibrated": 0}
    _, said = fitted(Path(), {"settings": {"--certain": certain}}, {"guards": [guard, dict(guard), arm]})
    assert said.tone == tone
    _, mean, low, high, *_ = (float(number) / 100 for number in re.findall(r"([\d.]+) %", said.text))
    rng = np.random.default_rng(0)
    rates = 1 - np.array([conformal_threshold(rng.uniform(size=count), 0.01, certain) for _ in range(4000)])
    assert abs(rates.mean() - mean) < 4e-4
    assert 0.94 < ((low <= rates) & (rates <= high)).mean() < 0.96
