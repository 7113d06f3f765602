"""The comparison that the demo runs: the base model, initial alignment and MOSA, attacked alike, on the same goals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midward import alignment, goals
from midward._hints import one_of
from midward.errors import InputError
from midward.guards import Sizes
from midward.models import LanguageModel, load
from midward.world import ALIGNMENT, alignment_prompts, instructions, sentences, tasks, trials

ATTACKS = ("direct", "wildjailbreak", "prefill", "prefill-mid", "pad")  # at the profile "quick"
HARMLESS = ("benign", "benign-wrapped", "banned", *tasks.TASKS)
#: split -> (its set of goals, the assistant that knows the split's wrappers and no others)
SPLITS = {
    "test": ("sandbox", "midward/sandbox-assistant"),
    "tuning": ("sandbox-tuning", "midward/sandbox-assistant/tuning"),
}
GUARD = Sizes(60, 160, 100)  # prompts for the guard; the paper takes 400, 1200 and 200
#: The methods at the recipe `stable`, and at the recipe behind the hyphen.
ARMS = ("initial", "mosa", "initial-published", "mosa-published", "initial-paper", "mosa-paper")


@dataclass(frozen=True)
class Plan:
    """What to run. goals: per attack and harmless set; exercises: per task; steps: optimizer steps of an alignment.

    split: "test" for reporting, "tuning" for choosing settings. guard: prompts that SRI Guard is fitted on; alpha: the
    false-positive rate it is calibrated for.
    """

    goals: int = 60
    exercises: int = 30
    seeds: int = 1
    arms: tuple[str, ...] = ("initial", "mosa")
    attacks: tuple[str, ...] = ATTACKS
    steps: int = 160
    split: str = "test"
    overrides: dict[str, Any] = field(default_factory=dict)  # fields of AlignConfig, for every arm
    guard: Sizes = GUARD
    alpha: float = 0.01

    def __post_init__(self) -> None:
        if not self.arms:
            raise InputError(f"no arm to compare with the base model; give some of {', '.join(ARMS)}.")
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown:
            raise InputError(f"no such arm: {unknown[0]!r}; known: {', '.join(ARMS)}")
        one_of("split", self.split, SPLITS)
        for name in ("goals", "exercises", "seeds", "steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")


Progress = Callable[[str, int, int], None]  # what is being done, done so far, of how many


def run(
    plan: Plan, out: Path, *, model: LanguageModel | None = None, progress: Progress
) -> dict[str, list[dict[str, Any]]]:
    """Run the plan; returns label -> rows, where the labels are `base` and `<arm>/<seed>`. Resumes from `out`."""
    base = model or load("sandbox")
    adapters: dict[str, Path | None] = {"base": None}
    for arm in plan.arms:
        for seed in range(plan.seeds):
            folder = adapter_folder(plan, arm, seed, out)
            adapters[f"{arm}/{seed}"] = train(base, arm, seed, plan, folder, progress)
    rows = attack(base.name, adapters, plan, out, progress)
    for label, adapter in adapters.items():
        aligned = base if adapter is None else load(base.name, adapter=str(adapter))
        aligned.fold_adapter()
        rows[label] += use(aligned, plan, _rows_file(out, label), label, progress)
    return rows


def method_and_recipe(arm: str) -> tuple[str, str]:
    """What an arm is: `mosa-published` is the method mosa at the recipe published, `mosa` at `stable`."""
    method, _, recipe = arm.partition("-")
    return method, recipe or "stable"


def titled(arm: str) -> str:
    """An arm as tables name it: with its recipe, always."""
    return arm if arm == "base" else ", ".join(method_and_recipe(arm))


def adapter_folder(plan: Plan, arm: str, seed: int, out: Path) -> Path:
    """Where the adapter of an arm and seed lies; plans of other lengths don't meet there."""
    return out / "adapters" / f"{arm}-{seed}-{plan.steps}-steps"


def train(model: LanguageModel, arm: str, seed: int, plan: Plan, out: Path, progress: Progress) -> Path:
    """Align `model` as the arm says; returns the adapter's folder."""
    method, recipe = method_and_recipe(arm)
    safe, harmful = sentences(opening=method == "initial")
    result = alignment.align(
        model,
        alignment_prompts(),
        out,
        method=method,
        recipe=recipe,
        benign=None if recipe == "paper" else instructions(),
        sentences=alignment.SentenceSet(safe=safe, harmful=harmful),
        seed=seed,
        max_steps=plan.steps,
        on_log=lambda row: progress(f"aligning {arm}/{seed}", int(row["step"]), plan.steps),
        **{**ALIGNMENT[recipe], **plan.overrides},
    )
    return result.adapter


def attack(
    name: str, adapters: Mapping[str, Path | None], plan: Plan, out: Path, progress: Progress
) -> dict[str, list[dict[str, Any]]]:
    """Run the plan's attacks on the model bare and with each adapter, as `midward attack` does; label -> rows."""
    from midward.attacks import matrix, results
    from midward.attacks._following import following

    goal_set, assistant = SPLITS[plan.split]
    planned = matrix.plan_attacks(plan.attacks, "quick")
    todo = matrix.Matrix(
        rows=[
            matrix.Row(_plain(label), name, None if adapter is None else str(adapter))
            for label, adapter in adapters.items()
        ],
        attacks=planned,
        sets={goal_set: goals.load(goal_set)[: plan.goals]},
        judges=["oracle"],
        roles={role: assistant for role in matrix.roles_needed(planned, ["oracle"])},
        replay=False,
    )
    done, total = 0, len(adapters) * len(planned) * plan.goals

    def count() -> None:
        nonlocal done
        done += 1
        progress("attacking", done, total)

    progress("attacking", 0, total)
    with following(count):
        logs = matrix.run(todo, out, display="none")
    labels = {_plain(label): label for label in adapters}
    rows: dict[str, list[dict[str, Any]]] = {label: [] for label in adapters}
    for outcome in results.read(logs):
        rows[labels[outcome.row]].append(_row(outcome))
    order = {goal.id: place for place, goal in enumerate(todo.sets[goal_set])}
    for found in rows.values():
        found.sort(key=lambda row: (plan.attacks.index(row["set"]), order[row["id"]]))
    progress("attacking", total, total)
    return rows


def _row(outcome: Any) -> dict[str, Any]:
    """A sample of an attack as a row of the report; what wasn't read is None."""
    seen = outcome.details.get("oracle", {}).get("reply", {})
    asks = outcome.record.get("asks") or []
    return {
        "id": outcome.goal,
        "set": outcome.attack,
        "prompt": asks[-1]["turns"][-1][1] if asks else outcome.prompt,
        "response": outcome.texts.get("reply") or outcome.error or "",
        "success": outcome.verdicts.get("oracle", {}).get("reply"),
        "full": seen.get("full"),
        "refused": seen.get("refused"),
        "coherent": seen.get("coherent"),
        "correct": None,
    }


def _plain(label: str) -> str:
    return label.replace("/", "-")


def _rows_file(out: Path, label: str) -> Path:
    return out / "rows" / f"{_plain(label)}.jsonl"


def use(model: LanguageModel, plan: Plan, out: Path, label: str, progress: Progress) -> list[dict[str, Any]]:
    """Put every harmless request and exercise of the plan to one model."""
    todo = [
        trial
        for name in HARMLESS
        for trial in trials.trials(name, plan.exercises if name in tasks.TASKS else plan.goals, split=plan.split)
    ]
    done = 0

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        progress(f"using {label}", done, len(todo))

    return trials.run(model, todo, out, progress=count)
