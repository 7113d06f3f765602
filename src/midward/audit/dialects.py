"""How an endpoint is asked: OpenAI's chat completions, and SGLang's own /generate, with one kind of reply."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from midward.audit.wire import Raw, Wire
from midward.serving.wire import Message

#: Tokens of an answer.
LENGTH = 32
#: Characters of an answer that are looked at.
_LOOKED_AT = 4000


@dataclass(frozen=True)
class Reply:
    """An answer, whoever gave it.

    Attributes:
        raw: as it came.
        texts: of its choices; none where there is no answer.
        prompt, written: tokens of prompt and answer, as the server counts them.
        finish: why it ended.
        ids: of the answer, where they are told.
    """

    raw: Raw
    texts: tuple[str, ...] = ()
    prompt: int | None = None
    written: int | None = None
    finish: str | None = None
    ids: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """Of the first choice."""
        return self.texts[0] if self.texts else ""

    @property
    def answered(self) -> bool:
        """Whether there is an answer."""
        return bool(self.texts)

    @property
    def refused(self) -> bool:
        """Whether the server said that it won't, or its filter did."""
        return self.raw.refused or self.finish == "content_filter"


class Endpoint(ABC):
    """An endpoint in one of its languages.

    question: the plain one, asked where it doesn't matter what. plain: the reply to it. stable: whether the question
    got the same answer whenever it was put otherwise, so that no cache could give it. masks: spellings that may be the
    model's own mask, as far as a check found some.

    Args:
        wire: leads there.
    """

    api = ""
    path = ""
    plain: Reply
    stable = False

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.settings: Mapping[str, Any] = {}
        self.masks: list[str] = []
        self.question = wire.config.plain
        self._known: dict[str, Reply] = {}

    @abstractmethod
    def body(self, prompt: str | Sequence[Message], **fields: Any) -> dict[str, Any]:
        """A request's body. fields: over what is always given; None takes one out."""

    @abstractmethod
    def read(self, raw: Raw) -> Reply:
        """The reply of an answer."""

    @abstractmethod
    def drawn(self, seed: int) -> dict[str, Any]:
        """The fields of a sampled answer."""

    def ask(self, prompt: str | Sequence[Message] | None = None, **fields: Any) -> Reply:
        """The reply to a prompt, the plain question unless given."""
        return self.read(self.wire.post(self.path, self.body(self.question if prompt is None else prompt, **fields)))

    def meet(self) -> bool:
        """Whether it answers a plain question in this language; with which settings, and whether it repeats itself, is
        known then."""
        for settings in self.offers():
            self.settings = settings
            self.plain = self.ask()
            if self.plain.answered or self.plain.raw.status not in (400, 422):
                break
        if self.plain.answered:
            otherwise = list(self._otherwise())
            self.stable = bool(otherwise) and all(self._repeats(self.ask(**fields)) for fields in otherwise)
        return self.plain.answered

    @property
    def limit(self) -> str | None:
        """The setting that bounds an answer's tokens; None where the server takes none."""
        return next((name for name in self.settings if name.startswith("max_")), None)

    def _otherwise(self) -> Iterator[dict[str, Any]]:
        """Settings that a cache must tell from the plain ones, and by which no answer without chance changes: another
        seed, else a longer limit."""
        for more in (1, 2):
            if "seed" in self.settings:
                yield {"seed": self.settings["seed"] + more}
            elif self.limit:
                yield {self.limit: LENGTH + more}

    def _repeats(self, reply: Reply) -> bool:
        """Whether an answer is the plain one, or goes on where that was cut off."""
        cut = self.plain.finish == "length" and bool(self.plain.text)
        return reply.texts == self.plain.texts or (cut and reply.text.startswith(self.plain.text))

    @abstractmethod
    def offers(self) -> Iterator[dict[str, Any]]:
        """Settings from the best for an audit (no chance, short) to none: a server may refuse some."""

    def known(self, prompt: str) -> Reply:
        """The reply to a prompt that is asked once."""
        if prompt not in self._known:
            self._known[prompt] = self.ask(prompt)
        return self._known[prompt]

    def changed(self, reply: Reply) -> bool | None:
        """Whether an answer is another than the plain one; None where the server doesn't repeat itself anyway."""
        return reply.texts != self.plain.texts if self.stable else None


class Chat(Endpoint):
    """OpenAI's chat completions.

    card: what a server of midward's says of its model, else None.
    """

    api = "openai"
    path = "/v1/chat/completions"

    @cached_property
    def _listed(self) -> Raw:
        return self.wire.get("/v1/models")

    @cached_property
    def model(self) -> str:
        """What the endpoint calls its model."""
        name = self.wire.config.model or self._listed.at("data", 0, "id")
        return name if isinstance(name, str) and len(name) < 300 else "default"

    @property
    def card(self) -> Mapping[str, Any] | None:
        """What a server of midward's says of its model; None of another server."""
        told = self._listed.at("data", 0, "midward") or self.plain.raw.at("midward")
        return told if isinstance(told, dict) else None

    def offers(self) -> Iterator[dict[str, Any]]:
        """As `Endpoint` has it."""
        yield {"temperature": 0, "seed": 0, "max_tokens": LENGTH}
        yield {"max_tokens": LENGTH}
        yield {"max_completion_tokens": LENGTH}
        yield {}

    def body(self, prompt: str | Sequence[Message], **fields: Any) -> dict[str, Any]:
        """As `Endpoint` has it."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        body = {"model": self.model, "messages": messages, **self.settings, **fields}
        return {name: value for name, value in body.items() if value is not None}

    def drawn(self, seed: int) -> dict[str, Any]:
        """As `Endpoint` has it."""
        return {"temperature": 1, "seed": seed}

    def read(self, raw: Raw) -> Reply:
        """As `Endpoint` has it; of /v1/completions too."""
        choices = raw.at("choices")
        places = range(len(choices)) if isinstance(choices, list) else ()
        words = [(raw.at("choices", n, "message", "content"), raw.at("choices", n, "text")) for n in places]
        texts = [text if content is None else content for content, text in words]
        return Reply(
            _shaped(raw, texts, "choices"),
            _texts(texts),
            _count(raw.at("usage", "prompt_tokens")),
            _count(raw.at("usage", "completion_tokens")),
            str(raw.at("choices", 0, "finish_reason"))[:40] if places else None,
        )


class Generate(Endpoint):
    """SGLang's own /generate, which takes a text as it is, with no chat template around it."""

    api = "sglang"
    path = "/generate"
    #: Fields that stand beside the prompt; all others are of the sampling.
    OUTER = (
        *("text", "input_ids", "stream", "return_logprob", "logprob_start_len", "top_logprobs_num"),
        *("custom_logit_processor", "return_hidden_states"),
    )

    def offers(self) -> Iterator[dict[str, Any]]:
        """As `Endpoint` has it."""
        yield {"temperature": 0, "max_new_tokens": LENGTH}
        yield {}

    def body(self, prompt: str | Sequence[Message], **fields: Any) -> dict[str, Any]:
        """As `Endpoint` has it."""
        given = {"text": prompt, **self.settings, **fields}
        kept = {name: value for name, value in given.items() if value is not None}
        sampling = {name: value for name, value in kept.items() if name not in self.OUTER}
        return {name: value for name, value in kept.items() if name in self.OUTER} | {"sampling_params": sampling}

    def drawn(self, seed: int) -> dict[str, Any]:
        """As `Endpoint` has it."""
        return {"temperature": 1, "sampling_seed": seed}

    def read(self, raw: Raw) -> Reply:
        """As `Endpoint` has it."""
        several = isinstance(raw.body, list)
        texts = [raw.at(n, "text") for n in range(len(raw.body))] if several else [raw.at("text")]
        first = (0,) if several else ()
        reason = raw.at(*first, "meta_info", "finish_reason")
        return Reply(
            _shaped(raw, texts, "text"),
            _texts(texts),
            _count(raw.at(*first, "meta_info", "prompt_tokens")),
            _count(raw.at(*first, "meta_info", "completion_tokens")),
            str(reason.get("type") if isinstance(reason, dict) else reason)[:40],
            _ids(raw.at(*first, "output_ids")),
        )


def _count(value: Any) -> int | None:
    """A number of tokens; None for what is none."""
    return value if type(value) is int and 0 <= value < 1 << 31 else None


def _ids(ids: Any) -> tuple[int, ...]:
    """The first ids of an answer; none where they aren't ids."""
    first = ids[:64] if isinstance(ids, list) else []
    return tuple(first) if all(_count(each) is not None for each in first) else ()


def _texts(texts: Sequence[Any]) -> tuple[str, ...]:
    """The texts of choices; none where one of them is none."""
    whole = bool(texts) and all(isinstance(text, str) for text in texts)
    return tuple(text[:_LOOKED_AT] for text in texts) if whole else ()


def _shaped(raw: Raw, texts: Sequence[Any], what: str) -> Raw:
    """The answer, with a word on what it lacks."""
    if raw.trouble or _texts(texts):
        return raw
    return Raw(raw.status, raw.body, f"{raw.status}, without {what}", raw.after)
