"""JailbreakBench's artifacts, in and out: what one attack put to one model, a row a goal, in one JSON file.

The layout is that of the package jailbreakbench (Chao et al. 2024, arXiv 2404.01318). Our files have more fields, which
its reader leaves out: how to put what isn't one user turn (`asks`), and rows without a verdict (`unscored`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, Field, ValidationError, field_validator, model_validator

import midward
from midward._settings import wrong_in
from midward._tables import artifact_rows, read_json
from midward.attacks.record import Record
from midward.attacks.target import Ask, Target, Turns
from midward.errors import InputError
from midward.goals import Goal
from midward.sampling import Ban, Edit, Forced
from midward.store import read_once, write_text

#: The package and version whose layout is read and written.
LAYOUT = "jailbreakbench 1.0.0"
#: `access` -> what the layout calls it. It has no grey: a search by log-probabilities is published there as black.
TYPES = {"black": "black_box", "grey": "black_box", "white": "white_box", "replay": "transfer"}


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
        attack, model, jailbroken: where it comes from, and what came of it there; None where it wasn't scored.
    """

    goal: str | None = None
    id: str | None = Field(None, validation_alias=AliasChoices("id", "index"), coerce_numbers_to_str=True)
    prompt: str | None = None
    asks: tuple[FileAsk, ...] = ()
    composite: bool = False
    attack: str | None = None
    model: str | None = None
    jailbroken: bool | None = None

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


def read(path: str | Path) -> tuple[Artifact, ...]:
    """The rows of an artifact file, those without a verdict last.

    Raises:
        InputError: there is no such file, or it isn't in the layout.
    """
    return _read(path)[0]


def sha256_of(path: str | Path) -> str:
    """Of an artifact file that can be read."""
    return _read(path)[1]


@read_once
def _read(file: Path) -> tuple[tuple[Artifact, ...], str]:
    try:
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"the artifacts can't be read: {error}") from None
    content = read_json(file)
    rows = artifact_rows(content, file)
    parameters = (content.get("parameters") if isinstance(content, dict) else None) or {}
    if not isinstance(parameters, dict):
        raise InputError(f"{file}: its parameters are {str(parameters)[:40]!r}, not an object.")
    if (layout := parameters.get("layout", LAYOUT)) != LAYOUT:
        raise InputError(
            f"{file} is in the layout {str(layout)[:40]!r}, and this midward reads {LAYOUT!r}; export it again."
        )
    common = {"attack": parameters.get("method"), "model": parameters.get("model")}
    artifacts = []
    for number, row in enumerate(rows):
        try:
            artifacts.append(Artifact.model_validate(common | row))
        except ValidationError as error:
            raise InputError(f"{file}, row {number}: {wrong_in(error)}") from None
    return tuple(artifacts), sha256


def _plain(text: str | None) -> str:
    return " ".join((text or "").lower().split()).rstrip(".")


def place(folder: Path, record: Record, row: str, taken: Collection[Path] = ()) -> Path:
    """Where the artifact of a row goes: METHOD/TYPE/MODEL.json, as in JailbreakBench's own repository.

    A number stands behind the model where another's name gives the same file, which is `taken`; A and a are one file on
    some systems.
    """
    method, model = (re.sub(r"[^\w.+-]+", "-", name) for name in (record.attack, row))
    names = {str(path).casefold() for path in taken}
    paths = (folder / method / _type(record) / f"{model}{end}.json" for end in chain([""], (f"-{n}" for n in count(2))))
    return next(path for path in paths if str(path).casefold() not in names)


def _type(record: Record) -> str:
    return TYPES.get(record.access, "black_box")


def write(
    path: Path, attempts: Sequence[tuple[Record, bool | None]], *, judge: str, defense: str | None, date: str
) -> None:
    """Write what one attack put to one model.

    What isn't known of the layout's fields is null: counts of tokens, and at which query a longer search jailbroke the
    model. Rows without a verdict are neither jailbroken nor safe, which the layout has no word for: they stand under
    `unscored`, and in no count of the layout's.

    Args:
        path: of the file.
        attempts: records, and whether each jailbroke the model; None where there is no verdict. One at least has one.
        judge: who says so.
        defense: what stood in front of the model.
        date: of the run, ISO 8601.

    Raises:
        OSError: the file can't be written.
    """
    numbers = _numbers([record for record, _ in attempts])
    rows = [_row(index, *attempt) for index, attempt in zip(numbers, attempts, strict=True)]
    scored = [row for row in rows if row["jailbroken"] is not None]
    unscored = [row for row in rows if row["jailbroken"] is None]
    hits, first = sum(row["jailbroken"] for row in scored), attempts[0][0]
    parameters = {
        "method": first.attack,
        "model": first.target,
        "attack_type": _type(first),
        "defense": defense,
        "attack_success_rate": hits / len(scored),
        "total_number_of_jailbreaks": hits,
        "number_of_submitted_prompts": sum(row["prompt"] is not None for row in scored),
        "total_number_of_queries": sum(row["number_of_queries"] for row in scored),
        "total_prompt_tokens": None,
        "total_response_tokens": None,
        "evaluation_date": date,
        "evaluation_llm_provider": "midward",
        "method_parameters": {name: _setting(value) for name, value in first.settings.items() if value is not None},
        "layout": LAYOUT,
        "midward": midward.__version__,
        "judge": judge,
        "unscored": len(unscored),
        **{name: getattr(first, name) for name in ("access", "version", "hash", "taxonomy")},
    }
    write_text(path, json.dumps({"parameters": parameters, "jailbreaks": scored, "unscored": unscored}, indent=1))


def _numbers(records: Sequence[Record]) -> Sequence[int]:
    """The goals' numbers in their set where their ids hold those, as JailbreakBench's own do; else from 0 on."""
    numbers = [record.goal.removeprefix(f"{record.source}-") for record in records]
    known = all(re.fullmatch(r"[0-9]{1,9}", number) for number in numbers) and len(set(numbers)) == len(numbers)
    return [int(number) for number in numbers] if known else range(len(records))


def _setting(value: Any) -> str | int | float:
    return value if isinstance(value, str | int | float) else json.dumps(value)


def _row(index: int, record: Record, jailbroken: bool | None) -> dict[str, Any]:
    last = record.asks[-1] if record.asks else None
    beside_text = last and (last.forced or last.bans or last.fill or last.edits or last.behind)
    plain = last and len(record.asks) == len(last.turns) == 1 and not beside_text
    return {
        "index": index,
        "id": record.goal,
        "goal": record.goal_text,
        "behavior": record.goal,
        "category": record.category or record.source,
        # One user turn, where that is all there is to put: whoever knows only this field must not take the last turn,
        # or a prompt without the forced tokens, for the whole.
        "prompt": last.text if last and plain else None,
        "response": record.response,
        "number_of_queries": record.target_queries,
        "queries_to_jailbreak": 1 if jailbroken and record.target_queries == 1 else None,
        "prompt_tokens": None,
        "response_tokens": None,
        "jailbroken": jailbroken,
        "model": record.target,
        **record.model_dump(mode="json", exclude={"goal", "goal_text", "category", "target", "response"}),
    }
