"""The probes there are: ours, and those that packages add by an entry point of the group `midward.probes`."""

from __future__ import annotations

from midward._plugins import Plugins
from midward.probes.ask import ASK
from midward.probes.gcg import GCG
from midward.probes.mirror import MIRROR
from midward.probes.order import ORDER
from midward.probes.prefill import PREFILL
from midward.probes.probe import Probe, ProbeError

#: The probes of this package, by name.
PROBES: dict[str, Probe] = {probe.name: probe for probe in (PREFILL, MIRROR, ORDER, GCG, ASK)}

_PLUGINS = Plugins("probe", "midward.probes", Probe, PROBES, ProbeError)
#: find(name): the probe of this name, ours or a package's. Raises ProbeError for an unknown name, or one that can't be
#: loaded.
find = _PLUGINS.find

#: every(): all probes by name; a package's that can't be loaded is its error.
every = _PLUGINS.every
