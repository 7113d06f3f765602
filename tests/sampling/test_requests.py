"""Forced spans, bans, masks in the prompt, end policies, seeds, temperature, and every clear error."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from watching import Watching

import midward
from midward import Ban, Forced, Request, Sampling, sample
from midward.sampling import noise
from midward.sampling.choose import choose

LENGTH = 16
MASK = 2
PROPERTY = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


@st.composite
def spans(draw):
    """Forced spans that don't overlap."""
    cuts = sorted(draw(st.sets(st.integers(0, LENGTH), min_size=2, max_size=6)))
    pairs = list(zip(cuts[::2], cuts[1::2], strict=False))
    return tuple(
        Forced(start, tuple(draw(st.lists(st.integers(5, 511), min_size=stop - start, max_size=stop - start))))
        for start, stop in pairs
    )


@st.composite
def sampling_settings(draw):
    order = draw(st.sampled_from(["low_confidence", "random", "left_to_right"]))
    return Sampling(
        length=LENGTH,
        steps=draw(st.sampled_from([4, 7, 16, 40])),
        block=draw(st.sampled_from([None, 4, 5, 16])),
        order=order,
        threshold=draw(st.sampled_from([None, 0.01, 0.9])) if order == "low_confidence" else None,
        temperature=draw(st.sampled_from([0.0, 1.3])),
        end="keep",
    )


# --- forced spans ------------------------------------------------------------------------------------


@PROPERTY
@given(forced=spans(), sampling=sampling_settings(), seed=st.integers(0, 5))
def test_forced_spans_stand(model, forced, sampling, seed):
    trace = midward.Trace()
    request = Request([5, 6, 7, 8], forced=forced, seed=seed)
    (response,) = sample(model, [request], sampling, watchers=[trace])
    fixed = {span.position + i: token for span in forced for i, token in enumerate(span.ids)}
    assert all(response.raw_ids[position] == token for position, token in fixed.items())
    assert MASK not in response.raw_ids
    steps = trace.commit_step[0]
    assert all((steps[p] == -2) == (p in fixed) for p in range(LENGTH))
    if sampling.threshold is None and sampling.block is None:  # forced positions take nothing of the schedule
        free = LENGTH - len(fixed)
        assert response.steps == min(sampling.steps, free)


def test_forced_span_is_seen_from_the_first_step(model):
    seen = []

    look = Watching(start=lambda canvas: seen.append(canvas.ids[0, canvas.response][4:6].tolist()))
    plain = Request([5, 6, 7])
    forced = Request([5, 6, 7], forced=(Forced(4, (400, 401)),))
    one_step = Sampling(length=LENGTH, steps=1)
    responses = sample(model, [plain, forced], one_step, batch_size=1, watchers=[look])
    assert seen[1] == [400, 401]
    others = [p for p in range(LENGTH) if p not in (4, 5)]
    assert [responses[0].raw_ids[p] for p in others] != [responses[1].raw_ids[p] for p in others]


def test_forced_text(model):
    assert Forced.text(model, 3, "t10 t11") == Forced(3, (10, 11))
    assert Ban.text(model, "t10 t11") == Ban((10, 11), 0)


# --- bans --------------------------------------------------------------------------------------------


@PROPERTY
@given(
    sampling=sampling_settings(),
    kinds=st.lists(st.tuples(st.integers(0, 10), st.integers(1, 4)), min_size=1, max_size=3),
    rounds=st.integers(1, 3),
)
def test_bans_hold(model, sampling, kinds, rounds):
    """Ban what the model says, again and again: it never says it at that position."""
    bans: tuple[Ban, ...] = ()
    for _ in range(rounds):
        (response,) = sample(model, [Request([5, 6, 7], bans=bans, seed=1)], sampling)
        for ban in bans:
            assert tuple(response.raw_ids[ban.position : ban.position + len(ban.ids)]) != ban.ids
        assert MASK not in response.raw_ids
        bans += tuple(Ban(tuple(response.raw_ids[at : at + size]), at) for at, size in kinds)


def test_a_ban_leaves_its_parts_allowed(model):
    sampling = Sampling(length=8, steps=8, order="left_to_right", end="keep")
    (free,) = sample(model, [[5, 6, 7]], sampling)
    ban = Ban(tuple(free.raw_ids[:3]))
    (banned,) = sample(model, [Request([5, 6, 7], bans=(ban,))], sampling)
    assert banned.raw_ids[:2] == free.raw_ids[:2] and banned.raw_ids[2] != free.raw_ids[2]


def test_a_ban_window_is_committed_left_to_right(model):
    trace = midward.Trace()
    bans = (Ban((9, 9, 9), 2), Ban((9, 9, 9, 9), 4), Ban((8, 8), 11))
    sample(model, [Request([5, 6, 7], bans=bans)], Sampling(length=LENGTH, steps=16), watchers=[trace])
    steps = trace.commit_step[0].tolist()
    assert steps[2:8] == sorted(steps[2:8]) and steps[11:13] == sorted(steps[11:13])


def test_a_ban_counts_forced_tokens(model):
    """Where a forced token would complete the ban, the free one before it gives way."""
    sampling = Sampling(length=6, steps=6, end="keep")
    forced = (Forced(1, (40,)),)
    (free,) = sample(model, [Request([5, 6, 7], forced=forced)], sampling)
    ban = Ban((free.raw_ids[0], 40))
    (banned,) = sample(model, [Request([5, 6, 7], forced=forced, bans=(ban,))], sampling)
    assert banned.raw_ids[0] != free.raw_ids[0] and banned.raw_ids[1] == 40


# --- masks in the prompt, end policies -------------------------------------------------------------------


def test_masks_in_the_prompt(model):
    prompt = [5, MASK, 7, MASK, 9, 10]
    joint, published = (
        sample(model, [prompt], Sampling(length=12, steps=4, block=6, prompt_masks=kind, end="keep"))[0]
        for kind in ("joint", "published")
    )
    assert MASK not in joint.prompt_ids + joint.raw_ids
    assert [joint.prompt_ids[i] for i in (0, 2, 4, 5)] == [5, 7, 9, 10]
    # The published budget is the response's alone, so as many masks are left over as the prompt had.
    assert (published.prompt_ids + published.raw_ids).count(MASK) == 2


def test_end_policies(lively):
    prompts = [[n, n + 1] for n in range(10, 60, 10)]
    head = lively.network.lm_head.weight.data
    often = torch.tensor([r.raw_ids for r in sample(lively, prompts, Sampling(length=LENGTH))]).flatten().mode()
    head[1] = head[often.values] * 1.2  # an end token that comes up
    stop, keep, forbid = (
        sample(lively, prompts, Sampling(length=LENGTH, steps=8, end=end)) for end in ("stop", "keep", "forbid")
    )
    assert any(response.ended and len(response.ids) < LENGTH for response in stop)
    for response in stop:
        assert not {1, 3} & set(response.ids)
    for response in keep:
        assert response.ids == response.raw_ids
    for response in forbid:
        assert not response.ended and not {1, 3} & set(response.raw_ids)


# --- random numbers --------------------------------------------------------------------------------------


def test_seeds(model):
    hot = Sampling(length=LENGTH, steps=8, temperature=1.5)
    prompt = [5, 6, 7]
    first, same = sample(model, [prompt, prompt], hot)
    assert first == same  # equal requests draw equal numbers
    one, two = sample(model, [Request(prompt, seed=1), Request(prompt, seed=2)], hot)
    assert one.raw_ids != two.raw_ids
    other = sample(model, [prompt], Sampling(length=LENGTH, steps=8, temperature=1.5, seed=9))
    assert other[0].raw_ids != first.raw_ids


def test_global_random_state_is_neither_read_nor_changed(model):
    hot = Sampling(length=LENGTH, steps=8, temperature=1.0, order="random")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = sample(model, [[5, 6]], hot)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert sample(model, [[5, 6]], hot) == first


@PROPERTY
@given(seed=st.integers(-(2**63), 2**63 - 1), step=st.integers(-1, 500))
def test_uniform_numbers(seed, step):
    numbers = noise.uniform(torch.full((2000,), seed), step, torch.arange(-1000, 1000))
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert abs(numbers.mean() - 0.5) < 0.04 and abs(numbers.var() - 1 / 12) < 0.02
    assert len(numbers.unique()) > 1990
    later = noise.uniform(torch.full((2000,), seed), step + 1, torch.arange(-1000, 1000))
    assert abs(torch.corrcoef(torch.stack([numbers, later]))[0, 1]) < 0.12


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_draws_from_the_softmax(model, temperature):
    """Chi-square of 20,000 draws from one hidden state against softmax(logits / temperature)."""
    n = 20_000
    hidden = model.hidden(torch.tensor([[5, 6, 2]]))[0, -1:].detach()
    logits = model.head(hidden)[0].detach()
    uniforms = noise.uniform(torch.full((n,), 12345), 0, torch.arange(n))
    drawn, score, _ = choose(model, hidden.expand(n, -1), uniforms, temperature=temperature, forbidden=[23])
    logits[23] = -torch.inf
    p = (logits.double() / temperature).softmax(-1)
    counts = torch.bincount(drawn, minlength=512).double()
    assert counts[23] == 0
    often = p * n >= 5
    chi2 = ((counts - p * n)[often] ** 2 / (p * n)[often]).sum()
    rest = counts[~often].sum() - (p * n)[~often].sum()
    degrees = int(often.sum())
    assert chi2 < degrees + 5 * math.sqrt(2 * degrees)
    assert abs(rest) < 5 * math.sqrt(max((p * n)[~often].sum(), 1))
    exact = logits.double().softmax(-1)[drawn]
    assert torch.allclose(score.double(), (exact / (1 - exact)).log(), atol=1e-3)


def test_score_tells_saturated_probabilities_apart(model):
    """Where float32 p is 1 for both, the larger log-odds still wins."""

    class Head:
        vocab_size = 3
        head = staticmethod(lambda hidden: hidden.clone())

    logits = torch.tensor([[30.0, 0.0, 0.0], [31.0, 0.0, 0.0]])
    assert (logits.softmax(-1)[:, 0] == 1).all()
    tokens, scores, _ = choose(Head(), logits)
    assert tokens.tolist() == [0, 0] and scores[1] - scores[0] == pytest.approx(1.0)


def test_threshold_commits_all_that_pass(model):
    seen = []

    look = Watching(lambda step: seen.append((step.new[0], step.predictions[1][0], step.new[0] | ~step.committed[0])))
    sample(model, [[5, 6, 7]], Sampling(length=LENGTH, threshold=0.3, end="keep"), watchers=[look])
    assert 1 < len(seen) < LENGTH
    for new, confidence, was_open in seen:
        passed = was_open & (confidence >= 0.3)
        assert new.sum() >= 1
        if passed.any():
            assert torch.equal(new, passed)
        else:
            assert new.sum() == 1 and confidence[new] == confidence[was_open].max()


# --- the autoregressive kind -------------------------------------------------------------------------------


def test_causal_equals_greedy_generate(causal):
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(5, 512, (n,), generator=generator).tolist() for n in (4, 9, 2, 7, 12)]
    head = causal.network.lm_head.weight.data
    for bias in (1.0, 3.0):  # the second makes end tokens come up
        head[1] *= bias
        ours = sample(causal, prompts, Sampling.for_model(causal, length=24), batch_size=3)
        for prompt, response in zip(prompts, ours, strict=True):
            ids = torch.tensor([prompt])
            theirs = causal.network.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
            )[0, len(prompt) :].tolist()
            assert response.raw_ids[: len(theirs)] == theirs
            assert response.nfe == len(theirs) and response.ended == (theirs[-1] == 1)
    assert any(response.ended for response in ours)
    head[1] /= 3.0


def test_causal_forced_bans_temperature(causal):
    plain = Sampling.for_model(causal, length=12)
    (free,) = sample(causal, [[5, 6, 7]], plain)
    request = Request(
        [5, 6, 7], forced=(Forced(4, (100, 101)),), bans=(Ban(tuple(free.raw_ids[:2])), Ban((free.raw_ids[2],), 2))
    )
    (response,) = sample(causal, [request], plain)
    assert response.raw_ids[4:6] == [100, 101]
    assert response.raw_ids[0] == free.raw_ids[0]
    assert response.raw_ids[1] != free.raw_ids[1] and response.raw_ids[2] != free.raw_ids[2]
    hot = Sampling.for_model(causal, length=12, temperature=2.0, end="forbid")
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    alone = [sample(causal, [prompt], hot)[0] for prompt in prompts]
    assert sample(causal, prompts, hot) == alone
    assert all(1 not in response.raw_ids for response in alone)


@pytest.mark.parametrize(
    "options", [dict(order="random"), dict(guidance=1.0), dict(block=4), dict(prompt_masks="published")]
)
def test_causal_refuses_diffusion_settings(causal, options):
    with pytest.raises(ValueError, match=f"can't follow {next(iter(options))}="):
        sample(causal, [[5]], Sampling.for_model(causal, length=8, **options))
    with pytest.raises(ValueError, match="order='low_confidence'"):
        sample(causal, [[5]], Sampling())


# --- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, pattern",
    [
        (dict(length=0), "length is 1 to"),
        (dict(length=10**12, block=8), "length is 1 to"),
        (dict(steps=0), "1 or more"),
        (dict(steps=2.5), "steps must be an integer"),
        (dict(length=8, block=9), "between 1 and length=8"),
        (dict(length=8, block=0), "block is 1 or more"),
        (dict(length=64, block=8, steps=4), "can't serve 8 blocks"),
        (dict(order="low_confidense"), "Did you mean 'low_confidence'"),
        (dict(end="halt"), "unknown end 'halt'"),
        (dict(prompt_masks="none"), "unknown prompt_masks"),
        (dict(temperature=-1), "temperature is 0 or more"),
        (dict(temperature=math.nan), "temperature is 0 or more"),
        (dict(guidance=-0.5), "guidance is 0 or more"),
        (dict(threshold=0.0), "above 0"),
        (dict(threshold=0.9, order="random"), "needs order='low_confidence'"),
        (dict(seed=1.5), "seed must be an integer"),
    ],
)
def test_bad_settings(options, pattern):
    with pytest.raises(ValueError, match=pattern):
        Sampling(**options)


def test_unknown_setting(model):
    with pytest.raises(TypeError, match=r"unknown sampling setting 'lenght'.*Did you mean 'length'"):
        Sampling.for_model(model, lenght=3)


@pytest.mark.parametrize(
    "request_, error, pattern",
    [
        ("", ValueError, "the prompt is empty"),
        ([], ValueError, "the prompt is empty"),
        (None, TypeError, "a prompt is a text"),
        ([5, 512], ValueError, "512 lies outside the vocabulary"),
        ([5] * 245, ValueError, "more than the model's 256 positions"),
        (Request([5], forced=(Forced(15, (7, 8)),)), ValueError, "ends behind the response's 16 positions"),
        (Request([5], forced=(Forced(3, (7, 8)), Forced(4, (9,)))), ValueError, "overlaps .* at position 4"),
        (Request([5], forced=(Forced(3, (MASK,)),)), ValueError, "holds the mask token"),
        (Request([5], forced=(Forced(3, (600,)),)), ValueError, "600 lies outside"),
        (Request([5], bans=(Ban((7, 8), 15),)), ValueError, "bans nothing"),
        (Request([5], forced=(Forced(0, (7, 8)),), bans=(Ban((7, 8)),)), ValueError, "contradicts"),
    ],
)
def test_bad_requests(model, request_, error, pattern):
    with pytest.raises(error, match=rf"request 1: .*{pattern}"):
        sample(model, [[5], request_], Sampling(length=LENGTH))


@pytest.mark.parametrize("make", [lambda: Forced(-1, (5,)), lambda: Forced(0, ()), lambda: Ban((), 0)])
def test_bad_spans(make):
    with pytest.raises(ValueError, match=r"position of|ids of"):
        make()


@pytest.mark.parametrize("requests", ["hello", Request("hello"), 5])
def test_requests_are_a_list(model, requests):
    with pytest.raises(TypeError, match="requests are a list"):
        sample(model, requests)


def test_batch_size(model):
    with pytest.raises(ValueError, match="batch_size"):
        sample(model, [[5]], batch_size=0)
    assert sample(model, []) == []
