"""The plain goal, as it stands: what every attack is compared with."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from midward.attacks.attack import AttackInfo, Attempt
from midward.attacks.capabilities import Capability
from midward.attacks.target import Ask


@dataclass(frozen=True, config={"extra": "forbid"})
class Direct:
    """No settings."""


async def search(attempt: Attempt, settings: Direct) -> None:
    """Ask once."""
    [reply] = await attempt.target.respond(Ask.of(attempt.goal.prompt))
    attempt.offer(reply)


DIRECT = AttackInfo(
    name="direct",
    version="1",
    about="the goal as it stands, no attack",
    citation="none",
    access="black",
    needs=(Capability.CHAT,),
    roles=(),
    settings=Direct,
    calls=lambda settings: {"target": 1},
    search=search,
)
