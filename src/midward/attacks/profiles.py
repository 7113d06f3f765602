"""Named sets of attacks with their settings: what a table of a paper was made with, or a quick look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import fill
from typing import Any

from midward._hints import one_of
from midward.attacks.attack import AttackInfo
from midward.attacks.registry import ATTACKS, every
from midward.attacks.roles import shipped
from midward.attacks.taxonomy import VERSIONS


@dataclass(frozen=True)
class Profile:
    """A set of attacks, as profiles.yaml has it.

    Attributes:
        name, about, source: what it is, and where it comes from.
        attacks: names, in the table's order; none stands for every one of ours that needs no file.
        sampling: of the target, where the paper fixes it.
        judges: the paper's.
        settings: attack -> what differs from its reference settings, of our attacks.
    """

    name: str
    about: str
    source: str
    attacks: Sequence[str] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    judges: Sequence[str] = ("harmfulness", "strongreject")
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def settings_of(self, info: AttackInfo) -> Mapping[str, Any]:
        """What this profile changes of an attack's reference settings."""
        return self.settings.get(info.name) or info.profiles.get(self.name, {})


PROFILES = {name: Profile(name, **content) for name, content in shipped("profiles").items()}


def profile_of(name: str) -> Profile:
    """The profile of this name. Raises InputError for an unknown one."""
    one_of("profile", name, PROFILES)
    return PROFILES[name]


def table() -> tuple[list[str], list[list[Any]], str]:
    """All attacks and profiles.

    Returns:
        The columns of a table of attacks, its rows, and what stands below it where the last two columns have no room:
        what each attack is, where it stands in taxonomies, what the columns say, and the profiles; no line is longer
        than 100 characters.
    """
    everything = every()
    known = {name: info for name, info in everything.items() if isinstance(info, AttackInfo)}
    rows = []
    for name, info in known.items():
        most = info.calls(info.configure({}))["target"]
        needs, roles = " ".join(info.needs), " ".join(info.roles) or "-"
        rows.append([name, info.access, most, needs, roles, info.taxonomy, info.about])
    lines = [f"{name}: {error}" for name, error in everything.items() if name not in known]
    lines += [_entry(name, info.about) for name, info in known.items()]
    lines += ["", f"By our reading, in the {', '.join(VERSIONS.values())}:", "", *_by_entry(known), ""]
    lines += [shipped("words")["legend"]]
    lines += [_entry(each.name, f"{each.about}: {', '.join(attacks_of(each))}") for each in PROFILES.values()]
    return ["attack", "access", "queries", "needs", "roles", "taxonomy", "about"], rows, "\n".join(lines)


def _by_entry(infos: Mapping[str, AttackInfo]) -> Iterator[str]:
    """A line for each taxonomy entry: which attacks have it, or which haven't where those are few."""
    for entry in dict.fromkeys(entry for info in infos.values() for entry in info.taxonomy):
        names = [name for name, info in infos.items() if entry in info.taxonomy]
        others = [name for name in infos if name not in names]
        few = f"all but {', '.join(others)}" if others else "all"
        which = few if len(others) <= 3 else ", ".join(names)
        yield fill(f"{entry}: {which}", 100, subsequent_indent=" " * 2, break_on_hyphens=False)


def _entry(name: str, text: str) -> str:
    return fill(f"{name:19}  {text}", 100, subsequent_indent=" " * 21, break_on_hyphens=False)


def attacks_of(profile: Profile) -> Sequence[str]:
    """The profile's attacks; every one of ours that needs no file where it names none."""
    return profile.attacks or tuple(name for name, info in ATTACKS.items() if not info.required)
