"""What alignment learns from by name: prompts and sentences of files, or of the sandbox's world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from midward import world
from midward.alignment.config import AlignConfig, DataConfig
from midward.errors import InputError
from midward.goals import Goal
from midward.goals.columns import prompts_of
from midward.goals.goal import of_trial

#: The name of the world's own prompts and sentences.
SANDBOX = "sandbox"


def prompts(source: str, column: str | None = None, *, harmful: bool, answered: bool = False) -> list[Any]:
    """Prompts as `alignment.align` takes them: with its answer, or its answer and its safe answer, where it has any.

    Args:
        source: a .csv or .jsonl file, whose answers are taken from columns `answer` and `safe_answer`; or SANDBOX.
        column: of the file: the prompts, by default prompt, goal or behavior.
        harmful: which of the sandbox's.
        answered: whether the sandbox's harmful ones come with both answers.

    Raises:
        InputError: the file can't be read, has no such column, or an empty prompt.
    """
    if source == SANDBOX:
        if harmful and answered:
            return list(world.alignment_answers())
        return list(world.alignment_prompts() if harmful else world.instructions())
    rows, column = prompts_of(source, column)
    pairs = []
    for index, row in enumerate(rows):
        prompt = row.get(column)
        if not prompt or (isinstance(prompt, str) and not prompt.strip()):
            raise InputError(f"{source}: row {index} has an empty {column!r}; remove it.")
        answer, safe = ((row.get(name) or None) if column != name else None for name in ("answer", "safe_answer"))
        pairs.append((prompt, answer, safe) if safe else (prompt, answer) if answer else prompt)
    return pairs


def sentences(source: str | None, method: str) -> dict[str, list[str]]:
    """The lists `safe` and `harmful` of a YAML file or of the SANDBOX, as `SentenceSet` takes them; nothing without a
    source, which means the built-in ones. Raises InputError."""
    if source is None:
        return {}
    if source == SANDBOX:
        safe, harmful = world.sentences(opening=method != "mosa")
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


@dataclass(frozen=True)
class Sources:
    """What was read: prompts as `alignment.align` takes them, the fields of a `SentenceSet`, and all settings that were
    given, over those that go with the sandbox's prompts. data: where the harmful ones are from."""

    harmful: list[Any]
    benign: list[Any] | None
    sentences: dict[str, list[str]]
    settings: dict[str, Any]
    data: str

    @property
    def goals(self) -> list[Goal]:
        """The harmful prompts, as a judge is told of them; of a conversation the last turn."""
        texts = [entry[0] if isinstance(entry, tuple) else entry for entry in self.harmful]
        if self.data == SANDBOX:
            trials = world.alignment_trials()
            return [of_trial(trials[text]) for text in texts]
        texts = [text if isinstance(text, str) else text[-1]["content"] for text in texts]
        return [Goal(f"prompt-{number}", text, Path(self.data).stem, True) for number, text in enumerate(texts)]

    @property
    def answers(self) -> list[str]:
        """The benign prompts' answers; an empty text where there is none."""
        return [(entry[1] or "") if isinstance(entry, tuple) else "" for entry in self.benign or ()]


def read(config: DataConfig, given: Mapping[str, Any], *, at_home: bool) -> Sources:
    """Read what a config names.

    Args:
        config: the names.
        given: fields of `AlignConfig`.
        at_home: whether the model is the sandbox's, which learns from the sandbox unless told otherwise.

    Raises:
        InputError: no data are named, or they can't be read.
    """
    data = config.data or (SANDBOX if at_home else None)
    if data is None:
        raise InputError("--data is needed for this --model: a .csv or .jsonl file of harmful prompts.")
    own = SANDBOX if data == SANDBOX else None
    benign, method = config.benign or own, given.get("method", AlignConfig.method)
    # The world's sizes hold for every method; what was tuned beside them was tuned for sentences.
    recipe = given.get("recipe", AlignConfig.recipe) if method in ("mosa", "initial") else "paper"
    tuned = world.ALIGNMENT.get(recipe, {}) if own else {}
    answered = method in ("sft", "a2d", "dpo", "ra") or given.get("reveal_text") == "other"
    return Sources(
        prompts(data, config.column, harmful=True, answered=answered),
        prompts(benign, config.benign_column or config.column, harmful=False) if benign else None,
        sentences(config.sentences or own, method),
        {**tuned, **given},
        data,
    )
