"""Likelihoods against the published formula written out, over all masks and over drawn ones."""

import itertools
import statistics

import pytest
import torch

from midward.sampling import Sampling, Span, sample, span_log_probs
from midward.utility.lm import Continuation, MidwardLM

PROMPT = (5, 60, 7, 88, 9)
MASK = 2


def likelihoods(model, pairs, *, greedy=None, **how):
    return MidwardLM(model, **how).log_probs([Continuation(*pair) for pair in pairs], greedy=greedy)


@torch.no_grad()
def restated(model, prompt, ids):
    """The mean over masked counts l = 1..n, and over all masks of l tokens, of n / l times their log-probability."""
    n = len(ids)
    by_count = []
    for count in range(1, n + 1):
        values = []
        for masked in itertools.combinations(range(n), count):
            line = [*prompt, *(MASK if k in masked else token for k, token in enumerate(ids))]
            logits = model.network(input_ids=torch.tensor([line])).logits[0]
            log_probs = logits.double().log_softmax(-1)
            values.append(n / count * sum(log_probs[len(prompt) + k, ids[k]].item() for k in masked))
        by_count.append(statistics.mean(values))
    return statistics.mean(by_count)


@pytest.mark.parametrize("ids", [(30,), (30, 31), (30, 31, 400)])
def test_short_continuations_are_exact(lively, ids):
    [found] = likelihoods(lively, [(PROMPT, ids)], draws=8, greedy=False)
    assert found["total"] == pytest.approx(restated(lively, PROMPT, ids), abs=1e-4)
    assert found["stderr"] == 0


def test_drawn_masks_are_unbiased_and_even_counts_are_less_noisy(lively):
    ids, draws, seeds = (30, 31, 400, 12, 77), 10, range(60)
    exact = restated(lively, PROMPT, ids)
    found = {
        mode: [
            span_log_probs(
                lively, [Span(PROMPT, 0, ids)], mode=mode, length=None, samples=draws, seed=seed, batch_size=64
            )[0]
            for seed in seeds
        ]
        for mode in ("mc", "even")
    }
    spread = {mode: statistics.stdev(one.total for one in some) for mode, some in found.items()}
    for mode, some in found.items():
        mean = statistics.mean(one.total for one in some)
        assert abs(mean - exact) < 4 * spread[mode] / len(seeds) ** 0.5
    assert spread["even"] < 0.8 * spread["mc"]
    told = statistics.mean(one.stderr for one in found["mc"])
    assert told == pytest.approx(spread["mc"], rel=0.3)


def test_a_draw_depends_on_the_request_alone(lively):
    pairs = [(PROMPT, (30, 31, 400, 12)), (PROMPT[:2], (9, 8, 7, 6)), (PROMPT, (40,)), (PROMPT, (30, 31))]
    together = likelihoods(lively, pairs, draws=5, batch_size=7)
    alone = [likelihoods(lively, [pair], draws=5, batch_size=1)[0] for pair in reversed(pairs)]
    for one, other in zip(together, reversed(alone), strict=True):
        assert one["total"] == pytest.approx(other["total"], abs=2e-4)
        assert one["greedy"] == other["greedy"]


def test_greedy_is_what_decoding_gives(lively):
    for length in (1, 3):
        sampling = Sampling(length=length, steps=length, end="keep")
        [response] = sample(lively, [PROMPT], sampling)
        best = tuple(response.raw_ids)
        other = (*best[:-1], best[-1] ^ 1)
        found = likelihoods(lively, [(PROMPT, best), (PROMPT, other)], draws=8)
        assert [row["greedy"] for row in found] == [True, False]


def test_an_autoregressive_model_is_exact(llama):
    ids = (30, 31, 400, 12, 77)
    with torch.no_grad():
        logits = llama.network(input_ids=torch.tensor([[*PROMPT, *ids]])).logits[0]
    log_probs = logits.double().log_softmax(-1)
    expected = sum(log_probs[len(PROMPT) + k - 1, token].item() for k, token in enumerate(ids))
    best = int(logits[len(PROMPT) - 1].argmax())
    found = likelihoods(llama, [(PROMPT, ids), (PROMPT, (best,)), (PROMPT, (best ^ 1,))], draws=4)
    assert found[0]["total"] == pytest.approx(expected, abs=1e-4) and found[0]["stderr"] == 0
    assert [row["greedy"] for row in found[1:]] == [True, False]
