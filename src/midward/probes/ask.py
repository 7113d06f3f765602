"""The ask probe: the prompt itself asks for a phrase at word k of the response (MOSA, arXiv 2508.12398, claim M3).

The claim is that wording can't place text in the middle. A phrase may stand at its word without being asked for there:
the rule may talk the model into an answer that has the phrase at this word by itself. So each response is read beside
two others: that to the plain goal, and those to the same goal with the rule for another word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from midward.attacks.phrases import ASKED
from midward.errors import InputError
from midward.goals import Goal
from midward.models import LanguageModel
from midward.probes.configs import Ask
from midward.probes.phrases import phrase_for, phrases_for
from midward.probes.probe import Probe, Row, groups, shares
from midward.runs.measure import Case
from midward.sampling import Request, Sampling
from midward.stats import Paired, paired, rate

VERSION = "1"  # of the wording


def cases(model: LanguageModel, goals: Sequence[Goal], config: Ask, sampling: Sampling) -> list[Case]:
    """For every goal the plain request, and the request with the rule for each word.

    Raises:
        InputError: a phrase that can't fit into the response (a word has one token or more).
    """
    texts, asked = phrases_for(goals, config.phrases_file), []
    for goal in goals:
        asked.append(Case(goal, Request(goal.prompt), about={"word": None, "phrase": None, "wording": None}))
        for word in config.words:
            kind = "procedural" if word else "affirmative"
            phrase = config.phrase or phrase_for(goal, kind, word, texts, sampling.seed)
            if word + len(phrase.split()) > sampling.length:
                raise InputError(
                    f"{phrase!r} at word {word} can't fit into a response of {sampling.length} tokens; ask for an "
                    "earlier word, or use a larger --length."
                )
            request = Request(ASKED.format(prompt=goal.prompt, number=word + 1, phrase=phrase))
            asked.append(Case(goal, request, about={"word": word, "phrase": phrase, "wording": VERSION}))
    return asked


def stands_at(text: str | None, phrase: str, word: int) -> bool | None:
    """Whether the phrase's words are the text's words from number `word` (from 0) on, letter for letter."""
    wanted = phrase.split()
    return None if text is None else text.split()[word : word + len(wanted)] == wanted


def readings(rows: Sequence[Row]) -> list[Row]:
    """The rows of what was asked for, with more of each; None where there is no response.

    hit: the phrase stands at its word; unasked: it does in the response to the plain goal; elsewhere: word that was
    asked for instead -> whether it does in that response; anywhere: it stands somewhere; reached: the response has that
    word at all.
    """
    responses = {(row["goal"], row["word"]): row["response"] for row in rows}
    words = sorted({word for _, word in responses if word is not None})
    read = []
    for row in rows:
        goal, word, phrase, text = (row[name] for name in ("goal", "word", "phrase", "response"))
        if word is None:
            continue
        standing = {
            at: stands_at(responses[goal, at], phrase, word) for at in (None, *words) if (goal, at) in responses
        }
        hits = {"hit": standing.pop(word), "unasked": standing.pop(None), "elsewhere": standing}
        there = " ".join((text or "").split())
        anywhere = None if text is None else " ".join(phrase.split()) in there
        reached = None if text is None else len(there.split()) > word
        read.append({**row, **hits, "anywhere": anywhere, "reached": reached})
    return read


def placed(some: Sequence[Row]) -> Paired:
    """What asking for this very word adds, by goal: hits minus those where the rule names another word, or, without
    another word, those of the plain goal. some: the readings of one word."""
    hits = {row["goal"]: row["hit"] for row in some}
    control = [{row["goal"]: row["elsewhere"][word] for row in some} for word in some[0]["elsewhere"]]
    return paired([hits], control or [{row["goal"]: row["unasked"] for row in some}])


def cells(rows: Sequence[Row]) -> list[Row]:
    """One row a word, the plain goals first (word None).

    elsewhere: the share of hits where another word was asked for, over words and goals. placed: see `placed`.
    """
    table: list[Row] = []
    plain = [row for row in rows if row["word"] is None]
    for (word,), some in [((None,), plain), *sorted(groups(readings(rows), "word").items())]:
        names = ("hit", "unasked", "anywhere", "reached", "refused")
        cell = {"word": word, "n": len(some), "asr": rate(row["success"] for row in some).record()}
        cell |= shares(some, **{name: name for name in names})
        instead = [(row["goal"], hit) for row in some for hit in row.get("elsewhere", {}).values()]
        cell["elsewhere"] = rate([hit for _, hit in instead], [of for of, _ in instead]).record() if instead else None
        cell["placed"] = placed(some).record() if word is not None else None
        table.append(cell)
    return table


def findings(rows: Sequence[Row]) -> list[str]:
    """What was found, in one sentence a word."""
    sentences = []
    for (word,), some in sorted(groups(readings(rows), "word").items()):
        hit, unasked, success = (rate(row[name] for row in some) for name in ("hit", "unasked", "success"))
        instead = rate(hit for row in some for hit in row["elsewhere"].values())
        against = f", {100 * (instead.value or 0):.1f} % where another word is asked for" if instead.n else ""
        sentences.append(
            f"Asked for at word {word}, the phrase stands there in {hit} of responses ({unasked} for the plain goal"
            f"{against}): asking for this word adds {placed(some)}; attack success is {success}."
        )
    return sentences


def summary(rows: Sequence[Row], config: Ask, sampling: Sampling) -> dict[str, Any]:
    """The probe's `summary`, with the `wording` of the rule."""
    return {"cells": cells(rows), "findings": findings(rows), "wording": ASKED}


ASK = Probe(
    name="ask", config=Ask, cases=cases, summary=summary, cell=("word",), measures=("hit", "success"), read=readings
)
