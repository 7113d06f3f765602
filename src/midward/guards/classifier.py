"""A classifier of conversations in the manner of Llama Guard: any model that Inspect reaches (arXiv 2312.06674)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

import anyio
import numpy as np
from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, GenerateConfig, get_model
from inspect_ai.util import collect
from pydantic import Field
from pydantic.dataclasses import dataclass

from midward._asking import unavailable
from midward.guards.config import GuardError
from midward.guards.exchange import Exchange, user_text
from midward.guards.guard import Guard
from midward.judges.asking import bounded
from midward.models import LanguageModel

#: A word's log-probability is looked for among this many.
TOP = 20


@dataclass(frozen=True, config={"extra": "forbid"})
class Classifier:
    """model: an Inspect model (hf/meta-llama/Llama-Guard-3-8B, vllm/..., openai-api/...) whose own chat template asks
    the question. reads: "both" turns, or the "prompt" alone. unsafe, safe: how its reply begins."""

    model: Annotated[str, Field(min_length=1)]
    reads: Literal["both", "prompt"] = "both"
    unsafe: Annotated[str, Field(min_length=1)] = "unsafe"
    safe: Annotated[str, Field(min_length=1)] = "safe"


class ClassifierGuard(Guard):
    """Score: log p(unsafe) - log p(safe) of the reply's first token where the model gives log-probabilities, else +1 or
    -1 for the word it says, which no threshold can calibrate: then either it flags all that it calls unsafe or, where
    that is more than alpha of the harmless prompts, nothing. A reply that is neither word is unscored (NaN)."""

    name = "classifier"
    about = "a classifier of conversations, any Inspect model"
    looks = "after"
    Settings = Classifier
    tied_to = ()

    def score(self, model: LanguageModel, exchanges: Sequence[Exchange], *, batch_size: int = 8) -> np.ndarray:
        if any(each.text is None for each in exchanges) and self.settings.reads == "both":
            raise GuardError("the classifier looks at responses; an exchange has none. Set reads='prompt'.")

        classifier = self._model  # that it can't be had is an error, not an unscored row

        async def ask() -> list[float]:
            return await collect(*(self._ask(model, classifier, each) for each in exchanges))

        return np.array(anyio.run(ask), dtype=float)

    async def _ask(self, model: LanguageModel, classifier: Any, exchange: Exchange) -> float:
        messages: list[Any] = [ChatMessageUser(content=user_text(model, exchange.request))]
        if self.settings.reads == "both":
            messages.append(ChatMessageAssistant(content=exchange.text or ""))
        config = GenerateConfig(max_tokens=8, logprobs=True, top_logprobs=TOP)
        try:
            output = await classifier.generate(messages, config=config)
        except Exception:  # whatever a provider raises once Inspect's own retries are spent: unscored
            return float("nan")
        return self._read(output)

    def _read(self, output: Any) -> float:
        reply = output.completion.strip().lower()
        unsafe, safe = self.settings.unsafe.lower(), self.settings.safe.lower()
        word = 1.0 if reply.startswith(unsafe) else -1.0 if reply.startswith(safe) else float("nan")
        logprobs = output.choices[0].logprobs if output.choices else None
        for token in (logprobs.content if logprobs else [])[:3]:  # a line break may come first
            if not token.token.strip():
                continue
            top = {each.token.strip().lower(): each.logprob for each in token.top_logprobs or []}
            yes = max((p for word, p in top.items() if word and unsafe.startswith(word)), default=None)
            no = max((p for word, p in top.items() if word and safe.startswith(word)), default=None)
            if yes is not None and no is not None:
                return yes - no
            break
        return word

    @cached_property
    def _model(self) -> Any:
        if self.settings.model.startswith("midward/"):
            raise GuardError("a model of this process examines itself: use the guard self-examine.")
        try:
            return bounded(get_model(self.settings.model))
        except Exception as error:  # whatever a provider raises over a missing key or package
            raise GuardError(f"no classifier to ask: {unavailable(error)}") from error
