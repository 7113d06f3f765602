"""Tokens chosen a tile of the vocabulary at a time are those chosen from whole rows of logits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from midward.sampling import Sampling, choose, sample


@given(
    seed=st.integers(0, 2**16),
    tile=st.sampled_from([1, 3, 8, 64]),
    spread=st.sampled_from([0.0, 1.0, 20.0, 200.0]),
    forbidden=st.lists(st.integers(0, 36), max_size=4),
    strange=st.sampled_from([None, math.nan, math.inf, -math.inf]),
)
def test_tiles_choose_what_whole_rows_choose(seed, tile, spread, forbidden, strange):
    random = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(5, 8, generator=random), spread * torch.randn(37, 8, generator=random)
    if strange is not None:
        weight[torch.randint(37, (2,), generator=random)] = 0.0
        weight[torch.randint(37, (1,), generator=random), 0] = strange
    logits = hidden @ weight.T
    logits[:, forbidden] = -torch.inf
    token, score = choose._from_logits(logits.clone(), 0.0, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "TILE", tile)
        tiled, tiled_score = choose._by_tiles(hidden, weight, forbidden)
    known = ~score.isnan()
    assert torch.equal(tiled[known], token[known])
    far = score > 140  # where the others' odds leave float32: who is past it is so in both
    torch.testing.assert_close(tiled_score[~far], score[~far], atol=1e-4, rtol=1e-4, equal_nan=True)
    torch.testing.assert_close(tiled_score[far].clamp(max=166), score[far].clamp(max=166), atol=1.0, rtol=0.0)


@pytest.mark.parametrize("settings", [{}, {"threshold": 0.02}, {"cache": "dual"}, {"end": "forbid"}], ids=str)
def test_sampling_by_tiles_gives_the_same_tokens(lively, monkeypatch, settings):
    sampling, prompts = Sampling(length=24, steps=24, block=8, **settings), ["t30 t31", "t40 t41 t42"]
    whole = sample(lively, prompts, sampling)
    calls, by_tiles = [], choose._by_tiles
    monkeypatch.setattr(choose, "TILED", 0)
    monkeypatch.setattr(choose, "TILE", 100)
    monkeypatch.setattr(choose, "_by_tiles", lambda *args: calls.append(args) or by_tiles(*args))
    assert [each.raw_ids for each in sample(lively, prompts, sampling)] == [each.raw_ids for each in whole]
    assert calls
    calls.clear()
    lively.causal_lm.get_output_embeddings().register_forward_hook(lambda *_: None)  # who hooks the head sees all of it
    sample(lively, prompts, sampling)
    assert not calls
