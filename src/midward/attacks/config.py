"""What `midward attack` is told: rows, attacks, goals, judges and roles. Light, since its flags are read off it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from midward._flags import Flag


def _role(what: str) -> Flag:
    return Flag(
        f"{what}: an Inspect model (openai/..., midward/...); offline the sandbox's scripted assistant.", panel="Roles"
    )


@dataclass(frozen=True)
class AttackConfig:
    """Models against attacks. Each adapter and guard, and each model that is served elsewhere, is one more row."""

    model: Annotated[str, Flag("sandbox, a checkpoint folder, or a Hub id.")] = "sandbox"
    adapter: Annotated[
        list[str] | None,
        Flag(
            "LABEL=FOLDER of a PEFT adapter; may be given several times, a row each, beside the bare model.", grows=True
        ),
    ] = None
    guard: Annotated[
        list[str] | None,
        Flag(
            "[LABEL=]FILE of a fitted guard; may be given several times: one more row each, the model and adapter that "
            "it was fitted for behind it. See midward guard fit.",
            grows=True,
        ),
    ] = None
    served: Annotated[
        list[str] | None,
        Flag("An Inspect model that is served elsewhere (vllm/..., openai-api/...); one more row.", grows=True),
    ] = None
    profile: Annotated[str, Flag("quick, mosa, mosa-adaptive, sri, harmbench or jbb; see --list.")] = "quick"
    attacks: Annotated[
        tuple[str, ...],
        Flag("Attacks by comma, at the profile's settings; the profile's own unless given.", grows=True),
    ] = ()
    set: Annotated[
        list[str] | None, Flag("ATTACK.NAME=VALUE, a setting of one attack; may be given several times.")
    ] = None
    goals: Annotated[tuple[str, ...], Flag("Sets or .csv/.jsonl files, by comma; see midward goals.", grows=True)] = (
        "sandbox",
        "sandbox-contextual",
    )
    harmless: Annotated[
        tuple[str, ...],
        Flag("The same of harmless requests: asked plainly, and how many are refused is counted apart.", grows=True),
    ] = ()
    column: Annotated[str | None, Flag("Of a file: the column of the goals.")] = None
    limit: Annotated[
        int | None, Flag("Goals of each set, drawn by their ids (all).", min=1, name="--limit --count", grows=True)
    ] = None
    judges: Annotated[
        tuple[str, ...], Flag("Judges by comma; oracle and harmfulness on the sandbox, else the profile's.", grows=True)
    ] = ()
    attacker: Annotated[str | None, _role("Writes the attacks")] = None
    rewriter: Annotated[str | None, _role("Rewords and takes apart")] = None
    translator: Annotated[str | None, _role("Translates")] = None
    scorer: Annotated[str | None, _role("Scores in the loop")] = None
    guard_model: Annotated[str | None, _role("Says what is safe, for EPT")] = None
    uncensored: Annotated[str | None, _role("Answers anything, for AdvPrefix")] = None
    proxy: Annotated[
        str | None,
        Flag("Gives gradients, for PAL: midward/<model>; the model without adapter unless given.", panel="Roles"),
    ] = None
    judge: Annotated[str | None, _role("Judges by rubric")] = None
    budget: Annotated[int | None, Flag("Most queries to the target a goal, over every attack's own limit.", min=1)] = (
        None
    )
    no_replay: Annotated[bool, Flag("Don't put the winning prompt once more with fresh seeds.")] = False

    batch_size: Annotated[int | None, Flag("Rows per forward pass (32 on a CPU, 64 elsewhere).", min=1, free=True)] = (
        None
    )
    verdict: Annotated[
        Literal["reply", "replay", "authored"],
        Flag(
            "Which verdicts the table shows: on the reply in the loop, on a fresh one, or on the tokens that the model "
            "wrote itself. summary.json holds all.",
            free=True,
        ),
    ] = "reply"
    export: Annotated[
        Path | None, Flag("Write the winning prompts to this file, in JailbreakBench's artifact format.", free=True)
    ] = None
    plan: Annotated[bool, Flag("Say what it would cost, at the measured rate, and run nothing.", free=True)] = False
    listing: Annotated[bool, Flag("List attacks and profiles.", name="--list", free=True)] = False

    @property
    def roles(self) -> Mapping[str, Any]:
        """Inspect role -> the model that was named for it."""
        names = ("attacker", "rewriter", "translator", "scorer", "uncensored", "proxy", "judge")
        return {name: getattr(self, name) for name in names} | {"guard": self.guard_model}
