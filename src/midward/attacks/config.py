"""What `midward attack` is told: rows, attacks, goals, judges and roles. Light, since its flags are read off it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from midward._flags import Flag
from midward._plugins import check_name
from midward.attacks.capabilities import AttackError
from midward.models.names import model_name

#: The attacks of this package, as `midward.attacks.registry` has them: so that a wrong name is told at once.
ATTACKS = (
    *("direct", "prefill", "prefill-mid", "pad", "dija", "flip", "flip-best-of-4", "refusal-suppression"),
    *("refusal-ban", "replay", "pair", "tap", "tap-mid", "aos", "wildjailbreak", "dia", "dia-prefill", "speakeasy"),
    *("avatar", "ept", "ept-mid", "advprefix", "advprefix-ask", "advprefix-mid", "random-search", "pal", "ral"),
    *("anchoring", "trajhijack", "post-context", "nesting", "maskforge"),
)
ROLES = "Roles: each an Inspect model (openai/..., midward/...); offline the sandbox's scripted assistant"


@dataclass(frozen=True)
class AttackConfig:
    """Models against attacks. Each adapter and guard, and each model that is served elsewhere, is one more row.

    Args:
        model: sandbox, a checkpoint folder, or a Hub id.
        adapter: [LABEL=]FOLDER of a PEFT adapter; may be given several times, a row each, beside the bare model;
            adapters of one label are seeds of one row.
        guard: [LABEL=]FILE of a fitted guard; may be given several times: one more row each, the model and adapter that
            it was fitted for behind it; see midward guard fit.
        endpoint: The address of a midward server: its model is attacked there, with all that it grants (midward serve
            --research); adapter and guard are the server's.
        api_key_file: A file whose first line is the server's key; else MIDWARD_API_KEY.
        served: An Inspect model that is served elsewhere (vllm/..., openai-api/...); one more row.
        profile: quick, mosa, mosa-adaptive, sri, harmbench or jbb; see --list.
        attacks: Attacks by comma, at the profile's settings; the profile's own unless given.
        set: ATTACK.NAME=VALUE, a setting of one attack; may be given several times.
        goals: Sets or .csv/.jsonl/.json files, by comma, a table each; see midward goals.
        harmless: The same of harmless requests: asked plainly, and how many are refused is counted apart.
        column: Of a file: the column of the goals.
        limit: Goals of each set, drawn by their ids (all).
        judges: Judges by comma; oracle and harmfulness on the sandbox, else the profile's.
        attacker: Writes the attacks.
        rewriter: Rewords and takes apart.
        translator: Translates.
        scorer: Scores in the loop.
        guard_model: Says what is safe, for EPT.
        uncensored: Answers anything, for AdvPrefix.
        proxy: Gives gradients, for PAL: midward/<model>; the model without adapter unless given.
        judge: Judges by rubric.
        budget: Most queries to the target a goal, over every attack's own limit.
        no_replay: Don't put the winning prompt once more with fresh seeds.
        batch_size: Rows per forward pass (32 on a CPU, 64 elsewhere).
        verdict: Which verdicts the table shows: on the reply in the loop, on a fresh one, or on the tokens that the
            model wrote itself. summary.json holds all.
        export: Write what was tried to this folder as JailbreakBench's artifacts, ATTACK/TYPE/ROW.json; the attack
            replay puts them again.
        plan: Say what it would cost, at the measured rate, and run nothing.
        listing: List attacks and profiles.
    """

    model: Annotated[str, Flag()] = "sandbox"
    adapter: Annotated[list[str] | None, Flag(grows=True)] = None
    guard: Annotated[list[str] | None, Flag(grows=True)] = None
    endpoint: Annotated[str | None, Flag(free=True)] = None
    api_key_file: Annotated[Path | None, Flag(free=True)] = None
    served: Annotated[list[str] | None, Flag(grows=True)] = None
    profile: Annotated[str, Flag()] = "quick"
    attacks: Annotated[tuple[str, ...], Flag(grows=True)] = ()
    set: Annotated[list[str] | None, Flag()] = None
    goals: Annotated[tuple[str, ...], Flag(grows=True)] = ("sandbox", "sandbox-contextual")
    harmless: Annotated[tuple[str, ...], Flag(grows=True)] = ()
    column: Annotated[str | None, Flag()] = None
    limit: Annotated[int | None, Flag(min=1, name="--limit --count", grows=True)] = None
    judges: Annotated[tuple[str, ...], Flag(grows=True)] = ()
    attacker: Annotated[str | None, Flag(panel=ROLES)] = None
    rewriter: Annotated[str | None, Flag(panel=ROLES)] = None
    translator: Annotated[str | None, Flag(panel=ROLES)] = None
    scorer: Annotated[str | None, Flag(panel=ROLES)] = None
    guard_model: Annotated[str | None, Flag(panel=ROLES)] = None
    uncensored: Annotated[str | None, Flag(panel=ROLES)] = None
    proxy: Annotated[str | None, Flag(panel=ROLES)] = None
    judge: Annotated[str | None, Flag(panel=ROLES)] = None
    budget: Annotated[int | None, Flag(min=1)] = None
    no_replay: Annotated[bool, Flag()] = False

    batch_size: Annotated[int | None, Flag(min=1, free=True)] = None
    verdict: Annotated[Literal["reply", "replay", "authored"], Flag(free=True)] = "reply"
    export: Annotated[Path | None, Flag(free=True)] = None
    plan: Annotated[bool, Flag(free=True)] = False
    listing: Annotated[bool, Flag(name="--list", free=True)] = False

    def check_names(self) -> None:
        """Raise AttackError for an attack that there isn't, and ModelError for a model. Nothing is loaded."""
        for name in self.attacks:
            check_name("attack", ATTACKS, name, AttackError)
        if self.endpoint is None:
            model_name(self.model)

    @property
    def roles(self) -> Mapping[str, Any]:
        """Inspect role -> the model that was named for it."""
        names = ("attacker", "rewriter", "translator", "scorer", "uncensored", "proxy", "judge")
        return {name: getattr(self, name) for name in names} | {"guard": self.guard_model}
