"""The plain goal, as it stands: what every attack is compared with.

Attacks:
    direct: the goal as it stands, no attack

Source:
    none
"""

from __future__ import annotations

from midward.attacks.attack import AttackInfo, Attempt, checked
from midward.attacks.target import Ask
from midward.attacks.taxonomy import BYPASS, DIRECT_INJECTION, PROMPT_INJECTION


@checked
class Direct:
    """No settings."""


async def search(attempt: Attempt, settings: Direct) -> None:
    """Ask once."""
    [reply] = await attempt.target.respond(Ask.of(attempt.goal.prompt))
    attempt.offer(reply)


DIRECT = AttackInfo(
    name="direct", settings=Direct, search=search, taxonomy=(PROMPT_INJECTION, DIRECT_INJECTION, BYPASS)
)
