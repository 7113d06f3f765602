"""Numbers that aren't finite are an error of their row, never an answer; the other rows don't notice."""

import math

import pytest
import torch
from checkpoints import FIXTURES

import midward
from midward.models.language_model import take
from midward.sampling import Ban, Edit, Forced, Request, Sampling, Span, sample, span_log_probs
from midward.sampling.choose import _certainty
from midward.sampling.schedules import fading

POISON = 77  # a token id: where it stands in a prompt, the row's states are as the test says


def poison(model, monkeypatch, value):
    """States of rows whose prompt holds POISON become `value`."""
    own = model.hidden
    rows = {}

    def hidden(ids, mask=None, cache=None, columns=None, read=None):
        states = own(ids, mask, cache, columns).clone()
        if cache is None or ids.shape[1] > 1 or "bad" not in rows:
            rows["bad"] = (ids == POISON).any(-1)
        bad = rows["bad"] if len(rows["bad"]) == len(ids) else (ids == POISON).any(-1)
        states[bad] = value
        return states if read is None else take(states, read)

    monkeypatch.setattr(model, "hidden", hidden)


PROMPTS = [[5, 6, 7], [5, POISON, 7], [8, 9, 10]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 1.0},
        {"order": "entropy", "temperature": 0.3},
        {"order": "margin"},
        {"threshold": 0.9},
        {"threshold": 0.9, "temperature": 1.0},
        {"guidance": 1.0},
        {"cache": "prefix"},
        {"end": "keep"},
    ],
    ids=str,
)
def test_a_broken_row_is_an_error_and_the_others_go_on(llada, monkeypatch, settings, value):
    sampling = Sampling(length=12, steps=6, block=6, **settings)
    before = sample(llada, [PROMPTS[0], PROMPTS[2]], sampling)
    poison(llada, monkeypatch, value)
    first, bad, last = sample(llada, PROMPTS, sampling)
    assert bad.error and "NaN or infinite" in bad.error and "float32" in bad.error
    assert (bad.text, bad.ids, bad.ended) == ("", [], False)
    assert [first.error, last.error] == [None, None]
    if settings.get("temperature", 0) == 0:
        assert [first.ids, last.ids] == [one.ids for one in before]


def test_a_broken_row_of_an_autoregressive_model(llama, monkeypatch):
    for temperature in (0.0, 1.0):
        sampling = Sampling.for_model(llama, length=8, temperature=temperature)
        with monkeypatch.context() as patch:
            poison(llama, patch, math.nan)
            found = sample(llama, [PROMPTS[1]], sampling)
            assert found[0].error and found[0].text == ""
        assert sample(llama, [PROMPTS[0]], sampling)[0].error is None


def test_bans_and_forced_spans_of_a_broken_row(llada, monkeypatch):
    poison(llada, monkeypatch, math.nan)
    request = Request([5, POISON], forced=(Forced(2, (9,)),), bans=(Ban((4, 5), 5),))
    [response] = sample(llada, [request], Sampling(length=10, steps=10))
    assert response.error


def test_a_broken_row_leaves_the_batch(llada, monkeypatch):
    poison(llada, monkeypatch, math.nan)
    [response] = sample(llada, [PROMPTS[1]], Sampling(length=16, steps=16))
    assert response.nfe == 1


def test_a_likelihood_that_is_not_finite_is_nan(llada, monkeypatch):
    poison(llada, monkeypatch, math.nan)
    scores = span_log_probs(llada, [Span(prompt, 0, (4, 5)) for prompt in PROMPTS], mode="parallel", length=4)
    assert [math.isnan(score.total) for score in scores] == [False, True, False]


@pytest.mark.parametrize("order", ["low_confidence", "entropy", "margin"])
def test_tiny_temperatures_are_greedy(llada, order):
    prompts = [[5, 6, 7], [8, 9]]
    expected = [one.ids for one in sample(llada, prompts, Sampling(length=12, steps=12))]
    for temperature in (1e-46, 1e-39, 5e-324):
        sampling = Sampling(length=12, steps=12, order=order, temperature=temperature)
        found = sample(llada, prompts, sampling)
        assert all(one.error is None and len(one.raw_ids) == 12 for one in found)
        if order == "low_confidence":
            assert [one.ids for one in found] == expected


# --- the margin ------------------------------------------------------------------------


def test_margins_order_as_in_float64():
    model = midward.load(FIXTURES / "dream-tiny", device="cpu")
    ids = torch.randint(4, model.vocab_size, (8, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model.head(model.hidden(ids)).flatten(0, 1).float()
    for scale in (1e-3, 1.0, 30.0):  # margins near 0, as they are, near 1
        scaled = logits * scale
        top = scaled.double().softmax(-1).topk(2).values
        exact = top[:, 0] - top[:, 1]
        kept = (exact < 1 - 1e-12).nonzero()[:, 0]  # beyond, float64's own difference is rounding
        order = _certainty(scaled.clone(), "margin")[kept].argsort(stable=True)
        assert torch.equal(order, exact[kept].argsort(stable=True))


# --- Dream's published schedule ----------------------------------------------------------


def plain(total, steps):
    """The published loop's counts, restated for one row."""
    levels = torch.linspace(1, 1e-3, steps + 1)
    left, counts = torch.tensor(float(total)), []
    for step in range(steps):
        share = 1 - levels[step + 1] / levels[step]
        count = int(left * share) if step < steps - 1 else int(left)
        counts.append(count)
        left = left - count
    return counts


def test_the_published_schedule_is_dreams():
    for total in (1, 7, 24, 32, 128, 512):
        for steps in (1, 2, 8, 24, 32, 128, 512):
            assert fading(total, steps) == plain(total, steps)
            assert sum(fading(total, steps)) == total
    assert fading(24, 24)[0] == 0 and fading(512, 512)[-1] >= 2


def test_the_schedule_decides_what_a_step_commits():
    model = midward.load(FIXTURES / "dream-tiny", device="cpu")
    for schedule, expected in (("published", plain(20, 8)), ("even", [3, 3, 3, 3, 2, 2, 2, 2])):
        trace = midward.sampling.Trace(needs_all_steps=True)
        sampling = Sampling(length=20, steps=8, order="entropy", schedule=schedule, temperature=0.2)
        sample(model, [[6, 7, 8]], sampling, watchers=[trace])  # 5 is its mask
        steps = trace.commit_step[0].long()
        assert torch.bincount(steps[steps >= 0], minlength=8).tolist() == expected
    with pytest.raises(ValueError, match="schedule"):
        Sampling(schedule="linear")


def test_a_row_that_was_broken_once_stays_so_though_an_edit_of_its_own_is_still_to_come(monkeypatch):
    model = midward.models.load(FIXTURES / "llada-tiny", dtype="float32", device="cpu")
    own, forwards = model.hidden, []

    def hidden(*given, **named):
        states = own(*given, **named).clone()
        forwards.append(len(states))
        if len(forwards) == 2:
            states[0] = math.nan
        return states

    monkeypatch.setattr(model, "hidden", hidden)
    edited = Request([5, 6, 7], edits=(Edit(4, write=(Forced(0, (9,)),)),))
    broken, sound = sample(model, [edited, Request([8, 9, 10])], Sampling(length=12, steps=12))
    assert broken.error and broken.steps == 5  # the edit's own, and none behind it
    assert sound.error is None and sound.steps > 5 and forwards == [2] * 5 + [1] * (sound.steps - 5)
