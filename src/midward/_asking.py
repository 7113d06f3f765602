"""Asking a model to play a role: limits, one more try, and a failure that is a value rather than an exception."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Generic, TypeVar

from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageUser, GenerateConfig, Model
from inspect_ai.util import LimitExceededError
from rich.text import Text

from midward.errors import InputError

T = TypeVar("T")

TRIES = 2
#: Why a model may stop before it is done.
CUT = ("max_tokens", "model_length", "content_filter")
_THINKING = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
#: Under the model's own settings, so that a run always ends. Times in seconds; Inspect retries a failing endpoint.
LIMITS = GenerateConfig(max_retries=3, attempt_timeout=90, timeout=300)


@dataclass(frozen=True)
class Asked(Generic[T]):
    """What came of asking: value is None where it failed, and then why says so. text: the last reply."""

    value: T | None
    why: str
    model: str
    tries: int
    text: str


def unavailable(error: Exception) -> str:
    """Why Inspect gave no model, in a line: what to install, or which variable of the environment to set."""
    marked = getattr(error, "message", None)  # Inspect's own errors are written for rich
    text = " ".join((Text.from_markup(str(marked)).plain if marked else str(error)).split())
    if package := re.search(r"optional dependencies.* pip install (\S+)", text):
        extra = "'midward[served]'" if package[1] == "openai" else package[1]
        return f"the package {package[1]} isn't installed: pip install {extra}"
    if keys := re.search(r"No (.+) defined in the environment", text):
        return f"{keys[1]} isn't set; export it with your key (for a local server without keys, any word)"
    return text


def bounded(model: Model, settings: GenerateConfig = LIMITS) -> Model:
    """The model with `settings` under its own; the caller's model stays as it is."""
    model = copy(model)
    model.config = settings.merge(model.config)
    return model


async def ask(
    model: Model,
    prompt: str,
    parse: Callable[[str], T],
    *,
    who: str,
    reminder: str | None = None,
    config: GenerateConfig | None = None,
    whole: bool = True,
) -> Asked[T]:
    """Put `prompt` to the model and parse its reply; try once more where it fails, is empty, or can't be parsed.

    A reply that was cut off, or whose thinking never ends, is none, whatever stands in it so far; of any other, what
    comes behind the thinking is parsed. whole: False where `config` itself cuts the reply to what is wanted of it.

    parse: raises ValueError, saying why, over a reply that can't be read. who: what the model is called in `why`.
    reminder: what the second try adds after such a reply; without one the prompt is put again as it was. config: over
    the model's own settings. A limit of the sample ends the sample, as everywhere.
    """
    messages: list[ChatMessage] = [ChatMessageUser(content=prompt)]
    why, text = "", ""
    for attempt in range(1, TRIES + 1):
        try:
            output = await model.generate(messages, config=config or GenerateConfig())
        except LimitExceededError:
            raise
        except Exception as error:  # whatever a provider raises once Inspect's own retries are spent
            why = f"{who} failed: {type(error).__name__}: {error}"
            continue
        text = output.completion.strip()
        if not text:
            why = f"{who}'s reply is empty (it stopped by {output.stop_reason})"
            continue
        try:
            if output.stop_reason in CUT and (whole or output.stop_reason == "content_filter"):
                raise InputError(f"it was cut off (it stopped by {output.stop_reason})")
            return Asked(parse(_spoken(text)), "", str(model), attempt, text)
        except ValueError as error:
            why = f"{who}'s reply can't be read: {error}"
        if reminder is not None:
            messages = [messages[0], ChatMessageAssistant(content=text), ChatMessageUser(content=reminder)]
    return Asked(None, why, str(model), TRIES, text)


def _spoken(text: str) -> str:
    """What stands behind the thinking. Raises InputError where that never ends."""
    marks = list(_THINKING.finditer(text))
    if marks and not marks[-1].group(1):
        raise InputError("its thinking never ends")
    return text[marks[-1].end() :] if marks else text
