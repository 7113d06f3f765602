"""The guards there are: ours, and those that packages add by an entry point of the group `midward.guards`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter

from midward._plugins import Plugins, check_types, must_take
from midward.errors import InputError
from midward.guards.ablation import Ablation
from midward.guards.cascade import Cascade
from midward.guards.classifier import ClassifierGuard
from midward.guards.config import GuardError, parsed
from midward.guards.csd import CSD
from midward.guards.diffuguard import DiffuGuard, DiffuGuardAudit
from midward.guards.examine import SelfExamine
from midward.guards.guard import Guard
from midward.guards.labelled import DirectionMonitor, HesitationMonitor, ProjectionMonitor
from midward.guards.logits import EndToken, Energy
from midward.guards.looks import SRIBlocksGuard
from midward.guards.masks import MaskFilter
from midward.guards.perplexity import PerplexityFilter
from midward.guards.prefuse import PreFusion
from midward.guards.raec import RAEC
from midward.guards.sad import SAD
from midward.guards.sri import SRIGuard, SRIMahalanobisGuard


@dataclass(frozen=True)
class GuardInfo:
    """A guard on the list. kind: its class, which says its name, version, what it is about and when it looks."""

    kind: type[Guard]


#: The guards of this package, by name.
GUARDS: dict[str, GuardInfo] = {
    kind.name: GuardInfo(kind)
    for kind in (
        SRIGuard,
        SRIMahalanobisGuard,
        SRIBlocksGuard,
        Energy,
        EndToken,
        Cascade,
        PerplexityFilter,
        SelfExamine,
        ClassifierGuard,
        DiffuGuard,
        DiffuGuardAudit,
        MaskFilter,
        RAEC,
        CSD,
        SAD,
        Ablation,
        HesitationMonitor,
        DirectionMonitor,
        ProjectionMonitor,
        PreFusion,
    )
}


def _check(info: GuardInfo) -> None:
    check_types(info.kind, Guard)
    if lacks := sorted(info.kind.__abstractmethods__):
        raise InputError(f"has no {' and no '.join(lacks)}.")
    must_take("score", info.kind.score, "self", "model", "exchanges", batch_size=8)
    fields(info.kind.Settings)  # raises over what is no dataclass


_PLUGINS = Plugins("guard", GuardInfo, GUARDS, GuardError, _check, attrgetter("kind.name"))
#: find(name): the guard of this name, ours or a package's. Raises GuardError for an unknown name, or one that can't be
#: loaded.
find = _PLUGINS.find

#: every(): all guards by name; a package's that can't be loaded is its error.
every = _PLUGINS.every


def make(spec: str) -> Guard:
    """A guard by name, perhaps with settings: `sri`, `sri:early=false`, `perplexity:reference=gpt2;window=5`.

    Raises InputError for an unknown name or setting, and for a value out of range.
    """
    kind, settings = parsed(spec, lambda name: find(name).kind)
    return kind(**settings)
