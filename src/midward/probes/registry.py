"""The probes there are: ours, and those that packages add by an entry point of the group `midward.probes`."""

from __future__ import annotations

from typing import get_type_hints

from midward._plugins import Plugins, must_take
from midward.errors import InputError
from midward.probes.anchor import ANCHOR
from midward.probes.ask import ASK
from midward.probes.configs import Attacking, ProbeConfig
from midward.probes.gcg import GCG
from midward.probes.mirror import MIRROR
from midward.probes.order import ORDER
from midward.probes.prefill import PREFILL
from midward.probes.probe import Probe, ProbeError

#: The probes of this package, by name.
PROBES: dict[str, Probe] = {probe.name: probe for probe in (PREFILL, ANCHOR, MIRROR, ORDER, GCG, ASK)}


def _check(probe: Probe) -> None:
    must_take("cases", probe.cases, "model", "goals", "config", "sampling")
    must_take("summary", probe.summary, "rows", "config", "sampling")
    must_take("readers", probe.readers, "model", "config", "sampling")
    probe.config()
    base = Attacking if issubclass(probe.config, Attacking) else ProbeConfig
    own, kinds = get_type_hints(probe.config), get_type_hints(base)
    if other := [name for name, kind in kinds.items() if own[name] != kind]:
        raise InputError(f"has a config whose {other[0]} is {own[other[0]]}; that of every probe is {kinds[other[0]]}.")


_PLUGINS = Plugins("probe", Probe, PROBES, ProbeError, _check)
#: find(name): the probe of this name, ours or a package's. Raises ProbeError for an unknown name, or one that can't be
#: loaded.
find = _PLUGINS.find

#: every(): all probes by name; a package's that can't be loaded is its error.
every = _PLUGINS.every
