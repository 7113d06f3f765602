"""Span log-probabilities and gradients against the plainest computation of the same thing."""

import itertools
import statistics
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import midward
from midward.sampling import Forced
from midward.sampling.likelihood import Span, span_gradient, span_log_probs

LENGTH = 12
MASK = 2
PROMPT = [5, 60, 7, 88, 9]
SPAN = Span(PROMPT, 4, (30, 31, 400))
BESIDE = Span(PROMPT, 4, (30, 31, 400), forced=(Forced(0, (17,)), Forced(9, (18, 19))))


@torch.no_grad()
def naive(model, span, visible=()):
    """Log-probabilities of every token of the span, by the network's own logits over the whole, unpadded canvas."""
    line = [*span.prompt, *[MASK] * LENGTH]
    for forced in span.forced:
        for i, token in enumerate(forced.ids):
            line[len(span.prompt) + forced.position + i] = token
    start = len(span.prompt) + span.position
    for k in visible:
        line[start + k] = span.ids[k]
    log_probs = model.network(input_ids=torch.tensor([line])).logits[0].double().log_softmax(-1)
    return [log_probs[start + k, token].item() for k, token in enumerate(span.ids)]


def rms_norm(module, states):
    return module.weight * states * (states.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()


def subsets(n):
    return [masked for count in range(1, n + 1) for masked in itertools.combinations(range(n), count)]


@st.composite
def spans(draw):
    prompt = draw(st.lists(st.integers(5, 511), min_size=1, max_size=9))
    ids = tuple(draw(st.lists(st.integers(0, 1) | st.integers(5, 511), min_size=1, max_size=4)))
    position = draw(st.integers(0, LENGTH - len(ids)))
    free = [p for p in range(LENGTH) if not position <= p < position + len(ids)]
    seen = draw(st.sets(st.sampled_from(free), max_size=4))
    return Span(prompt, position, ids, tuple(Forced(p, (draw(st.integers(5, 511)),)) for p in sorted(seen)))


@pytest.mark.parametrize("span", [SPAN, BESIDE])
def test_parallel_is_the_full_head_under_a_masked_span(model, span):
    [score] = span_log_probs(model, [span], mode="parallel", length=LENGTH)
    assert score.tokens == pytest.approx(naive(model, span), abs=1e-4)
    assert score.total == pytest.approx(sum(score.tokens)) and score.stderr == 0 and score.nfe == 1


@pytest.mark.parametrize("span", [SPAN, BESIDE])
def test_sequential_reveals_from_left_to_right(model, span):
    [score] = span_log_probs(model, [span], mode="sequential", length=LENGTH)
    expected = [naive(model, span, visible=range(k))[k] for k in range(3)]
    assert score.tokens == pytest.approx(expected, abs=1e-4)
    assert score.nfe == 3


def test_mc_is_unbiased_for_the_mean_over_all_masks(model):
    n, samples = 3, 6000
    values = {}
    for masked in subsets(n):
        found = naive(model, BESIDE, visible=[k for k in range(n) if k not in masked])
        values[masked] = n / len(masked) * sum(found[k] for k in masked)
    by_count = {count: [v for m, v in values.items() if len(m) == count] for count in range(1, n + 1)}
    exact = statistics.mean(statistics.mean(group) for group in by_count.values())
    variance = statistics.mean(statistics.mean((v - exact) ** 2 for v in group) for group in by_count.values())
    orders = [
        sum(naive(model, BESIDE, visible=order[:k])[order[k]] for k in range(n))
        for order in itertools.permutations(range(n))
    ]
    assert statistics.mean(orders) == pytest.approx(exact, abs=1e-4)  # what it is an estimate of

    [score] = span_log_probs(model, [BESIDE], mode="mc", length=LENGTH, samples=samples)
    assert score.nfe == len(values)  # equal masks are evaluated once
    assert score.stderr == pytest.approx((variance / samples) ** 0.5, rel=0.05)
    assert abs(score.total - exact) < 4 * score.stderr
    assert sum(score.tokens) == pytest.approx(score.total)


def test_mc_depends_on_its_seed_only_and_is_exact_for_one_token(model):
    spans = [BESIDE, SPAN]
    run = lambda order, **more: span_log_probs(model, order, mode="mc", length=LENGTH, samples=4, **more)  # noqa: E731
    first, again = run(spans), run(spans[::-1])[::-1]
    assert [s.tokens for s in again] == [pytest.approx(s.tokens, abs=1e-4) for s in first]
    totals = {round(run([BESIDE], seed=seed)[0].total, 3) for seed in range(6)}
    assert len(totals) > 1
    one = Span(PROMPT, 3, (40,))
    [score] = span_log_probs(model, [one], mode="mc", length=LENGTH)
    assert score.tokens == pytest.approx(naive(model, one), abs=1e-4) and score.stderr == 0 and score.nfe == 1


@pytest.mark.parametrize("mode", ["parallel", "sequential", "mc"])
def test_a_batch_changes_nothing(model, mode):
    @settings(max_examples=8, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(asked=st.lists(spans(), min_size=2, max_size=5), batch_size=st.sampled_from([2, 3, 64]))
    def check(asked, batch_size):
        together = span_log_probs(model, asked, mode=mode, length=LENGTH, samples=3, batch_size=batch_size)
        for span, score in zip(asked, together, strict=True):
            [alone] = span_log_probs(model, [span], mode=mode, length=LENGTH, samples=3, batch_size=1)
            assert score.tokens == pytest.approx(alone.tokens, abs=2e-4)
            assert score.stderr == pytest.approx(alone.stderr, abs=2e-4) and score.nfe == alone.nfe

    check()


def test_the_head_runs_on_scored_positions_only(model, monkeypatch):
    rows = []
    head = model.head
    monkeypatch.setattr(model, "head", lambda hidden: rows.append(len(hidden)) or head(hidden))
    span_log_probs(model, [BESIDE, SPAN], mode="sequential", length=LENGTH)
    assert sum(rows) == 6


@pytest.mark.parametrize("mode", ["parallel", "sequential", "mc"])
def test_an_autoregressive_model_gives_its_own_loss(causal, mode):
    answer = (40, 41, 42, 43)
    whole = torch.tensor([[*PROMPT, *answer]])
    labels = whole.masked_fill(torch.arange(9) < len(PROMPT), -100)
    with torch.no_grad():
        loss = causal.network(input_ids=whole, labels=labels).loss.item()
    continued = Span([90, *PROMPT], 1, answer[1:], forced=(Forced(0, answer[:1]),))  # another length, in one batch
    start, behind = span_log_probs(causal, [Span(PROMPT, 0, answer), continued], mode=mode, length=20)
    assert start.total == pytest.approx(-4 * loss, abs=1e-4)
    assert start.stderr == 0 and start.nfe == 1
    [same] = span_log_probs(causal, [Span([90, *PROMPT, 40], 0, answer[1:])], mode=mode, length=20)
    assert behind.tokens == pytest.approx(same.tokens, abs=1e-4)


@pytest.mark.parametrize("kind", ["diffusion", "autoregressive"])
def test_gradient_is_the_slope_of_the_loss(kind, lively_folder, llama_folder):
    folder = lively_folder if kind == "diffusion" else llama_folder
    model = midward.load(folder, device="cpu", dtype=torch.float64)
    for module in model.network.modules():
        if isinstance(module, LlamaRMSNorm):  # it rounds to float32, too coarse for a difference of small steps
            module.forward = partial(rms_norm, module)
    if kind == "diffusion":
        span = BESIDE
        drafts = [(), (Forced(1, (77, 78)),), (Forced(8, (79,)),)]
    else:
        span, drafts = Span(PROMPT, 1, (40, 41), forced=(Forced(0, (39,)),)), [()]
    slots = [1, 3, 4]
    gradient = span_gradient(model, span, slots, length=LENGTH, drafts=drafts, batch_size=2)
    assert gradient.shape == (3, 512) and gradient.dtype == torch.float64

    table = model.causal_lm.get_input_embeddings()

    def loss(slot, token, step):
        """The mean loss with `step` of the token mixed into the slot's one-hot."""

        def mix(module, args, output):
            output = output.clone()
            output[:, slot] += step * table.weight[token]
            return output

        hook = table.register_forward_hook(mix)
        try:
            asked = [Span(span.prompt, span.position, span.ids, (*span.forced, *draft)) for draft in drafts]
            scores = span_log_probs(model, asked, mode="parallel", length=LENGTH)
        finally:
            hook.remove()
        return -statistics.mean(score.total for score in scores)

    for row, slot in enumerate(slots):
        for token in (0, 60, 300, 511):
            slope = (loss(slot, token, 1e-5) - loss(slot, token, -1e-5)) / 2e-5
            assert gradient[row, token].item() == pytest.approx(slope, rel=1e-4, abs=1e-6)
    assert all(parameter.grad is None for parameter in model.network.parameters())
    assert not table._forward_hooks


def test_masks_in_the_prompt_stay_masks(model):
    span = Span([5, MASK, 7, MASK, 9], 4, (30, 31))
    [score] = span_log_probs(model, [span], mode="parallel", length=LENGTH)
    assert score.tokens == pytest.approx(naive(model, span), abs=1e-4)


@pytest.mark.parametrize(
    "asked, message",
    [
        ([Span(PROMPT, 11, (30, 31))], "span 0: .*ends behind"),
        ([SPAN, Span(PROMPT, 4, (30, 31), forced=(Forced(6, (3,)), Forced(6, (4,))))], "span 1: .*overlaps"),
        ([Span(PROMPT, 4, (30, 31), forced=(Forced(4, (3, 9)),))], "span 0: .*nothing is left to score"),
        ([Span(PROMPT, 0, (MASK,))], "span 0: .*mask token"),
        ([Span(PROMPT, 0, (512,))], "span 0: .*vocabulary of 512"),
        ([Span([], 0, (30,))], "span 0: the prompt is empty"),
        ([Span([5] * 250, 0, (30,))], "span 0: .*256 positions"),
        ([Span(PROMPT, 0, ())], "span 0: .*non-empty"),
    ],
)
def test_bad_spans_are_named(model, asked, message):
    with pytest.raises(ValueError, match=message):
        span_log_probs(model, asked, mode="parallel", length=LENGTH)


def test_bad_settings(model, causal):
    with pytest.raises(ValueError, match="Did you mean 'parallel'"):
        span_log_probs(model, [SPAN], mode="paralel", length=LENGTH)
    with pytest.raises(ValueError, match="samples must be an integer, 2 or more; received 1"):
        span_log_probs(model, [SPAN], mode="mc", length=LENGTH, samples=1)
    with pytest.raises(ValueError, match="batch_size"):
        span_log_probs(model, [SPAN], mode="mc", length=LENGTH, batch_size=0)
    with pytest.raises(TypeError, match="span 0 is a tuple"):
        span_log_probs(model, [(PROMPT, 0, (30,))], mode="mc", length=LENGTH)
    for unseen in (Span(PROMPT, 2, (30,)), Span(PROMPT, 0, (30,), forced=(Forced(5, (31,)),))):
        with pytest.raises(ValueError, match="autoregressive"):
            span_log_probs(causal, [unseen], mode="parallel", length=LENGTH)
    with pytest.raises(ValueError, match="slots are one or more of the prompt's 5 positions"):
        span_gradient(model, SPAN, [5], length=LENGTH)
    with pytest.raises(ValueError, match="drafts is empty"):
        span_gradient(model, SPAN, [1], length=LENGTH, drafts=[])
    with pytest.raises(ValueError, match="overlaps"):
        span_gradient(model, SPAN, [1], length=LENGTH, drafts=[(Forced(4, (9,)), Forced(4, (8,)))])
    with pytest.raises(ValueError, match="use mode='parallel'"):
        span_log_probs(model, [Span(PROMPT, 4, (30, 31), forced=(Forced(5, (3,)),))], mode="mc", length=LENGTH)
