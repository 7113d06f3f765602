"""Runs of the sampler that are filled together, whatever the family, its attention and its caches."""

import pytest
import torch
from published import CHECKPOINTS, ENCODERS

import midward
from midward.sampling import Forced, Request, Sampling, fill, sample
from midward.sampling.passes import Forward, together

TEXTS = [" ".join(f"t{20 + 7 * i + n}" for i in range(count)) for n, count in enumerate((3, 17, 9, 3, 26, 1))]


def in_company(runs, apart):
    """Drive runs in lockstep, each `apart` steps behind the one before; their results."""
    results, wanted, waiting, tick = {}, {}, dict(enumerate(runs)), 0
    while waiting or wanted:
        computed = dict(zip(wanted, together(list(wanted.values())), strict=True))
        joined = [number for number in waiting if number * apart <= tick]
        for number in [*wanted, *joined]:
            try:
                wanted[number] = runs[number].send(computed.get(number))
            except StopIteration as end:
                results[number] = end.value
                wanted.pop(number, None)
        for number in joined:
            del waiting[number]
        tick += 1
    return [results[number] for number in range(len(runs))]


@pytest.mark.parametrize("name", [*CHECKPOINTS, *ENCODERS])
def test_everyone_has_the_tokens_that_they_have_alone(name, folders, monkeypatch):
    torch.manual_seed(0)
    model = midward.load(folders[name], device="cpu", dtype="float32")
    settings = [
        Sampling.for_model(model, length=24, block=8, steps=12, threshold=None),
        Sampling.for_model(model, length=19, block=8, steps=19, threshold=None, order="random", temperature=1.0),
        Sampling.for_model(model, length=24, block=4, threshold=0.05, order="low_confidence"),
    ]
    if model.family.attention == "full" and not model.is_encoder:
        settings.append(Sampling.for_model(model, length=24, block=8, steps=24, threshold=None, cache="dual"))
        settings.append(Sampling.for_model(model, length=16, block=8, steps=16, threshold=None, cache="prefix"))
    asked = [
        ([Request(text, (Forced(1, (30,)),), seed=n) for text in TEXTS[n : n + 3]], sampling)
        for n, sampling in enumerate(settings)
    ]
    sizes, join = [], Forward.compute
    monkeypatch.setattr(Forward, "compute", lambda each: sizes.append(len(each.ids)) or join(each))
    alone = [sample(model, requests, sampling, batch_size=3) for requests, sampling in asked]
    of_all = len(sizes)
    sizes.clear()
    runs = [fill(model, requests, sampling, batch_size=3) for requests, sampling in asked]
    with torch.no_grad():
        company = in_company(runs, apart=2)
    assert len(sizes) < 0.8 * of_all  # the others were done together
    assert [[each.raw_ids for each in run] for run in company] == [[each.raw_ids for each in run] for run in alone]
