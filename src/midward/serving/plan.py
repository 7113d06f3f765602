"""From what a caller of the provider says to what the sampler is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from inspect_ai.model import ChatMessage
from pydantic import BaseModel, ConfigDict, ValidationError

from midward._hints import did_you_mean
from midward.errors import InputError
from midward.sampling import Ban, Forced, Request, Sampling, sample
from midward.sampling.noise import row_seed
from midward.sampling.requests import resolve
from midward.serving.queue import Engine

#: What a message's mask tokens lead to: they are filled, they are taken out, or the request is refused.
Masks = Literal["allow", "strip", "refuse"]
Message = dict[str, str]

_FILL_STEP = 32  # tokens; see `_to_fill`


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Tokens(_Strict):
    """Tokens at a response position: `text` (without special tokens added) or `ids`, one of them."""

    position: int = 0
    text: str | None = None
    ids: list[int] | None = None


class ExtraBody(_Strict):
    """What `GenerateConfig(extra_body=...)` may hold for this provider.

    forced: [{"position": int, "text": str} or {"position": int, "ids": [int]}]: tokens that stand there from the start.
    bans: the same form; a sequence that must not stand there. A position that isn't given is 0.
    masks: overrides the model argument `masks`.
    prompt_masks: "fill_then_answer": mask tokens in the messages are filled with the response's first block (see
        `Sampling.prompt_masks`); "fill_only": there is no response, the denoiser fills the prompt as one block, and the
        completion is the last message that held masks, filled (as the published DIJA code does on LLaDA).
    sampling: `Sampling` fields for this request alone.
    trace: add `commit_quarters` to each choice's metadata.
    """

    forced: list[Tokens] = []
    bans: list[Tokens] = []
    masks: Masks | None = None
    prompt_masks: Literal["fill_then_answer", "fill_only"] = "fill_then_answer"
    sampling: dict[str, Any] = {}
    trace: bool = False

    @classmethod
    def read(cls, body: Mapping[str, Any] | None) -> ExtraBody:
        """Check what was given. Raises InputError, naming the key."""
        try:
            return cls.model_validate_json(json.dumps(body or {}))  # JSON: a tuple of ids is as good as a list
        except TypeError as error:
            raise InputError(f"extra_body must be JSON: {error}.") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                known = cls.model_fields if len(first["loc"]) == 1 else Tokens.model_fields
                hint = did_you_mean(str(first["loc"][-1]), known)
                raise InputError(f"extra_body: unknown key {where!r}.{hint} Available: {', '.join(known)}.") from None
            message = first["msg"][0].lower() + first["msg"][1:]
            raise InputError(f"extra_body: {where}: {message}; received {first['input']!r}.") from None


@dataclass(frozen=True)
class Plan:
    """What is asked of the sampler, one request a seed.

    prompt_ids: of the whole conversation. fill_only: the requests' prompt is only its head, their response the rest.
    """

    prompt_ids: list[int]
    fill_only: bool
    sampling: Sampling
    seeds: list[int]
    requests: list[Request]

    @property
    def forced(self) -> tuple[Forced, ...]:
        """The spans the caller forced."""
        return () if self.fill_only else self.requests[0].forced


def make_plan(engine: Engine, prompt_ids: list[int], settings: Mapping[str, Any], extra: ExtraBody, count: int) -> Plan:
    """Put a request together: `count` seeds from the settings' one on. Raises InputError for what can't be followed."""
    sampling = make_sampling(engine, settings)
    seeds = [sampling.seed + i for i in range(count)]
    forced = tuple(_span(engine, each, "forced") for each in extra.forced)
    bans = tuple(Ban(span.ids, span.position) for span in (_span(engine, each, "bans") for each in extra.bans))
    head = prompt_ids
    if extra.prompt_masks == "fill_only":
        if forced or bans:
            raise InputError('"fill_only" gives no response, so nothing can be forced or banned in it.')
        head, sampling, forced = _to_fill(engine, prompt_ids, sampling)
    request = Request(head, forced, bans)
    try:
        resolve(engine.model, request, sampling.length, 0)
    except ValueError as error:
        raise InputError(str(error).removeprefix("request 0: ")) from None
    return Plan(
        prompt_ids=prompt_ids,
        fill_only=len(head) < len(prompt_ids),
        # The seed goes into the requests, so that those with different ones can share a batch.
        sampling=replace(sampling, seed=0),
        seeds=seeds,
        requests=[replace(request, seed=row_seed(seed, request, head)) for seed in seeds],
    )


def make_sampling(engine: Engine, settings: Mapping[str, Any]) -> Sampling:
    """The model's settings with these overrides. Raises InputError for an unknown one or a bad value."""
    try:
        sampling = Sampling.for_model(engine.model, **settings)
    except TypeError as error:
        raise InputError(str(error)) from None
    sample(engine.model, [], sampling)  # for what the model's kind can't follow
    return sampling


def _span(engine: Engine, tokens: Tokens, what: str) -> Forced:
    if (tokens.text is None) == (tokens.ids is None):
        raise InputError(f"extra_body: {what}: give text or ids, one of them; received {tokens.model_dump()!r}.")
    try:
        if tokens.ids is not None:
            return Forced(tokens.position, tuple(tokens.ids))
        return engine.span(tokens.position, tokens.text or "")
    except ValueError as error:
        raise InputError(f"extra_body: {what}: {error}") from None


def read_messages(input: Sequence[ChatMessage]) -> list[Message]:
    """The conversation as plain texts. Raises InputError for tool calls and media."""
    messages = []
    for message in input:
        if message.role == "tool" or (message.role == "assistant" and message.tool_calls):
            raise InputError("midward models can't call tools; received a conversation with tool calls.")
        media = {content.type for content in message.content_list} - {"text", "reasoning"}
        if media:
            raise InputError(f"midward models read text only; received {', '.join(sorted(media))}.")
        messages.append({"role": message.role, "content": message.text})
    return messages


# --- masks in the prompt -------------------------------------------------------------------------------------


def mask_token(engine: Engine) -> str | None:
    """How a mask is written in a text; None for a model without one."""
    mask_id = engine.model.family.mask_id
    return None if mask_id is None else engine.model.tokenizer.convert_ids_to_tokens(mask_id)


def strip_masks(token: str, messages: list[Message]) -> list[Message]:
    """The messages with no mask token in them, not even one that taking out another puts together."""
    stripped = []
    for message in messages:
        text = message["content"]
        while token in text:
            text = text.replace(token, "")
        stripped.append({**message, "content": text})
    return stripped


def fill_messages(
    engine: Engine, prompt_ids: list[int], filled_ids: list[int], messages: list[Message]
) -> list[Message]:
    """The messages with each mask token in their texts replaced by what stands there now.

    prompt_ids, filled_ids: the prompt before and after. Raises InputError where the chat template doesn't pass every
    mask token on once.
    """
    token = mask_token(engine) or ""
    fills = [now for was, now in zip(prompt_ids, filled_ids, strict=True) if was == engine.model.family.mask_id]
    if len(fills) != sum(message["content"].count(token) for message in messages):
        raise InputError("the chat template changes the number of mask tokens, so they can't be found again.")
    filled = []
    for message in messages:
        text, *pieces = message["content"].split(token)
        run: list[int] = []  # masks in a row are decoded together
        for piece in pieces:
            run.append(fills.pop(0))
            if piece:
                text += decode(engine, run) + piece
                run = []
        filled.append({**message, "content": text + decode(engine, run)})
    return filled


def decode(engine: Engine, ids: Sequence[int]) -> str:
    """The ids as text, special tokens stripped, past any end token."""
    return engine.model.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _to_fill(
    engine: Engine, prompt_ids: list[int], sampling: Sampling
) -> tuple[list[int], Sampling, tuple[Forced, ...]]:
    """The prompt as a task for the sampler: its head, and the rest as a response in which all but the masks is forced.

    What stands before the first mask may be in either, it is all the same; so the rest gets a round length, in order
    that more prompts have equal settings and share a batch.
    """
    mask_id = engine.model.family.mask_id
    if mask_id is None or mask_id not in prompt_ids:
        raise InputError('"fill_only" needs mask tokens in a message; there is none to fill.')
    behind = len(prompt_ids) - prompt_ids.index(mask_id)
    length = min(-(-behind // _FILL_STEP) * _FILL_STEP, len(prompt_ids) - 1)
    if length < behind:
        raise InputError('"fill_only" needs a token before the first mask; the chat template puts none there.')
    head, rest = prompt_ids[:-length], prompt_ids[-length:]
    forced = []
    start = 0
    while start < length:
        stop = next((i for i in range(start, length) if rest[i] == mask_id), length)
        if stop > start:
            forced.append(Forced(start, tuple(rest[start:stop])))
        start = stop + 1
    # The turns' own end tokens stand in the prompt, so they mustn't end the run.
    end = "keep" if sampling.end == "stop" else sampling.end
    return head, replace(sampling, length=length, block=None, end=end), tuple(forced)
