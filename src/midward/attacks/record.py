"""What a sample of an attack is made from, and what is kept of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from inspect_ai.dataset import Sample
from inspect_ai.log import EvalSample
from inspect_ai.solver import TaskState
from pydantic import BaseModel, ConfigDict

from midward.attacks.attack import AttackInfo, Attempt
from midward.attacks.target import Ask
from midward.goals import Goal

KEY = "attempt"  # of the record in a sample's store
_ABOUT = tuple(field.name for field in fields(Goal) if field.name not in ("id", "text", "metadata"))


def sample_of(goal: Goal) -> Sample:
    """A goal as Inspect's sample; its metadata are what `midward.judges` says that every judge reads."""
    labels = {"goal": goal.text} | {name: getattr(goal, name) for name in _ABOUT}
    return Sample(id=goal.id, input=goal.prompt, target=goal.target or "", metadata={**labels, **goal.metadata})


def goal_of(state: TaskState) -> Goal:
    """The goal of a sample: one of `sample_of`, or of anybody's with an input and perhaps less metadata."""
    return _goal(str(state.sample_id), state.input_text, state.metadata)


def goal_of_log(sample: EvalSample) -> Goal:
    """The same of a sample in a log."""
    text = sample.input if isinstance(sample.input, str) else sample.input[-1].text
    return _goal(str(sample.id), text, sample.metadata)


def _goal(name: str, text: str, about: Mapping[str, Any] | None) -> Goal:
    metadata = dict(about or {})
    text = str(metadata.pop("goal", None) or text)
    labels: dict[str, Any] = {"source": "", "harmful": True} | {
        name: metadata.pop(name) for name in _ABOUT if name in metadata
    }
    return Goal(id=name, text=text, metadata=metadata, **labels)


class Record(BaseModel):
    """All that is kept of an attempt, as JSON; facts of an attack's own stand beside these.

    Attributes:
        attack, version, hash, settings: what attacked; the hash covers version, settings and all prompts' words.
        access, capabilities: threat model, and what was really used of the target.
        taxonomy: where the attack stands in public taxonomies.
        goal, goal_text, source, category, target, seed: which goal of which set, which model, which seed.
        budget, queries, spent: the most queries to the target, how many by kind, whether it ran out.
        nfe: forward passes of the target.
        calls, failed, why: by role: how often asked, how many answers couldn't be read, what was wrong with the last.
        score, scored: the in-loop score of the best, and whether there is one.
        asks, forced: the winning requests, and the texts that the last of them forces.
        composite: whether the response was put together of several replies.
        response, note: what is judged, and why it was tried.
        tried, prompts: how many requests; hashes of those that differ.
        seconds: wall time.
        replay: how the fresh replay came about: "asked", or "known" where no seed has a say in the reply, so that it is
            the one in hand; None without one.
    """

    model_config = ConfigDict(extra="allow")

    attack: str
    version: str
    hash: str
    access: str
    settings: dict[str, Any]
    goal: str
    goal_text: str
    source: str
    target: str
    seed: int
    budget: int | None
    spent: bool
    capabilities: list[str]
    queries: dict[str, int]
    nfe: int
    calls: dict[str, int]
    failed: dict[str, int]
    why: dict[str, str]
    score: float | None
    scored: bool
    asks: list[Ask]
    forced: list[str]
    composite: bool
    response: str | None
    note: dict[str, Any]
    tried: int
    prompts: list[str]
    seconds: float
    replay: str | None = None
    taxonomy: list[str] = []
    category: str | None = None

    @classmethod
    def of(cls, info: AttackInfo, settings: Any, attempt: Attempt, seconds: float) -> Record:
        """Of an attempt as it stands."""
        target, best, roles = attempt.target, attempt.best, attempt.roles
        asks = [reply.ask for reply in best.replies] if best else []
        own: dict[str, Any] = dict(
            attack=info.name,
            version=info.version,
            hash=info.hash(settings),
            access=info.access,
            settings=asdict(settings),
            goal=attempt.goal.id,
            goal_text=attempt.goal.text,
            taxonomy=list(info.taxonomy),
            source=attempt.goal.source,
            category=attempt.goal.category,
            target=target.name,
            seed=attempt.seed,
            budget=target.budget,
            spent=attempt.spent,
            capabilities=sorted(target.used),
            queries=target.queries,
            nfe=target.nfe,
            calls=roles.calls,
            failed=roles.failed,
            why=roles.why,
            score=best.score if best else None,
            scored=best is not None and best.score is not None,
            asks=asks,
            forced=[target.decode(each.ids) for each in asks[-1].forced] if asks else [],
            composite=best is not None and best.compose is not None,
            response=best.text if best else None,
            note=dict(best.note) if best else {},
            tried=len(attempt.tried),
            prompts=sorted(attempt.prompts),
            seconds=seconds,
        )
        return cls(**(own | attempt.facts))

    @property
    def role_calls(self) -> int:
        """Calls to all roles together."""
        return sum(self.calls.values())

    @property
    def role_failures(self) -> int:
        """Answers of all roles that couldn't be read."""
        return sum(self.failed.values())

    @property
    def target_queries(self) -> int:
        """Queries of all kinds to the target."""
        return sum(self.queries.values())


def read_record(store: Mapping[str, Any]) -> Record | None:
    """The record in a sample's store; None where the sample failed before there was one."""
    return Record.model_validate(store[KEY]) if store.get(KEY) else None
