"""Block-causal families keep the keys and values of what is final, and nothing of a generation changes by it."""

from dataclasses import replace

import pytest
import torch
from published import ROWS
from watching import Watching

import midward
from midward import Ban, Edit, Forced, Request, Sampling, sample
from midward.dynamics import PooledStates
from midward.dynamics.blockwise import States as BlockStates
from midward.dynamics.looks import Looks
from midward.sampling.settings import blocks_of_steps

MASK = 3


@pytest.fixture(params=["sdar", "bd3lm", "bd3lm, shifted"])
def model(folders, request):
    model = midward.load(folders[request.param.split(",")[0]], device="cpu", dtype="float32")
    model.family = replace(model.family, shift="shifted" in request.param)
    return model


def prompts(*lengths):
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(10, ROWS, (length,), generator=generator).tolist() for length in lengths]


class States(Watching):
    """Keeps what each step shows of the rows."""

    def __init__(self, *, look=True, whole=False):
        super().__init__(self.keep)
        self.look, self.needs_states, self.seen = look, "response" if whole else "block", {}

    def keep(self, step):
        if self.look:
            tokens, confidence = step.predictions
            assert step.hidden_positions == slice(0, tokens.shape[1])
            for i, row in enumerate(step.rows):
                self.seen[step.index, row] = (step.hidden[i], tokens[i], confidence[i])


def uncached(model, requests, settings, **options):
    """The same without the cache: a watcher that reads everything turns it off."""
    return sample(model, requests, settings, watchers=[States(look=False, whole=True)], **options)


SETTINGS = [
    dict(steps=12, block=4),
    dict(steps=12, block=4, prompt_masks="published"),
    dict(block=4, threshold=0.2, temperature=1.0),
    dict(steps=12, block=4, guidance=0.7),
    dict(steps=9, block=8, end="keep"),
    dict(steps=7, block=6, order="random"),  # blocks that cut attention's own
    dict(steps=5),
]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_the_same_responses(model, options):
    requests = [
        *prompts(3, 8, 6),
        Request(prompts(9)[0], forced=(Forced(5, (40, 41)), Forced(9, (42,)))),
        Request(prompts(5)[0], bans=(Ban((50, 51), 3),)),
        [12, MASK, 13, 14, MASK, 15, 16],
        [*prompts(11)[0], MASK],
    ]
    settings = Sampling(length=13, **options)
    wanted = uncached(model, requests, settings, batch_size=3)
    assert len({token for one in wanted for token in one.raw_ids}) > 6, "the model says too little"
    assert sample(model, requests, settings, batch_size=7) == wanted
    assert [sample(model, [request], settings)[0] for request in requests[2:]] == wanted[2:]


@pytest.mark.parametrize("options", [dict(steps=12, block=4), dict(steps=13), dict(threshold=0.2)], ids=str)
def test_what_an_edit_changed_is_computed_again(model, options):
    settings = Sampling(length=13, **options)
    if settings.block is None:  # all may be edited, final attention blocks too
        edits = (Edit(3, (Forced(1, (40, 41)),), (0, 4, 9)), Edit(6, (Forced(11, (42,)),), "all"))
    else:
        blocks = blocks_of_steps(model.family, settings, 11)
        edits = tuple(
            Edit(step, (Forced(start + 2, (40,)),), (start, start + 1))
            for step, (start, stop) in enumerate(blocks)
            if stop - start > 2 and blocks[step - 1][0] < start == blocks[step + 1][0]  # the first step of a block
        )
    requests = [*prompts(3, 8), Request(prompts(11)[0], edits=edits), Request(prompts(11)[0][::-1], edits=edits[:1])]
    wanted = uncached(model, requests, settings)
    assert sample(model, requests, settings) == wanted
    assert [sample(model, [request], settings)[0] for request in requests] == wanted
    assert all(any(edit.remasked for edit in each.edits) for each in wanted[2:]), "this says nothing"


@pytest.mark.parametrize("name", ["sdar", "sdar-moe", "llada2", "bd3lm"])
def test_what_a_step_shows(name, folders):
    """Confidences come from the cached states; states from a whole forward, made for who asks."""
    model = midward.load(folders[name], device="cpu", dtype="float32")
    block = model.family.attention_block
    settings = Sampling(length=2 * block + 5, block=block, threshold=0.2, end="keep")
    requests = prompts(3, block + 4, 6)
    here, there = States(), States(whole=True)
    assert sample(model, requests, settings, watchers=[here]) == sample(model, requests, settings, watchers=[there])
    assert here.seen.keys() == there.seen.keys() and len(here.seen) > 9
    for key, (hidden, tokens, confidence) in here.seen.items():
        assert torch.allclose(hidden, there.seen[key][0], atol=1e-5)
        assert torch.equal(tokens, there.seen[key][1])
        assert torch.allclose(confidence, there.seen[key][2], atol=1e-5)


@pytest.mark.parametrize("model", ["sdar"], indirect=True)
def test_it_computes_little(model, monkeypatch):
    """The prompt once, then an attention block or two a step, unless a watcher reads the states of every position."""
    counted = []
    own = model.hidden

    def hidden(ids, mask=None, cache=None, columns=None, read=None):
        counted.append(ids.shape[1])
        return own(ids, mask, cache, columns, read)

    monkeypatch.setattr(model, "hidden", hidden)
    settings = Sampling(length=16, steps=16, block=4, end="keep")
    sample(model, prompts(8), settings)
    assert counted[0] == 12 and set(counted[1:]) == {4, 8} and counted.count(8) == 3
    counted.clear()
    sample(model, prompts(8), settings, watchers=[PooledStates()])
    assert set(counted) == {24}


def test_an_approximate_cache_is_refused(model):
    with pytest.raises(ValueError, match="its cache is exact and always on"):
        sample(model, prompts(3), Sampling(length=8, steps=8, block=4, cache="dual"))


@pytest.mark.parametrize("options", [SETTINGS[0], SETTINGS[2], SETTINGS[4]], ids=str)
def test_looks_at_blocks_cost_no_cache(model, options):
    """A guard by blocks reads the active block alone: the cache stays on, and its looks are those without one."""
    requests, settings = prompts(3, 8, 6), Sampling(length=13, **options)
    cached, bare = Looks(BlockStates(model.hidden_size)), Looks(BlockStates(model.hidden_size))
    with_cache = sample(model, requests, settings, watchers=[cached])
    without = sample(model, requests, settings, watchers=[bare, States(look=False, whole=True)])
    assert [each.raw_ids for each in with_cache] == [each.raw_ids for each in without]
    for row in range(len(requests)):
        torch.testing.assert_close(cached.signal(row), bare.signal(row), atol=2e-4, rtol=1e-3, equal_nan=True)
        assert cached.signal(row).isfinite().any()
