"""What a probe forces: four kinds of phrase, in the words of the world that the goals are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from midward._hints import one_of
from midward._tables import read_table, require_column
from midward.alignment.sentences import SAFE
from midward.attacks import phrases
from midward.errors import InputError
from midward.goals import Goal, on_sandbox
from midward.models import LanguageModel
from midward.sampling import Forced
from midward.store import key_of
from midward.world import REFUSALS, WORLD

KINDS = ("affirmative", "procedural", "neutral", "refusal")

Phrases = Mapping[str, Sequence[str]]  # kind -> its phrases

GENERAL: Phrases = {
    "affirmative": phrases.AFFIRMATIVE,
    "procedural": phrases.PROCEDURAL,
    "neutral": phrases.NEUTRAL,
    "refusal": SAFE,
}
#: In the model's own language, so that a phrase is what it says and not merely something never seen. A step has one
#: wording there; the neutral ones are true sentences that have nothing to do with any goal.
SANDBOX: Phrases = {
    **GENERAL,
    "procedural": ("Step {step}:",),
    "neutral": tuple(f"The capital of {land} is {city}." for land, city in sorted(WORLD.capitals.items())[:6]),
    "refusal": REFUSALS,
}


def phrases_for(goals: Sequence[Goal], path: str | Path | None = None) -> dict[str, tuple[str, ...]]:
    """The phrases of every kind for these goals; a file's (columns `kind` and `text`) take the place of its kinds'.

    Raises InputError for an unknown kind, or a row without a text.
    """
    found = {kind: tuple(texts) for kind, texts in (SANDBOX if on_sandbox(goals) else GENERAL).items()}
    if path is None:
        return found
    rows = read_table(path)
    for column in ("kind", "text"):
        require_column(rows, column, path)
    own: dict[str, list[str]] = {}
    for number, row in enumerate(rows, 1):
        one_of(f"kind of phrase in {path}, row {number},", row.get("kind"), KINDS)
        text = row.get("text")
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{path}, row {number}: the phrase is empty; fill or remove it.")
        own.setdefault(str(row["kind"]), []).append(text)
    return found | {kind: tuple(texts) for kind, texts in own.items()}


def phrase_for(goal: Goal, kind: str, position: int, texts: Sequence[str], seed: int = 0) -> str:
    """The goal's phrase of a kind: drawn by the hash of goal and seed, so that it is the same for every model.

    An affirmative one is the goal's own target text where it has one and `texts` are the built-in ones. `{step}` in a
    phrase is the number of the step that a procedure has reached at `position`, at ten tokens a step.
    """
    if kind == "affirmative" and goal.target and texts == phrases.AFFIRMATIVE:
        return goal.target
    drawn = texts[int(key_of(seed=seed, goal=goal.id, kind=kind), 16) % len(texts)]
    return drawn.replace("{step}", str(phrases.step_at(position)))


def span(
    model: LanguageModel, phrase: str, position: int, length: int, tokens: int | None = None, *, end: bool = False
) -> Forced:
    """The phrase as tokens forced at a response position, behind a blank everywhere but at 0.

    length: of the response. tokens: the phrase's first so many (all of a shorter one); None: all. end: the end-of-
    sequence token behind it. Raises InputError where it holds no token, or ends behind the response.
    """
    text = phrase if position == 0 or phrase[:1].isspace() else f" {phrase}"
    ids = tuple(model.tokenizer.encode(text, add_special_tokens=False))[:tokens]
    if not ids:
        raise InputError(f"the phrase {phrase!r} holds no token; give one that does.")
    if end:
        ids = (*ids, model.family.end_ids[0])
    if position + len(ids) > length:
        raise InputError(
            f"{phrase!r} has {len(ids)} tokens and the response {max(0, length - position)} left from position "
            f"{position} on; move it, or use a larger --length."
        )
    return Forced(position, ids)
