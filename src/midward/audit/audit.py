"""`audit`: put an endpoint to the checks, and say which attacks it makes possible."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from midward._hints import one_of, printable
from midward.attacks.attack import AttackInfo
from midward.attacks.capabilities import Capability
from midward.attacks.registry import every
from midward.audit.check import Check, Grants, Outcome
from midward.audit.checks import CHECKS, LAST
from midward.audit.config import AuditConfig
from midward.audit.dialects import Chat, Endpoint, Generate
from midward.audit.ours import OURS
from midward.audit.wire import Wire
from midward.serving.client import ServerError

#: All checks there are.
ALL = (*CHECKS, *OURS, *LAST)
_APIS: tuple[type[Endpoint], ...] = (Chat, Generate)


def audit(
    url: str, config: AuditConfig | None = None, progress: Callable[[int, int], None] = lambda done, of: None
) -> dict[str, Any]:
    """What an endpoint lets in.

    Args:
        url: its address.
        config: how it is asked.
        progress: told how many checks are done, of how many.

    Returns:
        A summary of plain values. verdict: "open" where something was let in that chat doesn't need, "unclear" where
        nothing was but some checks can't tell, else "closed". checks: a record each, with check, about, api, verdict,
        evidence, hole, capabilities (how far each is granted, "" being all of it) and requests. holes, unclear: names
        of checks. capabilities: what an attacker has, and how far. attacks: name -> what it needs, which checks give
        it that, and possible: "chat" (any endpoint does), "whole", "part" or "no".

    Raises:
        InputError: a check to be skipped that there isn't, or an address or a key that is none.
        ServerError: nobody answers there.
    """
    config = config or AuditConfig()
    for name in config.skip:
        one_of("check", name, {check.name: check for check in ALL})
    begun = time.monotonic()
    with Wire(url, config) as wire:
        endpoints = _met(wire)
        asked = [(at, check) for at in endpoints for check in _checks(at) if check.name not in config.skip]
        records: list[dict[str, Any]] = []
        for done, (at, check) in enumerate(asked):
            progress(done, len(asked))
            before = wire.sent
            if (outcome := check.outcome(at)) is not None:
                records.append(_record(at, check, outcome, wire.sent - before))
        model = next((at.model for at in endpoints if isinstance(at, Chat)), None)
        capabilities = _granted(records)
        holes = [record["check"] for record in records if record["hole"] and record["verdict"] == "open"]
        unclear = [record["check"] for record in records if record["hole"] and record["verdict"] == "unclear"]
        return {
            "url": wire.url,
            "model": model and printable(model, kept=""),
            "apis": [at.api for at in endpoints],
            "verdict": "open" if holes else "unclear" if unclear else "closed",
            "holes": list(dict.fromkeys(holes)),
            "unclear": list(dict.fromkeys(unclear)),
            "checks": records,
            "capabilities": capabilities,
            "attacks": _attacks(records, capabilities),
            "requests": wire.sent,
            "budget": config.budget,
            "seconds": round(time.monotonic() - begun, 1),
            "broke": [f"{path}: {trouble}" for path, trouble in wire.broke],
        }


def _met(wire: Wire) -> list[Endpoint]:
    """The languages that an endpoint answers in. Raises ServerError where it is none."""
    wanted, met = [kind(wire) for kind in _APIS if wire.config.api in ("auto", kind.api)], []
    for at in wanted:
        if at.meet():
            if at.plain.refused:
                raise ServerError(
                    f"{wire.url} stops even {at.question!r} by its content filter; give --plain a question that it "
                    "answers."
                )
            met.append(at)
        elif at.plain.raw.status is None:
            raise ServerError(f"{wire.url} doesn't answer ({at.plain.raw.trouble}). Is it running there?")
    if met:
        return met
    if any(at.plain.raw.status in (401, 403) for at in wanted):
        raise ServerError(f"{wire.url} doesn't take the key: give --api-key-file, or MIDWARD_API_KEY.")
    why = "; ".join(f"{at.path}: {at.plain.raw.trouble}" for at in wanted)
    raise ServerError(f"{wire.url} doesn't answer a plain question ({why}).")


def _checks(at: Endpoint) -> Iterator[Check]:
    ours = OURS if isinstance(at, Chat) and at.card else ()
    yield from (check for check in (*CHECKS, *ours, *LAST) if at.api in check.apis)


def _record(at: Endpoint, check: Check, outcome: Outcome, requests: int) -> dict[str, Any]:
    grants: Grants = check.grants if outcome.grants is None else outcome.grants
    return {
        "check": check.name,
        "about": check.about,
        "api": at.api,
        "verdict": outcome.verdict,
        "evidence": outcome.evidence,
        "hole": check.hole,
        "capabilities": {str(name): reach for name, reach in grants.items()} if outcome.verdict == "open" else {},
        "requests": requests,
    }


def _granted(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Capability -> how far it is granted by all of the checks together, "" being all of it."""
    granted: dict[str, list[str]] = {Capability.CHAT: [""]}
    for record in records:
        for name, reach in record["capabilities"].items():
            granted.setdefault(name, []).append(reach)
    return {str(name): "" if "" in reaches else "; ".join(dict.fromkeys(reaches)) for name, reaches in granted.items()}


def _attacks(records: Sequence[Mapping[str, Any]], granted: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Attack -> what it needs, and whether it can have that."""
    at_all = {name for record in records if not record["hole"] for name in record["capabilities"]} | {Capability.CHAT}
    found = {}
    for name, info in every().items():
        if not isinstance(info, AttackInfo):
            continue
        needs = [str(need) for need in info.needs]
        beyond = [need for need in needs if need not in at_all]
        givers = [record["check"] for record in records if set(beyond) & record["capabilities"].keys()]
        if not beyond:
            possible = "chat"
        elif not set(beyond) <= granted.keys():
            possible = "no"
        else:
            possible = "part" if any(granted[need] for need in beyond) else "whole"
        found[name] = {"needs": needs, "by": list(dict.fromkeys(givers)), "possible": possible}
    return found
