"""Pooled states and the SRI signal equal the plain loops of sri_naive.py, in any batch."""

import pytest
import sri_naive
import torch

from midward.dynamics import Anchors, AnchorsMismatch, PooledStates, SRISignal, layers_of, sri_signal, steps_of
from midward.sampling import Forced, Request, Sampling, sample

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14], [15, 16, 17, 18], [20]]
SETTINGS = {
    "one block": Sampling(length=12, steps=6),
    "blocks": Sampling(length=12, steps=8, block=6),
    "more steps than masks": Sampling(length=6, steps=10, block=3),
    "threshold": Sampling(length=12, threshold=0.2, block=6),
    "random, text behind end tokens": Sampling(length=12, steps=6, order="random", end="keep"),
    "guidance": Sampling(length=8, steps=4, guidance=0.7),
    "left to right": Sampling(length=10, steps=10, order="left_to_right"),
}


def requests():
    """One with a forced span, so that it skips steps."""
    return [Request(PROMPTS[0], forced=(Forced(0, (40, 41, 42)),)), *PROMPTS[1:]]


def anchors_for(model, sampling, **settings):
    """Anchors that were fitted on nothing, for settings at hand."""
    shape = (steps_of(model, sampling), model.hidden_size)
    draw = torch.Generator().manual_seed(3)
    means = {name: torch.randn(shape, generator=draw) + 1 for name in ("mu_harmless", "mu_harmful")}
    return Anchors(
        **means,
        counts=(1, 1),
        model=model.name,
        adapter=None,
        fingerprint=model.fingerprint,
        sampling=sampling,
        **settings,
    )


def naive_states(model, sampling, needs_all_steps):
    """reading -> phi of each request, every request sampled alone."""
    cloned = sri_naive.AllStates(needs_all_steps)
    sample(model, requests(), sampling, batch_size=1, watchers=[cloned])
    ends = model.family.end_ids if sampling.end != "keep" else ()
    steps = steps_of(model, sampling)
    seen = [cloned.seen[row] for row in range(len(PROMPTS))]
    if model.family.kind == "autoregressive":
        return {"generated": [sri_naive.causal_states(one, steps, ends) for one in seen]}
    return {
        reading: [sri_naive.diffusion_states(one, steps, ends, reading) for one in seen]
        for reading in ("generated", "response")
    }


def check_against_the_plain_loop(model, sampling, needs_all_steps, batch_size):
    plain = naive_states(model, sampling, needs_all_steps)
    readings = {}
    for reading in plain:
        anchors = anchors_for(model, sampling, reading=reading, needs_all_steps=needs_all_steps)
        states = PooledStates(reading=reading, needs_all_steps=needs_all_steps)
        readings[reading] = (anchors, states, SRISignal(anchors))
    watchers = [watcher for _, *both in readings.values() for watcher in both]
    responses = sample(model, requests(), sampling, batch_size=batch_size, watchers=watchers)
    for reading, (anchors, states, signal) in readings.items():
        for row, phi in enumerate(plain[reading]):
            assert torch.allclose(states.states(row), phi, atol=1e-9)
            wanted = torch.tensor(sri_naive.signal(phi, anchors.mu_harmless, anchors.mu_harmful))
            assert torch.allclose(signal.signal(row), wanted.double(), atol=1e-6)
            assert torch.allclose(sri_signal(phi, anchors), signal.signal(row), atol=1e-6)
    return responses


@pytest.mark.parametrize("needs_all_steps", [True, False])
@pytest.mark.parametrize("sampling", SETTINGS.values(), ids=SETTINGS)
def test_states_and_signal_equal_the_plain_loop(exact, sampling, needs_all_steps):
    # 5: all together, padded; the plain loop samples one by one
    check_against_the_plain_loop(exact, sampling, needs_all_steps, batch_size=5)


@pytest.mark.parametrize(("name", "batch_size"), [("blocks", 1), ("blocks", 2), ("threshold", 2)])
def test_any_batch_gives_the_same(exact, name, batch_size):
    check_against_the_plain_loop(exact, SETTINGS[name], False, batch_size)


@pytest.mark.parametrize(("needs_all_steps", "batch_size"), [(True, 5), (False, 1), (False, 5)])
def test_autoregressive_states_and_signal(exact_causal, needs_all_steps, batch_size):
    sampling = Sampling.for_model(exact_causal, length=10)
    responses = check_against_the_plain_loop(exact_causal, sampling, needs_all_steps, batch_size)
    assert any(response.steps < 10 for response in responses)  # what follows a row's end is its last state


def test_float32_signals_hardly_hang_on_the_batch(lively):
    sampling = Sampling(length=12, steps=6)
    anchors = anchors_for(lively, sampling)
    alone, together = SRISignal(anchors), SRISignal(anchors)
    sample(lively, PROMPTS, sampling, batch_size=1, watchers=[alone])
    sample(lively, PROMPTS, sampling, batch_size=5, watchers=[together])
    assert torch.allclose(alone.signals(), together.signals(), atol=1e-4)


@pytest.mark.parametrize("sampling", SETTINGS.values(), ids=SETTINGS)
def test_watching_without_all_steps_changes_no_response(exact, sampling):
    watchers = [
        SRISignal(anchors_for(exact, sampling, needs_all_steps=False)),
        PooledStates((0, 1), needs_all_steps=False),
    ]
    assert sample(exact, requests(), sampling, watchers=watchers) == sample(exact, requests(), sampling)


def test_masks_in_the_prompt_may_take_more_steps_than_there_are(exact):
    sampling = Sampling(length=3, threshold=1.0, end="keep")
    requests = [[5, 2, 2, 2, 6], [7, 8, 9]]
    anchors = anchors_for(exact, sampling, needs_all_steps=False)
    alone, together = SRISignal(anchors), SRISignal(anchors)
    assert sample(exact, requests, sampling, batch_size=1, watchers=[alone])[0].steps == 6
    sample(exact, requests, sampling, batch_size=2, watchers=[together])
    assert torch.allclose(alone.signals(), together.signals(), atol=1e-6)
    assert not alone.signals().isnan().any()


@pytest.mark.parametrize("name", ["one block", "more steps than masks", "threshold"])
def test_signals_so_far_are_those_of_the_end(exact, name):
    sampling = SETTINGS[name]
    told = []
    signal = SRISignal(
        anchors_for(exact, sampling, needs_all_steps=False),
        on_signal=lambda step, sigma, reached: told.append(
            (step.index, list(step.rows), torch.from_numpy(sigma.copy()), reached)
        ),
    )
    sample(exact, requests(), sampling, batch_size=5, watchers=[signal])
    assert told
    for index, rows, sigma, counts in told:
        for row, so_far, reached in zip(rows, sigma, counts, strict=True):
            open_yet = so_far.isnan()
            assert torch.equal(so_far[~open_yet], signal.signal(row)[~open_yet])
            assert reached == int((~open_yet).sum())
            assert not open_yet[:reached].any()
            assert reached == index + 1 or sampling.threshold is not None


def test_layers_are_the_blocks_outputs(exact):
    sampling = Sampling(length=8, steps=4)
    blocks = exact.network.model.layers
    outputs = {}
    hooks = [
        block.register_forward_hook(lambda m, a, out, n=n: outputs.setdefault(n, []).append(out))
        for n, block in enumerate(blocks)
    ]
    states = PooledStates((0, 1), reading="response")
    sample(exact, [PROMPTS[1]], sampling, watchers=[states])
    for hook in hooks:
        hook.remove()
    for layer in (0, 1):
        # the prompt's chat ids are used as they are: 5 of them before the response
        phi = torch.stack([out[0, 5:].mean(0) for out in outputs[layer]])
        assert torch.allclose(states.states(0, layer), phi, atol=1e-9)
    assert layers_of(exact) == {"first": 0, "middle": 1, "last": -1}
    assert not any(block._forward_hooks for block in blocks)


def test_guided_layers_are_the_conditional_forwards(exact):
    """At guidance 0 in all but name the conditional states are the unguided ones."""
    plain, guided = PooledStates((0,)), PooledStates((0,))
    sample(exact, PROMPTS, Sampling(length=8, steps=4), watchers=[plain])
    sample(exact, PROMPTS, Sampling(length=8, steps=4, guidance=1e-12), watchers=[guided])
    for row in range(len(PROMPTS)):
        assert torch.allclose(plain.states(row), guided.states(row), atol=1e-6)


def test_anchors_of_something_else_are_refused_before_a_step(exact, lively):
    sampling = Sampling(length=8, steps=4)
    for model, settings in ((lively, sampling), (exact, Sampling(length=8, steps=4, block=4))):
        with pytest.raises(AnchorsMismatch, match=r"there, .* here"):
            sample(model, PROMPTS, settings, watchers=[SRISignal(anchors_for(exact, sampling))])
    anchors = anchors_for(exact, sampling)
    anchors.check(exact, Sampling(length=8, steps=4, seed=9))
    with pytest.raises(ValueError, match="states are"):
        sri_signal(torch.zeros(3, exact.hidden_size), anchors)


def test_bad_arguments(exact):
    with pytest.raises(ValueError, match="generated"):
        PooledStates(reading="generate")
    with pytest.raises(ValueError, match="layers"):
        PooledStates((-2,))
    with pytest.raises(ValueError, match="no layer 7"):
        sample(exact, PROMPTS, Sampling(length=8, steps=4), watchers=[PooledStates((7,))])
    with pytest.raises(KeyError, match="no states of request 0"):
        PooledStates().states(0)
