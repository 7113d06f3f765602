"""Between the network and the routes: a request's id, its key and size, the log's line; and an answer that is written
while it comes."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from fastapi import Request
from fastapi.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from midward._hints import printable
from midward.serving.asked import Running
from midward.serving.openai import Refused, error_response, event

if TYPE_CHECKING:
    from midward.serving.server import Server

log = logging.getLogger("midward.serve")

_OUTCOMES = {200: "answered", 400: "refused", 401: "unauthorized", 413: "too_large", 429: "busy", 503: "unavailable"}
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Answering(Response):
    """An answer that is written while it comes, and given up where the client hangs up."""

    def __init__(
        self, server: Server, running: Running, request: Request, parts: AsyncIterator[bytes], stream: bool
    ) -> None:
        self.server, self.running, self.request, self.parts = server, running, request, parts
        self.media_type = "text/event-stream" if stream else "application/json"
        self.is_stream = stream
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"} if stream else None)
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hang_up = asyncio.create_task(self._hang_up(receive))
        started = False
        try:
            async for part in self._checked():
                if not started:
                    started = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except Refused as refused:
            scope["state"]["outcome"] = "cancelled" if refused.code == "cancelled" else "failed"
            if not started:
                await error_response(refused)(scope, receive, send)
            else:
                await send({"type": "http.response.body", "body": event(refused.body), "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:  # the client is gone
            scope["state"]["outcome"] = "cancelled"
        finally:
            hang_up.cancel()
            self.server.over(self.running)

    async def _checked(self) -> AsyncIterator[bytes]:
        """The parts; whatever is raised over them is a Refused."""
        try:
            async for part in self.parts:
                yield part
        except Refused:
            raise
        except Exception as error:
            raise self.server.failed(error) from None

    async def _hang_up(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.running.cancel()


class Door:
    """What stands around every route: the request's id, the key, the log's line.

    Nothing of a prompt or a response is in that line.
    """

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
        identity = given if _ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["id"], begun, status = identity, time.monotonic(), 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", identity.encode())]
            await send(message)

        try:
            if scope["path"] != "/health":
                self.server.admits(scope)
            await self.app(scope, self.bounded(scope, receive), told)
        except Refused as refused:
            await error_response(refused)(scope, receive, told)
        except Exception as error:
            answered = self.server.failed(error)
            if not status:
                await error_response(answered)(scope, receive, told)
        finally:
            if scope["path"] == "/v1/chat/completions":
                outcome = state.get("outcome") or _OUTCOMES.get(status, "failed" if status >= 500 else "refused")
                self.server.metrics.requests.labels(outcome).inc()
            seconds = time.monotonic() - begun
            path = printable(scope["path"][:80], kept="")  # no line of a caller's own
            log.info("id=%s %s %s %s %.3fs", identity, scope["method"], path, status, seconds)

    def bounded(self, scope: Scope, receive: Receive) -> Receive:
        """What receives a body that is JSON and not too large. Raises Refused for another, then or while it comes."""
        headers, most, size = dict(scope["headers"]), self.server.config.max_body, 0
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if scope["method"] == "POST" and kind != b"application/json":  # a browser sends others without asking
            raise Refused(
                400, f"the body must be of content type application/json; received {kind.decode('latin-1')!r:.80}."
            )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and len(length) < 19 and int(length) > most:
            raise Refused(413, f"the body may have {most} bytes; received {int(length)}.")

        async def receive_some() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > most:
                raise Refused(413, f"the body may have {most} bytes; received more.")
            return message

        return receive_some
