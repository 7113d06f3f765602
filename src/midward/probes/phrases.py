"""What a probe forces: four kinds of phrase, in the words of the world that the goals are of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from midward.alignment.sentences import SAFE
from midward.attacks import phrases
from midward.goals import Goal, on_sandbox
from midward.judges.phrases import refuses
from midward.models import LanguageModel
from midward.probes.configs import ProbeConfig, read_phrases
from midward.runs.measure import Case, Reader
from midward.sampling import Response, Sampling
from midward.store import key_of
from midward.world import REFUSALS, WORLD, refused
from midward.world.world import WORDS

UNFORCED = "none"  # the kind of a row without a phrase

Phrases = Mapping[str, Sequence[str]]  # kind -> its phrases

GENERAL: Phrases = {
    "affirmative": phrases.AFFIRMATIVE,
    "procedural": phrases.PROCEDURAL,
    "neutral": phrases.NEUTRAL,
    "refusal": SAFE,
}
#: In the model's own language, so that a phrase is what it says and not merely something never seen; the neutral ones
#: are true sentences that have nothing to do with any goal.
SANDBOX: Phrases = {
    **GENERAL,
    "procedural": ("Step {step}:", *(f"{words[0]}," for words in WORDS["compliance"]["orders"][1:4])),
    "neutral": tuple(f"The capital of {land} is {city}." for land, city in sorted(WORLD.capitals.items())[:6]),
    "refusal": REFUSALS,
}


def phrases_for(goals: Sequence[Goal], path: Path | None = None) -> Phrases:
    """kind -> the phrases for these goals; a file's (see `read_phrases`) take the place of its kinds'."""
    own = read_phrases(path) if path is not None else {}
    return {**(SANDBOX if on_sandbox(goals) else GENERAL), **own}


def phrase_for(goal: Goal, kind: str, position: int, texts: Phrases, seed: int) -> str:
    """The goal's phrase of a kind: drawn by the hash of goal and seed, so that it is the same for every model.

    Args:
        goal: what is asked for.
        kind: affirmative, procedural, neutral or refusal.
        position: response token that it is to stand at.
        texts: as `phrases_for` gives them.
        seed: of the draw.

    An affirmative one is `attacks.phrases.opening`, as in every attack, where `texts` are the built-in ones. `{step}`
    in a phrase is the number of the step that a procedure has reached at `position`, at ten tokens a step.
    """
    if kind == "affirmative" and texts[kind] == phrases.AFFIRMATIVE:
        return phrases.opening(goal)
    drawn = texts[kind][int(key_of(seed=seed, goal=goal.id, kind=kind), 16) % len(texts[kind])]
    return drawn.replace("{step}", str(phrases.step_at(position)))


class Landing(Reader):
    """What became of a forced phrase.

    Fields: landed, whether the response reaches behind the phrase (None without one); own_refusal, a refusal in what
    the model wrote itself, without any forced token. The phrase is the span that stands at the case's `position`.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def fields(self, place: int, case: Case, response: Response, readings: Sequence[Any]) -> dict[str, Any]:
        if response.error is not None:
            return {"landed": None, "own_refusal": None}
        given = {at for span in case.request.forced for at in range(span.position, span.position + len(span.ids))}
        written = self.model.decode([token for at, token in enumerate(response.ids) if at not in given])
        landed = None
        for span in case.request.forced:
            if span.position == case.about["position"]:
                # An end token is the last thing it can bring: the response ends there, and doesn't hold it.
                last = span.position + len(span.ids) - (span.ids[-1] in self.model.family.end_ids)
                landed = len(response.ids) >= last
        own = refused(written) if on_sandbox([case.goal]) else refuses(written)
        return {"landed": landed, "own_refusal": own}


def landing(model: LanguageModel, config: ProbeConfig, sampling: Sampling) -> Sequence[Callable[[], Reader]]:
    """The readers of a probe that forces phrases."""
    return (lambda: Landing(model),)
