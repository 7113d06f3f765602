"""Probes: where in a response a model's safety sits, and what of it an attacker can reach.

Each probe forces, asks for or optimises something at a response position, has the responses judged, and leaves rows,
tables and one sentence that says what was found with its interval:

    from midward import probes
    from midward.probes.configs import Prefill

    model = midward.load("sandbox")
    summary = probes.run(probes.find("prefill"), model, Prefill(limit=20, positions=(0, 40)), "runs/prefill")
"""

from typing import TYPE_CHECKING

from midward._flags import Flag
from midward._front import front_door
from midward.probes.configs import Attacking, ProbeConfig

if TYPE_CHECKING:
    from midward.probes.probe import Case, Probe, ProbeError, Ready, against, groups, ready, run, shares
    from midward.probes.registry import every, find

__getattr__, __dir__, __all__ = front_door(__name__)
