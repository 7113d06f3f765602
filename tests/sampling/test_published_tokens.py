"""At temperature 0 the tokens are those of the published algorithm, whatever the settings."""

import re

import pytest
import torch
from checkpoints import FIXTURES
from reference import published_sampler
from safetensors.torch import load_file

from midward import Sampling, sample
from midward.sampling import noise
from midward.sampling.requests import Request

GOLDEN = load_file(FIXTURES / "llada-tiny" / "golden.safetensors")
MASK = 2


def forward(model):
    def logits(ids, mask):
        with torch.no_grad():
            return model.head(model.hidden(ids, mask)).clone()

    return logits


def scale_logits(model, std, ids):
    """Scale the head so that logits over the vocabulary have this standard deviation."""
    now = forward(model)(ids, None).std(-1).mean()
    model.network.lm_head.weight.data *= std / now


def tokens(responses):
    return torch.tensor([response.raw_ids for response in responses])


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", sorted(name for name in GOLDEN if name.startswith("tokens_")))
def test_official_tokens(llada, name, batch_size):
    steps, length, block = map(int, re.search(r"steps(\d+)_len(\d+)_block(\d+)", name).groups())
    prompts = [row.tolist() for row in GOLDEN["prompt"]]
    if "leftpadded" in name:
        prompts = [
            [token for token, kept in zip(row, mask.tolist(), strict=True) if kept]
            for row, mask in zip(prompts, GOLDEN["prompt_mask"], strict=True)
        ]
    settings = Sampling(length=length, steps=steps, block=block, guidance=1.5 if "cfg1.5" in name else 0.0, end="keep")
    assert torch.equal(tokens(sample(llada, prompts, settings, batch_size=batch_size)), GOLDEN[name])


SHORT = {"length": 12, "blocks": (12, 6, 3), "all_steps": (12, 4, 8, 5, 16)}
LONG = {"length": 48, "blocks": (48, 24, 8), "all_steps": (48, 12, 24, 18, 30, 7, 96)}


@pytest.mark.parametrize("std", [3, pytest.param(10, marks=pytest.mark.slow), 30])
@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("order", ["low_confidence", "random", "left_to_right"])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lively", SHORT),
        pytest.param("lively", LONG, marks=pytest.mark.slow),
        pytest.param("llada", LONG, marks=pytest.mark.slow),
    ],
)
def test_plain_reference(request, name, shape, order, guidance, std):
    """Every block with every number of steps; a number that doesn't divide the length is among them."""
    model, length = request.getfixturevalue(name), shape["length"]
    prompt = torch.randint(5, 512, (3, 6), generator=torch.Generator().manual_seed(7))
    scale_logits(model, std, prompt)
    seeds = torch.tensor([noise.row_seed(0, Request(row), row) for row in prompt.tolist()])
    priority = noise.uniform(seeds[:, None], -1, torch.arange(-6, length)[None])
    for block in shape["blocks"]:
        for steps in shape["all_steps"]:
            if steps % (length // block):
                continue  # the published algorithm asks for equal steps a block
            expected = published_sampler(
                forward(model),
                prompt,
                length=length,
                steps=steps,
                block=block,
                mask_id=MASK,
                order=order,
                guidance=guidance,
                priority=priority,
                exact_ties=guidance > 0,
            )
            assert len(expected.unique()) > 4, "the model says too little for a comparison"
            settings = Sampling(length=length, steps=steps, block=block, order=order, guidance=guidance, end="keep")
            assert torch.equal(tokens(sample(model, prompt.tolist(), settings)), expected), (block, steps)


def test_predicted_mask_token_stays_masked(lively):
    """The published algorithm may choose the mask token; then the position stays masked."""
    prompt = torch.randint(5, 512, (4, 8), generator=torch.Generator().manual_seed(3))
    plain = tokens(sample(lively, prompt.tolist(), Sampling(length=16, steps=8)))
    head = lively.network.lm_head.weight.data
    head[MASK] = head[plain.flatten().mode().values] * 1.2
    expected = published_sampler(forward(lively), prompt, length=16, steps=8, block=8, mask_id=MASK)
    assert (expected == MASK).any()
    got = sample(lively, prompt.tolist(), Sampling(length=16, steps=8, block=8, end="keep"))
    assert torch.equal(tokens(got), expected)
    # With a threshold that would run forever, so there the mask token is never chosen.
    got = sample(lively, prompt.tolist(), Sampling(length=16, threshold=0.5, end="keep"))
    assert not (tokens(got) == MASK).any()


def test_padding_and_batches_change_nothing(lively):
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(5, 512, (n,), generator=generator).tolist() for n in (3, 9, 14, 9, 5)]
    for settings in (
        Sampling(length=20, steps=10, block=10),
        Sampling(length=20, steps=20, guidance=0.7),
        Sampling(length=20, steps=10, temperature=0.8),
        Sampling(length=20, steps=10, order="random"),
        Sampling(length=20, threshold=0.02),
        Sampling(length=20, steps=20, order="left_to_right", end="forbid"),
    ):
        alone = [sample(lively, [prompt], settings)[0] for prompt in prompts]
        assert sample(lively, prompts, settings, batch_size=5) == alone
        assert sample(lively, prompts, settings, batch_size=2) == alone
        assert sample(lively, prompts[::-1], settings, batch_size=3) == alone[::-1]


def test_uneven_blocks_fill_everything(lively):
    settings = Sampling(length=22, steps=7, block=8, end="keep")
    assert settings.blocks == [(0, 8), (8, 16), (16, 22)] and settings.block_steps == [3, 2, 2]
    (response,) = sample(lively, [[5, 6, 7]], settings)
    assert MASK not in response.raw_ids and response.nfe == 7


def test_early_stop_keeps_the_text(lively):
    """Up to the first end token, stopping early changes nothing; it only saves forwards."""
    head = lively.network.lm_head.weight.data
    head[1] = head[23] * 1.02  # an end token that comes up often
    prompts = [[n, n + 1, n + 2] for n in range(10, 90, 10)]
    saved = 0
    for settings in (dict(block=8), dict(block=None), dict(block=8, order="random"), dict(threshold=0.02, block=8)):
        stopped = sample(lively, prompts, Sampling(length=32, steps=16, end="stop", **settings))
        full = sample(lively, prompts, Sampling(length=32, steps=16, end="keep", **settings))
        for short, long in zip(stopped, full, strict=True):
            assert short.ended == (1 in long.raw_ids or 3 in long.raw_ids)
            assert short.ids == long.raw_ids[: len(short.ids)]
            assert all(token in (MASK, kept) for token, kept in zip(short.raw_ids, long.raw_ids, strict=True))
            saved += long.nfe - short.nfe
    assert saved > 0


def test_steps_without_commits_cost_nothing(lively):
    responses = sample(lively, [[5, 6, 7]], Sampling(length=16, steps=32, end="keep"))
    assert responses[0].nfe == responses[0].steps == 16
    guided = sample(lively, [[5, 6, 7]], Sampling(length=16, steps=4, guidance=1.0, end="keep"))
    assert (guided[0].nfe, guided[0].steps) == (8, 4)
