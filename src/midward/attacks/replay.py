"""Replay: puts prompts that another run or another group found, from a file in JailbreakBench's artifact format.

Nothing is searched for: what comes of it says how far those prompts carry over to this model.

Attacks:
    replay: prompts that others found, from a file in JailbreakBench's artifact format

Source:
    Chao et al. 2024, arXiv 2404.01318

Deviations:
    - The response comes from this run's target, length and seed, not from the file.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from midward.attacks.artifacts import read, sha256_of
from midward.attacks.attack import AttackInfo, Attempt, checked
from midward.attacks.capabilities import AttackError
from midward.attacks.taxonomy import IN_PROMPT


@checked
class Replay:
    """path: of the artifact file. row: which of a goal's artifacts is put, 0 for the first that holds a prompt."""

    path: str = ""
    row: Annotated[int, Field(ge=0)] = 0

    @field_validator("path")
    @classmethod
    def _readable(cls, path: str) -> str:
        if path:
            read(path)
        return path


async def search(attempt: Attempt, settings: Replay) -> None:
    """Put the goal's artifact once, with this run's seed. A goal without one is noted, and stays unscored."""
    attempt.facts["access"] = "replay"
    if not settings.path:
        raise AttackError("replay needs a file of artifacts; give its path: replay.path=FILE.")
    rows = read(settings.path)
    fitting = [artifact for artifact in rows if artifact.fits(attempt.goal)]
    holding = [artifact for artifact in fitting if artifact.ask]
    if len(holding) <= settings.row:
        why = f"there are {len(holding)}, numbered from 0" if holding else fitting[0].why if fitting else "no row fits"
        attempt.facts["unscored"] = f"no artifact {settings.row} for this goal in {settings.path}: {why}"
        return
    artifact = holding[settings.row]
    origin = artifact.model_dump(include={"attack", "model", "jailbroken"})
    attempt.facts["artifact"] = {**origin, "sha256": sha256_of(settings.path)}
    assert artifact.ask is not None
    [reply] = await attempt.target.respond(artifact.ask.ask(attempt.target))
    attempt.offer(reply)


REPLAY = AttackInfo(name="replay", settings=Replay, search=search, required=("path",), taxonomy=IN_PROMPT)
