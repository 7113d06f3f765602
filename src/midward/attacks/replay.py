"""Replay: puts prompts that another run or another group found, from a file in JailbreakBench's artifact format.

Nothing is searched for: what comes of it says how far those prompts carry over to this model. `export` writes such a
file from our own records.

Attacks:
    replay: prompts that others found, from a file in JailbreakBench's artifact format

Source:
    Chao et al. 2024, arXiv 2404.01318

Deviations:
    - The response comes from this run's target, length and seed, not from the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass as checked

from midward._settings import wrong_in
from midward.attacks.attack import AttackInfo, Attempt
from midward.attacks.capabilities import AttackError
from midward.attacks.record import Record
from midward.attacks.target import Ask, Target, Turns
from midward.errors import InputError
from midward.goals import Goal
from midward.sampling import Ban, Edit, Forced
from midward.store import read_once, write_text


class FileSpan(BaseModel):
    """Tokens at a response position as a file has them: `ids` of the same tokenizer, else `text`."""

    position: int = 0
    text: str | None = None
    ids: tuple[int, ...] | None = None


class FileAsk(BaseModel):
    """A request as a file has it, see `Ask`; its seed and settings are those of the run that puts it."""

    turns: Turns
    forced: tuple[FileSpan, ...] = ()
    bans: tuple[FileSpan, ...] = ()
    fill: Literal["fill_only", "fill_then_answer"] | None = None
    edits: tuple[Edit, ...] = ()
    behind: tuple[int, ...] = ()

    @field_validator("turns")
    @classmethod
    def _askable(cls, turns: Turns) -> Turns:
        return Ask(turns).turns

    def ask(self, target: Target) -> Ask:
        """In the target's tokens."""

        def ids(span: FileSpan) -> tuple[int, ...]:
            return target.tokens(span.text or "") if span.ids is None else span.ids

        forced = tuple(Forced(span.position, ids(span)) for span in self.forced)
        bans = tuple(Ban(ids(span), span.position) for span in self.bans)
        return Ask(self.turns, forced, bans, self.fill, edits=self.edits, behind=self.behind)


class Artifact(BaseModel):
    """One row of a file.

    Attributes:
        goal, id: what it was made for, as far as the row says so; `index` stands for a missing id.
        prompt: one user turn.
        asks: requests, of which the last one is put; they go before the prompt.
        composite: whether the response was put together of several replies, so that there is no one request.
        attack, model, jailbroken: where it comes from, and what came of it there.
    """

    goal: str | None = None
    id: str | None = Field(None, validation_alias=AliasChoices("id", "index"), coerce_numbers_to_str=True)
    prompt: str | None = None
    asks: tuple[FileAsk, ...] = ()
    composite: bool = False
    attack: Any = None
    model: Any = None
    jailbroken: Any = None

    @model_validator(mode="after")
    def _of_something(self) -> Artifact:
        if not self.goal and self.id is None:
            raise InputError("a row needs goal, id or index, to say what it was made for")
        return self

    @property
    def ask(self) -> FileAsk | None:
        """How to put it; None where the row holds nothing to put."""
        if self.composite:
            return None
        if self.asks:
            return self.asks[-1]
        return FileAsk(turns=(("user", self.prompt),)) if self.prompt and self.prompt.strip() else None

    @property
    def why(self) -> str:
        """Why there is nothing to put, where that is so."""
        if self.composite:
            return "its response was put together of several replies, so that there is no one prompt"
        return "its prompt is empty: none was found when it was made"

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
    return _read(path)[0]


@read_once
def _read(file: Path) -> tuple[tuple[Artifact, ...], str]:
    """The rows, and the file's sha256."""
    try:
        text = file.read_bytes()
    except OSError as error:
        raise InputError(f"the artifacts can't be read: {error}") from None
    try:
        content = json.loads(text)
    except ValueError as error:  # a broken encoding is one too
        raise InputError(f"{file} can't be read as JSON: {error}") from None
    rows = content.get("jailbreaks") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise InputError(f'{file}: an artifact file is {{"parameters": ..., "jailbreaks": [rows]}}, or a list of rows.')
    shared = (content.get("parameters") if isinstance(content, dict) else None) or {}
    common = {"attack": shared.get("method"), "model": shared.get("model")}
    artifacts = []
    for number, row in enumerate(rows):
        try:
            artifacts.append(Artifact.model_validate(common | row if isinstance(row, dict) else row))
        except ValidationError as error:
            raise InputError(f"{file}, row {number}: {wrong_in(error)}") from None
    return tuple(artifacts), hashlib.sha256(text).hexdigest()


def _plain(text: str | None) -> str:
    return " ".join((text or "").lower().split()).rstrip(".")


async def search(attempt: Attempt, settings: Replay) -> None:
    """Put the goal's artifact once, with this run's seed. A goal without one is noted, and stays unscored."""
    attempt.facts["access"] = "replay"
    if not settings.path:
        raise AttackError("replay needs a file of artifacts; give its path: replay.path=FILE.")
    rows, sha256 = _read(settings.path)
    fitting = [artifact for artifact in rows if artifact.fits(attempt.goal)]
    holding = [artifact for artifact in fitting if artifact.ask]
    if len(holding) <= settings.row:
        why = f"there are {len(holding)}, numbered from 0" if holding else fitting[0].why if fitting else "no row fits"
        attempt.facts["unscored"] = f"no artifact {settings.row} for this goal in {settings.path}: {why}"
        return
    artifact = holding[settings.row]
    origin = artifact.model_dump(include={"attack", "model", "jailbroken"})
    attempt.facts["artifact"] = {**origin, "sha256": sha256}
    assert artifact.ask is not None
    [reply] = await attempt.target.respond(artifact.ask.ask(attempt.target))
    attempt.offer(reply)


def export(attempts: Iterable[tuple[Record, bool | None]], path: str | Path) -> int:
    """Write attempts as artifacts that `Replay` reads.

    The file is JailbreakBench's format with more fields: `prompt` where one user turn is all there is to put, else null
    (whoever knows only that field must not take the last turn for the whole), and `asks` with all turns, forced and
    banned tokens, and seeds.

    Args:
        attempts: records, and whether each jailbroke the model; None where there is no verdict.
        path: of the file.

    Returns:
        How many were written.

    Raises:
        OSError: the file can't be written.
    """
    rows = [_row(number, record, jailbroken) for number, (record, jailbroken) in enumerate(attempts)]
    parameters: dict[str, Any] = {}
    for key in ("attack", "model", "access", "version", "hash") if rows else ("attack",):
        values = {str(row[key]): row[key] for row in rows}
        parameters["method" if key == "attack" else key] = rows[0][key] if len(values) == 1 else None
    parameters["total_number_of_jailbreaks"] = sum(row["jailbroken"] is True for row in rows)
    write_text(Path(path), json.dumps({"parameters": parameters, "jailbreaks": rows}, ensure_ascii=False, indent=1))
    return len(rows)


def _row(number: int, record: Record, jailbroken: bool | None) -> dict[str, Any]:
    last = record.asks[-1] if record.asks else None
    beside_text = last and (last.forced or last.bans or last.fill or last.edits or last.behind)
    plain = last and len(record.asks) == len(last.turns) == 1 and not beside_text
    return {
        "index": number,
        "id": record.goal,
        "goal": record.goal_text,
        "behavior": record.goal,
        "category": record.source,
        "prompt": last.text if last and plain else None,
        "response": record.response,
        "number_of_queries": record.target_queries,
        "queries_to_jailbreak": record.target_queries if jailbroken else None,
        "prompt_tokens": None,
        "response_tokens": None,
        "jailbroken": jailbroken,
        "model": record.target,
        **record.model_dump(mode="json", exclude={"goal", "goal_text", "target", "response"}),
    }


REPLAY = AttackInfo(name="replay", settings=Replay, search=search, required=("path",))
