"""From a request's body to what the engine is asked, within the server's limits; and the answers, as they come."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError, Future
from dataclasses import asdict, replace
from functools import lru_cache, partial
from typing import Any

from midward.errors import InputError
from midward.guards import Guard, GuardError
from midward.models import ModelError
from midward.sampling import Response, Sampling
from midward.serving.config import ServeConfig
from midward.serving.engine import Engine
from midward.serving.openai import GUARDED, ChatBody, Refused
from midward.serving.stream import Growing
from midward.serving.turn import Answer, Turn
from midward.serving.typed import Controls
from midward.serving.wire import Choice, Tokens


class Planner:
    """Makes turns of bodies.

    Args:
        engine: answers.
        config: the limits.
        sampling: the settings of a request that gives none.
        guard: stands in front.
    """

    def __init__(self, engine: Engine, config: ServeConfig, sampling: Sampling, guard: Guard | None) -> None:
        self.engine, self.config, self.sampling, self.guard = engine, config, sampling, guard
        self.controls = Controls(engine)
        self._check = lru_cache(256)(lambda sampling: guard.check(engine.model, sampling) if guard else None)

    def plan(self, body: ChatBody) -> Turn:
        """A turn that is ready for the engine. Raises Refused for what can't be followed, or costs too much."""
        try:
            return self._plan(body)
        except GuardError as error:
            own, given = asdict(self.sampling), body.settings
            unlike = [f"{name} {value!r} (here {own[name]!r})" for name, value in given.items() if value != own[name]]
            advice = f" This request has {', '.join(unlike)}; leave out what the guard isn't for." if unlike else ""
            raise Refused(400, f"{error}{advice}", param="midward.sampling", code="guard_settings") from None
        except (InputError, ModelError, TypeError) as error:
            raise Refused(400, str(error)) from None

    def _plan(self, body: ChatBody) -> Turn:
        config, model, extra = self.config, self.engine.model, body.extra
        messages = [message.plain() for message in body.messages]
        if len(messages) > config.max_messages:
            raise Refused(400, f"{len(messages)} messages are more than {config.max_messages}.", param="messages")
        masks = extra.masks or config.masks
        if masks == "strip":
            messages = self.controls.strip(messages)
        if masks != "allow" and (typed := self.controls.typed(messages)):
            raise Refused(
                400,
                f"a message holds {typed!r}, a token that steers the model; write something else.",
                param="messages",
                code="control_token",
            )
        if any(message["role"] == "system" for message in messages) and not self.engine.takes_system_turns:
            raise Refused(400, "this model takes no system messages.", param="messages")
        if messages[-1]["role"] == "assistant" and (config.allow_prefill or not config.research):
            *messages, last = messages
            if not config.allow_prefill:
                raise Refused(
                    400,
                    "the last message must not be the assistant's: a client begins answers "
                    "only where the server has --allow-prefill.",
                    param="messages",
                    code="prefill",
                )
            if not messages:
                raise Refused(400, "the assistant's message answers nothing.", param="messages")
            begun = Tokens(position=0, text=last["content"])
            extra = extra.model_copy(update={"forced": (begun, *extra.forced)} if last["content"] else {})
        turn = Turn(self.engine, messages, extra, masks, self.guard, config.shadow)
        room = model.max_positions - len(turn.encode())
        if room < 1:
            raise Refused(
                400,
                f"the messages have {len(turn.prompt_ids)} tokens, and the model's context, which must also hold the "
                f"answer, {model.max_positions}; shorten them.",
                param="messages",
                code="context_length_exceeded",
            )
        settings = self._settings(body.settings, room)
        count = body.n or 1
        self._afford(len(turn.prompt_ids), settings, count)
        turn.plan(settings, count)
        try:
            self._check(turn.sampling)
        except GuardError as error:
            if turn.sampling.block == turn.sampling.length < (self.sampling.block or 0):
                least = f"max_tokens {turn.sampling.length} is less than a block; give {self.sampling.block} or more."
                raise GuardError(f"{error} {least}") from None
            raise
        return turn

    def _settings(self, given: dict[str, Any], room: int) -> dict[str, Any]:
        """All settings: those that are given over the server's own, as `Sampling.changed` has it."""
        most = self.config.max_tokens
        if given.get("length", 0) > most:
            raise Refused(400, f"max_tokens is {most} at most; received {given['length']}.", param="max_tokens")
        own = asdict(self.sampling)
        if not self.config.research:
            for name in GUARDED:
                if given.get(name, own[name]) != own[name]:
                    raise Refused(
                        400,
                        f"midward.sampling.{name} is {own[name]!r} here; a server with --research alone grants "
                        "another.",
                        param=f"midward.sampling.{name}",
                    )
        settings = own | given
        if {"steps", "order"} & given.keys() and "threshold" not in given:
            settings["threshold"] = None
        settings["length"] = min(settings["length"], room, most)
        if "block" not in given and settings["block"] is not None:
            settings["block"] = min(settings["block"], settings["length"])
        return settings

    def _afford(self, prompt: int, settings: dict[str, Any], count: int) -> None:
        length = settings["length"]
        by_schedule = self.engine.model.family.kind != "autoregressive" and settings["threshold"] is None
        forwards = (min(settings["steps"], length) if by_schedule else length) * (1 + bool(settings["guidance"]))
        cost = count * (prompt + length) * forwards
        if cost > self.config.max_cost:
            raise Refused(
                400,
                f"{count} x {prompt + length} tokens x {forwards} forwards cost {cost}, and a request "
                f"{self.config.max_cost} at most; ask for fewer answers, tokens or steps.",
                param="max_tokens",
                code="too_costly",
            )


class Running:
    """The rows of a turn while they are filled: `async for index, text, answer in running`.

    An answer comes with the last text of its choice, None before. Texts of a choice together are its answer's.

    Args:
        turn: planned.
        config: of the server.
        stops: texts before which an answer ends.
        grows: whether texts are told as they come.
    """

    def __init__(self, turn: Turn, config: ServeConfig, stops: tuple[str, ...], grows: bool) -> None:
        self.turn, self._grows = turn, grows
        self._skip = len(turn.requests[0].forced[0].ids) if config.allow_prefill and turn.requests[0].forced else 0
        model = turn.engine.model
        self._texts = [Growing(model.text, stops, model.family.end_texts, self._skip) for _ in turn.requests]
        self._events: asyncio.Queue[tuple[int, str | Future[Response]] | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._gone = False
        self.begun = time.monotonic()
        self._tickets = [
            turn.engine.submit(
                request,
                turn.sampling,
                batch_size=config.max_batch,
                guard=turn.guard,
                shadow=turn.shadow,
                on_prefix=self._watch(i) if grows or stops else None,
                trace=turn.extra.trace,
            )
            for i, request in enumerate(turn.requests)
        ]
        for i, ticket in enumerate(self._tickets):
            ticket.add_done_callback(partial(self._done, i))

    def cancel(self) -> None:
        """The client is gone, or the server goes: the rows leave."""
        self._gone = True
        for ticket in self._tickets:
            ticket.leave()
        self._tell(None)

    async def __aiter__(self) -> AsyncIterator[tuple[int, str, Answer | None]]:
        left = len(self._tickets)
        while left:
            event = await self._events.get()
            if event is None or self._gone:
                raise Refused(503, "the request was cancelled.", code="cancelled")
            index, what = event
            if isinstance(what, str):
                yield index, what, None
            else:
                left -= 1
                yield index, *self._last(index, what)

    def _last(self, index: int, future: Future[Response]) -> tuple[str, Answer]:
        """What is left of a choice, and its answer."""
        growing = self._texts[index]
        try:
            response = future.result()
        except CancelledError:
            raise Refused(503, "the request was cancelled.", code="cancelled") from None
        answer = self.turn.read(index, response)
        if answer.stop == "content_filter":
            left = "" if growing.sent else answer.text
            return left, answer
        left_over = growing.finish(answer.about.authored if self._skip else answer.text)
        if left_over is None:
            raise ModelError("a response doesn't begin with what was sent of it.")
        about = answer.about
        if growing.stopped:
            about = about.model_copy(update={"authored_tokens": growing.tokens(response.ids), "ended": True})
        stop = "stop" if growing.stopped else answer.stop
        return left_over, replace(answer, text=growing.sent, stop=stop, about=about)

    def _done(self, index: int, future: Future[Response]) -> None:
        self._tell((index, future))

    def _watch(self, index: int) -> Any:
        def on_prefix(ids: list[int]) -> bool:
            piece = self._texts[index].grow(ids)
            if piece and self._grows:
                self._tell((index, piece))
            return not (self._gone or self._texts[index].stopped)

        return on_prefix

    def _tell(self, event: tuple[int, str | Future[Response]] | None) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is gone, and with it whoever waited
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


def shown(about: Choice, digest: str | None, sampling: dict[str, Any], causal: bool, research: bool) -> dict[str, Any]:
    """What is told of a choice: without the guard's signal, which is for research, and with what its stop saved."""
    record = about.model_dump(mode="json", exclude_unset=True)
    verdict: dict[str, Any] | None = record.get("guard")
    if verdict is not None:
        steps = sampling["length"] if causal else None if sampling["threshold"] is not None else sampling["steps"]
        verdict["digest"] = digest
        saved = None if steps is None or verdict["step"] is None else steps - about.steps
        verdict["steps_saved"] = saved
    if not research:
        for name in ("authored", "forced_at", "edits", "filled", "fills"):
            record.pop(name, None)
        if verdict is not None:
            del verdict["signal"]
    return record
