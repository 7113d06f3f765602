"""The ask probe: the prompt itself asks for a phrase at word k of the response (MOSA, arXiv 2508.12398, claim M3).

The claim is that wording can't place text in the middle. A phrase may stand at its word without being asked for there:
the rule may talk the model into an answer that has the phrase at this word by itself. So each response is read beside
two others: that to the plain goal, and those to the same goal with the rule for another word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from midward.attacks.phrases import ASKED
from midward.errors import InputError
from midward.goals import Goal
from midward.models import LanguageModel
from midward.probes.configs import Ask
from midward.probes.phrases import phrase_for, phrases_for
from midward.probes.probe import Probe, Row, groups, shares
from midward.runs.measure import Case, Reader
from midward.sampling import Request, Response, Sampling
from midward.stats import Paired, Rate, corrected, paired, rate_of, subject_of

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


def stands_at(text: str, phrase: str, word: int) -> bool:
    """Whether the phrase's words are the text's words from number `word` (from 0) on, letter for letter."""
    wanted = phrase.split()
    return text.split()[word : word + len(wanted)] == wanted


class Placed(Reader):
    """Fields, None for a plain goal: hit, the phrase stands at its word; anywhere, it stands somewhere; reached, the
    response has that word at all."""

    def fields(self, place: int, case: Case, response: Response, readings: Sequence[Any]) -> Row:
        word, phrase = case.about["word"], case.about["phrase"]
        if word is None or response.error is not None:
            return {"hit": None, "anywhere": None, "reached": None}
        words = response.text.split()
        anywhere = " ".join(phrase.split()) in " ".join(words)
        return {"hit": stands_at(response.text, phrase, word), "anywhere": anywhere, "reached": len(words) > word}


def controls(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """Word -> the rows where it was asked for, each with what its phrase does where it wasn't.

    unasked: whether the phrase stands at this word in the response to the plain goal; elsewhere: word that was asked
    for instead -> whether it does in that response; None where there is no response.
    """
    responses = {(row["goal"], row["word"]): row["response"] for row in rows}
    by_word = {word: group for (word,), group in groups(rows, "word").items() if word is not None}
    table: dict[int, list[Row]] = {word: [] for word in sorted(by_word)}
    for word, others in table.items():
        for row in by_word[word]:
            texts = {at: responses.get((row["goal"], at)) for at in (None, *table) if at != word}
            stands = {at: None if text is None else stands_at(text, row["phrase"], word) for at, text in texts.items()}
            others.append(row | {"unasked": stands.pop(None), "elsewhere": stands})
    return table


def placed(rows: Sequence[Row]) -> Paired:
    """What asking for this very word adds, by goal: hits minus those where the rule names another word, or, without
    another word, those of the plain goal. rows: of one word, as `controls` gives them."""
    hits, subjects = {row["goal"]: row["hit"] for row in rows}, {row["goal"]: subject_of(row) for row in rows}
    elsewhere = [{row["goal"]: row["elsewhere"][word] for row in rows} for word in rows[0]["elsewhere"]]
    return paired([hits], elsewhere or [{row["goal"]: row["unasked"] for row in rows}], subjects.__getitem__)


def instead(rows: Sequence[Row]) -> Rate:
    """The share of hits where another word was asked for, over words and goals. rows: as of `placed`."""
    return rate_of([{**row, "hit": hit} for row in rows for hit in row["elsewhere"].values()], "hit")


def cells(rows: Sequence[Row]) -> list[Row]:
    """One row a word, the plain goals first (word None).

    elsewhere: see `instead`. placed: see `placed`; p is corrected for all words.
    """
    table = []
    plain = [row for row in rows if row["word"] is None]
    by_word = controls(rows)
    for word, group in [(None, plain), *by_word.items()]:
        cell = {"word": word, "n": len(group), "asr": rate_of(group, "success").record()}
        cell |= shares(group, **{name: name for name in ("hit", "unasked", "anywhere", "reached", "refused")})
        several = word is not None and group[0]["elsewhere"]
        cell["elsewhere"] = instead(group).record() if several else None
        table.append(cell | {"placed": None})
    for cell, pair in zip(table[1:], _placed(by_word), strict=True):
        cell["placed"] = pair.record()
    return table


def _placed(by_word: Mapping[int, Sequence[Row]]) -> list[Paired]:
    return corrected([placed(group) for group in by_word.values()])


def findings(rows: Sequence[Row]) -> list[str]:
    """What was found, in one sentence a word."""
    sentences = []
    by_word = controls(rows)
    for (word, group), adds in zip(by_word.items(), _placed(by_word), strict=True):
        hit, unasked, success = (rate_of(group, name) for name in ("hit", "unasked", "success"))
        others = instead(group)
        against = f", {others} where another word is asked for" if others.n else ""
        sentences.append(
            f"Asked for at word {word}, the phrase stands there in {hit} of responses ({unasked} for the plain goal"
            f"{against}): asking for this word adds {adds}; attack success is {success}."
        )
    return sentences


def summary(rows: Sequence[Row], config: Ask, sampling: Sampling) -> dict[str, Any]:
    """The probe's `summary`, with the `wording` of the rule."""
    return {"cells": cells(rows), "findings": findings(rows), "wording": ASKED}


ASK = Probe(
    "ask",
    Ask,
    cases,
    summary,
    readers=lambda model, config, sampling: (Placed,),
    cell=("word",),
    measures=("hit", "success"),
)
