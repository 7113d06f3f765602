"""The mirror image of the prefill probe: which tokens, if made safe, save the response?

Under an attack that works a refusal is forced at each of many starts, ending in the end-of-sequence token as MOSA's
safe sentences do. Where it stops the harm, an alignment that teaches refusing there would; so the probe finds the
window of starts in which MOSA should train on this model. [ours: the paper gives tokens 20 to 60 for all models.]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from midward.attacks.shapes import span
from midward.errors import InputError
from midward.goals import Goal, on_sandbox
from midward.models import LanguageModel
from midward.probes.configs import Mirror, check_positions
from midward.probes.phrases import UNFORCED, landing, phrase_for, phrases_for
from midward.probes.prefill import CELL, NOTHING, cells
from midward.probes.probe import Probe, Row
from midward.runs.measure import Case
from midward.sampling import Forced, Request, Sampling
from midward.stats import from_record, paired, rate_of, subject_of
from midward.store import key_of, write_text
from midward.world import wrappers

SWEEP = 24  # steps of the default sweep over a response


def cases(model: LanguageModel, goals: Sequence[Goal], config: Mirror, sampling: Sampling) -> list[Case]:
    """Each goal under the attack alone, then with the refusal at each start.

    Without starts in the config: every length / SWEEP tokens, behind what the attack forces, as far as all refusals
    fit.

    Raises:
        InputError: a start behind the response or inside what the attack forces, a refusal longer than what is left, a
            sweep narrower than the window, a wrapper around goals of another world.
    """
    length = sampling.length
    check_positions(config.starts, length)
    if config.attack == "wrapper" and not on_sandbox(goals):
        raise InputError("the attack 'wrapper' dresses up requests of the sandbox only; use prefill for other goals.")
    texts = phrases_for(goals, config.phrases_file)

    def attacked(goal: Goal) -> Request:
        if config.attack == "wrapper":
            families = wrappers("tuning" if goal.source == "sandbox-tuning" else "test")
            turn = int(key_of(seed=sampling.seed, goal=goal.id), 16)
            return Request(families[turn % len(families)].apply(goal.prompt))
        opening = phrase_for(goal, "affirmative", 0, texts, sampling.seed)
        return Request(goal.prompt, (span(model, opening, 0, length),))

    def refusal(goal: Goal, start: int, tokens: int | None) -> tuple[str, Forced]:
        sentence = phrase_for(goal, "refusal", start, texts, sampling.seed)
        ids = span(model, sentence, start, length - 1, tokens=tokens).ids
        return sentence, Forced(start, (*ids, model.family.end_ids[0]))

    attacks = [(goal, attacked(goal)) for goal in goals]
    first = max((len(request.forced[0].ids) for _, request in attacks if request.forced), default=0)
    starts = config.starts
    if not starts and goals:
        step = max(1, length // SWEEP)
        begin = -(-first // step) * step
        longest = max(len(refusal(goal, begin, None)[1].ids) for goal in goals)
        starts = tuple(range(begin, length - longest + 1, step))
        if not starts:
            raise InputError(f"no refusal fits into a response of {length} tokens; use a larger --length.")
    for start in starts:
        if start < first:
            raise InputError(
                f"start {start} lies inside the {first} tokens that the attack forces; start behind them, or use "
                "--attack wrapper."
            )
    windows(starts, config.width)
    unforced = NOTHING | {"attack": config.attack}
    asked = [Case(goal, request, "harmful", unforced) for goal, request in attacks]
    for start in starts:
        for tokens in config.tokens or (None,):
            for goal, request in attacks:
                sentence, ids = refusal(goal, start, tokens)
                about = unforced | {"kind": "refusal", "position": start, "tokens": tokens, "phrase": sentence}
                asked.append(Case(goal, Request(request.prompt, (*request.forced, ids)), "harmful", about))
    return asked


def windows(places: Sequence[int], width: int) -> list[int]:
    """The starts of a sweep at which a window of `width` begins that the sweep covers. Raises InputError for none."""
    gap = places[1] - places[0] if len(places) > 1 else 1
    candidates = [start for start in places if start + width <= places[-1] + gap]
    if not candidates:
        covered = f"the starts {places[0]} to {places[-1]}" if places else "no start"
        raise InputError(
            f"the sweep covers {covered}, which hold no window of {width}; use a wider sweep or a smaller --width."
        )
    return candidates


def window(rows: Sequence[Row], width: int) -> Row:
    """The window of starts in which a refusal leaves the attack least success.

    1. Candidates are [s, s + width) for every start s of the sweep whose window the sweep covers.
    2. The lowest mean success wins.
    3. Where the paired difference of another candidate from it isn't told from 0 (its 95 % interval over goals holds
       0), the two are tied, and the leftmost of the tied is taken: least harm is out before the refusal.

    Of several lengths of the refusal the first counts.

    Args:
        rows: of a run.
        width: starts in the window.

    Returns:
        start, and end behind it; asr: attack success over these starts, the record of a rate over goals; tied: where
        the other windows begin that are tied with it.

    Raises:
        InputError: the sweep is narrower than the window, or no goal was scored at every start.
    """
    forced = _of_first_length(rows)
    places = sorted({row["position"] for row in forced})
    success = {(row["position"], row["goal"]): row["success"] for row in forced}
    subjects = {row["goal"]: subject_of(row) for row in forced}
    candidates = windows(places, width)
    every = dict.fromkeys(row["goal"] for row in forced)
    goals = [goal for goal in every if all(success.get((place, goal)) is not None for place in places)]
    if not goals:
        raise InputError("no goal was scored at every start; judge again, or use another judge.")

    def inside(start: int, goal: str) -> list[bool]:
        return [success[place, goal] for place in places if start <= place < start + width]

    means = {start: {goal: float(np.mean(inside(start, goal))) for goal in goals} for start in candidates}
    lowest = min(candidates, key=lambda start: (sum(means[start].values()), start))
    gaps = {start: paired([means[start]], [means[lowest]], subjects.__getitem__) for start in candidates}
    tied = [start for start, gap in gaps.items() if (gap.low or 0.0) <= 0]
    scored = [row for row in forced if row["goal"] in goals and tied[0] <= row["position"] < tied[0] + width]
    asr = rate_of(scored, "success")
    return {"start": tied[0], "end": tied[0] + width, "asr": asr.record(), "tied": tied[1:]}


def findings(rows: Sequence[Row], chosen: Row) -> list[str]:
    """What was chosen, in sentences with intervals. chosen: as `window` gives it."""
    start, end = chosen["start"], chosen["end"]
    alone = [row for row in rows if row["kind"] == UNFORCED]
    base, won = rate_of(alone, "success"), {row["goal"] for row in alone if row["success"]}
    inside = [row for row in _of_first_length(rows) if start <= row["position"] < end]
    scored = [row for row in inside if row["goal"] in won and row["success"] is not None]
    saved = rate_of([{**row, "saved": not row["success"]} for row in scored], "saved")
    share = f" It saves {saved.text()} of the responses that the attack had won." if saved.n else ""
    ties = f" Windows from {', '.join(map(str, chosen['tied']))} on are not told from it." if chosen["tied"] else ""
    return [
        f"Under the attack {alone[0]['attack']!r} (ASR {base} alone) a refusal forced at a start from token "
        f"{start} up to {end} leaves an ASR of {from_record(chosen['asr']).text()} on average.{share}{ties}"
    ]


def _of_first_length(rows: Sequence[Row]) -> list[Row]:
    forced = [row for row in rows if row["kind"] != UNFORCED]
    return [row for row in forced if row["tokens"] == forced[0]["tokens"]]


def summary(rows: Sequence[Row], config: Mirror, sampling: Sampling) -> dict[str, Any]:
    """The probe's `summary`, with the `window`, and options of `midward align` that train in it (`align`)."""
    chosen = window(rows, config.width)
    settings = {"window_start": chosen["start"], "window_end": chosen["end"], "length": sampling.length}
    shown = {"window": chosen, "align": {"method": "mosa", **settings}}
    return {"cells": cells(rows, config.judges), "findings": findings(rows, chosen), **shown}


def write(folder: Path, summary: Row) -> str:
    """Write align.yaml: the options of `midward align` that train in the window."""
    path = folder / "align.yaml"
    write_text(path, yaml.safe_dump(summary["align"], sort_keys=False))
    return f"midward align --config {path} trains in this window"


MIRROR = Probe("mirror", Mirror, cases, summary, readers=landing, write=write, cell=CELL, measures=("success",))
