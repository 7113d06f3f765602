"""A guard in front of an engine: what is handed over gives the scores and stops of the library's own sampling."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from guard_world import fit, prompts

from midward.errors import InputError
from midward.guards import EngineGuard, GuardError, export_engine, load_engine, make
from midward.guards.engine import EngineFile, HandedOver
from midward.sampling import Edit, Forced, Request, Sampling, sample
from midward.tensors import load_tensors, save_tensors

FRESH = [*prompts(300, 16), *(Request(each, forced=(Forced(2, (60, 61, 62)),)) for each in prompts(320, 8))]
BLOCKS_OF_8 = Sampling(length=16, block=8, order="low_confidence", steps=8)
BLOCKS_OF_4 = Sampling(length=22, block=4, order="low_confidence", threshold=0.02)


@pytest.fixture(
    scope="module",
    params=[("sri-blocks", BLOCKS_OF_8), ("sri-blocks", BLOCKS_OF_4), ("direction", BLOCKS_OF_8)],
    ids=str,
)
def served(request, model, tmp_path_factory):
    """A fitted guard, its file, the sampling, the engine's guard, and what an engine would hand over of each row."""
    folder = tmp_path_factory.mktemp("engine")
    spec, sampling = request.param
    guard = make(spec)
    file = fit(model, {"guard": guard}, folder, sampling)["guard"]
    export_engine(guard, model, prompts(300, 16), prompts(300, 16), folder / "engine", sampling)
    handed_over = HandedOver()
    sample(model, FRESH, sampling, batch_size=8, watchers=[handed_over])
    return guard, file, sampling, folder / "engine", handed_over.steps


def test_scores_and_stops_are_the_librarys(model, served):
    guard, file, sampling, path, steps = served
    engine = load_engine(file, path)
    responses = guard.sample(model, FRESH, sampling)
    flagged = [response.verdict.flagged for response in responses]
    assert 0 < sum(flagged) < len(FRESH)
    for row, response in enumerate(responses):
        decision = engine.replay(steps[row])
        assert (decision.stop, decision.step) == (response.verdict.flagged, response.verdict.step)
        assert decision.score == pytest.approx(response.verdict.score, abs=1e-5)
        assert decision.record() == {
            "armed": True,
            "looks": decision.looks,
            "score": decision.score,
            "threshold": guard.threshold,
        }


def harmless_row(served):
    """The engine's guard of a row that isn't stopped, its last decision, the steps, and the engine."""
    _, file, _, path, steps = served
    engine = load_engine(file, path)
    handed_over = next(each for each in steps.values() if not engine.replay(each).stop)
    row = engine.row()
    for step in handed_over:
        decision = row.step(step)
    return row, decision, handed_over, engine


def test_a_change_of_a_full_block_is_looked_at_and_a_step_that_changes_nothing_is_not(served):
    row, decision, (*_, step), engine = harmless_row(served)
    full = replace(step, before=step.after)
    assert engine.mask_id not in full.after and row.step(full) == decision
    edited = full.after.clone()
    for number in (60, 61, 62):
        edited[0] = number
        full = replace(full, before=full.after, after=edited.clone())
        assert row.step(full).looks == decision.looks + number - 59


def test_a_full_block_that_a_row_comes_back_to_is_looked_at(served):
    row, decision, handed_over, engine = harmless_row(served)
    full = next(step for step in reversed(handed_over) if step.number == 0)
    edited = full.after.clone()
    edited[0] = 60
    assert handed_over[-1].number > 0 and engine.mask_id not in full.after and edited[0] != full.after[0]
    assert row.step(replace(full, before=full.after, after=edited)).looks == decision.looks + 1


def test_a_row_that_is_edited_once_it_is_full_is_looked_at_as_in_the_library(model, tmp_path):
    sampling, guard = Sampling(length=16, threshold=0.02), make("direction")
    fit(model, {"guard": guard}, tmp_path, sampling)
    about = {"width": model.hidden_size, "mask_id": model.family.mask_id, "end_ids": model.family.end_ids}
    engine = EngineGuard(guard, **about, refusal=(60, *about["end_ids"][:1]))
    edits = tuple(Edit(step, write=(Forced(step - 9, (60 + step,)),)) for step in (11, 13, 15))
    requests = [*(Request(each, edits=edits) for each in prompts(300, 12)), *prompts(300, 12)]
    handed_over = HandedOver()
    sample(model, requests, sampling, watchers=[handed_over])
    decisions = [engine.replay(handed_over.steps[row]) for row in range(len(requests))]
    for decision, response in zip(decisions, guard.sample(model, requests, sampling), strict=True):
        assert (decision.stop, decision.step) == (response.verdict.flagged, response.verdict.step)
        assert decision.score == pytest.approx(response.verdict.score, abs=1e-5)
    pairs = [(edited, plain) for edited, plain in zip(decisions[:12], decisions[12:], strict=True) if not edited.stop]
    assert pairs and all(edited.looks == plain.looks + len(edits) for edited, plain in pairs)


def test_a_stopped_block_holds_the_refusal_where_it_was_open(model, served):
    _, file, _, path, steps = served
    engine = load_engine(file, path)
    for handed_over in steps.values():
        row = engine.row()
        begins = {}
        for step in handed_over:
            begins.setdefault(step.number, step.before == engine.mask_id)
            decision = row.step(step)
            if decision.stop:
                is_open = begins[step.number]
                written = decision.ids[is_open].tolist()
                assert torch.equal(decision.ids[~is_open], step.before[~is_open])
                assert engine.mask_id not in decision.ids
                whole = [*engine.refusal, *[engine.refusal[-1]] * len(written)][: len(written)]
                ends = [engine.refusal[-1]] * len(written)
                assert written == (whole if len(engine.refusal) <= len(written) else ends)
                behind = row.step(replace(step, number=step.number + 1))
                assert behind.stop and engine.mask_id not in behind.ids
                break


def test_the_order_of_rows_and_their_interleaving_make_no_difference(served):
    _, file, _, path, steps = served
    engine = load_engine(file, path)
    alone = {row: engine.replay(handed_over).record() for row, handed_over in steps.items()}
    rng = np.random.default_rng(0)
    rows = {row: engine.row() for row in steps}
    left = {row: list(handed_over) for row, handed_over in steps.items()}
    while left:
        row = int(rng.choice(list(left)))
        if rows[row].step(left[row].pop(0)).stop or not left[row]:
            del left[row]
    assert {row: guard.decision.record() for row, guard in rows.items()} == alone


def test_sums_say_what_the_states_say(served):
    _, file, _, path, steps = served
    engine = load_engine(file, path)
    for handed_over in steps.values():
        is_open, pooled = {}, []
        for step in handed_over:
            began = is_open.setdefault(step.number, step.before == engine.mask_id)
            sums = torch.stack([engine.sums(step, began, first) for first in (True, False)])
            pooled.append(replace(step, hidden=None, pooled=sums))
        expected, decision = engine.replay(handed_over), engine.replay(pooled)
        assert (decision.stop, decision.step) == (expected.stop, expected.step)
        assert decision.score == pytest.approx(expected.score, abs=1e-6)


def test_without_states_a_row_is_stopped_unseen(served):
    _, file, _, path, steps = served
    engine = load_engine(file, path)
    first = steps[0][0]
    odd = [torch.full_like(first.hidden, value) for value in (torch.nan, 0.0)]
    for hidden in (None, first.hidden[:, :-1], *odd):
        row = engine.row()
        with pytest.raises(GuardError, match="states"):
            row.step(replace(first, hidden=hidden))
        decision = row.close(first.before, "no states")
        assert decision.stop and decision.record()["armed"] is False and decision.record()["why"] == "no states"
        assert engine.mask_id not in decision.ids


def test_files_that_do_not_belong_together_do_not_arm(model, served, tmp_path):
    guard, file, _, path, _ = served
    about, tensors = load_tensors(path, EngineFile)
    changed = {
        "written for the guard": (about.model_copy(update={"guard": "0" * 16}), tensors),
        "blocks of": (about.model_copy(update={"block": 5}), tensors),
        "7": (about.model_copy(update={"width": 7}), tensors),
        "self-test failed": (about.model_copy(update={"scores": {**about.scores, "harmless": 9.0}}), tensors),
        "no flagged trace": (about, {name: each for name, each in tensors.items() if name != "flagged.sums"}),
        "refusal": (about.model_copy(update={"refusal": (about.mask_id,)}), tensors),
    }
    swapped = {
        f"{kind}.{name}": tensors[f"{other}.{name}"]
        for kind, other in (("harmless", "flagged"), ("flagged", "harmless"))
        for name in ("numbers", "ids", "sums")
    }
    scores = dict(zip(about.scores, reversed(about.scores.values()), strict=True))
    changed["self-test failed: "] = about.model_copy(update={"scores": scores}), swapped
    for reason, (record, arrays) in changed.items():
        save_tensors(tmp_path / "changed", arrays, record)
        with pytest.raises(GuardError, match=reason):
            load_engine(file, tmp_path / "changed")
    with pytest.raises(InputError):
        load_engine(file, file)
    with pytest.raises(GuardError, match="comes out flagged"):
        export_engine(guard, model, prompts(300, 16), [], tmp_path / "none")


@pytest.mark.parametrize("arm", ["cheap", "routed"])
def test_a_probe_goes_in_front_of_an_engine(model, tmp_path, arm):
    """Hesitating looks are counted by request, there as in the library."""
    guard = make(f"hesitate:arm={arm}")
    fit(model, {"guard": guard}, tmp_path, BLOCKS_OF_4)
    guard.threshold *= 0.8  # so that some are flagged
    handed_over = HandedOver()
    sample(model, FRESH, BLOCKS_OF_4, batch_size=8, watchers=[handed_over])
    engine = EngineGuard(
        guard, width=model.hidden_size, mask_id=model.family.mask_id, end_ids=model.family.end_ids, refusal=(5, 1)
    )
    flagged = []
    for row, response in enumerate(guard.sample(model, FRESH, BLOCKS_OF_4)):
        decision = engine.replay(handed_over.steps[row])
        assert decision.score == pytest.approx(response.verdict.score, abs=1e-5)
        assert (decision.stop, decision.step) == (response.verdict.flagged, response.verdict.step)
        flagged.append(decision.stop)
    assert 0 < sum(flagged) < len(FRESH)


def test_other_guards_are_refused():
    with pytest.raises(GuardError, match="more of a step"):
        EngineGuard(make("masks"), width=4, mask_id=2, end_ids=(1,), refusal=(5, 1))
    with pytest.raises(GuardError, match="isn't fitted"):
        EngineGuard(make("sri-blocks"), width=4, mask_id=2, end_ids=(1,), refusal=(5, 1))
