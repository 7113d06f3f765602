"""A guard inside SGLang: its hooks stand around what a dLLM algorithm does, and no file of SGLang is changed.

    from_server_args   the algorithm that is made gets a guarded `step` and `run`; one that can't be guarded is refused
    init_diffusion_llm a request begins, whose id may have been that of one that was aborted
    _get_dllm_logits   the states of a forward are kept until its step; each forward of the runner begins without any.
                       Python isn't run where a CUDA graph is replayed: there they are missing, and every row is stopped
    step               around it: each row's ids before and after, and its states, go to its `RowGuard`. Where a row is
                       stopped the refusal is written; the block is done when a forward has seen it
    _finish_dllm...    the request of a stopped row ends by `content_filter`; each response carries the guard's record

Fails closed: whatever keeps the guard from looking at a row stops that row, and so does what makes it doubtful whose it
is: an id that two rows of a batch have, or a block that isn't as the last step of that id left it. The first
tensor-parallel rank decides, and the others are told. Made for SGLang 0.5.23, whose names these are; where one is
missing, nothing is armed.
"""

from __future__ import annotations

import copy
import logging
import pkgutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from midward.guards.config import GuardError
from midward.guards.engine import BlockStep, Decision, EngineGuard, RowGuard, load_engine

logger = logging.getLogger(__name__)

BEGUN = "sglang.srt.dllm.mixin.req.ReqDllmMixin.init_diffusion_llm"
MADE = "sglang.srt.dllm.algorithm.base.DllmAlgorithm.from_server_args"
STATES = "sglang.srt.layers.logits_processor.LogitsProcessor._get_dllm_logits"
FINISH = "sglang.srt.dllm.mixin.scheduler.SchedulerDllmMixin._finish_dllm_request_if_needed"

#: Requests that are remembered; those that were aborted before a block was done are forgotten so, the oldest first.
KEPT = 8192
NO_STATES = (
    "the forward's states didn't come: start SGLang with --disable-cuda-graph, since a graph's replay runs no hook"
)

Decisions = list[Decision | None]


def install(guard: str, engine: str) -> Plugin:
    """Arm a guard in this process of SGLang.

    Args:
        guard: the guard's file.
        engine: what `midward.guards.export_engine` wrote for it.

    Raises:
        InputError: as `load_engine`; GuardError, which is one, for an SGLang that has other names.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    plugin = Plugin(load_engine(guard, engine))
    hooks = {BEGUN: plugin.begun, MADE: plugin.made, STATES: plugin.states, FINISH: plugin.finish}
    for target, hook in hooks.items():
        try:
            pkgutil.resolve_name(target)
        except (ImportError, AttributeError) as error:
            raise GuardError(f"this SGLang has no {target}, where 0.5.23 has one: {error}.") from None
        HookRegistry.register(target, hook, HookType.AROUND)
    return plugin


def _share(decide: Callable[[], Decisions]) -> Decisions:
    """What the first rank of those that have the same rows decides, on all of them."""
    from sglang.srt.distributed.parallel_state import get_attn_tp_group

    group = get_attn_tp_group()
    decisions: Decisions = group.broadcast_object(decide() if group.rank_in_group == 0 else None, src=0)
    return decisions


def _matched(end: int) -> Any:
    from sglang.srt.managers.schedule_batch import FINISH_MATCHED_TOKEN

    return FINISH_MATCHED_TOKEN(matched=end)


@dataclass
class _Row:
    """A request. number: of the block it is in. ended: whether its next step begins another. ids [n]: what its last
    step left there. start: where the block begins, if that is known."""

    guard: RowGuard
    number: int = 0
    ended: bool = False
    ids: torch.Tensor | None = None
    start: int | None = None


class Plugin:
    """The hooks, each called with what it stands around first.

    Args:
        engine: the guard.
        share: see `_share`.
    """

    def __init__(self, engine: EngineGuard, share: Callable[[Callable[[], Decisions]], Decisions] = _share) -> None:
        self.engine = engine
        self._share = share
        self._hidden: torch.Tensor | None = None
        self._runner: Any = None
        self._rows: OrderedDict[str, _Row] = OrderedDict()
        self._decisions: OrderedDict[str, Decision] = OrderedDict()

    # --- the hooks ------------------------------------------------------------------------------------------

    def begun(self, original: Callable[..., Any], req: Any, *args: Any, **kwargs: Any) -> Any:
        """Forget what another request of this id was."""
        for kept in (self._rows, self._decisions):
            kept.pop(req.rid, None)
        return original(req, *args, **kwargs)

    def made(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The algorithm, guarded. Raises GuardError, so that the engine doesn't start, where it can't be."""
        algorithm = original(*args, **kwargs)
        name, engine = type(algorithm).__name__, self.engine
        here, there = (algorithm.block_size, algorithm.mask_id), (engine.size, engine.mask_id)
        if here != there:
            raise GuardError(
                f"{name} has blocks of {here[0]} and the mask {here[1]}, the guard {there[0]}, {there[1]}."
            )
        if sum("run" in vars(kind) for kind in type(algorithm).__mro__) != 1:
            raise GuardError(f"{name} decodes in a `run` of its own, which may take steps that aren't seen.")
        algorithm.step = partial(self.step, algorithm, algorithm.step)
        algorithm.run = partial(self.run, algorithm, algorithm.run)
        logger.info("midward's guard %s is armed around %s", engine.guard.name, name)
        return algorithm

    def states(
        self, original: Callable[..., Any], processor: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Keep a forward's states."""
        self._hidden = hidden_states
        return original(processor, hidden_states, *args, **kwargs)

    def run(self, algorithm: Any, original: Callable[..., Any], runner: Any, batch: Any, *args: Any) -> Any:
        """A block of every row, or one step of it (`fdfo`)."""
        if runner is not self._runner:
            runner.forward, self._runner = partial(self._forward, runner.forward), runner
        output = original(runner, batch, *args)
        for rid in () if algorithm.fdfo else batch.rids:
            if rid in self._rows:
                self._rows[rid].ended = True
        return output

    def _forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A step has the states of its own forward, or none: not those of one that no step followed."""
        self._hidden = None
        return original(*args, **kwargs)

    def step(self, algorithm: Any, original: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> list[bool]:
        """A step of every row, and the guard's word on it."""
        hidden, self._hidden = self._hidden, None
        ids = batch.input_ids.view(-1, self.engine.size)
        if not batch.rids or len(batch.rids) != len(ids):
            raise GuardError(f"{len(ids)} rows have {len(batch.rids or ())} request ids, so they can't be told apart.")
        before = ids.clone()
        done = list(original(batch, *args, **kwargs))
        given, positions = getattr(batch, "dllm_prompt_mask", None), getattr(batch, "positions", None)
        decisions = self._share(lambda: self._decide(batch.rids, before.cpu(), ids.cpu(), hidden, given, positions))
        if len(decisions) != len(ids):
            why = f"{len(ids)} rows have {len(decisions)} decisions."
            decisions = [self._close(rid, None, row.cpu(), why) for rid, row in zip(batch.rids, before, strict=True)]
        for place, (rid, decision) in enumerate(zip(batch.rids, decisions, strict=True)):
            if decision is None:
                stopped = rid in self._decisions and self._decisions[rid].stop
                if not stopped and not (before[place] == self.engine.mask_id).any():
                    continue
                decision = self._close(rid, None, before[place].cpu(), "masks stand in a block without a decision.")
            _keep(self._decisions, rid, decision)
            if decision.ids is not None:
                written = decision.ids.to(ids)
                ids[place] = written
                done[place] = torch.equal(before[place], written)  # a forward has seen it
            if algorithm.fdfo and rid in self._rows:
                self._rows[rid].ended = done[place]
        return done

    def finish(self, original: Callable[..., Any], scheduler: Any, req: Any) -> Any:
        """End the request of a stopped row, and put the guard's record on every response."""
        decision = self._decisions.get(req.rid)
        if decision is not None and decision.stop and not req.finished():
            req.finished_reason = _matched(self.engine.refusal[-1])
        result = original(scheduler, req)
        if decision is None and req.finished() and len(req.output_ids):
            unseen = "no step of this request was seen"
            decision = Decision(True, None, 0, None, self.engine.threshold, why=unseen)
        if decision is not None and req.finished():
            reason = copy.copy(req.finished_reason)
            record = {**reason.to_json(), "midward": decision.record()}
            if decision.stop and record.get("type") != "abort":
                record["type"] = "content_filter"
            reason.to_json = lambda: record
            req.finished_reason = reason
            self._rows.pop(req.rid, None)  # the decision stays, for another row of this id, until a request begins
        return result

    # --- on the first rank ----------------------------------------------------------------------------------

    def _decide(
        self,
        rids: list[str],
        before: torch.Tensor,
        after: torch.Tensor,
        hidden: torch.Tensor | None,
        given: torch.Tensor | None,
        positions: torch.Tensor | None,
    ) -> Decisions:
        """The decision on each row; None for one that is in its prompt. given [B, n]: what isn't to be filled.
        positions [B n]: of the ids in their requests. Raises nothing: other ranks wait for what this one decides."""
        states = None
        if hidden is not None and hidden.shape == (before.numel(), self.engine.width):
            states = hidden.view(*before.shape, -1)
        starts: list[int | None] = [None] * len(rids)
        if positions is not None and positions.numel() == before.numel():
            starts = positions.view(before.shape)[:, 0].tolist()
        decisions: Decisions = []
        for place, rid in enumerate(rids):
            row = self._rows.get(rid)
            try:
                if rids.count(rid) > 1:
                    row = None
                    raise GuardError(f"{rids.count(rid)} rows of a batch have this request's id.")
                is_given = None if given is None else given.view(before.shape)[place].cpu().bool()
                is_open = before[place] == self.engine.mask_id if is_given is None else ~is_given
                if (row is None or row.ended) and not is_open.any():
                    if (before[place] == self.engine.mask_id).any():
                        raise GuardError("masks stand where the engine says that nothing is to be filled.")
                    if not torch.equal(before[place], after[place]):
                        raise GuardError("the step has changed a block in which nothing is to be filled.")
                    decisions.append(None)
                    continue
                if row is not None and not _goes_on(row, before[place], starts[place]):
                    row = None
                    raise GuardError("the block isn't what the last step of this request's id left.")
                if row is None:
                    if is_given is not None and (before[place] != self.engine.mask_id)[is_open].any():
                        raise GuardError("the request is in the midst of a block whose beginning wasn't seen.")
                    row = _Row(RowGuard(self.engine))
                elif row.ended:
                    row.number, row.ended = row.number + 1, False
                row.ids, row.start = after[place].clone(), starts[place]
                _keep(self._rows, rid, row)
                if is_given is not None and (before[place] != after[place])[is_given].any():
                    raise GuardError("the step has changed what isn't to be filled.")
                if states is None and not row.guard.decision.stop:
                    raise GuardError(NO_STATES)
                its_states = None if states is None else states[place]
                decision = row.guard.step(
                    BlockStep(row.number, before[place], after[place], its_states, is_open=is_open)
                )
                row.ids = row.ids if decision.ids is None else decision.ids
                decisions.append(decision)
            except Exception as error:
                logger.exception("the guard can't look at request %s, which is stopped", rid)
                decisions.append(self._close(rid, row, before[place], f"{type(error).__name__}: {error}"))
        return decisions

    def _close(self, rid: str, row: _Row | None, before: torch.Tensor, why: str) -> Decision:
        """Stop a row unseen. row: None where it isn't known what of the block was written; nothing of it stays then."""
        is_open = None
        if row is None:
            row, is_open = _Row(RowGuard(self.engine)), torch.ones_like(before, dtype=torch.bool)
        decision = row.guard.close(before, why, is_open)
        row.ids = decision.ids
        _keep(self._rows, rid, row)
        return decision


def _goes_on(row: _Row, before: torch.Tensor, start: int | None) -> bool:
    """Whether a block [n] is the one that a row is in, as it was left, or the next one where that has ended."""
    if row.start is not None and start is not None and start != row.start + row.ended * len(before):
        return False
    return row.ended or row.ids is None or torch.equal(row.ids, before)


def _keep(kept: OrderedDict[str, Any], rid: str, value: Any) -> None:
    kept[rid] = value
    kept.move_to_end(rid)
    if len(kept) > KEPT:
        kept.popitem(last=False)
