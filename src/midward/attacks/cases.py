"""Requests that a defence is tried on: harmless ones, plain and in an attack's clothes, and attacked ones.

Each is a fixed request, the same for every defence, so that defences are compared on the same generations; attacks that
search against a guarded model are `midward attack --guard`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from midward import goals as goal_sets
from midward.attacks import shapes
from midward.attacks.phrases import compliant
from midward.attacks.sets import SHAPES, TRIALS, check_set
from midward.errors import InputError
from midward.guards import prompt_hash
from midward.models import LanguageModel
from midward.runs.measure import Case
from midward.sampling import Request, Sampling
from midward.world.trials import trials

EVERY = 10**6  # goals: more than any set has


def cases(
    model: LanguageModel,
    name: str,
    count: int,
    *,
    split: str = "test",
    goals: str = "sandbox",
    without: Collection[str] = (),
    harmless: bool = False,
    length: int | None = None,
) -> list[Case]:
    """Up to `count` cases of one set.

    Args:
        model: whose tokens the shapes are made of.
        name: of the sandbox's trials about things of `split` (benign, benign-wrapped, banned; plain, contextual,
            wrappers); a key of SHAPES, put on `goals`; or a set of goals, or a file of prompts with a column `harmful`.
        count: cases wanted.
        split: of the sandbox's things.
        goals: a set or file; "sandbox" takes the forbidden requests of `split`. Anchoring leaves out those whose
            compliant text isn't known, as of every question.
        without: hashes of plain prompts that are left out, as those that a guard was fitted on (`Guard.fitted_on`);
            sets of goals and files then give the next ones.
        harmless: a file's rows are, and may not say otherwise.
        length: tokens of the responses, which the places of forced spans follow; the model's own unless given.

    Raises:
        InputError: for an unknown set, one of which nothing is left, or a shape that responses of this length are too
            short for.
    """
    if name in SHAPES:
        known = _shaped(model, name, count, len(without), split, goals, length or Sampling.for_model(model).length)
    else:
        known = _plain(name, count, len(without), split, harmless)
    fresh = [case for case in known if prompt_hash(case.about["plain"]) not in without]
    if not fresh:
        raise InputError(
            f"all {len(known)} prompts of {name} were used to fit the guards; give a set that wasn't, or fit on fewer."
        )
    return fresh[:count]


def mixed(names: Sequence[str], count: int, *, split: str) -> list[Case]:
    """`count` plain prompts of these sets in turn, an equal share of each; no model is needed.

    Args:
        names: as `cases` takes them, without SHAPES.
        count: cases wanted; fewer where the sets hold fewer.
        split: of the sandbox's things.

    Raises:
        InputError: for an unknown set.
    """
    share = -(-count // len(names))
    lists = [_plain(name, share, 0, split) for name in names]
    return [case for group in zip(*lists, strict=False) for case in group][:count]


def _plain(name: str, count: int, spare: int, split: str, harmless: bool = False) -> list[Case]:
    """spare: so many more of a set of goals. The sandbox's trials hang on their count, and its splits share nothing."""
    if name in TRIALS:
        made = trials(name, count, split=split)
        return [Case(goal_sets.of_trial(trial), Request(trial.text), name, {"plain": trial.plain}) for trial in made]
    check_set(name, shapes=False)
    loaded = goal_sets.load(name, count=count + spare, harmless=harmless)
    return [Case(goal, Request(goal.prompt), goal.source, {"plain": goal.prompt}) for goal in loaded]


def _shaped(model: LanguageModel, name: str, count: int, spare: int, split: str, goals: str, length: int) -> list[Case]:
    if goals == "sandbox":
        bare = [goal_sets.of_trial(trial) for trial in trials("plain", count, split=split)]
    elif name == "anchoring":  # of goals whose compliant text isn't known nothing can be forced
        bare = [goal for goal in goal_sets.load(goals, count=EVERY) if compliant(goal)][: count + spare]
        if not bare:
            raise InputError(
                f"the set 'anchoring': no compliant text is known for a goal of {goals}; use --goals sandbox or "
                "sandbox-benign, or leave the set out (--sets)."
            )
    else:
        bare = goal_sets.load(goals, count=count + spare)
    try:
        requests = [shapes.shape(model, goal, name, length=length) for goal in bare]
    except InputError as error:
        raise InputError(
            f"the set {name!r} in responses of {length} tokens (--length): {error} Or leave the set out (--sets)."
        ) from None
    return [Case(goal, shaped, name, {"plain": goal.prompt}) for goal, shaped in zip(bare, requests, strict=True)]
