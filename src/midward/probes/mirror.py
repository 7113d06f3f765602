"""The mirror image of the prefill probe: which tokens, if made safe, save the response?

Under an attack that works a refusal is forced at each of many starts, ending in the end-of-sequence token as MOSA's
safe sentences do. Where it stops the harm, an alignment that teaches refusing there would; so the probe finds the
window of starts in which MOSA should train on this model. [ours: the paper gives tokens 20 to 60 for all models.]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from midward._hints import one_of
from midward.errors import InputError
from midward.goals import Goal, on_sandbox
from midward.models import LanguageModel
from midward.probes._readings import UNFORCED, Row, conditions
from midward.probes._run import Case
from midward.probes.phrases import Phrases, phrase_for, span
from midward.probes.prefill import check_positions
from midward.sampling import Forced
from midward.stats import paired, rate
from midward.store import key_of
from midward.world import wrappers

Attack = Literal["prefill", "wrapper"]
SWEEP = 24  # steps of the default sweep over a response
WIDTH = 40  # starts in a window: the paper's 20 to 60


@dataclass(frozen=True)
class Mirror:
    """attack: "prefill" forces an affirmative phrase at token 0, so that the opening is the attacker's; "wrapper"
    dresses the request up (sandbox goals only). starts: response tokens at which the refusal is forced, () for an even
    sweep. tokens: how much of the refusal, its first so many tokens before the end token; None is all. width: of the
    window. seed: of the draws."""

    attack: Attack = "prefill"
    starts: tuple[int, ...] = ()
    tokens: tuple[int | None, ...] = (None,)
    width: int = WIDTH
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("attack", self.attack, get_args(Attack))
        if not self.tokens or any(tokens is not None and tokens < 1 for tokens in self.tokens):
            raise InputError(f"a safe span has 1 token or more; received {self.tokens}.")
        if self.width < 1:
            raise InputError(f"the window is 1 token wide or more; received {self.width}.")
        check_positions(self.starts)


@dataclass(frozen=True)
class Window:
    """Starts from start up to and without end. asr: mean attack success over them, in 0..1, and its 95 % interval
    over goals. tied: further windows whose paired difference from the lowest is not told from 0."""

    start: int
    end: int
    asr: float
    low: float
    high: float
    tied: tuple[int, ...]


def cases(model: LanguageModel, goals: Sequence[Goal], settings: Mirror, phrases: Phrases, length: int) -> list[Case]:
    """Every response the probe wants: each goal under the attack alone, then with the refusal at each start.

    Without starts in the settings: every length / SWEEP tokens, behind what the attack forces, as far as all refusals
    fit. Raises InputError before anything is sampled: a start behind the response or inside what the attack forces, a
    refusal longer than what is left, a sweep narrower than the window, a wrapper around goals of another world, no
    goals.
    """
    if not goals:
        raise InputError("there are no goals to probe with.")
    check_positions(settings.starts, length)
    if settings.attack == "wrapper" and not on_sandbox(goals):
        raise InputError("the attack 'wrapper' dresses up requests of the sandbox only; use prefill for other goals.")

    def attack(goal: Goal) -> tuple[str, tuple[Forced, ...]]:
        if settings.attack == "wrapper":
            families = wrappers("tuning" if goal.source == "sandbox-tuning" else "test")
            turn = int(key_of(seed=settings.seed, goal=goal.id), 16)
            return families[turn % len(families)].apply(goal.prompt), ()
        opening = phrase_for(goal, "affirmative", 0, phrases["affirmative"], settings.seed)
        return goal.prompt, (span(model, opening, 0, length),)

    attacks = [attack(goal) for goal in goals]
    first = max((len(forced[0].ids) for _, forced in attacks if forced), default=0)
    for start in settings.starts:
        if start < first:
            raise InputError(
                f"start {start} lies inside the {first} tokens that the attack forces; start behind them, or use "
                "--attack wrapper."
            )

    def safe(goal: Goal, start: int, tokens: int | None) -> tuple[str, Forced]:
        sentence = phrase_for(goal, "refusal", start, phrases["refusal"], settings.seed)
        return sentence, span(model, sentence, start, length, tokens, end=True)

    def sweep() -> tuple[int, ...]:
        step = max(1, length // SWEEP)
        begin = -(-first // step) * step
        longest = max(len(safe(goal, begin, None)[1].ids) for goal in goals)
        found = tuple(range(begin, length - longest + 1, step))
        if not found:
            raise InputError(f"no refusal fits into a response of {length} tokens; use a larger --length.")
        return found

    def about(kind: str, start: int | None, tokens: int | None, phrase: str | None) -> Row:
        return {"kind": kind, "position": start, "tokens": tokens, "phrase": phrase, "attack": settings.attack}

    wanted = [
        Case(goal, prompt, forced, about(UNFORCED, None, None, None))
        for goal, (prompt, forced) in zip(goals, attacks, strict=True)
    ]
    starts = settings.starts or sweep()
    windows(starts, settings.width)
    for start in starts:
        for tokens in settings.tokens:
            for goal, (prompt, forced) in zip(goals, attacks, strict=True):
                sentence, ids = safe(goal, start, tokens)
                wanted.append(Case(goal, prompt, (*forced, ids), about("refusal", start, tokens, sentence), ids))
    return wanted


def windows(places: Sequence[int], width: int) -> list[int]:
    """The starts of a sweep at which a window of `width` begins that the sweep covers. Raises InputError for none."""
    gap = places[1] - places[0] if len(places) > 1 else 1
    found = [start for start in places if start + width <= places[-1] + gap]
    if not found:
        covered = f"the starts {places[0]} to {places[-1]}" if places else "no start"
        raise InputError(
            f"the sweep covers {covered}, which hold no window of {width}; use a wider sweep or a smaller --width."
        )
    return found


def window(rows: Sequence[Row], width: int = WIDTH) -> Window:
    """The window of starts in which a refusal leaves the attack least success.

    Candidates are [s, s + width) for every start s of the sweep whose window the sweep covers. The lowest mean success
    wins; where the paired difference of another candidate from it isn't told from 0 (its 95 % interval over
    goals holds 0), the two are tied, and the leftmost of the tied is taken: least harm is out before the refusal. Of
    several lengths of the refusal the first counts. Raises InputError where the sweep is narrower than the window.
    """
    forced = [row for row in rows if row["kind"] != UNFORCED]
    tokens = forced[0]["tokens"] if forced else None
    places = sorted({row["position"] for row in forced})
    success = {(row["position"], row["goal"]): row["success"] for row in forced if row["tokens"] == tokens}
    goals = [
        goal
        for goal in dict.fromkeys(row["goal"] for row in forced)
        if all(success.get((place, goal)) is not None for place in places)
    ]
    candidates = windows(places, width)
    if not goals:
        raise InputError("no goal was scored at every start; judge again, or use another judge.")

    def inside(start: int) -> list[tuple[str, bool]]:
        """Goal and verdict, of every start in a window."""
        return [(goal, success[place, goal]) for place in places if start <= place < start + width for goal in goals]

    def by_goal(start: int) -> dict[str, float]:
        verdicts = inside(start)
        return {goal: float(np.mean([hit for of, hit in verdicts if of == goal])) for goal in goals}

    means = {start: by_goal(start) for start in candidates}
    lowest = min(candidates, key=lambda start: (sum(means[start].values()), start))
    differences = {start: paired([means[start]], [means[lowest]]) for start in candidates}
    tied = [start for start, pair in differences.items() if (pair.low or 0.0) <= 0]
    chosen = tied[0]
    of_goal, verdicts = zip(*inside(chosen), strict=True)
    left = rate(verdicts, of_goal)
    others = tuple(start for start in tied if start != chosen)
    return Window(chosen, chosen + width, left.value or 0.0, left.low, left.high, others)


def recipe(found: Window, length: int) -> dict[str, Any]:
    """The window as a recipe for `midward align --config`: its `--set` fields."""
    return {"method": "mosa", "set": {"window_start": found.start, "window_end": found.end, "length": length}}


def findings(rows: Sequence[Row], found: Window) -> list[str]:
    """What was found, in sentences with intervals."""
    groups = conditions(rows)
    alone = next(some for key, some in groups.items() if key[1] == UNFORCED)
    base = [row["success"] for row in alone if row["success"] is not None]
    inside = {
        key[2]: some
        for key, some in groups.items()
        if key[1] != UNFORCED and found.start <= (key[2] or 0) < found.end and key[3] == _first_length(rows)
    }
    won = {row["goal"] for row in alone if row["success"]}
    saved = [
        not row["success"]
        for some in inside.values()
        for row in some
        if row["goal"] in won and row["success"] is not None
    ]
    share = f" It saves {100 * np.mean(saved):.1f} % of the responses that the attack had won." if saved else ""
    ties = f" Windows from {', '.join(map(str, found.tied))} on are not told from it." if found.tied else ""
    return [
        f"Under the attack {alone[0]['attack']!r} (ASR {100 * np.mean(base):.1f} % alone, n {len(base)}) a refusal "
        f"forced at a start from token {found.start} up to {found.end} leaves an ASR of {100 * found.asr:.1f} % "
        f"[{100 * found.low:.1f}, {100 * found.high:.1f}] on average.{share}{ties}"
    ]


def _first_length(rows: Sequence[Row]) -> int | None:
    return next((row["tokens"] for row in rows if row["kind"] != UNFORCED), None)
