"""From what a caller of the provider says to what the sampler is asked, and mask tokens in messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from inspect_ai.model import ChatMessage

from midward.errors import InputError
from midward.sampling import Ban, Edit, Forced, Request, Sampling, sample
from midward.sampling.noise import row_seed
from midward.sampling.requests import resolve
from midward.serving.engine import Engine
from midward.serving.wire import Change, ExtraBody, Message, Tokens

_FILL_STEP = 32  # tokens; see `_to_fill`


def make_requests(
    engine: Engine, prompt_ids: list[int], settings: Mapping[str, Any], extra: ExtraBody, count: int
) -> tuple[list[Request], Sampling]:
    """What the sampler is asked.

    Args:
        engine: whose model answers.
        prompt_ids: of the whole conversation.
        settings: over the model's sampling settings.
        extra: what is forced, banned, edited and filled.
        count: of requests, alike but for their seeds, which go up from the settings' one.

    Returns:
        The requests, and the sampling settings with the first one's seed. With "fill_only" the requests' prompt is
        only the conversation's head, and their response the rest.

    Raises:
        InputError: for what can't be followed.
    """
    sampling = make_sampling(engine, settings)
    forced = tuple(_span(engine, tokens, "forced") for tokens in extra.forced)
    banned = [_span(engine, tokens, "bans") for tokens in extra.bans]
    head = prompt_ids
    if extra.prompt_masks == "fill_only":
        if forced or banned or extra.edits:
            raise InputError('"fill_only" gives no response, so nothing can be forced, banned or edited in it.')
        head, sampling, forced = _to_fill(engine, prompt_ids, sampling)
    bans = tuple(Ban(span.ids, span.position) for span in banned)
    try:
        request = Request(head, forced, bans, edits=tuple(_edit(engine, change) for change in extra.edits))
        resolve(engine.model, request, sampling, 0)
    except ValueError as error:
        raise InputError(str(error).removeprefix("request 0: ")) from None
    seeds = range(sampling.seed, sampling.seed + count)
    return [replace(request, seed=row_seed(seed, request, head)) for seed in seeds], sampling


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
            return Forced(tokens.position, tokens.ids)
        return engine.span(tokens.position, tokens.text or "")
    except ValueError as error:
        raise InputError(f"extra_body: {what}: {error}") from None


def _edit(engine: Engine, change: Change) -> Edit:
    write = tuple(_span(engine, tokens, "edits") for tokens in change.write)
    return Edit(change.step, write, change.remask, change.freeze)


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


def mask_token(engine: Engine) -> str:
    """How a mask is written in a text; empty for a model without one."""
    mask_id = engine.model.family.mask_id
    return "" if mask_id is None else str(engine.model.tokenizer.convert_ids_to_tokens(mask_id))


def strip_masks(token: str, messages: list[Message]) -> list[Message]:
    """The messages with no mask token in them, not even one that taking out another puts together."""
    stripped = []
    for message in messages:
        text = message["content"]
        while token in text:
            text = text.replace(token, "")
        stripped.append({**message, "content": text})
    return stripped


def fill_messages(engine: Engine, fills: Sequence[int], messages: list[Message]) -> list[Message]:
    """The messages with each mask token in their texts replaced by what stands there now.

    Args:
        engine: whose mask and tokenizer they are.
        fills: the tokens in place of the prompt's masks, in order.
        messages: as they were sent.

    Raises:
        InputError: where the chat template doesn't pass every mask token on once.
    """
    token, waiting = mask_token(engine), list(fills)
    if len(waiting) != sum(message["content"].count(token) for message in messages):
        raise InputError("the chat template changes the number of mask tokens, so they can't be found again.")
    filled = []
    for message in messages:
        text, *pieces = message["content"].split(token)
        run: list[int] = []  # masks in a row are decoded together
        for piece in pieces:
            run.append(waiting.pop(0))
            if piece:
                text += engine.model.text(run) + piece
                run = []
        filled.append({**message, "content": text + engine.model.text(run)})
    return filled


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
