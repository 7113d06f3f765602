"""The peers that the bench restates give midward's tokens, where those are exact or made by the same approximation."""

from pathlib import Path

import pytest
import torch

from midward.sampling import Sampling, sample

ROOT = Path(__file__).parents[2]
LENGTH, BLOCK, STEPS = 24, 8, 12
IDS = torch.randint(5, 500, (3, 9), generator=torch.Generator().manual_seed(4))


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    import peers

    return peers


def ours(model, ids=IDS, **options):
    settings = {"length": LENGTH, "block": BLOCK, "steps": STEPS, "end": "keep", "order": "low_confidence", **options}
    return torch.tensor([each.raw_ids for each in sample(model, ids.tolist(), Sampling(**settings))])


@pytest.mark.parametrize("kind", ["dual", "prefix"])
@pytest.mark.parametrize("steps", [12, 24])
def test_the_restated_cache_commits_what_midwards_does(peers, lively, kind, steps):
    theirs = peers.frozen(lively, IDS, length=LENGTH, steps=steps, block=BLOCK, kind=kind)
    assert torch.equal(theirs, ours(lively, steps=steps, cache=kind))
    assert not torch.equal(theirs, ours(lively, steps=steps))  # or this compares nothing


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.99])
def test_by_threshold_too(peers, lively, threshold):
    theirs = peers.frozen(lively, IDS, length=LENGTH, steps=LENGTH, block=BLOCK, threshold=threshold)
    assert torch.equal(theirs, ours(lively, steps=LENGTH, cache="dual", threshold=threshold))


@pytest.mark.parametrize("most", [1, 2, 8])
def test_requests_that_share_steps_come_out_as_alone(peers, lively, most):
    batches = peers.StepBatches(lively, length=LENGTH, steps=STEPS, block=BLOCK, most=most)
    requests = [batches.submit(row) for row in IDS.tolist()]
    longer = batches.submit([*IDS[0].tolist(), 7])  # of another length: never in the same group
    batches.run()
    rows = torch.stack([request.canvas[-LENGTH:] for request in requests])
    assert torch.equal(rows, ours(lively))
    assert torch.equal(longer.canvas[None, -LENGTH:], ours(lively, torch.tensor([[*IDS[0].tolist(), 7]])))
    assert torch.equal(rows, peers.official(lively, IDS, length=LENGTH, steps=STEPS, block=BLOCK))
