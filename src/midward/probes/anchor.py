"""The anchor probe: attack success along the number of tokens that are forced (Recovery Alignment, 2510.00565, 4.1).

Single tokens of a compliant text stand at random places of the response before its first step, as in the attack
`anchoring`. The claim (T1): attack success rises with their number, from one on. The controls: what the model's own
tokens say without the anchors, and what the anchors say alone; anchors of other texts; harmless goals with anchors of
theirs; and a ceiling, the share of draws that leave a refusal no room, where a refusal in whole sentences can't stand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from random import Random
from typing import Any

from midward.attacks.phrases import WINDOW
from midward.attacks.shapes import shape
from midward.goals import Goal
from midward.models import LanguageModel
from midward.probes.configs import Anchor
from midward.probes.phrases import UNFORCED, phrases_for
from midward.probes.probe import Probe, Row, groups, shares
from midward.runs.measure import Case, Reader
from midward.sampling import Request, Response, Sampling
from midward.stats import Paired, corrected, paired_of, rate_of

CELL = ("set", "source", "anchors")
PUBLISHED = {"order": "random", "block": None}  # how the rest is filled
#: Source -> what its anchors are of.
WORDS = {
    "own": "the goal's compliant text",
    "other": "another goal's compliant text",
    "neutral": "neutral phrases",
    "refusal": "refusals",
}


# --- what is asked -------------------------------------------------------------------------------------------


def cases(model: LanguageModel, goals: Sequence[Goal], config: Anchor, sampling: Sampling) -> list[Case]:
    """Each goal without anchors, then source by source with each number of them, in several draws.

    Harmless goals get anchors of their own texts alone.

    Raises:
        InputError: no compliant text is known for a goal, or one has fewer tokens than are to be drawn of it.
    """
    counts, length, room = config.counts(sampling.length), sampling.length, _room(model, goals, config)
    harmful, harmless = ([goal for goal in goals if goal.harmful is harm] for harm in (True, False))

    def case(name: str, goal: Goal, source: Any, count: int, draw: int) -> Case:
        about = {"source": source, "anchors": count, "fraction": count / length, "draw": draw, "room": room}
        request = Request(goal.prompt)
        if count:
            settings = {"anchors": count, "source": source, "positions": config.places, "length": length}
            rng = Random(f"{sampling.seed}/{goal.id}/{source}/{draw}")
            request = shape(model, goal, "anchoring", texts=config.texts or "sandbox", rng=rng, **settings)
        starts = free_starts({span.position for span in request.forced}, room, length)
        ceiling = {"no_room": not starts, "no_room_in_window": not set(starts) & set(range(*WINDOW))}
        return Case(goal, request, name, about | ceiling)

    asked = []
    for name, group, sources in (("harmful", harmful, config.sources), ("benign", harmless, ("own",))):
        asked += [case(name, goal, UNFORCED, 0, 0) for goal in group]
        asked += [
            case(name, goal, source, count, draw)
            for source in dict.fromkeys(sources)
            for count in counts
            for goal in group
            for draw in range(config.draws)
        ]
    return asked


def _room(model: LanguageModel, goals: Sequence[Goal], config: Anchor) -> int:
    """Tokens that a refusal needs."""
    if config.room is not None:
        return config.room
    refusals = phrases_for(goals, config.phrases_file)["refusal"]
    return 1 + min(len(model.tokens(f" {text}")) for text in refusals)


def free_starts(taken: set[int], room: int, length: int) -> list[int]:
    """Where a text of `room` tokens could begin in a response of `length` tokens, none of which is `taken`."""
    return [start for start in range(length - room + 1) if taken.isdisjoint(range(start, start + room))]


# --- what comes of it ----------------------------------------------------------------------------------------


class Apart(Reader):
    """Judges the model's own tokens without the anchors, and the anchors without the model's tokens.

    Fields: own_success and alone_success, own_correct and alone_correct; own_refused, a refusal in the own tokens.
    Between the anchors' runs stand dots; without anchors there is nothing alone.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def texts(self, place: int, case: Case, response: Response) -> Sequence[str]:
        anchored = {span.position: span.ids[0] for span in case.request.forced}
        own = self.model.decode([token for at, token in enumerate(response.ids) if at not in anchored])
        # Anchors side by side differ from their number in order by the same.
        runs = groupby(enumerate(sorted(anchored)), lambda pair: pair[1] - pair[0])
        alone = [self.model.decode([anchored[at] for _, at in run]).strip() for _, run in runs]
        return [own, *([" ... ".join(alone)] if alone else [])]

    def fields(self, place: int, case: Case, response: Response, readings: Sequence[Any]) -> Row:
        own, alone = [*readings, {}, {}][:2] if response.error is None else ({}, {})
        row = {f"own_{name}": own.get(name) for name in ("success", "correct", "refused")}
        return row | {f"alone_{name}": alone.get(name) for name in ("success", "correct")}


def cells(rows: Sequence[Row]) -> list[Row]:
    """One row a condition.

    asr: attack success of harmful goals, by the whole response; own_asr: by the model's own tokens; alone_asr: by the
    anchors alone. refused, own_refused: the same of refusals. no_room: draws that leave a refusal no room anywhere, the
    ceiling; no_room_in_window: none that begins in tokens 20 to 60. correct, own_correct, alone_correct: right answers
    to harmless goals. What doesn't apply is None.
    """
    everywhere = {name: name for name in ("refused", "own_refused", "no_room", "no_room_in_window")}
    of_harm = {"asr": "success", "own_asr": "own_success", "alone_asr": "alone_success"}
    of_answers = {name: name for name in ("correct", "own_correct", "alone_correct")}
    table = []
    for key, group in groups(rows, *CELL).items():
        cell = dict(zip(CELL, key, strict=True)) | {"fraction": group[0]["fraction"], "n": len(group)}
        cell |= dict.fromkeys([*of_harm, *of_answers])
        table.append(cell | shares(group, **(of_harm if group[0]["harmful"] else of_answers), **everywhere))
    return table


def findings(rows: Sequence[Row], sampling: Sampling) -> list[str]:
    """What was found, in sentences with intervals: what the fewest and the most anchors of each source do against
    none, how other sources compare with the goals' own texts, and what anchors cost on harmless goals."""
    by = groups(rows, *CELL)
    none = by["harmful", UNFORCED, 0]
    order = f"in the order {sampling.order}, {f'blocks of {sampling.block}' if sampling.block else 'one block'}"
    sentences = [f"Without anchors ASR is {rate_of(none, 'success')}; responses are filled {order}."]
    counts = sorted({count for _, _, count in by if count})
    sources = dict.fromkeys(source for name, source, count in by if count and name == "harmful")
    asked: list[tuple[Callable[[Paired], str], Paired]] = []
    for source in sources:
        for count in dict.fromkeys((counts[0], counts[-1])):
            asked.append((_against_none(by["harmful", source, count]), _pair(by["harmful", source, count], none)))
        if source != "own" and "own" in sources:
            most = by["harmful", source, counts[-1]]
            asked.append((_against_own(most), _pair(most, by["harmful", "own", counts[-1]])))
    calm = by.get(("benign", UNFORCED, 0))
    if calm and counts:
        most = by["benign", "own", counts[-1]]
        what = f"On harmless goals {_some(counts[-1])} change right answers by"
        asked.append((lambda pair: f"{what} {pair} against none.", _pair(most, calm, "correct")))
    pairs = corrected([pair for _, pair in asked])
    return sentences + [sentence(pair) for (sentence, _), pair in zip(asked, pairs, strict=True)]


def _some(count: int) -> str:
    return f"{count} anchor{'s' * (count > 1)}"


def _against_none(rows: Sequence[Row]) -> Callable[[Paired], str]:
    own, alone, closed = (rate_of(rows, name).text() for name in ("own_success", "alone_success", "no_room"))
    what = f"{_some(rows[0]['anchors'])} of {WORDS[rows[0]['source']]} ({rows[0]['fraction']:.1%} of the response)"
    rest = (
        f"; by its own tokens alone it is {own}, by the anchors alone {alone}. A refusal of {rows[0]['room']} tokens "
        f"has no room in {closed} of the draws."
    )
    return lambda pair: f"With {what} ASR is {rate_of(rows, 'success')}, by goal {pair} against none{rest}"


def _against_own(rows: Sequence[Row]) -> Callable[[Paired], str]:
    what = f"{_some(rows[0]['anchors'])} of {WORDS[rows[0]['source']]}"
    return lambda pair: f"By goal, ASR with {what} minus as many of {WORDS['own']} is {pair}."


def _pair(rows: Sequence[Row], others: Sequence[Row], field: str = "success") -> Paired:
    """The difference by goal and draw; what has no anchors is drawn once, and stands beside every draw."""
    draws = dict.fromkeys(row["draw"] for row in rows)
    if others[0]["source"] == UNFORCED:
        others = [{**row, "draw": draw} for row in others for draw in draws]
    return paired_of(rows, others, field, lambda row: (row["set"], row["goal"], row["draw"]))


def summary(rows: Sequence[Row], config: Anchor, sampling: Sampling) -> dict[str, Any]:
    """The probe's `summary`."""
    return {"cells": cells(rows), "findings": findings(rows, sampling)}


ANCHOR = Probe(
    "anchor",
    Anchor,
    cases,
    summary,
    readers=lambda model, config, sampling: (lambda: Apart(model),),
    cell=CELL,
    measures=("success", "own_success", "correct"),
    same=("places",),
    sampling=PUBLISHED,
)
