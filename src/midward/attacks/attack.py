"""What every attack is: a record of what it needs and costs, and a search that reports what it tries."""

from __future__ import annotations

import inspect
import random
import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, TypeVar, dataclass_transform

from inspect_ai.util import LimitExceededError
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from midward._plugins import failure
from midward._settings import read_settings
from midward.attacks.capabilities import AttackError, Capability
from midward.attacks.roles import SCORE, RolePrompt, Roles, whole
from midward.attacks.target import Ask, BudgetSpent, Reply, Target
from midward.errors import MidwardError
from midward.goals import Goal
from midward.guards import Guard
from midward.store import key_of

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field, Field))
def checked(settings: type[T]) -> type[T]:
    """A class as the settings of an attack: a frozen dataclass whose values are checked, and which has no others."""
    made: Any = pydantic_dataclass(settings, frozen=True, config=ConfigDict(extra="forbid"))
    kind: type[T] = made
    return kind


#: Kinds of settings: how many of something, and a score of the in-loop scorer.
Count = Annotated[int, Field(ge=1)]
InLoop = Annotated[int, Field(ge=1, le=10)]
_RICHER = {Capability.POS, Capability.BAN, Capability.EDIT, Capability.SLP}
Compose = Callable[[Sequence[str]], Awaitable[str | None]]


@dataclass(frozen=True, kw_only=True)
class AttackInfo:
    """An attack on the list.

    What it is, where it is from and how it departs from there stands in the docstring of the search's module, which
    has the sections `Attacks:` (a line "name: what it is" each), `Source:` and `Deviations:` (a list); an entry that
    begins with an attack's name and a colon is that one's alone.

    Attributes:
        name: what it is called.
        about, citation, deviations: read from the docstring; what is given here counts where that says nothing.
        version: raised whenever a result may change.
        needs: what it asks of the target.
        roles: Inspect model roles it asks; those of its prompts are added.
        settings: a frozen pydantic dataclass whose defaults are the reference settings of the paper; variants share a
            file and differ in their settings.
        calls: settings -> the most that it can ask for one goal: {"target": queries, role: calls, ...}; the target's
            number is its budget.
        search: tries what it tries, and reports it by `Attempt.offer`.
        prompts: all its role prompts.
        profiles: name of a profile -> the settings it changes ("quick": a first look, a few queries a goal), of a
            package's attack; ours are in profiles.yaml.
        required: settings without which it can't run (their default is empty), such as the path of a file.
        unguarded: settings -> why it can't run behind a guard that is fitted for one sampling; None where it can.
        goes_with: a guard's class -> whether that guard takes it whatever `unguarded` says: all that aren't fitted for
            one sampling, unless given.
        taxonomy: where it stands in public taxonomies, see `midward.attacks.taxonomy`; an id and its name each.
        learned: records of a row -> the text of a file with what the attack learned from them, for other goals; None
            where they hold nothing.
    """

    name: str
    settings: type[Any]
    search: Callable[[Attempt, Any], Awaitable[None]]
    about: str = ""
    citation: str = ""
    deviations: tuple[str, ...] = ()
    version: str = "1"
    needs: tuple[Capability, ...] = (Capability.CHAT,)
    roles: tuple[str, ...] = ()
    calls: Callable[[Any], Mapping[str, int]] = lambda settings: {"target": 1}
    prompts: tuple[RolePrompt, ...] = ()
    profiles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    unguarded: Callable[[Any], str | None] = lambda settings: None
    goes_with: Callable[[type[Guard]], bool] = lambda kind: "sampling" not in kind.tied_to
    taxonomy: tuple[str, ...] = ()
    learned: Callable[[Sequence[Any]], str | None] = lambda records: None

    def __post_init__(self) -> None:
        text = getattr(sys.modules.get(getattr(self.search, "__module__", "")), "__doc__", None) or ""
        for name, value in _described(text, self.name).items():
            object.__setattr__(self, name, value)
        roles = dict.fromkeys([*self.roles, *(prompt.role for prompt in self.prompts)])
        object.__setattr__(self, "roles", tuple(roles))

    @property
    def access(self) -> str:
        """What its attacker sees, by its needs: "black": text; "grey": also what a richer interface gives
        (log-probabilities, forced or banned tokens); "white": gradients."""
        return "white" if Capability.GRAD in self.needs else "grey" if _RICHER.intersection(self.needs) else "black"

    def configure(self, settings: Mapping[str, Any]) -> Any:
        """The settings with these values. Raises InputError for an unknown name or a value out of range."""
        return read_settings(self.settings, settings, self.name)

    def hash(self, settings: Any) -> str:
        """Of the version, the settings and all prompts' words: equal hashes attack alike."""
        prompts = {prompt.name: prompt.hash for prompt in self.prompts}
        return key_of(name=self.name, version=self.version, settings=asdict(settings), prompts=prompts)


def _described(text: str, name: str) -> dict[str, Any]:
    """`about`, `citation` and `deviations` of an attack, by the docstring of its module; empty where that has none."""
    parts = re.findall(r"^(\w+):\n((?: {4}.*\n?|\n)+)", inspect.cleandoc(text), re.MULTILINE)
    sections = {title: re.split(r"\n {4}(?=\S)", f"\n{body}")[1:] for title, body in parts}
    entries_of_all = (" ".join(entry.split()).partition(": ") for entry in sections.get("Attacks", ()))
    abouts = {owner: about for owner, _, about in entries_of_all}
    if name not in abouts:
        return {}

    def entries(title: str) -> Iterator[str]:
        for entry in sections.get(title, ()):
            words = " ".join(entry.split()).removeprefix("- ")
            owner, _, rest = words.partition(": ")
            if owner == name or owner not in abouts:
                yield rest if owner == name else words

    *_, citation = ("", *entries("Source"))  # its own stands behind the one of all
    return {"about": abouts[name], "citation": citation, "deviations": tuple(entries("Deviations"))}


@dataclass(frozen=True)
class Offer:
    """Something that was tried.

    Attributes:
        replies: that make it up (one, but for composites).
        text: what is judged. authored: what of it the model wrote itself.
        score: in the loop, None where there was none.
        compose: makes the text of the replies' texts, where it isn't the last one's (None: it can't be made).
        note: whatever explains it, as JSON: depth, branch, why it was dropped.
    """

    replies: tuple[Reply, ...]
    text: str
    authored: str
    score: float | None = None
    compose: Compose | None = None
    note: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rank(self) -> float:
        """An unscored one counts less than any score."""
        return float("-inf") if self.score is None else self.score

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"prompt": self.replies[-1].ask.text, "reply": self.text, "score": self.score, **self.note}


@dataclass
class Attempt:
    """One attack on one goal: what the search uses, and what it reports to.

    Attributes:
        goal, target, roles, seed: what the search has to work with.
        rng: the search's own, from the seed and the goal.
        best: the offer with the highest in-loop score, the first of equals.
        tried: every offer, and every part of one, in order.
        facts: what else the record of the attempt says.
        spent: whether the budget ran out.
        prompts: hashes of what was asked, whatever the seed.
        feedback: whether the in-loop score of what a guard flags says how far: it is between 0 and 1, below the scale.
    """

    goal: Goal
    target: Target
    roles: Roles
    seed: int = 0
    best: Offer | None = None
    tried: list[Offer] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    spent: bool = False
    prompts: set[str] = field(default_factory=set)
    feedback: bool = False

    def __post_init__(self) -> None:
        self.rng = random.Random(f"{self.seed}-{self.goal.source}-{self.goal.id}")

    def offer(
        self,
        *replies: Reply,
        score: float | None = None,
        text: str | None = None,
        compose: Compose | None = None,
        final: bool = False,
        partial: bool = False,
        **note: Any,
    ) -> None:
        """Report something tried: a reply, or (with `text` and `compose`) what is put together of several.

        Args:
            replies: that make it up.
            score: in the loop.
            text, compose: see `Offer`.
            final: this is the attack's result, whatever the scores.
            partial: this is no result by itself, such as a part of one.
            note: whatever explains it.
        """
        last = replies[-1]
        forced = [(span.position, span.ids) for span in last.ask.forced]
        edits = {"edits": [asdict(edit) for edit in last.ask.edits]} if last.ask.edits else {}
        behind = {"behind": last.ask.behind} if last.ask.behind else {}
        self.prompts.add(key_of(turns=last.ask.turns, forced=forced, fill=last.ask.fill, **edits, **behind))
        written = (last.text, last.authored) if text is None else (text, text)
        offer = Offer(replies, *written, score, compose, note)
        self.tried.append(offer)
        if not partial and (final or self.best is None or offer.rank > self.best.rank):
            self.best = offer

    def note_middle(self, phrase: str, position: int | None = None, **about: Any) -> None:
        """Put into the record what became of a phrase in the middle: in the best reply, and in how many of all.

        Every offer so far has a note `landed`, and a note `position` where none is given here.

        Args:
            phrase: what should stand there.
            position: where it was put.
            about: what else the record says, such as the unit of positions.
        """
        assert self.best is not None  # something was offered
        note, hits = self.best.note, [offer.note["landed"] for offer in self.tried]
        self.facts["middle"] = {
            "phrase": phrase,
            **about,
            "landed": note["landed"],
            "position": note.get("position", position) if note["landed"] else None,
            "hit_rate": sum(hits) / len(hits),
        }

    async def put(self, tries: Sequence[tuple[Ask, Mapping[str, Any]]]) -> list[tuple[Reply, float | None]]:
        """Put requests side by side, score the replies, and report each.

        Args:
            tries: requests, each with the note of its offer.

        Returns:
            Replies and their scores, in order; where the budget doesn't suffice, those of the first requests.
        """
        replies = await self.target.respond(*(ask for ask, _ in tries)) if tries else []
        scores = await self.score(*replies)
        for reply, score, (_, note) in zip(replies, scores, tries, strict=False):
            self.offer(reply, score=score, **note)
        return list(zip(replies, scores, strict=True))

    def reached(self, cutoff: float) -> bool:
        """Whether some offer's in-loop score is as high as `cutoff`."""
        return self.best is not None and self.best.rank >= cutoff

    async def score(self, *replies: Reply) -> list[float | None]:
        """The in-loop scorer's 1-10 of each reply, None where it can't be read. Another judge than the final one.

        With `feedback` a reply that the guard in front of the target flags has 1 / (1 + how far the guard's score is
        above its threshold) in the place of the scorer's."""
        scores: list[float | None] = [*await self.score_texts(*(reply.text for reply in replies))]
        if self.feedback:
            known = zip(scores, replies, strict=True)
            scores = [_so_far(each.guard) if each.guard and each.guard["flagged"] else own for own, each in known]
        return scores

    async def score_texts(self, *replies: str) -> list[int | None]:
        """The same of texts; an empty one is a 1, and nobody is asked."""
        fields = [{"GOAL": self.goal.text, "REPLY": reply} for reply in replies if reply.strip()]
        scores = iter(await self.roles.ask_all(SCORE, fields, whole(1, 10, "score"), temperature=0.0))
        return [next(scores) if reply.strip() else 1 for reply in replies]


def _so_far(verdict: Mapping[str, Any]) -> float:
    """The in-loop score of what a guard flagged, by its verdict's record."""
    beyond = 0.0 if verdict["score"] is None else max(0.0, verdict["score"] - verdict["threshold"])
    return round(1 / (1 + beyond), 3)


async def run_search(info: AttackInfo, attempt: Attempt, settings: Any) -> None:
    """Run an attack's search to its end or its budget's. Whatever else it raises is an error of the sample, which
    names the package that the attack is of."""
    try:
        try:
            await info.search(attempt, settings)
        except* BudgetSpent:  # also where several that run at once find it spent
            attempt.spent = True
    except (MidwardError, LimitExceededError):
        raise
    except Exception as error:
        if (told := failure(error)) is None:
            raise
        raise AttackError(told) from error
