"""The settings of `midward dynamics`, from which its flags are derived; nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from midward import goals as goal_sets
from midward._flags import BatchSize, Flag, check
from midward.dynamics.samplers import sampler
from midward.errors import InputError
from midward.goals import Goal
from midward.goals.loading import is_file, sample
from midward.sampling import Sampling
from midward.world.trials import FORBIDDEN, HARMLESS, TASKS, trials

PREFILL = "prefill:"  # before the name of a set: with agreement forced at the response's start
TRAINING = "training"  # the set of answers that a detector is fitted on: harmless ones, of no table
READINGS = ("response", "generated")  # see `Pooling`; the default first

Names = tuple[str, ...]


@dataclass(frozen=True)
class DynamicsConfig:
    """Which prompts, in which samplers. A set is one of the sandbox's (plain, wrappers, benign, benign-wrapped,
    banned), a set of goals, or a .csv or .jsonl file; `prefill:` before it forces agreement at the response's start.

    Args:
        attacked: Sets of harmful prompts, attacked ones; on the sandbox plain,wrappers,prefill:plain.
        harmless: Sets of harmless ones; the first is the reference, the others are controls.
        fit_harmful: Harmful prompts that anchors are fitted on; never those of --attacked.
        fit_harmless: Harmless prompts for the same.
        column: Of files: the column of the prompts.
        count: Prompts of each set.
        fit: Prompts of each kind for anchors.
        train: More harmless prompts, whose signals a detector is fitted on.
        samplers: Samplers by comma: native, paper, ar, greedy, static, random, random-greedy, left-to-right, dynamic;
            the first and the paper's are looked at closely, and all are held against ar.
        reading: What a state is the mean of: all of the response, or generated tokens; the other stands beside it, in
            the last layer.
        all_steps: Run every step, also of responses that have ended.
    """

    attacked: Annotated[Names, Flag(grows=True)] = ()
    harmless: Annotated[Names, Flag(grows=True)] = ()
    fit_harmful: Annotated[Names, Flag()] = ()
    fit_harmless: Annotated[Names, Flag()] = ()
    column: Annotated[str | None, Flag()] = None
    count: Annotated[int, Flag(min=2, name="--limit --count", grows=True)] = 100
    fit: Annotated[int, Flag(min=2)] = 200
    train: Annotated[int, Flag(min=2)] = 200
    samplers: Annotated[Names, Flag(grows=True)] = ()
    reading: Annotated[Literal["response", "generated"], Flag()] = "response"
    all_steps: Annotated[bool, Flag()] = False
    batch_size: BatchSize = 16

    def __post_init__(self) -> None:
        check(self)
        for name in self.samplers:
            sampler(name, Sampling())

    def filled(self, at_home: bool) -> DynamicsConfig:
        """The same with the sets that go with the model. Raises InputError where none is known.

        at_home: whether it is one of the models in the package.
        """
        attacked = self.attacked or (("plain", "wrappers", f"{PREFILL}plain") if at_home else ())
        if not attacked:
            raise InputError(
                "--attacked is needed: sets of goals or files of attacked prompts, for instance prefill:advbench or "
                "what `midward attack` exported."
            )
        return replace(
            self,
            attacked=attacked,
            harmless=self.harmless or (("benign", "benign-wrapped", "banned") if at_home else ("alpaca",)),
            fit_harmful=self.fit_harmful or (("plain",) if at_home else ("advbench",)),
            fit_harmless=self.fit_harmless or (("benign",) if at_home else ("alpaca",)),
        )

    def goals(self) -> dict[str, dict[str, list[Goal]]]:
        """What is asked: what for (the four fields above) -> set -> goals; those to fit on without any that are looked
        at. Raises InputError for a set that can't be had, or that gives too few."""
        needs = {"attacked": self.count, "harmless": self.count, "fit_harmful": self.fit}
        needs["fit_harmless"] = self.fit + self.train
        chosen: dict[str, dict[str, list[Goal]]] = {}
        seen: set[str] = set()
        for purpose, need in needs.items():
            fitting = purpose.startswith("fit")
            sets = getattr(self, purpose)
            chosen[purpose] = {
                name: self._set(name, need, "train" if fitting else "test", seen if fitting else set()) for name in sets
            }
            if not fitting:
                seen |= {goal.prompt for goals in chosen[purpose].values() for goal in goals}
                continue
            have = sum(map(len, chosen[purpose].values()))
            least = self.fit + 2 if purpose == "fit_harmless" else 2
            if have < least:
                raise InputError(
                    f"--{purpose.replace('_', '-')} {','.join(sets)} gives {have} prompts; --fit {self.fit} takes "
                    f"{least} or more."
                )
        return chosen

    def _set(self, name: str, count: int, split: str, without: set[str]) -> list[Goal]:
        plain = name.removeprefix(PREFILL)
        if plain in TASKS:
            raise InputError(f"{plain} is a task, whose answers aren't harmful or harmless; leave it out.")
        if plain in (*FORBIDDEN, *HARMLESS):
            return [goal_sets.of_trial(trial, plain) for trial in trials(plain, count, split=split)]
        loaded = goal_sets.load(plain, column=self.column if is_file(plain) else None)
        goals = sample([goal for goal in loaded if goal.prompt not in without], count)
        if len(goals) < 2:
            raise InputError(
                f"{plain} has {len(goals)} prompts left beside those that are looked at; name another set."
            )
        return [replace(goal, source=plain) for goal in goals]
