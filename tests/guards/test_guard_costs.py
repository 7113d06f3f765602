"""What a guard adds to a generation: no forward, and no wait for the device where it goes with the sampler's own."""

import numpy as np
import pytest
import torch
from guard_world import prompts
from waits import Copies, Waits

from midward.dynamics import Anchors, Autoencoder, steps_of
from midward.guards import Detector, Exchange, Labelled, SRIGuard, make
from midward.models import LanguageModel
from midward.sampling import Request, Sampling, sample

PROMPTS = prompts(0, 5)
SETTINGS = ({"threshold": 0.02}, {"steps": 12})


def cost(run):
    """(waits, operators, forwards, tokens) of a run."""
    forwards, hidden = 0, LanguageModel.hidden

    def counted(*args, **kwargs):
        nonlocal forwards
        forwards += 1
        return hidden(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), Copies() as copies, Waits() as waits:
        patch.setattr(LanguageModel, "hidden", counted)
        responses = run()
    return (copies.count + waits.count).total(), waits.operators.total(), forwards, [each.raw_ids for each in responses]


def unreached(spec, model, sampling):
    """A guard that works as any other and flags nothing, without a fit."""
    rng, width = np.random.default_rng(0), model.hidden_size
    if spec == "sri":
        guard, steps = SRIGuard(), steps_of(model, sampling)
        means = [torch.from_numpy(rng.normal(size=(steps, width))).float() for _ in range(2)]
        about = {"model": model.name, "adapter": None, "fingerprint": model.fingerprint, "sampling": sampling}
        guard.anchors = Anchors(*means, counts=(1, 1), needs_all_steps=False, **about)
        signals = rng.uniform(size=(20, steps))
        guard.detectors = (Detector.of(Autoencoder.fit(signals, epochs=1), signals),)
        guard.bind(model, sampling)
        return guard
    states = lambda: rng.normal(size=(2, 6, width)).astype(np.float32)  # noqa: E731
    kinds = [[Exchange(Request("t30"), text, states=states()) for _ in range(4)] for text in ("t50", "t60", "t70")]
    guard = make(spec).learn(model, Labelled(*kinds), sampling=sampling)
    guard.bind(model, sampling)
    watcher = guard.watcher()
    sample(model, PROMPTS, sampling, watchers=[watcher])
    return guard.train(None, [watcher.signal(row).numpy() for row in range(len(PROMPTS))])


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(
    ("spec", "once", "most"),
    [
        (
            "hesitate",
            1,
            60,
        ),  # once: for the looks that wait as the call ends. most: operators a step, of over two hundred
        ("sri-blocks", 2, 60),  # and its anchors, which are on the host as it is
        ("sri", 1, 60),
        ("energy:size=4", 0, 100),
        ("cascade:members=[energy:size=4, hesitate]", 0, 100),
    ],
)
def test_a_guard_waits_for_the_device_no_more_than_the_sampler_does(model, spec, once, most, settings):
    sampling = Sampling(length=24, block=8, **settings)
    guard = unreached(spec, model, sampling)
    waits, operators, forwards, tokens = cost(lambda: sample(model, PROMPTS, sampling))
    guarded = cost(lambda: guard.sample(model, PROMPTS, sampling))
    assert guarded[2:] == (forwards, tokens)
    assert guarded[0] - waits <= once
    assert (guarded[1] - operators) / forwards < most


@pytest.mark.parametrize("settings", [*SETTINGS, {"steps": 12, "end": "keep"}, {"steps": 12, "guidance": 1.0}], ids=str)
def test_a_step_waits_for_the_device_once(model, settings):
    """And the call a few times, for what it was given and what came out."""
    waits, forwards = [], []
    for length in (8, 24):
        sampling = Sampling(
            length=length, block=8, **settings | ({"steps": length // 2} if "steps" in settings else {})
        )
        *counts, _ = cost(lambda sampling=sampling: sample(model, PROMPTS, sampling))
        waits.append(counts[0])
        forwards.append(counts[2])
    blocks = 3  # of the longer one; the schedule's counts are read on the host
    assert forwards[1] > forwards[0]
    assert waits[1] - waits[0] <= forwards[1] - forwards[0] + len(PROMPTS) * (blocks - 1)


def test_a_wait_is_seen(model):
    sampling = Sampling(length=16, block=8, steps=4)

    class Reads:
        needs_all_steps = False

        def on_start(self, canvas):
            pass

        def on_step(self, step):
            step.committed.sum().item()
            step.ids[step.ids == 2]
            step.new.tolist()
            step.fetch(step.new.float())

        on_end = on_start

    waits, _, forwards, _ = cost(lambda: sample(model, PROMPTS, sampling))
    seen, *_ = cost(lambda: sample(model, PROMPTS, sampling, watchers=[Reads()]))
    assert seen == waits + 3 * forwards  # the last one goes with the sampler's
