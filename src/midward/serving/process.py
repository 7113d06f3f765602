"""A process that serves an application, and ends well: what runs is finished first, and the exit status is 0."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI

from midward.errors import InputError
from midward.serving.server import Server

log = logging.getLogger("midward.serve")

#: Seconds that connections have to close once nothing runs.
_CLOSING = 2
#: Messages that are remembered as told.
_MESSAGES = 1000


class _Draining(uvicorn.Server):
    """Ends on a signal once the application has drained; a second Ctrl-C doesn't wait."""

    served: Server
    drained: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.drained is not None and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
        asyncio.get_event_loop().call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self.drained = self.drained or asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        log.info("draining: %d requests run", self.served.running)
        await self.served.drain(self.served.config.drain_timeout)
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound. Raises InputError where it can't be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise InputError(f"{host}:{port} can't be bound: {error.strerror}; give another --port or --host.") from None
    return bound


def run(app: FastAPI, bound: socket.socket) -> None:
    """Serve until a signal comes, and drain.

    Args:
        app: of `create_app`.
        bound: the socket, see `listen`.
    """
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=_CLOSING
    )
    server = _Draining(config)
    server.served = app.state.server
    server.run(sockets=[bound])
    app.state.server.engine.scheduler.close()


class _Once(logging.Filter):
    """Lets a message pass once: the library warns of each call what a server does thousands of times."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message in self._told:
            return False
        if len(self._told) < _MESSAGES:
            self._told.add(message)
        return True


def log_to_stderr() -> None:
    """The log's lines, with their time."""
    logging.getLogger("midward").addFilter(_Once())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
