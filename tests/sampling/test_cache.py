"""The caches of keys and values: exact where nothing is frozen that changes, and what they say where something is."""

import copy

import pytest
import torch
from checkpoints import FIXTURES
from transformers import DynamicCache
from watching import Watching

import midward
from midward import Ban, Forced, Request, Sampling, Trace, sample
from midward.dynamics import PooledStates
from midward.sampling import Agreement, agreement
from midward.sampling.cache import SlotCache
from midward.sampling.choose import choose

MASK = 2
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14], [15, 16, 17, 18]]


def tokens(responses):
    return [response.raw_ids for response in responses]


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("known", [False, True])  # to the host: where the columns begin
def test_a_part_against_the_rest_equals_the_whole(lively, padded, known):
    ids = torch.randint(5, 512, (3, 14), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :4] = mask[2, :1] = 0
    seen = mask if padded else None
    cache = SlotCache(lively.config.num_hidden_layers, 3, 14)
    cache.aim(None, torch.arange(14)[None], 14)
    whole = lively.hidden(ids, seen, cache, torch.arange(14)[None])
    torch.testing.assert_close(whole, lively.hidden(ids, seen))
    for rows, first, count in ((None, 5, 9), (None, 6, 3), ([2, 0], 7, 4), (None, 13, 1)):
        columns = torch.arange(first, first + count)[None]
        at = torch.arange(3) if rows is None else torch.tensor(rows)
        cache.aim(None if rows is None else at, columns, 14, first if known else None)
        part = lively.hidden(ids[at][:, columns[0]], None if seen is None else seen[at], cache, columns)
        assert torch.allclose(part, whole[at][:, columns[0]], atol=1e-5)
    # Each row at columns of its own, after a row was dropped.
    cache.keep(torch.tensor([0, 2]))
    columns = torch.tensor([[6, 7, 8], [9, 10, 11]])
    cache.aim(None, columns, 14)
    own = torch.tensor([0, 2])
    part = lively.hidden(ids[own].gather(1, columns), None if seen is None else seen[own], cache, columns)
    assert torch.allclose(part, whole[own[:, None], columns], atol=1e-5)


@torch.no_grad()
def restated(model, prompt, *, length, block, steps, kind):
    """One row, temperature 0: keys and values frozen at each block's start, in transformers' own growing cache.

    Attention has no order of its own, so the block may stand behind what follows it. With shifted logits a block's
    states begin a position earlier.
    """
    mask = model.family.mask_id
    x = torch.tensor([prompt + [mask] * length])
    width, each = len(prompt), steps // (length // block)
    for start in range(width, width + length, block):
        stop, first = start + block, start - model.family.shift
        end = stop if kind == "dual" else x.shape[1]
        for step in range(each):
            if step == 0:
                frozen = DynamicCache(config=model.config)
                hidden = model.hidden(x, None, frozen)[0, first:]
                for layer in frozen.layers:
                    for name in ("keys", "values"):
                        every = getattr(layer, name)
                        setattr(layer, name, torch.cat([every[:, :, :first], every[:, :, end:]], 2))
            else:
                columns = torch.arange(first, end)[None]
                hidden = model.hidden(x[:, first:end], None, copy.deepcopy(frozen), columns)[0]
            token, score, _ = choose(model, hidden[:block], forbidden=[mask])
            count = block // each + (step < block % each)
            best = score.masked_fill(x[0, start:stop] != mask, -torch.inf).topk(count).indices
            x[0, start + best] = token[best]
    return x[0, width:].tolist()


@pytest.mark.parametrize("kind", ["prefix", "dual"])
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_tokens_are_those_of_frozen_keys_and_values(lively, family, kind):
    model = lively if family == "llada" else midward.load(FIXTURES / "dream-tiny", device="cpu", dtype="float32")
    settings = dict(length=24, steps=12, block=8, order="low_confidence", end="keep")
    rows = [[token + 20 for token in row] for row in PROMPTS]
    found = tokens(sample(model, rows, Sampling(**settings, cache=kind)))
    assert found == [restated(model, row, length=24, block=8, steps=12, kind=kind) for row in rows]
    assert found != tokens(sample(model, rows, Sampling(**settings)))  # or this compares nothing


@pytest.mark.parametrize("kind", ["prefix", "dual"])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"guidance": 1.5}, {"order": "entropy"}])
def test_with_a_whole_forward_in_every_step_it_is_exact(lively, kind, options):
    lively.network.lm_head.weight.data[MASK] = 0  # which an exact run may choose
    settings = dict(length=24, steps=4, block=6, end="keep", **options)
    requests = [Request(PROMPTS[0], forced=(Forced(7, (40, 41)),)), *PROMPTS[1:]]
    exact = sample(lively, requests, Sampling(**settings))
    assert sample(lively, requests, Sampling(**settings, cache=kind)) == exact


@pytest.mark.parametrize("kind", ["prefix", "dual"])
@pytest.mark.parametrize(
    "options", [{"steps": 12}, {"threshold": 0.7}, {"steps": 12, "guidance": 0.7}, {"steps": 18, "temperature": 1.0}]
)
def test_batches_change_nothing(lively, kind, options):
    head = lively.network.lm_head.weight.data
    head[1] = head[23] * 1.02  # some rows end early
    settings = Sampling(length=24, block=6, cache=kind, **options)
    requests = [
        Request(PROMPTS[0], forced=(Forced(7, (40, 41, 42, 43)),)),  # it needs fewer steps in its second block
        Request(PROMPTS[1], bans=(Ban((50, 51), 3),)),
        *PROMPTS[2:],
    ]
    alone = [sample(lively, [request], settings)[0] for request in requests]
    assert len({one.nfe for one in alone}) > 1
    assert sample(lively, requests, settings, batch_size=4) == alone
    assert sample(lively, requests[::-1], settings, batch_size=3) == alone[::-1]


class Looking(Watching):
    """Compares what a step shows with a whole forward."""

    def __init__(self, model):
        super().__init__(self.compare, self.begin)
        self.model, self.seen = model, []

    def begin(self, canvas):
        self.canvas, self.before = canvas, canvas.ids.clone()

    def compare(self, step):
        rows = [next(i for i, row in enumerate(self.canvas.rows) if row.index == index) for index in step.rows]
        mask = None if self.canvas.mask is None else self.canvas.mask[rows]
        with torch.no_grad():
            whole = self.model.hidden(self.before[rows], mask)[:, step.response]
        self.seen.append((step.hidden_positions, step.hidden, whole[:, step.hidden_positions]))
        self.before = self.canvas.ids.clone()


@pytest.mark.parametrize("kind", ["prefix", "dual"])
@pytest.mark.parametrize("schedule", ["rounded", "published", "even"])
def test_a_row_that_skips_steps_of_its_block_comes_back(lively, kind, schedule):
    """Where much is given, a schedule has steps without a commit before and between others."""
    sampling = Sampling(length=16, steps=16, block=8, end="keep", cache=kind, schedule=schedule)
    given = [Request(PROMPTS[n % 4], forced=(Forced(0, tuple(range(40, 40 + n))),)) for n in range(1, 8)]
    together = sample(lively, [Request(PROMPTS[0]), *given], sampling)
    assert all(MASK not in response.raw_ids for response in together)
    assert tokens(together[1:]) == tokens([sample(lively, [request], sampling)[0] for request in given])


def test_a_step_says_which_positions_it_computed(lively):
    for kind, later in (("prefix", [slice(0, 12), slice(6, 12)]), ("dual", [slice(0, 6), slice(6, 12)])):
        look = Looking(lively)
        sample(lively, PROMPTS, Sampling(length=12, steps=4, block=6, cache=kind), watchers=[look])
        whole = slice(0, 12)
        assert [positions for positions, *_ in look.seen] == [whole, later[0], whole, later[1]]
        for step, (_, hidden, wanted) in enumerate(look.seen):
            assert hidden.shape == wanted.shape
            assert torch.allclose(hidden, wanted, atol=1e-4) == (step % 2 == 0)  # a block's first is whole


def test_predictions(lively):
    settings = dict(length=12, steps=4, block=6, end="keep")
    trace = Trace(predictions=True)
    sample(lively, PROMPTS, Sampling(**settings, cache="prefix"), watchers=[trace])
    assert MASK not in trace.predicted_ids(0, 1)
    with pytest.raises(ValueError, match="nothing is predicted behind"):
        sample(lively, PROMPTS, Sampling(**settings, cache="dual"), watchers=[Trace(predictions=True)])
    sample(lively, PROMPTS, Sampling(**settings, cache="dual"), watchers=[Trace()])


def test_refusals(lively, llama):
    settings = Sampling(length=8, steps=4, block=4, cache="dual")
    with pytest.raises(ValueError, match=r"cache='dual' can't be used: PooledStates reads states"):
        sample(lively, PROMPTS, settings, watchers=[PooledStates()])
    with pytest.raises(ValueError, match="the prompt of request 1 holds masks"):
        sample(lively, [PROMPTS[0], [5, MASK, 6]], settings)
    with pytest.raises(ValueError, match="is autoregressive and needs none"):
        sample(llama, PROMPTS, Sampling.for_model(llama, length=8, cache="prefix"))
    with pytest.raises(ValueError, match="cache"):
        Sampling(cache="suffix")


def test_agreement(lively):
    settings = dict(length=16, block=8, steps=8)
    exact = Sampling(**settings)
    same = agreement(lively, PROMPTS, exact, exact)
    assert (
        same.token_share == 1 and same.equal_responses == same.responses and same.forwards_exact == same.forwards_fast
    )
    fast = agreement(lively, PROMPTS, exact, Sampling(**settings, cache="dual"))
    a, b = (sample(lively, PROMPTS, Sampling(**settings, cache=cache)) for cache in (None, "dual"))
    counted = [(x, y) for one, two in zip(a, b) for x, y in zip(one.raw_ids[: len(one.ids) + one.ended], two.raw_ids)]
    assert (fast.equal_tokens, fast.tokens) == (sum(x == y for x, y in counted), len(counted))
    assert 0 < fast.token_share < 1 and str(fast.tokens) in str(fast)
    lively.network.lm_head.weight.data[1] *= 3  # some end, and with "keep" their ids go on behind it
    kept = Sampling(**settings, end="keep")
    assert any(each.ended for each in sample(lively, PROMPTS, kept))
    kept_alike = agreement(lively, PROMPTS, kept, kept)
    assert kept_alike.token_share == 1 and kept_alike.tokens == 16 * len(PROMPTS)
    empty = Agreement(0, 0, 0, 0, 0, 0)
    assert empty.token_share != empty.token_share and "0 of 0" in str(empty)
