"""A server in this process, on a port of its own, and one that goes through ASGI alone."""

import asyncio
import threading
import time
from contextlib import contextmanager

import anyio
import httpx
import uvicorn

from midward.serving.config import ServeConfig
from midward.serving.engine import Engine
from midward.serving.server import create_app

PROMPT = [{"role": "user", "content": "t30 t31 t32"}]


def app_of(model, guard=None, sampling=None, **config):
    """The application over an engine of its own."""
    return create_app(Engine(model), ServeConfig(**config), guard=guard, sampling=sampling)


@contextmanager
def listening(app):
    """The address of an application on a port of its own."""
    config = uvicorn.Config(app, port=0, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    if hasattr(app, "state"):
        app.state.uvicorn = server
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@contextmanager
def serving(app):
    """The same of a server of ours, whose engine ends with it."""
    try:
        with listening(app) as address:
            yield address
    finally:
        app.state.server.engine.scheduler.close()


def until(holds, seconds=20):
    """Wait until something holds."""
    last = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < last, "it never came to hold"
        time.sleep(0.005)


def left_nothing(app):
    """Wait until no request runs, and no row is filled or waits."""
    server = app.state.server
    until(lambda: server.running == server.engine.scheduler.rows == server.engine.scheduler.waiting == 0)


def through(app, talk):
    """What an async function of a client says that reaches the application without a socket."""

    async def run():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
            return await talk(client)

    return anyio.run(run)


def post(app, *bodies, **headers):
    """The responses to requests for answers, asked at once."""

    async def talk(client):
        asked = [client.post("/v1/chat/completions", json=body, headers=headers) for body in bodies]
        return await asyncio.gather(*asked)

    return through(app, talk)


def chunks_of(response):
    """The events of a stream, but for the last."""
    import json

    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def text_of(chunks, index=0):
    """What a choice's pieces are together."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices)
