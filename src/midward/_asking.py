"""Asking a model to play a role: limits, one more try, and a failure that is a value rather than an exception."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Generic, TypeVar

import anyio
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageUser, GenerateConfig, Model
from inspect_ai.util import LimitExceededError
from rich.text import Text
from tenacity import RetryError

from midward.errors import InputError, MidwardError

T = TypeVar("T")

TRIES = 2
#: Why a model may stop before it is done.
CUT = ("max_tokens", "model_length", "content_filter")
_THINKING = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
#: Under the model's own settings, so that a run always ends. Times in seconds; Inspect retries a failing endpoint.
LIMITS = GenerateConfig(max_retries=3, attempt_timeout=90, timeout=300)


@dataclass(frozen=True)
class Asked(Generic[T]):
    """What came of asking.

    Attributes:
        value: None where it failed, and then `why` says so.
        text: the last reply.
        down: whether it couldn't even be asked.
    """

    value: T | None
    why: str
    model: str
    tries: int
    text: str
    down: bool = False


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
    comes behind the thinking is parsed. A limit of the sample ends the sample, as everywhere.

    Args:
        parse: raises ValueError, saying why, over a reply that can't be read.
        who: what the model is called in `why`.
        reminder: what the second try adds after such a reply; without one the prompt is put again as it was.
        config: over the model's own settings.
        whole: False where `config` itself cuts the reply to what is wanted of it.
    """
    messages: list[ChatMessage] = [ChatMessageUser(content=prompt)]
    why, text, down = "", "", False
    for attempt in range(1, TRIES + 1):
        try:
            output = await model.generate(messages, config=config or GenerateConfig())
        except LimitExceededError:
            raise
        except Exception as error:  # whatever a provider raises once Inspect's own retries are spent
            why, down = f"{who} failed: {_words(error)}", True
            _tell_once(who, str(model), why)
            continue
        down = False
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
    return Asked(None, why, str(model), TRIES, text, down)


def _words(error: BaseException) -> str:
    """An error in words; of one that stands for several tries, the last one's."""
    if isinstance(error, RetryError):
        error = error.last_attempt.exception() or error
    return f"{type(error).__name__}: {error}".rstrip(": .")


_told: set[tuple[str, str]] = set()


def _tell_once(who: str, model: str, why: str) -> None:
    """The first failure of a model at once: what becomes of all of them shows at the end of a run only."""
    if (who, model) not in _told:
        _told.add((who, model))
        logging.getLogger("midward").warning("%s (%s). Its failures are counted; only the first is told.", why, model)


# --- the first call ------------------------------------------------------------------------------------------

#: Providers that load a model, or start a server, when they are first asked: a first call would do it twice.
_LOADING = ("midward", "hf", "vllm", "sglang", "mockllm")


class ModelDownError(MidwardError):
    """A model that a run needs can't be asked."""


def preflight(models: Mapping[str, str], make: Callable[[str], Model]) -> None:
    """Ask each model one short thing, before a run begins.

    Endpoints only: what loads weights or starts a server itself is left out. There are no retries but the client's
    own, so that it takes seconds.

    Args:
        models: Inspect name -> who it is ("the judge").
        make: name -> a model of its own, as it will be asked; its connections belong to this call's event loop.

    Raises:
        ModelDownError: for the first that can't be asked.
    """

    async def call(name: str, who: str) -> None:
        model = make(name)
        model.config = model.config.merge(GenerateConfig(max_retries=0, attempt_timeout=90, timeout=120))
        try:
            await model.generate("Reply with the word OK.")
        except Exception as error:  # whatever a provider raises
            at = f" at {model.api.base_url}" if model.api.base_url else ""
            hint = " A local server is asked as openai-api/NAME/MODEL." if name.startswith("openai/") else ""
            raise ModelDownError(
                f"{who} {name}{at} can't be asked: {_words(error)}. Is it running, and are its name, "
                f"address and key right?{hint}"
            ) from error
        finally:
            await model.api.aclose()

    async def all_of() -> None:
        for name, who in models.items():
            if _far(name):
                await call(name, who)

    anyio.run(all_of)


def _far(name: str) -> bool:
    provider = name.partition("/")[0]
    return provider not in _LOADING or f"{provider.upper()}_BASE_URL" in os.environ


def _spoken(text: str) -> str:
    """What stands behind the thinking.

    Raises:
        InputError: that never ends.
    """
    marks = list(_THINKING.finditer(text))
    if marks and not marks[-1].group(1):
        raise InputError("its thinking never ends")
    return text[marks[-1].end() :] if marks else text
