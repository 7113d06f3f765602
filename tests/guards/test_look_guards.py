"""Guards by blocks: one file for every number of steps, the same verdict in front of a model and afterwards."""

from collections import Counter
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from guard_world import asked, fit, prompts
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from midward.dynamics import looks
from midward.errors import InputError
from midward.guards import STUB, Exchange, GuardError, SRIBlocksGuard, load, make
from midward.guards.compare import Comparison
from midward.guards.config import conformal_order
from midward.guards.logits import Energy
from midward.judges.bench import Bench
from midward.judges.judge import JudgeInfo, Verdict
from midward.sampling import Forced, Request, Sampling, sample
from midward.sampling.passes import alone

FRESH = prompts(300, 24)
MASK = "<|mdm_mask|>"
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


class Shown:
    """After which of its steps each row may be streamed at last; stops some after one of theirs."""

    needs_all_steps = False

    def __init__(self, stops):
        self.stops, self.taken, self.last = stops, Counter(), {}

    def on_start(self, canvas):
        pass

    def on_step(self, step):
        for row in step.rows:
            if self.stops.get(row) == self.taken[row]:
                step.stopped.add(row)
            if row not in step.stopped | step.unseen:
                self.last[row] = self.taken[row]
            self.taken[row] += 1

    on_end = on_start


@pytest.mark.parametrize("leaves", [None, lambda responses: None], ids=["at the end", "as they leave"])
@pytest.mark.parametrize(
    "settings",
    [{"steps": 24}, {"threshold": 0.02}, {"steps": 5}, {"steps": 20, "length": 20}, {"threshold": 0.02, "length": 20}],
    ids=str,
)
def test_looks_that_wait_say_what_looks_at_once_say(model, fitted, monkeypatch, settings, leaves):
    """A stop comes later then, and is of the same look; nothing is shown that is flagged. Rows take different numbers
    of steps: some are forced in part, and some leave early."""
    guard, _ = fitted
    sampling, answers = Sampling(**{**BLOCKS, **settings}), []
    requests = [Request(each, forced=(Forced(3, (40,) * (i % 4)),) if i % 4 else ()) for i, each in enumerate(FRESH)]
    for most in (1, 4, 16):
        monkeypatch.setattr(looks, "STEPS", most)
        shown = Shown({1: 3, 4: 5})
        answers.append(alone(guard.fill(model, requests, sampling, watchers=[shown], leaves=leaves)))
        for row, answer in enumerate(answers[-1]):
            if answer.verdict.flagged:
                assert shown.last.get(row, -1) < answer.verdict.step
    at_once, *others = answers
    numbers = {"score": None, "signal": None}  # to rounding
    assert 0 < sum(answer.verdict.flagged for answer in at_once) < len(FRESH)
    for other in others:
        for now, later in zip(at_once, other, strict=True):
            assert now.text == later.text and now.nfe <= later.nfe < now.nfe + 16
            assert replace(now.verdict, **numbers) == replace(later.verdict, **numbers)
            assert now.verdict.score == pytest.approx(later.verdict.score, abs=1e-6)


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
        "cascade:members=[masks, energy:size=8, prefuse, hesitate]",
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


EARLY = "cascade:members=[masks, prefuse, sri-blocks, energy:size=8]"


@pytest.fixture(scope="module")
def cascaded(model, sampling, tmp_path_factory):
    """The cascade's members and itself, fitted on the same prompts, and its file."""
    guards = {spec: make(spec) for spec in ("prefuse", "sri-blocks", "energy:size=8", EARLY)}
    paths = fit(model, guards, tmp_path_factory.mktemp("cascade"), sampling)
    return guards, paths[EARLY]


def test_a_cascade_is_the_largest_of_its_members(model, sampling, cascaded):
    guards, _ = cascaded
    scores = []
    for spec, guard in guards.items():
        tables = [None] * len(FRESH) if spec == "prefuse" else looked_at(model, guard, FRESH, sampling)
        exchanges = [Exchange(Request(text), signal=table) for text, table in zip(FRESH, tables, strict=True)]
        scores.append(guard.score(model, exchanges))
    np.testing.assert_allclose(np.max(scores[:3], axis=0), scores[3], rtol=1e-5)
    assert len({int(np.argmax(column)) for column in np.transpose(scores[:3])}) > 1


def test_what_is_flagged_at_the_request_costs_no_forward_but_that_members(model, sampling, cascaded, monkeypatch):
    cascade = copy(cascaded[0][EARLY])
    forwards, hidden = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda *args, **how: forwards.append(1) or hidden(*args, **how))
    masked = f"t30 {MASK} t31"
    [response] = cascade.sample(model, [masked], sampling)
    verdict = response.verdict
    assert (verdict.member, verdict.looks, verdict.flagged, verdict.step) == ("masks", "before", True, None)
    assert response.text == STUB and response.nfe == 0 and not forwards
    ranks = cascade.early(model, [Exchange(Request(text)) for text in FRESH])[:, 1]
    cascade.threshold = float(ranks.max()) - 1e-3
    forwards.clear()
    flagged, other = cascade.sample(model, [FRESH[ranks.argmax()], masked], sampling)
    assert (flagged.verdict.member, other.verdict.member) == ("prefuse", "masks")
    assert len(forwards) == 1 and flagged.nfe == other.nfe == 0
    shadowed = alone(cascade.fill(model, [FRESH[ranks.argmax()], masked], sampling, shadow=True))
    assert all(each.nfe for each in shadowed)  # and the same is said of them
    verdicts = [(each.verdict.member, each.verdict.looks, each.verdict.block) for each in shadowed]
    assert verdicts == [("prefuse", "before", None), ("masks", "before", None)]


def test_a_cascade_names_the_member_and_leaves_the_others_answers_as_they_are(model, sampling, cascaded):
    guards, _ = cascaded
    cascade = guards[EARLY]
    behind = cascade.sample(model, [f"t30 {MASK}", *FRESH], sampling)[1:]
    without = sample(model, FRESH, sampling)
    assert {each.verdict.flagged for each in behind} == {True, False}
    for place, (response, plain) in enumerate(zip(behind, without, strict=True)):
        if response.verdict.member in ("sri-blocks", "energy"):
            own = guards[{"energy": "energy:size=8"}.get(response.verdict.member, response.verdict.member)]
            [table] = looked_at(model, own, FRESH[place : place + 1], sampling)
            look = (0.0, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0).index(response.verdict.progress)
            assert own.ranks(table)[response.verdict.block, look] > cascade.threshold
        elif not response.verdict.flagged:
            assert response.raw_ids == plain.raw_ids and response.verdict.member is None
    named = {each.verdict.member for each in behind if each.verdict.flagged}
    assert named <= {"prefuse", "sri-blocks", "energy"} and len(named) > 1


def test_a_comparison_says_which_requests_a_cascade_would_not_have_sampled(model, sampling, cascaded, tmp_path):
    cascade = cascaded[0][EARLY]
    cases = asked([f"t30 {MASK}", *FRESH])

    async def judge(goal, response, metadata):
        return Verdict("silent", None)

    silent = Bench(JudgeInfo("silent", "1", "says nothing", "nothing", lambda: judge), judge, {"judge": "silent"})
    comparison = Comparison(model, cases, {"cascade": cascade}, tmp_path, sampling, silent)
    rows = comparison.answers()
    decided = comparison.decisions(rows)["cascade"]
    for decision, response in zip(
        decided, cascade.sample(model, [case.request for case in cases], sampling), strict=True
    ):
        assert decision["flagged"] == response.verdict.flagged
        assert decision["step"] == (-1 if response.verdict.looks == "before" else response.verdict.step)
    assert decided == comparison.decisions(rows)["cascade"]  # kept


def test_a_cascade_is_refused_for_what_a_member_isnt_for_and_where_a_part_is_missing(model, cascaded, tmp_path):
    _, path = cascaded
    with pytest.raises(GuardError, match=r"'prefuse' was fitted for something else: length 16 there, 32 here"):
        load(path, model, Sampling(**{**BLOCKS, "length": 32}, steps=8))
    tensors = load_file(path)
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    for name in [name for name in tensors if name.startswith("member1/")]:
        save_file(
            {key: value for key, value in tensors.items() if key != name}, tmp_path / "less.safetensors", metadata
        )
        with pytest.raises(GuardError, match="can be used"):
            load(tmp_path / "less.safetensors")
    save_file({**tensors, "member1/tails": -tensors["member1/tails"]}, tmp_path / "odd.safetensors", metadata)
    with pytest.raises(GuardError, match="sorted odds"):
        load(tmp_path / "odd.safetensors")


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
