"""At temperature 0, Dream and the block-causal families give the tokens of their own published samplers."""

import pytest
import torch
from published import CHECKPOINTS, ROWS

import midward
from midward import Sampling, sample
from midward.sampling.choose import choose

MASK = 3


def logits(model, ids):
    with torch.no_grad():
        return model.head(model.hidden(ids))


def prompts(*lengths, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(10, ROWS, (length,), generator=generator).tolist() for length in lengths]


def commits(kind, masks, steps):
    """Tokens of each step: "even", or Dream's own, by times that fall linearly from 1 to a thousandth."""
    if kind == "even":
        return [masks // steps + (step < masks % steps) for step in range(steps)]
    times = torch.linspace(1, 1e-3, steps + 1).tolist()
    counts, left = [], masks
    for step in range(steps):
        count = left if step == steps - 1 else int(left * (1 - times[step + 1] / times[step]))
        counts.append(count)
        left -= count
    return counts


def dream_sampler(model, prompt, *, length, counts, order):
    """Response tokens at temperature 0. Position i is predicted from the logits at i - 1."""
    x = torch.tensor([prompt + [MASK] * length])
    for count in counts:
        here = logits(model, x).double()
        here = torch.cat([here[:, :1], here[:, :-1]], 1)[0]
        p = here.softmax(-1)
        best, at = p.topk(2, dim=-1)
        sure = {
            "low_confidence": best[:, 0],
            "margin": best[:, 0] - best[:, 1],
            "entropy": (p * (p + 1e-10).log()).sum(-1),
        }[order]
        sure = sure.masked_fill(x[0] != MASK, -torch.inf)
        for place in sure.topk(count).indices.tolist():
            x[0, place] = at[place, 0]
    return x[0, len(prompt) :].tolist()


def block_sampler(model, prompt, *, length, block, steps, threshold):
    """Response tokens at temperature 0: whole blocks, counted from the prompt's start; `steps` for each."""
    total = -(-(len(prompt) + length) // block) * block
    x = torch.tensor([prompt + [MASK] * (total - len(prompt))])
    for number in range(len(prompt) // block, total // block):
        end = (number + 1) * block
        for step in range(steps):
            masked = (x[0, :end] == MASK).nonzero()[:, 0]
            if not len(masked):
                break
            here = logits(model, x[:, :end])[0, masked].double()
            here[:, MASK] = -torch.inf
            p, token = here.softmax(-1).max(-1)
            count = min(block // steps + (step < block % steps), len(masked))
            chosen = (p > threshold).nonzero()[:, 0] if threshold is not None else []
            if len(chosen) < count:
                chosen = p.topk(count).indices
            x[0, masked[chosen]] = token[chosen]
    return x[0, len(prompt) : len(prompt) + length].tolist()


@pytest.mark.parametrize("order", ["low_confidence", "entropy", "margin"])
def test_dream(order, folders):
    model = midward.load(folders["dream"], device="cpu", dtype="float32")
    rows = prompts(7, 4, 9)
    for steps in (12, 5):
        settings = Sampling(length=12, steps=steps, order=order, end="keep")
        got = [response.raw_ids for response in sample(model, rows, settings)]
        counts = commits("even", 12, steps)
        assert got == [dream_sampler(model, row, length=12, counts=counts, order=order) for row in rows]
    assert len({token for row in got for token in row}) > 6, "the model says too little for a comparison"


def test_dream_schedule_differs_only_in_the_last_token(folders):
    """With a step a token, the published schedule waits in the first step and commits two tokens in the last."""
    model = midward.load(folders["dream"], device="cpu", dtype="float32")
    counts = commits("published", 16, 16)
    assert counts == [0, *[1] * 14, 2]
    for row in prompts(6, 8, 11):
        theirs = dream_sampler(model, row, length=16, counts=counts, order="entropy")
        (ours,) = sample(model, [row], Sampling(length=16, steps=16, order="entropy", end="keep"))
        assert sum(a != b for a, b in zip(theirs, ours.raw_ids, strict=True)) <= 1


def test_a_mask_at_the_start_of_a_padded_prompt(folders):
    """With shifted logits the first position keeps its own, also behind padding."""
    model = midward.load(folders["dream"], device="cpu", dtype="float32")
    short, long = [[MASK, *row[1:]] for row in prompts(4, 9)]
    settings = Sampling(length=6, steps=6, end="keep")
    together = sample(model, [short, long], settings)
    assert [r.prompt_ids for r in together] == [sample(model, [row], settings)[0].prompt_ids for row in (short, long)]
    assert MASK not in together[0].prompt_ids


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("order", ["entropy", "margin"])
def test_ranks(order, temperature, folders):
    """Both orders rank as their definition in float64 does, and tell peaked distributions apart."""
    head = torch.nn.Identity()
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(1, 40, 60)[:, None]
    values = torch.randn(60, 30, generator=generator) * scale
    model = type("Head", (), {"head": staticmethod(head.forward), "vocab_size": 30})()
    uniforms = torch.rand(60, generator=generator) if temperature else None
    *_, rank = choose(model, values.clone(), uniforms, order=order, temperature=temperature, forbidden=[4])
    exact = values.double().index_fill(1, torch.tensor([4]), -torch.inf) / (temperature or 1.0)
    p = exact.softmax(-1)
    top = exact.topk(2).values
    others = (exact - top[:, :1]).exp().sort(descending=True).values[:, 1:].sum(-1)
    margin = p.topk(2).values @ torch.tensor([1.0, -1.0], dtype=torch.float64)
    log_margin = -((others + (top[:, 1] - top[:, 0]).exp()) / (1 + others)).log()
    wanted = {"entropy": -torch.special.entr(p).sum(-1), "margin": torch.where(margin < 0.5, margin, log_margin)}[order]
    exact = 1 - p.max(-1).values > 1e-9 if order == "entropy" else slice(None)  # entr(p) of p near 1 is lost
    assert torch.allclose(rank.double()[exact], wanted[exact], rtol=1e-4, atol=1e-30)
    if order == "margin":
        assert rank.argsort().tolist() == log_margin.argsort().tolist()
    assert len(set(rank.tolist())) > 50


@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("name", ["sdar", "sdar-moe", "llada2"])
def test_blocks(name, threshold, folders):
    model = midward.load(folders[name], device="cpu", dtype="float32")
    block = model.family.attention_block
    count = 2 if name == "llada2" else 3
    rows = prompts(*[block + shift for shift in ((30,) if name == "llada2" else (0, 1, block - 1))])
    for row in rows:
        length = count * block - len(row) % block  # ends where a block ends
        settings = Sampling(length=length, steps=length, block=block, threshold=threshold, end="keep")
        expected = block_sampler(model, row, length=length, block=block, steps=block, threshold=threshold)
        (got,) = sample(model, [row], settings)
        assert got.raw_ids == expected
        assert threshold is None or got.nfe < length
        if threshold is None:
            assert got.nfe == length


@pytest.mark.parametrize("name", ["sdar", "dream"])
def test_batches_change_nothing(name, folders):
    model = midward.load(folders[name], device="cpu", dtype="float32")
    block = CHECKPOINTS[name][0].get("block_size")
    rows = prompts(3, 8, 6)
    for settings in (
        Sampling(length=7, steps=5, block=block, temperature=0.9),
        Sampling(length=7, block=block, threshold=0.1, temperature=1.0, end="keep"),
        Sampling(length=7, steps=6, block=block, order="entropy", temperature=0.3),
        Sampling(length=7, steps=7, block=block, order="left_to_right", end="forbid"),
    ):
        alone = [sample(model, [row], settings)[0] for row in rows]
        assert sample(model, rows, settings, batch_size=3) == alone
        assert sample(model, rows[::-1], settings, batch_size=2) == alone[::-1]


@pytest.mark.parametrize("steps", [3, 4, 9, 12])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_steps_of_shifted_blocks(steps, offset):
    """Blocks tile the response, each gets a step, and together they get the steps that were asked for."""
    settings = Sampling(length=12, steps=steps, block=4)
    blocks, shares = settings.blocks_after(offset), settings.steps_after(offset)
    assert [position for start, stop in blocks for position in range(start, stop)] == list(range(12))
    assert all((stop + offset) % 4 == 0 for _, stop in blocks[:-1])
    assert min(shares) >= 1 and sum(shares) == max(steps, len(blocks))
