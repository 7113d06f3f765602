"""The SGLang plug-in against a fake of the interface that it hooks: sync and first-done-first-out, on the CPU."""

import copy
import pkgutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from guard_world import fit, prompts

from midward import _sglang
from midward.dynamics.looks import LAST
from midward.guards import GuardError, SRIBlocksGuard, export_engine
from midward.guards.engine import HandedOver
from midward.guards.sglang import Plugin
from midward.sampling import Sampling, sample

SAMPLING = Sampling(length=16, block=8, order="low_confidence", steps=8)
PROMPTS = prompts(300, 24)
MASK = 2


@pytest.fixture(scope="module")
def world(model, tmp_path_factory):
    """The guard's two files, the verdicts of the library, and what each request's steps were."""
    folder = tmp_path_factory.mktemp("sglang")
    guard = SRIBlocksGuard()
    file = fit(model, {"sri-blocks": guard}, folder, SAMPLING)["sri-blocks"]
    engine = export_engine(guard, model, PROMPTS, PROMPTS, folder / "engine", SAMPLING)
    kept = HandedOver()
    sample(model, PROMPTS, SAMPLING, watchers=[kept])
    verdicts = [response.verdict for response in guard.sample(model, PROMPTS, SAMPLING)]
    whole = [row for row, steps in kept.steps.items() if len(steps) == 8]  # of two blocks
    [flagged, *_] = [row for row in whole if verdicts[row].flagged]
    [clean, *_] = [row for row in whole if not verdicts[row].flagged]
    return SimpleNamespace(
        file=file, engine=engine, verdicts=verdicts, steps=kept.steps, whole=whole, flagged=flagged, clean=clean
    )


# --- the fake -----------------------------------------------------------------------------------------------------


class FakeRegistry:
    """Wraps at once what SGLang wraps when all plug-ins are loaded."""

    @staticmethod
    def register(target, hook, kind):
        assert kind == "around"
        owner, name = target.rsplit(".", 1)
        owner = pkgutil.resolve_name(owner)
        original, is_static = getattr(owner, name), isinstance(vars(owner)[name], staticmethod)

        def wrapped(*args, **kwargs):
            return hook(original, *args, **kwargs)

        setattr(owner, name, staticmethod(wrapped) if is_static else wrapped)


@pytest.fixture
def sglang(monkeypatch):
    return fake(monkeypatch)


def fake(monkeypatch):
    """The parts of SGLang that are hooked, anew."""

    class DllmAlgorithm:
        @staticmethod
        def from_server_args(server_args):
            return server_args

        def run(self, runner, batch, states=None):
            for _ in range(1 if self.fdfo else 40):
                done = self.step(batch, runner.forward(batch), states)
                if all(done):
                    break
            return done

    class LogitsProcessor:
        def _get_dllm_logits(self, hidden_states, lm_head, logits_metadata):
            return "logits"

    class ReqDllmMixin:
        def init_diffusion_llm(self, dllm_config):
            self.dllm_config = dllm_config

    class SchedulerDllmMixin:
        def _finish_dllm_request_if_needed(self, req):
            if not req.finished() and len(req.done) == 2:
                req.finished_reason = Finish(matched=None)

    class Finish:
        def __init__(self, matched):
            self.matched = matched

        def to_json(self):
            return {"type": "stop", "matched": self.matched}

    group = SimpleNamespace(rank_in_group=0, broadcast_object=lambda obj, src: obj)
    contents = {
        "plugins.hook_registry": {"HookRegistry": FakeRegistry, "HookType": SimpleNamespace(AROUND="around")},
        "dllm.algorithm.base": {"DllmAlgorithm": DllmAlgorithm},
        "dllm.mixin.req": {"ReqDllmMixin": ReqDllmMixin},
        "dllm.mixin.scheduler": {"SchedulerDllmMixin": SchedulerDllmMixin},
        "layers.logits_processor": {"LogitsProcessor": LogitsProcessor},
        "managers.schedule_batch": {"FINISH_MATCHED_TOKEN": Finish},
        "distributed.parallel_state": {"get_attn_tp_group": lambda: group},
    }
    for path, names in contents.items():
        parts = ["sglang", "srt", *path.split(".")]
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            monkeypatch.setitem(sys.modules, name, sys.modules.get(name) or ModuleType(name))
            if end > 1:
                setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], sys.modules[name])
        vars(sys.modules[name]).update(names)

    class Scripted(DllmAlgorithm):
        """Writes what the library's sampler wrote, whatever stands there. eager: a block is done once it is full, where
        others wait until a forward has seen it so."""

        def __init__(self, fdfo=False, eager=False):
            self.block_size, self.mask_id, self.fdfo, self.eager = 8, MASK, fdfo, eager

        def step(self, batch, logits, states):
            ids = batch.input_ids.view(-1, 8)
            seen = ids.clone()
            for row, req in zip(ids, batch.reqs, strict=True):
                row[:] = req.left.pop(0).after if req.left else row
            return [bool((row != MASK).all()) for row in (ids if self.eager else seen)]

    return SimpleNamespace(
        Scripted=Scripted,
        Processor=LogitsProcessor,
        Mixin=SchedulerDllmMixin,
        ReqMixin=ReqDllmMixin,
        Base=DllmAlgorithm,
        group=group,
    )


class Req:
    """A request: its id, the blocks that were done, what stands in the one it is in, and the steps left there."""

    def __init__(self, world, row, rid=None):
        self.rid, self.done, self.finished_reason = str(row) if rid is None else rid, [], None
        self.output_ids = []
        self.row = int(row)
        self.blocks = [[step for step in world.steps[self.row] if step.number == number] for number in (0, 1)]
        self.begin()

    def begin(self):
        self.left = list(self.blocks[len(self.done)])
        self.ids = self.left[0].before.clone()
        self.prompt = self.ids != MASK

    def finished(self):
        return self.finished_reason is not None


def serve(sglang, world, rows, **how):
    """Answer requests, which begin now."""
    requests = [Req(world, row) for row in rows]
    for req in requests:
        sglang.ReqMixin.init_diffusion_llm(req, None)
    return {req.row: req for req in go_on(sglang, world, requests, **how)}


def go_on(
    sglang,
    world,
    requests,
    *,
    fdfo=False,
    eager=False,
    prompt_mask=True,
    replays=False,
    broken=None,
    rounds=99,
    breaks=None,
):
    """Answer requests as SGLang's scheduler does. replays: by a graph, so that no hook of a forward is run. broken: a
    row whose states are no numbers. rounds: of the scheduler; a client that left has no more. breaks: something, once
    the engine has started."""
    algorithm = sglang.Base.from_server_args(sglang.Scripted(fdfo, eager))
    if breaks:
        breaks(sglang.plugin.engine)

    def forward(batch):
        states = [req.left[0].hidden if req.left else torch.zeros(8, 48) for req in batch.reqs]
        states = [each * (torch.nan if req.rid == str(broken) else 1) for req, each in zip(batch.reqs, states)]
        batch.seen = batch.input_ids.clone().view(-1, 8)
        if not replays:
            sglang.Processor()._get_dllm_logits(torch.cat(states), None, None)

    runner = SimpleNamespace(forward=forward)
    while (going := [req for req in requests if not req.finished()]) and (rounds := rounds - 1) >= 0:
        batch = SimpleNamespace(reqs=going, rids=[req.rid for req in going])
        batch.input_ids = torch.cat([req.ids for req in going])
        batch.positions = torch.cat([8 * len(req.done) + torch.arange(8) for req in going])
        batch.dllm_prompt_mask = torch.stack([req.prompt for req in going]) if prompt_mask else None
        done = algorithm.run(runner, batch)
        for req, is_done, ids, seen in zip(going, done, batch.input_ids.view(-1, 8), batch.seen, strict=True):
            req.ids = ids.clone()
            if is_done:
                req.seen = torch.equal(ids, seen)
                req.done.append(ids.tolist())
                req.output_ids += ids.tolist()
                sglang.Mixin()._finish_dllm_request_if_needed(req)
                if not req.finished():
                    req.begin()
    return requests


def answers(world, row):
    """The blocks that the library's sampler wrote."""
    return [[step.after.tolist() for step in world.steps[row] if step.number == block][-1] for block in (0, 1)]


@pytest.fixture
def armed(sglang, world, monkeypatch):
    """With the plug-in as `plugin`."""
    monkeypatch.setenv(_sglang.GUARD, str(world.file))
    monkeypatch.setenv(_sglang.ENGINE, str(world.engine))
    init = Plugin.__init__

    def kept(self, *args, **kwargs):
        init(self, *args, **kwargs)
        sglang.plugin = self

    monkeypatch.setattr(Plugin, "__init__", kept)
    _sglang.register()
    return sglang


def refused(world, req, row):
    """Whether a request ended as a stopped one does: the library's blocks, then one without a mask that isn't its."""
    before, last = req.done[:-1], req.done[-1]
    assert before == answers(world, row)[: len(before)]
    assert req.seen  # by a forward, before it was handed out
    assert MASK not in last and last != answers(world, row)[len(before)]
    return req.finished_reason.to_json()["type"] == "content_filter"


# --- what it does -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", [{}, {"fdfo": True}, {"prompt_mask": False}, {"fdfo": True, "prompt_mask": False}], ids=str
)
def test_a_flagged_row_is_stopped_and_the_others_stay(armed, world, how):
    rows = [world.clean, world.flagged, *[row for row in world.whole if row not in (world.clean, world.flagged)]]
    for company in (rows, rows[:1], rows[1:2]):
        for row, req in serve(armed, world, company, **how).items():
            verdict, reason = world.verdicts[row], req.finished_reason.to_json()
            assert reason["midward"]["armed"] and reason["midward"]["looks"] > 0
            assert reason["midward"]["score"] == pytest.approx(verdict.score, abs=1e-5)
            assert reason["midward"]["threshold"] == verdict.threshold
            if verdict.flagged:
                assert refused(world, req, row) and len(req.done) == verdict.block + 1
            else:
                assert req.done == answers(world, row) and reason["type"] == "stop"


@pytest.mark.parametrize("fdfo", [False, True], ids=["sync", "fdfo"])
def test_what_is_written_over_a_full_block_is_looked_at(armed, world, fdfo):
    """As JointThreshold edits tokens once no mask is left."""
    [plain] = serve(armed, world, [world.clean], fdfo=fdfo).values()
    steps = world.steps[world.clean]
    full = next(step for step in reversed(steps) if step.number == 0)
    after = full.after.clone()
    after[-1] = 60
    refusing = armed.plugin.engine.guard.anchors.mu_harmful[LAST].expand(8, -1)
    for hidden, stops in ((full.hidden, False), (refusing, True)):
        edit = replace(full, before=full.after, after=after, hidden=hidden)
        edited = SimpleNamespace(**vars(world) | {"steps": {**world.steps, world.clean: [*steps, edit]}})
        [req] = serve(armed, edited, [world.clean], fdfo=fdfo).values()
        record = req.finished_reason.to_json()
        assert (record["type"] == "content_filter") == stops
        assert stops or record["midward"]["looks"] == plain.finished_reason.to_json()["midward"]["looks"] + 1


@pytest.mark.parametrize("fdfo", [False, True], ids=["sync", "fdfo"])
def test_a_row_that_the_guard_can_not_look_at_is_stopped_alone(armed, world, fdfo):
    other = next(row for row in world.whole if not world.verdicts[row].flagged and row != world.clean)
    requests = serve(armed, world, [world.clean, other], fdfo=fdfo, broken=other)
    assert requests[world.clean].done == answers(world, world.clean)
    assert refused(world, requests[other], other)
    record = requests[other].finished_reason.to_json()["midward"]
    assert record["armed"] is False and "finite" in record["why"]


def test_a_block_that_is_stopped_as_it_fills_is_handed_out_once_a_forward_has_seen_it(armed, world, monkeypatch):
    monkeypatch.setattr(
        SRIBlocksGuard, "ranks_at", lambda self, number, looks: np.array([99.0 * (looks.shape[1] == 6)])
    )
    for how in ({"fdfo": True, "eager": True}, {"fdfo": True}, {}):
        req = serve(armed, world, [world.clean], **how)[world.clean]
        assert refused(world, req, world.clean) and len(req.done) == 1


def test_a_guard_that_raises_stops_the_row(armed, world, monkeypatch):
    def broken(self, number, looks):
        raise ZeroDivisionError("inside the guard")

    monkeypatch.setattr(SRIBlocksGuard, "ranks_at", broken)
    req = serve(armed, world, [world.clean])[world.clean]
    assert refused(world, req, world.clean)
    assert "inside the guard" in req.finished_reason.to_json()["midward"]["why"]


@pytest.mark.parametrize("fdfo", [False, True], ids=["sync", "fdfo"])
def test_without_states_every_row_is_stopped_and_told_why(armed, world, fdfo):
    for row, req in serve(armed, world, [world.clean, world.flagged], fdfo=fdfo, replays=True).items():
        assert refused(world, req, row) and len(req.done) == 1
        record = req.finished_reason.to_json()["midward"]
        assert record["armed"] is False and record["score"] is None and "--disable-cuda-graph" in record["why"]


# --- whose row it is, and what fails there --------------------------------------------------------------------------


def unseen(req, row, world):
    """Why a row was stopped without the guard, before anything of it was handed out."""
    assert refused(world, req, row) and len(req.done) == 1
    record = req.finished_reason.to_json()["midward"]
    assert record["armed"] is False and np.isfinite(record["threshold"])
    return record["why"]


def flagged_in(world, block):
    return next(row for row in world.whole if world.verdicts[row].flagged and world.verdicts[row].block == block)


@pytest.mark.parametrize("fdfo", [False, True], ids=["sync", "fdfo"])
@pytest.mark.parametrize("rounds", [1, 2, 4, 5, 6])
def test_an_id_that_is_used_again_is_looked_at_from_its_begin(armed, world, fdfo, rounds):
    for block in (0, 1):
        row = flagged_in(world, block)
        left = Req(world, world.clean, "x")
        armed.ReqMixin.init_diffusion_llm(left, None)
        go_on(armed, world, [left], fdfo=fdfo, rounds=rounds if fdfo else 1)
        req = Req(world, row, "x")
        armed.ReqMixin.init_diffusion_llm(req, None)
        go_on(armed, world, [req], fdfo=fdfo)
        assert refused(world, req, row) and len(req.done) == block + 1
        record, verdict = req.finished_reason.to_json()["midward"], world.verdicts[row]
        assert record["armed"] and record["score"] == pytest.approx(verdict.score, abs=1e-5)


def test_a_row_that_does_not_go_on_where_it_was_left_is_stopped(armed, world):
    row = flagged_in(world, 0)
    [left] = go_on(armed, world, [Req(world, world.clean, "x")], fdfo=True, rounds=4)
    assert MASK not in left.ids and not left.done
    [req] = go_on(armed, world, [Req(world, row, "x")], fdfo=True)
    assert "left" in unseen(req, row, world) and len({*req.done[0]} & {*left.ids.tolist()}) < 2
    [left] = go_on(armed, world, [Req(world, world.clean, "y")], rounds=1)
    assert len(left.done) == 1 and not left.finished()
    [req] = go_on(armed, world, [Req(world, row, "y")])  # back at the begin, and not in the next block
    assert "left" in unseen(req, row, world)


@pytest.mark.parametrize("fdfo", [False, True], ids=["sync", "fdfo"])
def test_two_rows_of_one_id_are_both_stopped(armed, world, fdfo):
    other = next(row for row in world.whole if row not in (world.clean, world.flagged))
    for req in go_on(armed, world, [Req(world, row, "x") for row in (world.clean, world.flagged)], fdfo=fdfo):
        assert "2 rows" in unseen(req, req.row, world)
    requests = [Req(world, row, rid) for row, rid in ((world.clean, "x"), (other, "y"))]
    for req in requests:
        armed.ReqMixin.init_diffusion_llm(req, None)
    go_on(armed, world, requests[:1], fdfo=True, rounds=2)
    requests[1].rid = "x"
    for req in go_on(armed, world, requests, fdfo=fdfo):  # nothing that was written before stays
        assert "2 rows" in unseen(req, req.row, world)


@pytest.mark.parametrize("fdfo", [False, True], ids=["sync", "fdfo"])
def test_masks_that_are_said_to_be_given_stop_the_row(armed, world, fdfo, monkeypatch):
    begin = Req.begin
    for given, why in ((8, "filled"), (6, "changed")):  # all of them, and some

        def wrong(self, given=given):
            begin(self)
            self.prompt = torch.arange(8) < given

        monkeypatch.setattr(Req, "begin", wrong)
        req = serve(armed, world, [world.flagged], fdfo=fdfo)[world.flagged]
        assert why in unseen(req, world.flagged, world)


@pytest.mark.parametrize("fdfo", [False, True], ids=["sync", "fdfo"])
def test_states_of_another_forward_are_not_used(armed, world, fdfo):
    for at in (0, 1, 3):
        armed.Processor()._get_dllm_logits(world.steps[world.clean][at].hidden, None, None)
        req = serve(armed, world, [world.flagged], fdfo=fdfo, replays=True)[world.flagged]
        assert "--disable-cuda-graph" in unseen(req, world.flagged, world)
        assert req.finished_reason.to_json()["midward"]["looks"] == 0


class Broken:
    """Raises, whatever it is asked."""

    def __getattr__(self, name):
        raise ZeroDivisionError("broken")


BREAKS = {
    "threshold nan": lambda engine: setattr(engine.guard, "threshold", np.nan),
    "threshold inf": lambda engine: setattr(engine.guard, "threshold", np.inf),
    "threshold higher": lambda engine: setattr(engine.guard, "threshold", engine.guard.threshold + 1),
    "another guard": lambda engine: setattr(engine, "guard", copy.copy(engine.guard)),
    "no guard": lambda engine: setattr(engine, "guard", None),
    "broken guard": lambda engine: setattr(engine, "guard", Broken()),
    "reader": lambda engine: setattr(engine.guard, "reader", Broken().__getattr__),
}


@pytest.mark.parametrize("fdfo", [False, True], ids=["sync", "fdfo"])
@pytest.mark.parametrize("how", BREAKS)
def test_a_guard_that_is_not_the_armed_one_stops_every_row(armed, world, how, fdfo):
    for row, req in serve(armed, world, [world.clean, world.flagged], fdfo=fdfo, breaks=BREAKS[how]).items():
        assert unseen(req, row, world)


@pytest.mark.parametrize("fdfo", [False, True], ids=["sync", "fdfo"])
def test_a_guard_that_changes_while_it_serves_stops_the_rows_that_go_on(armed, world, fdfo, monkeypatch):
    real, calls = SRIBlocksGuard.ranks_at, []

    def ranks_at(self, number, looks):
        self.threshold = np.nan if len(calls) == 1 else self.threshold
        calls.append(number)
        return real(self, number, looks)

    monkeypatch.setattr(SRIBlocksGuard, "ranks_at", ranks_at)
    req = serve(armed, world, [world.clean], fdfo=fdfo)[world.clean]
    assert "armed" in unseen(req, world.clean, world)


@pytest.mark.parametrize("fdfo", [False, True], ids=["sync", "fdfo"])
def test_what_fails_for_one_row_leaves_the_others(armed, world, fdfo, monkeypatch):
    """A reader, and the words of a refusal, that can't be had for one row."""
    engine, reader, made = armed.plugin.engine, armed.plugin.engine.guard.reader, []

    def once():
        made.append(1)
        return Broken().reader if len(made) == 1 else reader()

    monkeypatch.setattr(engine.guard, "reader", once)
    monkeypatch.setattr(engine, "filled", Broken().__getattr__)
    other = next(row for row in world.whole if not world.verdicts[row].flagged and row != world.clean)
    requests = serve(armed, world, [world.flagged, world.clean, other], fdfo=fdfo)
    assert "broken" in unseen(requests[world.flagged], world.flagged, world)
    assert all(requests[row].done == answers(world, row) for row in (world.clean, other))


@pytest.mark.parametrize("fdfo", [False, True], ids=["sync", "fdfo"])
@pytest.mark.parametrize("decisions", [[], [None], [None] * 2, [None] * 3], ids=len)
def test_rows_without_decisions_are_stopped(armed, world, decisions, fdfo):
    armed.plugin._share = lambda decide: decisions
    for row, req in serve(armed, world, [world.clean, world.flagged], fdfo=fdfo).items():
        assert "decision" in unseen(req, row, world)


def test_a_request_that_was_answered_beside_the_guard_is_no_answer(armed, world):
    [seen] = serve(armed, world, [world.clean]).values()
    req = Req(world, world.clean, rid="elsewhere")
    for output, kind in (([], "stop"), (seen.output_ids, "content_filter")):
        req.output_ids, req.finished_reason, req.done = output, None, [[], []]
        armed.Mixin()._finish_dllm_request_if_needed(req)
        record = req.finished_reason.to_json()
        assert record["type"] == kind and ("midward" in record) == bool(output)
    assert record["midward"]["armed"] is False and record["midward"]["looks"] == 0


@pytest.mark.parametrize("given", [None, torch.ones(1, 8, dtype=torch.bool)], ids=["told by masks", "told"])
def test_a_block_without_anything_to_fill_is_not_written_in(armed, given):
    """A prompt's, or that of a request whose begin is forgotten."""
    algorithm, full = armed.Base.from_server_args(armed.Scripted()), torch.full((8,), 60)
    for last, is_stopped in ((60, False), (61, True)):
        after = torch.cat([full[:-1], torch.tensor([last])])
        batch = SimpleNamespace(rids=["elsewhere"], reqs=[SimpleNamespace(left=[SimpleNamespace(after=after)])])
        batch.input_ids, batch.positions, batch.dllm_prompt_mask = full.clone(), torch.arange(8), given
        algorithm.step(batch, None, None)
        assert ("elsewhere" in armed.plugin._decisions) == is_stopped
    assert armed.plugin._decisions["elsewhere"].stop and batch.input_ids.tolist() != after.tolist()


@pytest.mark.parametrize("fdfo", [False, True], ids=["sync", "fdfo"])
def test_a_row_whose_block_was_begun_unseen_is_stopped(armed, world, fdfo):
    req = Req(world, world.clean)
    req.ids = req.left.pop(0).after.clone()
    go_on(armed, world, [req], fdfo=fdfo)
    record = req.finished_reason.to_json()
    assert record["type"] == "content_filter" and "midst" in record["midward"]["why"]


def test_rows_without_ids_end_the_engine(armed, world):
    algorithm = armed.Base.from_server_args(armed.Scripted())
    batch = SimpleNamespace(rids=None, reqs=[], input_ids=torch.full((8,), MASK))
    with pytest.raises(GuardError, match="request ids"):
        algorithm.step(batch, None, None)


def test_the_first_rank_decides_for_all(world, monkeypatch):
    monkeypatch.setenv(_sglang.GUARD, str(world.file))
    monkeypatch.setenv(_sglang.ENGINE, str(world.engine))
    sent, outcomes = [], []

    def broadcast(decisions, src):
        assert src == 0 and (decisions is None) == (rank == 1)  # the second rank asks no guard
        sent.extend([decisions] if rank == 0 else [])
        return decisions if rank == 0 else sent.pop(0)

    for rank in (0, 1):
        sglang = fake(monkeypatch)
        sglang.group.rank_in_group, sglang.group.broadcast_object = rank, broadcast
        _sglang.register()
        requests = serve(sglang, world, [world.clean, world.flagged])
        outcomes.append({row: (req.done, req.finished_reason.to_json()) for row, req in requests.items()})
    assert outcomes[0] == outcomes[1] and not sent
    assert outcomes[1][world.flagged][1]["type"] == "content_filter"


# --- what it refuses ----------------------------------------------------------------------------------------------


def test_an_algorithm_that_can_not_be_guarded_ends_the_engine(armed):
    class Own(armed.Scripted):
        def run(self, runner, batch, states=None):
            return []

    shifted, larger = armed.Scripted(), armed.Scripted()
    shifted.mask_id, larger.block_size = -1, 32
    for algorithm, reason in ((Own(), "of its own"), (shifted, "mask -1"), (larger, "blocks of 32")):
        with pytest.raises(GuardError, match=reason):
            armed.Base.from_server_args(algorithm)


def test_an_engine_whose_guard_can_not_be_armed_does_not_start(sglang, world, monkeypatch, tmp_path):
    monkeypatch.setenv(_sglang.GUARD, str(world.file))
    with pytest.raises(SystemExit, match=_sglang.ENGINE):
        _sglang.register()
    for engine, reason in ((tmp_path / "none", "there is no engine file"), (world.file, "no engine file")):
        monkeypatch.setenv(_sglang.ENGINE, str(engine))
        with pytest.raises(SystemExit, match=reason):
            _sglang.register()
    monkeypatch.setenv(_sglang.ENGINE, str(world.engine))
    del sglang.Mixin._finish_dllm_request_if_needed
    with pytest.raises(SystemExit, match="_finish_dllm_request_if_needed"):
        _sglang.register()


def test_nothing_is_loaded_unless_a_guard_is_named(monkeypatch):
    monkeypatch.delenv(_sglang.GUARD, raising=False)
    monkeypatch.delenv(_sglang.ENGINE, raising=False)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [target] = project["entry-points"]["sglang.srt.plugins"].values()
    program = (
        f"import sys, pkgutil; pkgutil.resolve_name({target!r})(); print({{'torch', 'sglang'}} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
