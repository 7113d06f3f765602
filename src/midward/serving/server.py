"""The application: OpenAI's chat API in front of an engine, the guard in the loop, the door shut where it fails."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
import traceback
import uuid
from collections.abc import AsyncIterator
from pathlib import PurePath
from typing import Any

import anyio
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import Scope

from midward import goals
from midward.errors import InputError
from midward.guards import Guard, GuardError
from midward.sampling import Sampling
from midward.serving import research
from midward.serving.armed import arm, prompts_of
from midward.serving.asked import Planner, Running, shown
from midward.serving.card import card_of
from midward.serving.config import ServeConfig
from midward.serving.door import Answering, Door
from midward.serving.engine import Engine
from midward.serving.metrics import Drift, Metrics, timed
from midward.serving.openai import (
    DONE,
    AnsweredChoice,
    AnsweredMessage,
    ChatBody,
    Chunk,
    ChunkChoice,
    Completion,
    Delta,
    ErrorBody,
    ModelCard,
    ModelList,
    Refused,
    Usage,
    body_schema,
    error_response,
    read_body,
)
from midward.serving.turn import Answer

log = logging.getLogger("midward.serve")

#: Seconds after which who was sent away may come again.
AGAIN = 2
#: Seconds for which a proof that the guard is armed is good enough; anybody may ask for /health.
PROVED = 1.0
_FINISH = {"stop": "stop", "max_tokens": "length", "content_filter": "content_filter"}


class Server:
    """What an application serves, and how it stands with it.

    closed: why nothing is answered (the guard isn't armed), None while the door is open. draining: it takes nothing
    more. running: requests for answers that are being worked on.

    Args:
        engine: answers.
        config: the limits.
        guard: stands in front of it.
        sampling: the settings of a request that gives none; by default the model's own, or the guard's.
    """

    def __init__(self, engine: Engine, config: ServeConfig, guard: Guard | None, sampling: Sampling | None) -> None:
        self.engine, self.config, self.guard = engine, config, guard
        fitted_for = {} if guard is None else guard.sampling
        self.sampling = sampling or Sampling.for_model(engine.model, **fitted_for)
        self.name = config.name or PurePath(engine.model.name).name
        self.created = int(time.time())
        self.drift = Drift(None if guard is None else guard.alpha)
        self.metrics = Metrics(engine.scheduler, self.drift)
        self.digest = None if guard is None else guard.digest
        self.card = card_of(
            engine, self.sampling, name=self.name, guard=guard, shadow=config.shadow, research=config.research
        )
        self.closed: str | None = None
        self.planner = Planner(engine, config, self.sampling, guard and timed(guard, self.metrics.guard_seconds.inc))
        self.draining = False
        self.running = 0
        self._live: set[Running] = set()
        self._keys = [hashlib.sha256(key.encode()).digest() for key in config.read_keys()]
        self._armed, self._proved = None, time.monotonic()
        if guard is not None:
            try:
                kinds = prompts_of(goals.load(config.self_test)) if config.self_test else ([], [])
                self._armed = arm(guard, engine.model, self.sampling, *kinds)
                self.proof = self._armed.prove(engine.model)
            except InputError:
                raise  # a guard of another model, or one that can't be proved: it doesn't start
            except Exception as error:
                self._close(error)

    # --- the door -------------------------------------------------------------------------------------------

    def admits(self, scope: Scope) -> None:
        """Raise Refused where who asks has no key, or reaches this machine by another's name."""
        headers = {name: value for name, value in scope["headers"]}
        if self._keys:
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            given = hashlib.sha256(key.strip()).digest()
            known = [hmac.compare_digest(given, each) for each in self._keys]
            if scheme.lower() != b"bearer" or not any(known):
                raise Refused(401, "no such API key; send it as `Authorization: Bearer KEY`.", code="invalid_api_key")
        else:  # a page in a browser here may find a name that leads to loopback, and would be taken for its user
            host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0].strip("[]").lower()
            if host not in ("localhost", "127.0.0.1", "::1", self.config.host):
                raise Refused(400, f"this server is for its own machine; received Host {host!r}.", code="wrong_host")

    def open(self) -> None:
        """Raise Refused while nothing is answered."""
        if self.draining:
            raise Refused(503, "the server is going down; ask another.", code="draining", after=AGAIN)
        if self.closed is not None:
            raise Refused(503, "the guard isn't armed, so nothing is answered.", code="guard_failed")

    def make_room(self, count: int) -> None:
        """Raise Refused where so many rows have no place to wait."""
        most = self.config.max_batch + self.config.max_waiting
        if count > most:
            raise Refused(400, f"n is {most} at most here; received {count}.", param="n")
        if self.engine.scheduler.rows + self.engine.scheduler.waiting + count > most:
            raise Refused(429, "too many requests wait; try again.", code="busy", after=AGAIN)

    def failed(self, error: Exception) -> Refused:
        """What is answered where the engine or the guard raised: never what it was about. Behind a guard the two can't
        be told apart, so the guard must prove itself anew, or the door is shut."""
        self._log_error(error)
        if self._armed is None:
            return Refused(500, "the model failed; the log of the server says why, under this request's id.")
        self.prove()
        return Refused(503, "the answer couldn't be guarded, so there is none.", code="guard_failed")

    def prove(self, again: float = 0.0) -> None:
        """Replay the guard's traces; where one comes out otherwise, the door is shut for good. again: seconds for which
        the last proof is good enough."""
        if self._armed is not None and self._armed.is_cheap and self.closed is None:
            if time.monotonic() - self._proved < again:
                return
            self._proved = time.monotonic()
            try:
                self.proof = self._armed.prove(self.engine.model)
            except Exception as error:
                self._close(error)

    def _close(self, error: Exception) -> None:
        self.closed = str(error) if isinstance(error, GuardError) else f"the guard failed: {type(error).__name__}"
        log.error("the door is shut: %s", self.closed)
        for running in self._live:  # they are behind the same guard
            running.cancel()

    def _log_error(self, error: Exception) -> None:
        if self.config.log_text:
            log.error("failed", exc_info=error)
        else:  # its message may quote a prompt or a response
            frames = "".join(traceback.format_tb(error.__traceback__))
            log.error("failed: %s\n%s", type(error).__name__, frames)

    # --- what it says of itself -----------------------------------------------------------------------------

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status and body of /health."""
        self.prove(PROVED)
        status = "closed" if self.closed else "draining" if self.draining else "ok"
        body: dict[str, Any] = {"status": status, "model": self.name, "fingerprint": self.engine.fingerprint}
        body["guard"] = None
        if self.guard is not None:
            body["guard"] = {
                "name": self.guard.name,
                "digest": self.digest,
                "threshold": self.guard.threshold,
                "shadow": self.config.shadow,
                "armed": self.closed is None,
                "why": self.closed,
                "proof": getattr(self, "proof", None),
                "drift": self.drift.record(),
            }
        return (200 if status == "ok" else 503), body

    # --- answers --------------------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        """Answer one request. Raises Refused."""
        self.open()
        body = read_body(await request.body(), research=self.config.research)
        if body.model != self.name:
            raise Refused(404, f"there is no model {body.model!r}; there is {self.name!r}.", code="model_not_found")
        turn = await anyio.to_thread.run_sync(self.planner.plan, body)
        self.open()
        self.make_room(len(turn.requests))
        try:
            running = Running(turn, self.config, body.stops, bool(body.stream))
        except Exception as error:
            raise self.failed(error) from None
        self.running += 1
        self._live.add(running)
        if self.config.log_text:
            log.info("id=%s prompt=%r", request.state.id, turn.messages)
        written = self._stream(running, body) if body.stream else self._whole(running, body)
        return Answering(self, running, request, written, bool(body.stream))

    async def _whole(self, running: Running, body: ChatBody) -> AsyncIterator[bytes]:
        answers: dict[int, Answer] = {}
        async for index, _, answer in running:
            if answer is not None:
                answers[index] = self._count(running, answer)
        turn = running.turn
        choices = [
            AnsweredChoice(
                index=index,
                message=AnsweredMessage(content=answers[index].text),
                finish_reason=_FINISH[answers[index].stop],  # type: ignore[arg-type]
            )
            for index in sorted(answers)
        ]
        tokens = sum(answer.about.authored_tokens for answer in answers.values())
        completion = Completion(
            **self._head(),
            choices=choices,
            usage=Usage.of(len(turn.prompt_ids), tokens),
            midward=self._details(running, [answers[index] for index in sorted(answers)]),
        )
        yield completion.model_dump_json().encode()

    async def _stream(self, running: Running, body: ChatBody) -> AsyncIterator[bytes]:
        head = self._head()
        tokens, begun, speaking = 0, False, set()
        async for index, text, answer in running:
            if index not in speaking:  # not before: until then the status may still say that there is no answer
                speaking.add(index)
                delta = Delta(role="assistant", content="")
                yield Chunk(**head, choices=[ChunkChoice(index=index, delta=delta)]).event()
            if text:
                if not begun:
                    self.metrics.first_block.observe(time.monotonic() - running.begun)
                    begun = True
                yield Chunk(**head, choices=[ChunkChoice(index=index, delta=Delta(content=text))]).event()
            if answer is not None:
                self._count(running, answer)
                tokens += answer.about.authored_tokens
                finish: Any = _FINISH[answer.stop]
                last = ChunkChoice(index=index, delta=Delta(), finish_reason=finish)
                yield Chunk(**head, choices=[last], midward=self._details(running, [answer])).event()
        if body.stream_options is not None and body.stream_options.include_usage:
            yield Chunk(**head, choices=[], usage=Usage.of(len(running.turn.prompt_ids), tokens)).event()
        yield DONE

    def _head(self) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self.name,
            "system_fingerprint": self.engine.fingerprint,
        }

    def _details(self, running: Running, answers: list[Answer]) -> dict[str, Any]:
        """`Details` of these choices, as far as they are for everybody."""
        details = running.turn.details
        causal = self.engine.model.family.kind == "autoregressive"
        told = details.model_dump(mode="json", exclude_unset=True)
        if not self.config.research:
            del told["forced"]
        told["nfe"] = sum(answer.about.nfe for answer in answers)
        told["choices"] = [
            shown(answer.about, self.digest, details.sampling, causal, self.config.research) for answer in answers
        ]
        return told

    def _count(self, running: Running, answer: Answer) -> Answer:
        about = answer.about
        self.metrics.choices.labels(_FINISH[answer.stop]).inc()
        self.metrics.tokens.labels("completion").inc(about.authored_tokens)
        self.metrics.steps.inc(about.steps)
        if about.guard is not None:
            self.drift.count(bool(about.guard["flagged"]), about.guard["score"])
        if self.config.log_text:
            log.info("response=%r", answer.text)
        return answer

    def over(self, running: Running) -> None:
        """A request is done with, however it ended."""
        running.cancel()
        self._live.discard(running)
        self.running -= 1
        self.metrics.tokens.labels("prompt").inc(len(running.turn.prompt_ids))
        self.metrics.seconds.observe(time.monotonic() - running.begun)

    async def drain(self, timeout: float) -> None:
        """Take nothing more, and wait until what runs is done; what isn't then is cancelled."""
        self.draining = True
        last = time.monotonic() + timeout
        while self.running and time.monotonic() < last:
            await asyncio.sleep(0.02)
        for running in list(self._live):
            running.cancel()


def create_app(
    engine: Engine, config: ServeConfig, *, guard: Guard | None = None, sampling: Sampling | None = None
) -> FastAPI:
    """The application; `app.state.server` is its `Server`.

    Args:
        engine: answers.
        config: the limits, and what is granted.
        guard: stands in front; it must be for this model and sampling.
        sampling: the settings of a request that gives none.

    Raises:
        InputError: GuardError among them, for a guard that can't be used or proved armed, or a file of keys that can't.
    """
    server = Server(engine, config, guard, sampling)
    app = FastAPI(title="midward", description=__doc__, docs_url=None, redoc_url=None)
    app.state.server = server
    app.include_router(_routes(server))
    if config.research:
        app.include_router(research.router(engine, server.card, batch_size=config.max_batch))
    app.add_middleware(Door, server=server)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return error_response(error)

    @app.exception_handler(InputError)
    async def unfit(request: Request, error: InputError) -> Response:
        return error_response(Refused(400, str(error)))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"][1:]))
        return error_response(Refused(400, f"{place}: {first['msg']}".removeprefix(": "), param=place or None))

    @app.exception_handler(HTTPException)
    async def wrong_path(request: Request, error: HTTPException) -> Response:
        messages = {
            404: f"there is nothing at {request.url.path[:80]!r}.",
            405: f"{request.method} isn't for this path.",
        }
        message = messages.get(error.status_code, str(error.detail))
        return error_response(Refused(error.status_code, message), error.headers)

    return app


def _routes(server: Server) -> APIRouter:
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody} for status in (400, 401, 404, 413, 429, 500, 503)
    }
    router = APIRouter(responses={status: errors[status] for status in (400, 401, 503)})
    body = {"content": {"application/json": {"schema": body_schema(server.config.research)}}, "required": True}
    card = ModelCard(id=server.name, created=server.created, midward=server.card.model_dump(mode="json"))

    @router.post(
        "/v1/chat/completions",
        response_model=Completion,
        responses={**errors, 200: {"content": {"text/event-stream": {}}}},
        openapi_extra={"requestBody": body},
    )
    async def chat(request: Request) -> Any:
        """Answer a conversation."""
        return await server.chat(request)

    @router.get("/v1/models")
    async def models() -> ModelList:
        """The model that is served."""
        return ModelList(data=[card])

    @router.get("/v1/models/{model:path}", responses={404: errors[404]})
    async def model(model: str) -> ModelCard:
        """One model."""
        if model != server.name:
            raise Refused(404, f"there is no model {model!r}; there is {server.name!r}.", code="model_not_found")
        return card

    @router.get("/health")
    async def health() -> JSONResponse:
        """Whether requests are answered, and the proof that the guard is armed."""
        status, told = server.health()
        return JSONResponse(told, status)

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus."""
        page, kind = server.metrics.page()
        return Response(page, headers={"content-type": kind})

    return router
