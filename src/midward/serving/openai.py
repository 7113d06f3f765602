"""The shapes of OpenAI's chat API as far as a diffusion model can follow them: what a request's body may hold, and how
answers and errors look."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, Field, ValidationError, create_model
from pydantic_core import from_json
from starlette.responses import JSONResponse

from midward._hints import did_you_mean
from midward.errors import MidwardError
from midward.sampling import Sampling
from midward.serving.wire import ExtraBody, Message, Strict

#: Status of an answer -> what OpenAI's errors call it.
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}

#: The settings of `Sampling` that are attack capabilities: nobody changes them without --research.
GUARDED = ("end", "prompt_masks")

#: Of OpenAI's fields those that change nothing here, whatever they hold.
IDLE = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls",),
)
#: Those that would change something, and the values that don't; null is one of every field.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "moderation": (),
}
#: The same of a message.
NEUTRAL_OF_MESSAGE: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("name", "refusal", "audio", "function_call"), ()),
    **dict.fromkeys(("tool_calls", "annotations"), ([],)),
}


class Refused(MidwardError):
    """A request that isn't answered: its status, and what OpenAI's error object says."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.after = status, param, code, after

    @property
    def body(self) -> dict[str, Any]:
        """As JSON."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


# --- what is asked ------------------------------------------------------------------------------------------------


class TextPart(Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    """A turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]

    def plain(self) -> Message:
        """As the chat template takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(Strict):
    """What a stream tells beside its text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


_hints = get_type_hints(Sampling)
_NULLABLE = {name for name, hint in _hints.items() if NoneType in get_args(hint)}
_bounds: dict[str, dict[str, Any]] = {
    **{name: {"ge": 1, "le": 1 << 20} for name in ("length", "steps", "block")},
    "threshold": {"gt": 0, "le": 1},
    "temperature": {"ge": 0, "le": 2},
    "guidance": {"ge": 0, "le": 16},
    "seed": {"ge": -(2**63), "lt": 2**63},
}
#: The settings of the sampler that anybody may give.
SafeSampling: Any = create_model(  # type: ignore[call-overload]
    "SafeSampling",
    __base__=Strict,
    **{name: (Annotated[hint, Field(**_bounds.get(name, {}))] | None, None) for name, hint in _hints.items()},
)


class SafeExtra(Strict):
    """What anybody may ask beside OpenAI's own."""

    sampling: SafeSampling = Field(default_factory=SafeSampling)
    trace: bool = False


class ChatBody(Strict):
    """A request for one answer or several."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    midward: SafeExtra | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts before which an answer ends."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(filter(None, given))

    @property
    def extra(self) -> ExtraBody:
        """What is asked beside OpenAI's own."""
        given = {} if self.midward is None else self.midward.model_dump(exclude_unset=True)
        sampling = {name: value for name, value in given.get("sampling", {}).items()}
        return ExtraBody(**{**given, "sampling": sampling})

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the sampler that it gives, by their names in `Sampling`; its own key's win."""
        most = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        given = {"length": most, "temperature": self.temperature, "seed": self.seed}
        own = self.extra.sampling  # where None is no value, null is what a client sends for what isn't given
        kept = {name: value for name, value in own.items() if value is not None or name in _NULLABLE}
        return {name: value for name, value in given.items() if value is not None} | kept


class ResearchBody(ChatBody):
    """The same, where attack capabilities are granted."""

    midward: ExtraBody | None = None  # type: ignore[assignment]


def body_schema(research: bool = False) -> dict[str, Any]:
    """The JSON schema of a request's body, with what is accepted because it changes nothing."""
    schema = (ResearchBody if research else ChatBody).model_json_schema()
    message = schema["$defs"]["ChatMessage"]
    for part, neutral in ((schema, NEUTRAL), (message, NEUTRAL_OF_MESSAGE)):
        part["properties"] |= {name: {"enum": [*values, None]} for name, values in neutral.items()}
    schema["properties"] |= {name: {} for name in IDLE}
    return _inlined(schema, schema.pop("$defs"))


def _inlined(part: Any, definitions: dict[str, Any]) -> Any:
    """A schema whose references are what they name."""
    if isinstance(part, dict):
        if "$ref" in part:
            return _inlined(definitions[part["$ref"].rpartition("/")[2]], definitions)
        return {name: _inlined(each, definitions) for name, each in part.items()}
    return [_inlined(each, definitions) for each in part] if isinstance(part, list) else part


def read_json(content: bytes) -> dict[str, Any]:
    """The object of a body. Raises Refused for anything else."""
    try:
        body = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise Refused(400, f"the body is no JSON: {error}.") from None
    if not isinstance(body, dict):
        raise Refused(400, f"the body must be a JSON object; received {type(body).__name__}.")
    return body


def read_body(content: bytes, *, research: bool = False) -> ChatBody:
    """The request of a body. Raises Refused, naming what is unknown, wrong, or asks for what can't be followed."""
    kind = ResearchBody if research else ChatBody
    body = read_json(content)
    given = _without(body, NEUTRAL, IDLE, "")
    if isinstance(given.get("messages"), list):
        given["messages"] = [
            _without(message, NEUTRAL_OF_MESSAGE, (), f"messages.{i}.") if isinstance(message, dict) else message
            for i, message in enumerate(given["messages"])
        ]
    try:
        # by JSON: a strict tuple is a list there
        read = kind.model_validate_json(json.dumps(given))
    except ValidationError as error:
        raise _refusal(error, kind, body) from None
    except RecursionError:
        raise Refused(400, "the body is nested too deeply.") from None
    if None not in (read.max_tokens, read.max_completion_tokens) and read.max_tokens != read.max_completion_tokens:
        raise Refused(400, "max_tokens and max_completion_tokens say two things; give one.", param="max_tokens")
    if read.stream_options is not None and not read.stream:
        raise Refused(400, "stream_options are for a stream; give stream: true.", param="stream_options")
    return read


def _without(
    body: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]], idle: Sequence[str], place: str
) -> dict[str, Any]:
    """A body without what changes nothing. Raises Refused for what would, and can't be followed."""
    for name, values in neutral.items():
        value = body.get(name)
        if value is not None and not any(value == each and type(value) in _alike(each) for each in values):
            kept = "".join(f" or {json.dumps(each)}" for each in values)
            shown = json.dumps(value)[:80]
            raise Refused(
                400,
                f"{place}{name} can't be followed by this model; leave it out{kept and ', or give' + kept[3:]}. "
                f"Received {shown}.",
                param=f"{place}{name}",
                code="unsupported_parameter",
            )
    # null is what a client sends for what isn't given; of an unknown name it is still a name that is unknown
    left_out = {*neutral, *idle}
    known = {*ChatBody.model_fields, *ChatMessage.model_fields}
    return {
        name: value for name, value in body.items() if name not in left_out and (value is not None or name not in known)
    }


def _alike(value: Any) -> tuple[type, ...]:
    return (int, float) if type(value) in (int, float) else (type(value),)


def _refusal(error: ValidationError, kind: type[BaseModel], body: Mapping[str, Any]) -> Refused:
    """What is wrong in a body first: an unknown name before a wrong value."""
    wrong = error.errors()
    first = next((each for each in wrong if each["type"] == "extra_forbidden"), wrong[0])
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        *above, name = (str(part) for part in first["loc"])
        known = [*_known(kind, above), *([] if above else [*NEUTRAL, *IDLE])]
        hint = did_you_mean(name, known)
        if not above and name in _hints:
            hint = f' It is a setting of the sampler: {{"midward": {{"sampling": {{"{name}": ...}}}}}}.'
        elif (name in _hints and above[-1:] == ["sampling"]) or (
            above == ["midward"] and name in ExtraBody.model_fields
        ):
            hint = " It is granted by a server with --research alone."
        elif "content" in above:
            hint = " A message's content is text, or parts of the type text."
        return Refused(400, f"unknown parameter {place!r}.{hint}", param=place, code="unknown_parameter")
    if first["type"] == "missing":
        return Refused(400, f"{place} is missing.", param=place, code="missing_required_parameter")
    message = f"{place}: {first['msg'][0].lower()}{first['msg'][1:]}; received {first['input']!r:.80}"
    return Refused(400, f"{message}.", param=place, code="invalid_value")


def _known(kind: Any, path: Sequence[str]) -> list[str]:
    """The names that may stand at a place of a body."""
    for part in path:
        models = _models(kind.model_fields[part].annotation) if part in kind.model_fields else [kind]
        if not models:
            return []
        kind = models[0]
    return [*kind.model_fields]


def _models(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType, list, tuple, Annotated):
        return [model for each in get_args(annotation) for model in _models(each)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


# --- what is answered ---------------------------------------------------------------------------------------------


class ErrorDetail(BaseModel):
    """What OpenAI's errors say."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """An answer that is an error."""

    error: ErrorDetail


class Usage(BaseModel):
    """Tokens of prompt and answers; of what is answered those that the model (or its guard) wrote."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt: int, completion: int) -> Usage:
        """Of so many tokens."""
        return cls(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


Finish = Literal["stop", "length", "content_filter"]


class AnsweredMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class AnsweredChoice(BaseModel):
    """One of several answers."""

    index: int
    message: AnsweredMessage
    finish_reason: Finish
    logprobs: None = None


class Completion(BaseModel):
    """An answer. midward: what our runtime says of it (`midward.serving.wire.Details`)."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[AnsweredChoice]
    usage: Usage
    midward: dict[str, Any]


class Delta(BaseModel):
    """What an answer grows by."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """Of which of several answers."""

    index: int
    delta: Delta
    finish_reason: Finish | None = None
    logprobs: None = None


class Chunk(BaseModel):
    """A piece of a streamed answer. midward: with a choice's last one, what our runtime says of it."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    midward: dict[str, Any] | None = None

    def event(self) -> bytes:
        """As a server-sent event; what isn't set is left out."""
        body = self.model_dump(mode="json", exclude_none=True)
        for choice in body["choices"]:
            choice.setdefault("finish_reason", None)
        return event(body)


class ModelCard(BaseModel):
    """A model that is served. midward: its `Card`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["midward"] = "midward"
    midward: dict[str, Any]


class ModelList(BaseModel):
    """All models that are served: one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def error_response(refused: Refused, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A refusal as OpenAI's error object."""
    more = {"retry-after": str(refused.after)} if refused.after is not None else {}
    if refused.status == 401:
        more["www-authenticate"] = "Bearer"
    return JSONResponse(refused.body, refused.status, headers={**(headers or {}), **more})


def event(body: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


#: What a stream ends with.
DONE = b"data: [DONE]\n\n"
