"""Replay: puts prompts that another run or another group found, from a file in JailbreakBench's artifact format.

Nothing is searched for: what comes of it says how far those prompts carry over to this model. `export` writes such a
file from our own records.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, field_validator
from pydantic.dataclasses import dataclass as checked

from midward.attacks.attack import AttackInfo, Attempt
from midward.attacks.target import Ask, AttackError, Capability
from midward.errors import InputError
from midward.goals import Goal
from midward.store import write_text

_ASKS: TypeAdapter[tuple[Ask, ...]] = TypeAdapter(tuple[Ask, ...])


@dataclass(frozen=True)
class Artifact:
    """One row of a file. goal, id: what it was made for, as far as the row says so. asks: how to put it; one, or none
    where the row holds no prompt. why: then, what it holds instead. about: its attack, model and the like."""

    goal: str | None
    id: str | None
    asks: tuple[Ask, ...]
    why: str
    about: Mapping[str, Any]

    def fits(self, goal: Goal) -> bool:
        """Whether it was made for this goal: by its text, or by id where the row has no text."""
        return _plain(self.goal) == _plain(goal.text) if self.goal else self.id == goal.id


@checked(frozen=True, config={"extra": "forbid"})
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


def read(path: str | Path) -> tuple[Artifact, ...]:
    """The rows of an artifact file. Raises InputError where there is no such file, or it isn't in the format."""
    file = Path(path).expanduser()
    try:
        written = file.stat().st_mtime_ns
    except OSError as error:
        raise InputError(f"the artifacts can't be read: {error}") from None
    return _read(file, written)[0]


@lru_cache(maxsize=8)
def _read(file: Path, written: int) -> tuple[tuple[Artifact, ...], str]:
    """The rows, and the file's sha256; read once, and again once the file was written anew."""
    try:
        text = file.read_bytes()
        content = json.loads(text)
    except (OSError, ValueError) as error:  # a broken encoding is a ValueError too
        raise InputError(f"{file} can't be read as JSON: {error}") from None
    rows = content.get("jailbreaks") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise InputError(f'{file}: an artifact file is {{"parameters": ..., "jailbreaks": [rows]}}, or a list of rows.')
    shared = content.get("parameters") if isinstance(content, dict) else None
    shared = shared if isinstance(shared, dict) else {}
    artifacts = []
    for number, row in enumerate(rows):
        try:
            artifacts.append(_artifact(row, shared))
        except ValueError as error:
            raise InputError(f"{file}, row {number}: {error}") from None
    return tuple(artifacts), hashlib.sha256(text).hexdigest()


def _artifact(row: Any, shared: Mapping[str, Any]) -> Artifact:
    if not isinstance(row, dict):
        raise InputError(f"a row is an object; received {row!r:.60}")
    goal = row.get("goal")
    identity = row.get("id", row.get("index"))
    if not isinstance(goal, str | None) or not isinstance(identity, str | int | None):
        raise InputError(f"goal must be a text, id or index a text or number; received {goal!r:.60}, {identity!r:.60}")
    if not goal and identity is None:
        raise InputError("a row needs goal, id or index, to say what it was made for")
    about = {
        "attack": row.get("attack", shared.get("method")),
        "model": row.get("model", shared.get("model")),
        "jailbroken": row.get("jailbroken"),
    }
    asks, why = _asks(row)
    return Artifact(goal, None if identity is None else str(identity), asks, why, about)


def _asks(row: Mapping[str, Any]) -> tuple[tuple[Ask, ...], str]:
    if row.get("composite"):
        return (), "its response was put together of several replies, so that there is no one prompt"
    if row.get("asks"):
        try:
            return _ASKS.validate_python(row["asks"])[-1:], ""
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"asks: {where}: {first['msg']}; received {first['input']!r:.60}") from None
    prompt = row.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        return (Ask.of(prompt),), ""
    if prompt is None or prompt == "":
        return (), "its prompt is empty: none was found when it was made"
    raise InputError(f"prompt must be a text or null; received {prompt!r:.60}")


def _plain(text: str | None) -> str:
    return " ".join((text or "").lower().split()).rstrip(".")


async def search(attempt: Attempt, settings: Replay) -> None:
    """Put the goal's artifact once, with this run's seed. A goal without one is noted, and stays unscored."""
    attempt.facts["access"] = "replay"
    if not settings.path:
        raise AttackError("replay needs a file of artifacts; give its path: replay.path=FILE.")
    rows = read(settings.path)
    fitting = [one for one in rows if one.fits(attempt.goal)]
    holding = [one for one in fitting if one.asks]
    if len(holding) <= settings.row:
        why = f"there are {len(holding)}, numbered from 0" if holding else fitting[0].why if fitting else "no row fits"
        attempt.facts["unscored"] = f"no artifact {settings.row} for this goal in {settings.path}: {why}"
        return
    artifact = holding[settings.row]
    file = Path(settings.path).expanduser()
    attempt.facts["artifact"] = {**artifact.about, "sha256": _read(file, file.stat().st_mtime_ns)[1]}
    [ask] = artifact.asks
    [reply] = await attempt.target.respond(Ask(ask.turns, ask.forced, ask.bans, ask.fill))
    attempt.offer(reply)


def export(records: Iterable[Mapping[str, Any]], path: str | Path) -> int:
    """Write the records of attempts (`solver.record_of`) as artifacts that `Replay` reads; return how many.

    The file is JailbreakBench's format with more fields: `prompt` where one user turn is all there is to put, else null
    (whoever knows only that field must not take the last turn for the whole), and `asks` with all turns, forced and
    banned tokens, and seeds. `jailbroken` is the record's own, null where it holds no verdict. Raises OSError.
    """
    rows = [_row(number, record) for number, record in enumerate(records)]
    alike = {
        key: rows[0][key] if len({str(row[key]) for row in rows}) == 1 else None
        for key in ("attack", "model", "access", "version", "hash")
        if rows
    }
    jailbroken = sum(row["jailbroken"] is True for row in rows)
    parameters = {"method": alike.pop("attack", None), **alike, "total_number_of_jailbreaks": jailbroken}
    write_text(Path(path), json.dumps({"parameters": parameters, "jailbreaks": rows}, ensure_ascii=False, indent=1))
    return len(rows)


def _row(number: int, record: Mapping[str, Any]) -> dict[str, Any]:
    asks = record["asks"]
    last = asks[-1] if asks else None
    plain = last and len(asks) == len(last["turns"]) == 1 and not (last["forced"] or last["bans"] or last["fill"])
    queries = sum(record["queries"].values())
    return {
        "index": number,
        "id": record["goal"],
        "goal": record["goal_text"],
        "behavior": record["goal"],
        "category": record["source"],
        "prompt": last["turns"][0][1] if last and plain else None,
        "response": record["response"],
        "number_of_queries": queries,
        "queries_to_jailbreak": queries if record.get("jailbroken") else None,
        "prompt_tokens": None,
        "response_tokens": None,
        "jailbroken": record.get("jailbroken"),
        "model": record["target"],
        **{key: value for key, value in record.items() if key not in ("goal", "goal_text", "target", "response")},
    }


REPLAY = AttackInfo(
    name="replay",
    version="1",
    about="prompts that others found, from a file in JailbreakBench's artifact format",
    citation="Chao et al. 2024, arXiv 2404.01318",
    access="black",
    needs=(Capability.CHAT,),
    roles=(),
    settings=Replay,
    calls=lambda settings: {"target": 1},
    search=search,
    deviations=("The response comes from this run's target, length and seed, not from the file.",),
    required=("path",),
)
