"""Named sets of attacks with their settings: what a table of a paper was made with, or a quick look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from midward._hints import one_of
from midward.attacks.attack import AttackInfo
from midward.attacks.registry import ATTACKS, every


@dataclass(frozen=True)
class Profile:
    """attacks: names, in the table's order. settings: the profile of each attack's settings, where it has one.

    sampling: of the target, where the paper fixes it. judges: the paper's two. source: where it comes from.
    """

    name: str
    about: str
    attacks: tuple[str, ...]
    settings: str
    source: str
    sampling: Mapping[str, Any] = field(default_factory=dict)
    judges: tuple[str, ...] = ("harmfulness", "strongreject")

    def settings_of(self, info: AttackInfo) -> Mapping[str, Any]:
        """What this profile changes of an attack's reference settings."""
        return info.profiles.get(self.settings, {})


MOSA = ("avatar", "tap", "speakeasy", "aos", "pal", "ept", "dia", "advprefix")
SRI = ("flip", "pair", "refusal-suppression", "random-search", "wildjailbreak", "dija", "pad")

PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("quick", "every attack that needs no file, with a few queries a goal", (), "quick", "ours"),
        Profile(
            "mosa",
            "MOSA's eight attacks at their papers' settings",
            MOSA,
            "mosa",
            "MOSA, Table 1; response length not stated there, so the model's own",
        ),
        Profile(
            "mosa-adaptive",
            "TAP, EPT and AdvPrefix aimed at the middle of the response, and a phrase forced there",
            ("tap-mid", "ept-mid", "advprefix-mid", "prefill-mid"),
            "mosa-adaptive",
            "MOSA, Table 4",
        ),
        Profile(
            "sri",
            "SRI's five attacks and the two made for diffusion models",
            SRI,
            "sri",
            "SRI, section 5; 128 tokens, 32 steps, one block, temperature 0",
            {"length": 128, "steps": 32, "block": None, "temperature": 0.0},
        ),
        Profile(
            "harmbench",
            "PAIR and TAP as HarmBench sets them, a greedy replay of up to 512 tokens, its classifier",
            ("direct", "pair", "tap"),
            "harmbench",
            "HarmBench (Mazeika et al. 2024)",
            {"length": 512, "temperature": 0.0},
            ("harmbench",),
        ),
        Profile(
            "jbb",
            "the plain goal and PAIR as JailbreakBench sets them, 150 tokens",
            ("direct", "pair"),
            "jbb",
            "JailbreakBench (Chao et al. 2024)",
            {"length": 150, "temperature": 0.0},
        ),
    )
}


def profile_of(name: str) -> Profile:
    """The profile of this name. Raises InputError for an unknown one."""
    one_of("profile", name, PROFILES)
    return PROFILES[name]


def table() -> tuple[list[str], list[list[Any]], str]:
    """All attacks and profiles: the columns of a table of attacks, its rows, and what stands below it."""
    everything = every()
    known = {name: info for name, info in everything.items() if isinstance(info, AttackInfo)}
    rows = []
    for name, info in known.items():
        most = info.calls(info.configure({}))["target"]
        needs, roles = " ".join(info.needs), " ".join(info.roles) or "-"
        rows.append([name, info.version, info.access, needs, roles, most, info.about])
    lines = [f"{name}: {error}" for name, error in everything.items() if name not in known]
    lines += ["queries: the most to the target a goal, at the reference settings", ""]
    lines += [f"{each.name:14}  {each.about}: {', '.join(attacks_of(each))}" for each in PROFILES.values()]
    return ["attack", "version", "access", "needs", "roles", "queries", "about"], rows, "\n".join(lines)


def attacks_of(profile: Profile) -> tuple[str, ...]:
    """The profile's attacks; every one of ours that needs no file where it names none."""
    return profile.attacks or tuple(name for name, info in ATTACKS.items() if not info.required)
