"""What alignment learns from by name: prompts and sentences of files, or of the sandbox's world."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from midward import world
from midward._tables import read_table
from midward.errors import InputError
from midward.goals.columns import text_column

#: The name of the world's own prompts and sentences.
SANDBOX = "sandbox"


def prompts(source: str, column: str | None = None, *, harmful: bool) -> list[Any]:
    """Prompts as `alignment.align` takes them: (prompt, answer) where there is an answer.

    Args:
        source: a .csv or .jsonl file, whose answers are taken from a column `answer`; or SANDBOX.
        column: of the file: the prompts, by default prompt, goal or behavior.
        harmful: which of the sandbox's.

    Raises:
        InputError: the file can't be read, has no such column, or an empty prompt.
    """
    if source == SANDBOX:
        return list(world.alignment_prompts() if harmful else world.instructions())
    rows = read_table(source)
    column = text_column(rows, source, column, first="prompt")
    pairs = []
    for index, row in enumerate(rows):
        prompt = row.get(column)
        if not prompt or (isinstance(prompt, str) and not prompt.strip()):
            raise InputError(f"{source}: row {index} has an empty {column!r}; remove it.")
        answer = row.get("answer") if column != "answer" else None
        pairs.append((prompt, answer) if answer else prompt)
    return pairs


def sentences(source: str | None, method: str) -> dict[str, list[str]]:
    """The lists `safe` and `harmful` of a YAML file or of the SANDBOX, as `SentenceSet` takes them; nothing without a
    source, which means the built-in ones. Raises InputError."""
    if source is None:
        return {}
    if source == SANDBOX:
        safe, harmful = world.sentences(opening=method == "initial")
        return {"safe": safe, "harmful": harmful}
    try:
        lists = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source} can't be read: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{source} is no YAML: {error}") from None
    if not isinstance(lists, dict) or set(lists) != {"safe", "harmful"}:
        raise InputError(f"{source} must hold the lists `safe` and `harmful`; received {lists!r}.")
    return lists


def defaults(source: str, recipe: str) -> Mapping[str, Any]:
    """The settings that go with a source's prompts: the sandbox's sizes and rates."""
    return world.ALIGNMENT.get(recipe, {}) if source == SANDBOX else {}
