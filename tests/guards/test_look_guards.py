"""Guards by blocks: one file for every number of steps, the same verdict in front of a model and afterwards."""

from typing import Any

import numpy as np
import pytest
import torch
from guard_world import fit, prompts

from midward.errors import InputError
from midward.guards import STUB, Exchange, GuardError, SRIBlocksGuard, load, make
from midward.guards.config import conformal_order
from midward.guards.logits import Energy
from midward.sampling import Request, Sampling, sample

FRESH = prompts(300, 24)
BLOCKS: dict[str, Any] = {"length": 16, "block": 8, "order": "low_confidence"}


@pytest.fixture(scope="module")
def sampling():
    return Sampling(**BLOCKS, steps=8)


@pytest.fixture(scope="module")
def fitted(model, sampling, tmp_path_factory):
    folder = tmp_path_factory.mktemp("looks")
    guard = SRIBlocksGuard()
    paths = fit(model, {"sri-blocks": guard}, folder, sampling)
    return guard, paths["sri-blocks"]


def looked_at(model, guard, requests, sampling, *others):
    """What a guard reads of these generations: a table [blocks, J, F + 1] a request."""
    watcher = guard.watcher()
    sample(model, requests, sampling, watchers=[watcher, *others])
    return [watcher.signal(row).numpy() for row in range(len(requests))]


def test_unflagged_answers_are_the_models_own_and_the_stop_is_where_the_looks_say(model, sampling, fitted):
    guard, _ = fitted
    behind = guard.sample(model, FRESH, sampling)
    watcher = guard.watcher()
    without = sample(model, FRESH, sampling, watchers=[watcher])
    tables = [watcher.signal(row).numpy() for row in range(len(FRESH))]
    scores = guard.score(model, [Exchange(Request("t30"), signal=table) for table in tables])
    stops = [guard.stops(table[None])[0] for table in tables]
    assert 0 < sum(response.verdict.flagged for response in behind) < len(FRESH)
    for response, plain, score, stop in zip(behind, without, scores, stops, strict=True):
        assert response.verdict.flagged == (score > guard.threshold) == (stop is not None)
        assert response.verdict.step == stop
        if response.verdict.flagged:
            assert response.text == STUB and response.verdict.block in (0, 1) and 0 <= response.verdict.progress <= 1
        else:
            assert response.raw_ids == plain.raw_ids and response.verdict.score == pytest.approx(score, abs=1e-6)


def test_alone_as_in_company(model, sampling, fitted):
    guard, _ = fitted
    together = guard.sample(model, FRESH, sampling, batch_size=24)
    for prompt, other in zip(FRESH, together, strict=True):
        [alone] = guard.sample(model, [prompt], sampling)
        assert (alone.verdict.flagged, alone.verdict.step) == (other.verdict.flagged, other.verdict.step)


def test_one_file_goes_with_every_number_of_steps_and_no_other_block(model, fitted, caplog):
    _, path = fitted
    load(path, model, Sampling(**BLOCKS, steps=8))
    assert not caplog.records
    for other in (
        Sampling(**BLOCKS, steps=2),
        Sampling(**BLOCKS, steps=16),
        Sampling(**BLOCKS, threshold=0.02),
        Sampling(**{**BLOCKS, "length": 32}, steps=8),
    ):
        caplog.clear()
        loaded = load(path, model, other)
        assert "another decoding" in caplog.text  # it works, at a rate that nobody calibrated
        assert np.isfinite([each.verdict.score for each in loaded.sample(model, FRESH[:4], other)]).all()
    for other in (Sampling(**{**BLOCKS, "block": 4}, steps=8), Sampling(**{**BLOCKS, "order": "random"}, steps=8)):
        with pytest.raises(GuardError, match="fitted for something else"):
            load(path, model, other)


@pytest.mark.parametrize(
    "spec",
    [
        "sri-blocks",
        "sri-blocks:detector=autoencoder;epochs=20",
        "energy:size=8",
        "eos:looks=all",
        "cascade:members=[sri-blocks, energy:size=8, eos]",
        "cascade:members=[hesitate, energy:size=8]",
    ],
)
def test_a_file_says_the_same(model, sampling, tmp_path, spec):
    guard = make(spec)
    paths = fit(model, {"guard": guard}, tmp_path, sampling)
    loaded = load(paths["guard"], model, sampling)
    assert loaded.digest == guard.digest and loaded.reads == guard.reads
    ours, theirs = (each.sample(model, FRESH, sampling) for each in (guard, loaded))
    assert [each.verdict for each in ours] == [each.verdict for each in theirs]


def test_fitting_goes_on_where_it_stopped(model, sampling, fitted, tmp_path, monkeypatch):
    from midward.dynamics import blockwise

    guard, _ = fitted
    whole, calls = blockwise.sample, []

    def broken(*args, **kwargs):
        calls.append(args)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(blockwise, "sample", broken)
    with pytest.raises(KeyboardInterrupt):
        fit(model, {"sri-blocks": SRIBlocksGuard()}, tmp_path, sampling)
    calls.clear()

    def counted(*args, **kwargs):
        calls.append(args)
        return whole(*args, **kwargs)

    monkeypatch.setattr(blockwise, "sample", counted)
    again = SRIBlocksGuard()
    fit(model, {"sri-blocks": again}, tmp_path, sampling)
    assert again.digest == guard.digest
    assert len(calls) == 1  # of three batches; the others are on the disk


def test_a_rank_is_the_share_of_training_looks_that_are_as_far(monkeypatch):
    guard = SRIBlocksGuard()
    monkeypatch.setattr(guard, "distances", lambda number, features: features[:, -1])
    guard.tails[0, 0] = np.arange(1.0, 100.0)[:, None]
    ranks = guard.ranks_at(0, np.array([[[0.5]], [[99.0]], [[50.5]], [[990.0]]]))
    np.testing.assert_allclose(ranks, [0, np.log10(50), -np.log10(50 / 100), 2 + 1], atol=1e-9)


@pytest.mark.parametrize(("count", "certain", "order"), [(299, 0.95, 299), (473, 0.95, 472), (1000, None, 991)])
def test_certain_takes_the_rank_whose_rate_is_small_enough(count, certain, order):
    assert conformal_order(count, 0.01, certain) == order


def test_certain_asks_for_enough():
    with pytest.raises(GuardError, match="takes 299"):
        conformal_order(298, 0.01, 0.95)
    with pytest.raises(GuardError, match="between 0 and 1"):
        conformal_order(1000, 0.01, 1.0)


def test_energy_is_read_off_the_logits_of_each_step(model, sampling, tmp_path):
    """Against a plain loop over dense logits: the ratio, the slope over progress, the largest speed."""
    guard = Energy(size=8)
    fit(model, {"energy": guard}, tmp_path, sampling)
    steps = []

    class Dense:
        needs_all_steps = False

        def on_start(self, canvas):
            self.before, self.mask = canvas.ids.clone(), canvas.mask_id

        def on_step(self, step):
            start, stop = step.blocks[0]
            is_open = self.before[:, step.response][0] == self.mask
            is_open[:start] = is_open[stop:] = False
            p = model.head(step.hidden[0]).float().softmax(-1)
            m = torch.stack([p[:, list(ids)].sum(-1) for ids in guard.openings], -1)
            shares = torch.cat([m, 1 - m.sum(-1, keepdim=True)], -1).double()
            steps.append((start, is_open, shares))
            self.before = step.ids.clone()

        def on_end(self, canvas):
            pass

    [table] = looked_at(model, guard, FRESH[:1], sampling, Dense())
    us: list[float] = []
    energies: list[float] = []
    ratio, block, speed = None, None, 0.0
    for number, (start, is_open, shares) in enumerate(steps):
        energy = float(((shares[:, 1] + 1e-9).log() - (shares[:, 0] + 1e-9).log())[is_open].mean())
        ratio = energy if ratio is None else ratio
        if start != block:
            block, us, energies, speed, first = start, [], [], 0.0, int(is_open.sum())
        u = 1 - int(is_open.sum()) / first
        if us and u > us[-1]:
            both = is_open & steps[number - 1][1]
            angle = 2 * (shares * steps[number - 1][2]).sqrt().sum(-1).clamp(max=1).arccos()
            speed = max(speed, float((angle**2)[both].mean()) / (u - us[-1]))
        us.append(u)
        energies.append(energy)
        slope = np.polyfit(us, energies, 1)[0] if len(set(us)) > 1 else 0.0
        at = np.argwhere(table[start // 8, :, -1] == number)
        for [look] in at:
            np.testing.assert_allclose(table[start // 8, look, :-1], [ratio, slope, speed], rtol=2e-3, atol=2e-3)
    assert np.isfinite(table).all()


def test_a_cascade_is_the_largest_of_its_members(model, sampling, tmp_path):
    members = {"sri-blocks": make("sri-blocks"), "energy": make("energy:size=8")}
    cascade = make("cascade:members=[sri-blocks, energy:size=8]")
    fit(model, {**members, "cascade": cascade}, tmp_path, sampling)
    scores = []
    for guard in (*members.values(), cascade):
        tables = looked_at(model, guard, FRESH, sampling)
        scores.append(guard.score(model, [Exchange(Request("t30"), signal=table) for table in tables]))
    np.testing.assert_allclose(np.maximum(*scores[:2]), scores[2])


def test_the_end_tokens_probability_is_looked_at_once_or_always(model, sampling, tmp_path):
    guards = {"first": make("eos"), "all": make("eos:looks=all")}
    fit(model, guards, tmp_path, sampling)
    tables = {}
    for label, guard in guards.items():
        tables[label] = looked_at(model, guard, FRESH[:2], sampling)[0][..., :-1]
    np.testing.assert_allclose(tables["first"][0, 0], tables["all"][0, 0])
    assert (tables["first"].reshape(-1, 3)[1:] == 0).all() and (tables["all"] > 0).all()
    leftmost, mean, largest = tables["all"][0, 0]
    assert 0 < mean <= largest <= 1 and leftmost <= largest


@pytest.mark.parametrize("spec", ["cascade:members=[masks]", "cascade:members=[]", "cascade:members=[cascade]"])
def test_a_cascade_of_anything_else_is_refused(spec):
    with pytest.raises(InputError):
        make(spec)
