"""What every attack is: a record of what it needs and costs, and a search that reports what it tries."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from midward._settings import read_settings
from midward.attacks.roles import SCORE, RolePrompt, Roles, whole
from midward.attacks.target import Ask, BudgetSpent, Capability, Reply, Target
from midward.goals import Goal
from midward.store import key_of

Access = Literal["black", "grey", "white"]
Compose = Callable[[Sequence[str]], Awaitable[str | None]]


@dataclass(frozen=True)
class AttackInfo:
    """An attack on the list.

    version: raised whenever a result may change. access: what its attacker sees: "black": text; "grey": also what a
    richer interface gives (log-probabilities, forced or banned tokens); "white": gradients. needs: what it asks of the
    target. roles: Inspect model roles it asks. settings: a frozen pydantic dataclass whose defaults are the reference
    settings of the paper; `middle` variants share a file and differ in their settings. calls: settings -> the most that
    it can ask for one goal: {"target": queries, role: calls, ...}; the target's number is its budget. search: tries
    what it tries, and reports it by `Attempt.offer`. prompts: all its role prompts. deviations: from the paper, a
    sentence each. profiles: name of a profile -> the settings it changes ("quick": a first look, a few queries a goal).
    required: settings without which it can't run (their default is empty), such as the path of a file.
    """

    name: str
    version: str
    about: str
    citation: str
    access: Access
    needs: tuple[Capability, ...]
    roles: tuple[str, ...]
    settings: type[Any]
    calls: Callable[[Any], Mapping[str, int]]
    search: Callable[[Attempt, Any], Awaitable[None]]
    prompts: tuple[RolePrompt, ...] = ()
    deviations: tuple[str, ...] = ()
    profiles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    required: tuple[str, ...] = ()

    def configure(self, settings: Mapping[str, Any]) -> Any:
        """The settings with these values. Raises InputError for an unknown name or a value out of range."""
        return read_settings(self.settings, settings, self.name)

    def hash(self, settings: Any) -> str:
        """Of the version, the settings and all prompts' words: equal hashes attack alike."""
        prompts = {prompt.name: prompt.hash for prompt in self.prompts}
        return key_of(name=self.name, version=self.version, settings=asdict(settings), prompts=prompts)


@dataclass(frozen=True)
class Found:
    """What an attack has to show: the text that is judged, and how it came about.

    asks: the requests whose replies make it up (one, but for composites). score: the in-loop score, None where there
    was none. compose: makes the text of the replies' texts, where it isn't the last one's (None: it can't be made);
    `composite` says so.
    """

    text: str
    authored: str
    asks: tuple[Ask, ...]
    score: float | None = None
    compose: Compose | None = None
    note: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Attempt:
    """One attack on one goal: what the search uses, and what it reports to.

    rng: the search's own, from the seed and the goal. best: the offer with the highest in-loop score, the first of
    equals; unscored ones count less than any score. nodes: every offer, in order, as JSON. prompts: hashes of what was
    asked, whatever the seed.
    """

    goal: Goal
    target: Target
    roles: Roles
    seed: int = 0
    best: Found | None = None
    nodes: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    spent: bool = False
    prompts: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.rng = random.Random(f"{self.seed}-{self.goal.source}-{self.goal.id}")

    def offer(
        self,
        *replies: Reply,
        score: float | None = None,
        text: str | None = None,
        compose: Compose | None = None,
        final: bool = False,
        **note: Any,
    ) -> None:
        """Report something tried: a reply, or (with `text` and `compose`) what is put together of several.

        final: this is the attack's result, whatever the scores. note: whatever explains the node (JSON): depth,
        branch, why it was dropped.
        """
        last = replies[-1]
        found = Found(
            last.text if text is None else text,
            last.authored if text is None else text,
            tuple(reply.ask for reply in replies),
            score,
            compose,
            note,
        )
        self.log(last, text=text, score=score, **note)
        if final or self.best is None or _rank(found) > _rank(self.best):
            self.best = found

    def log(self, reply: Reply, /, *, text: str | None = None, score: float | None = None, **note: Any) -> None:
        """Report something tried that is no result by itself, such as a part of one."""
        said = reply.text if text is None else text
        ask = reply.ask
        forced = [(piece.position, piece.ids or piece.text) for piece in ask.forced]
        self.prompts.add(key_of(turns=ask.turns, forced=forced, fill=ask.fill))
        self.nodes.append({"prompt": reply.ask.text, "reply": said, "score": score, **note})

    def note_middle(self, phrase: str, position: int | None = None, **about: Any) -> None:
        """Put into the record what became of a phrase in the middle: in the best reply, and in how many of all.

        Every offer so far has a note `landed`, and a note `position` where none is given here.

        Args:
            phrase: what should stand there.
            position: where it was put.
            about: what else the record says, such as the unit of positions.
        """
        assert self.best is not None  # something was offered
        note, hits = self.best.note, [node["landed"] for node in self.nodes]
        self.facts["middle"] = {
            "phrase": phrase,
            **about,
            "landed": note["landed"],
            "position": note.get("position", position) if note["landed"] else None,
            "hit_rate": sum(hits) / len(hits),
        }

    async def score(self, *replies: Reply) -> list[int | None]:
        """The in-loop scorer's 1-10 of each reply, None where it can't be read. Another judge than the final one."""
        return await self.score_texts(*(reply.text for reply in replies))

    async def score_texts(self, *replies: str) -> list[int | None]:
        """The same of texts; an empty one is a 1, and nobody is asked."""
        fields = [{"GOAL": self.goal.text, "REPLY": reply} for reply in replies if reply.strip()]
        found = iter(await self.roles.ask_all(SCORE, fields, whole(1, 10, "score"), temperature=0.0))
        return [next(found) if reply.strip() else 1 for reply in replies]


def _rank(found: Found) -> float:
    return float("-inf") if found.score is None else found.score


async def run_search(info: AttackInfo, attempt: Attempt, settings: Any) -> None:
    """Run an attack's search to its end or its budget's. Whatever else it raises is an error of the sample."""
    try:
        await info.search(attempt, settings)
    except* BudgetSpent:  # also where several that run at once find it spent
        attempt.spent = True
