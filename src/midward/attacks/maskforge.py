"""MaskForge: a library of texts with gaps, of which a bandit chooses by what they brought before (2606.04027).

Run without a library it learns: on each goal the bandit starts anew, in an order drawn for the goal; where no pattern
reaches the cutoff, a rewriter writes texts with gaps for this goal. What all goals of a run brought is summed up in a
library, a file in the run's folder: each pattern with its pulls and rewards, and new ones made of the rewriter's
texts that reached the cutoff. Run with a library it is frozen: nobody rewrites, nothing is drawn, and each goal starts
from the library's counts, whatever other goals bring.

Attacks:
    maskforge: a bandit chooses of a library of texts with gaps, which are sent as mask tokens

Source:
    MaskForge, arXiv 2606.04027

Deviations:
    - A restatement: only the abstract was to be had, no code. Patterns, budget, UCB1's constant and scorer are ours.
    - Patterns are DIJA's styles in our own words; gaps have the same sizes for every goal.
    - The library is summed up when the goals have ended, not goal by goal: it doesn't depend on their order.
    - The rewriter is DIJA's, not led by the scorer. A text of it becomes a pattern by putting names for the goal and
      its opening; one in which other long words of the goal are left is of that goal alone, and isn't kept.
    - A pattern whose reply can't be scored, or wouldn't differ if it was asked again, rests for that goal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from midward._settings import wrong_in
from midward.attacks.attack import AttackInfo, Attempt, Count, InLoop, checked
from midward.attacks.capabilities import AttackError, Capability
from midward.attacks.dija import REWRITE, fills_only, scaffold_of
from midward.attacks.phrases import opening
from midward.attacks.record import Record
from midward.attacks.roles import SCORE, shipped
from midward.attacks.target import Ask
from midward.attacks.taxonomy import IN_PROMPT, SEARCH
from midward.errors import InputError
from midward.goals import Goal
from midward.guards import prompt_hash
from midward.store import key_of, read_once

STYLES: dict[str, str] = shipped("words")["maskforge"]
_PATTERN = r"\$goal(?s:.*)<mask:0*[1-9]|<mask:0*[1-9](?s:.*)\$goal"  # the goal and a gap, in either order
LEARNED = 8  # patterns made of the rewriter's texts that a library keeps, those of the highest mean reward


@checked
class MaskForge:
    """library: a file that a run without one left; empty: it learns. queries: to the target, the most. explore: the
    constant c of UCB1. fallback: how many of the queries are kept for the rewriter's texts; none with a library.
    cutoff: the in-loop score that ends the search. mode: see dija. most: tokens of all gaps of a rewriter's text."""

    library: str = ""
    queries: Count = 10
    explore: Annotated[float, Field(ge=0)] = 1.0
    fallback: Annotated[int, Field(ge=0)] = 3
    cutoff: InLoop = 10
    mode: Literal["fill_only", "fill_then_answer"] = "fill_only"
    most: Count = 256

    @field_validator("library")
    @classmethod
    def _readable(cls, library: str) -> str:
        if library:
            read_library(library)
        return library

    @model_validator(mode="after")
    def _some_for_the_library(self) -> MaskForge:
        if not self.library and self.fallback >= self.queries:
            raise InputError(f"fallback={self.fallback} leaves none of the {self.queries} queries for patterns")
        return self


# --- the library -----------------------------------------------------------------------------------------------------


class Arm(BaseModel):
    """A pattern and what it brought. pulls: replies that were scored. reward: the sum of their scores, each over 10."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    pattern: Annotated[str, Field(pattern=_PATTERN)]
    pulls: Annotated[int, Field(ge=0)] = 0
    reward: Annotated[float, Field(ge=0)] = 0.0


class Library(BaseModel):
    """Patterns in order, and the hashes of the goals that they were learned on; `hash` is of all that."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1] = 1
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]
    goals: tuple[str, ...] = ()
    hash: str = ""

    @property
    def digest(self) -> str:
        """Of its content, which `hash` says in a file."""
        return key_of(**self.model_dump(mode="json", exclude={"hash"}))


EMPTY = Library(arms=tuple(Arm(name=name, pattern=pattern) for name, pattern in STYLES.items()))


@read_once
def read_library(path: Path) -> Library:
    """A library from its file. Raises AttackError for one that can't be read, or that was changed."""
    try:
        library = Library.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AttackError(f"the library {path} can't be read: {error.strerror}") from None
    except (UnicodeDecodeError, ValidationError) as error:
        why = wrong_in(error) if isinstance(error, ValidationError) else str(error)
        raise AttackError(f"{path} is no library of maskforge, as a run without one leaves it: {why}") from None
    if library.hash != library.digest:
        raise AttackError(
            f"the library {path} was changed after it was learned: it says the hash {library.hash!r}, and its content "
            f"has {library.digest!r}; learn it anew."
        )
    return library


def pattern_of(scaffold: str, goal: Goal) -> str | None:
    """A text with gaps that was written for a goal, as one for any.

    Args:
        scaffold: the text.
        goal: whose prompt and opening get names in it.

    Returns:
        The pattern; None where the goal's prompt isn't in it as words of its own, or other words of the goal with five
        letters or more are.
    """
    pattern = scaffold.replace("$", "$$")
    for text, name in ((opening(goal), "$opening"), (goal.prompt, "$goal")):
        pattern = pattern.replace(text.replace("$", "$$"), name)
    words = re.findall(r"[^\W\d_]{5,}", goal.prompt.lower())
    names = set(Template(pattern).get_identifiers())  # a letter behind a name would make it another
    if not {"goal"} <= names <= {"goal", "opening"} or any(
        word in pattern.lower().replace("$opening", "") for word in words
    ):
        return None
    return pattern


def filled(pattern: str, goal: Goal) -> str:
    """A pattern with a goal's own prompt and opening in it."""
    return Template(pattern).safe_substitute(goal=goal.prompt, opening=opening(goal))


def learned(records: Sequence[Record]) -> Library | None:
    """What the records of runs without a library say of patterns.

    Args:
        records: in any order; those with a library are left out.

    Returns:
        Our own styles with what they brought, and behind them at most `LEARNED` patterns of the rewriter's texts, those
        that reached the cutoff once or more; None where there is nothing to learn from.
    """
    known = [(record.settings, (record.model_extra or {})["bandit"]) for record in records]
    bandits = [(settings, bandit) for settings, bandit in known if not settings["library"]]
    scores: dict[str, list[int]] = {pattern: [] for pattern in STYLES.values()}
    reached: set[str] = set()
    for settings, bandit in bandits:
        for pull in bandit["pulls"]:
            if pull["pattern"] is not None and pull["score"] is not None:
                scores.setdefault(pull["pattern"], []).append(pull["score"])
                if pull["score"] >= settings["cutoff"]:
                    reached.add(pull["pattern"])
    if not bandits:
        return None
    names = {pattern: name for name, pattern in STYLES.items()}
    new = [pattern for pattern in reached if pattern not in names]
    new.sort(key=lambda pattern: (-sum(scores[pattern]) / len(scores[pattern]), -len(scores[pattern]), pattern))
    names |= {pattern: f"learned-{number}" for number, pattern in enumerate(new[:LEARNED], start=1)}
    arms = tuple(
        Arm(name=name, pattern=pattern, pulls=len(scores[pattern]), reward=sum(scores[pattern]) / 10)
        for pattern, name in names.items()
    )
    library = Library(arms=arms, goals=tuple(sorted({bandit["goal"] for _, bandit in bandits})))
    return library.model_copy(update={"hash": library.digest})


# --- the bandit ------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """Pulls of an arm, and the sum of their rewards."""

    pulls: int
    reward: float


def choose(tallies: Mapping[str, Tally], explore: float) -> str:
    """The arm that UCB1 pulls next (Auer, Cesa-Bianchi and Fischer 2002, figure 1).

    Args:
        tallies: of each arm; the first of equals is chosen.
        explore: c in mean + c * sqrt(2 ln N / n), N pulls of all these arms, n of this one.

    Returns:
        An arm without a pull, else the one with the highest bound.
    """
    total = sum(tally.pulls for tally in tallies.values())

    def bound(name: str) -> float:
        tally = tallies[name]
        if tally.pulls == 0:
            return math.inf
        return tally.reward / tally.pulls + explore * math.sqrt(2 * math.log(total) / tally.pulls)

    return max(tallies, key=bound)


async def search(attempt: Attempt, settings: MaskForge) -> None:
    """Pull an arm at a time until a reply reaches the cutoff; without a library the last queries are the rewriter's."""
    goal = attempt.goal
    library = read_library(settings.library) if settings.library else EMPTY
    own = prompt_hash(goal.prompt)
    if own in library.goals:
        raise AttackError(
            f"the library {settings.library} was learned on the goal {goal.id!r} too; use it on goals of another split "
            "(learn on sandbox-tuning, say, and attack sandbox)."
        )
    pulls: list[dict[str, Any]] = []
    attempt.facts["bandit"] = {"library": library.hash or None, "goal": own, "pulls": pulls}
    arms = list(library.arms)
    if not settings.library:
        attempt.rng.shuffle(arms)  # so that none is learned of less for standing further back
    patterns = {arm.name: arm.pattern for arm in arms}
    tallies = {arm.name: Tally(arm.pulls, arm.reward) for arm in arms}
    # 1. The library's patterns, by the bandit.
    kept = 0 if settings.library else settings.fallback
    while tallies and len(pulls) < settings.queries - kept:
        name = choose(tallies, settings.explore)
        score, drawn = await _pull(attempt, settings, name, filled(patterns[name], goal), patterns[name])
        if attempt.reached(settings.cutoff):
            return
        if score is None or not drawn:
            del tallies[name]
        else:
            tallies[name].pulls += 1
            tallies[name].reward += score / 10
    # 2. Texts that the rewriter writes for this goal; one that would get the same reply again isn't put again.
    settled: set[str] = set()
    for turn in range(kept):
        scaffold = await attempt.roles.ask(
            REWRITE,
            {"GOAL": goal.prompt},
            lambda answer: scaffold_of(answer, settings.most),
            temperature=0.3,
            turn=turn,
        )
        if scaffold is None or scaffold in settled:
            continue
        _, drawn = await _pull(attempt, settings, "rewriter", scaffold, pattern_of(scaffold, goal))
        if attempt.reached(settings.cutoff):
            return
        if not drawn:
            settled.add(scaffold)


async def _pull(
    attempt: Attempt, settings: MaskForge, arm: str, scaffold: str, pattern: str | None
) -> tuple[float | None, bool]:
    """Put a text with gaps: its in-loop score, None where it can't be read, and whether a seed had a say in it."""
    target, pulls = attempt.target, attempt.facts["bandit"]["pulls"]
    request = target.shaped(attempt.goal, "dija", scaffold=scaffold)
    ask = Ask.of(str(request.prompt), fill=settings.mode, seed=attempt.seed + len(pulls))
    [(reply, score)] = await attempt.put([(ask, {"arm": arm, "scaffold": scaffold})])
    pulls.append({"arm": arm, "pattern": pattern, "score": score})
    return score, reply.drawn


def _learned(records: Sequence[Record]) -> str | None:
    library = learned(records)
    return None if library is None else library.model_dump_json(indent=1)


MASKFORGE = AttackInfo(
    name="maskforge",
    needs=(Capability.PMASK,),
    settings=MaskForge,
    calls=lambda settings: {
        "target": settings.queries,
        "scorer": settings.queries,
        "rewriter": 0 if settings.library else settings.fallback,
    },
    search=search,
    prompts=(REWRITE, SCORE),
    unguarded=fills_only("maskforge"),
    learned=_learned,
    taxonomy=(*IN_PROMPT, SEARCH),
)
