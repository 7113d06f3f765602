"""Several replicas of a server over Ray Serve, each with a model, a guard and an engine of its own.

`application` is what `serve deploy` builds from a file (configs/serve.yaml), `start` what `midward serve --replicas`
does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict
from ray import serve

from midward import guards
from midward.chat import load
from midward.runs.workers import WorkersError
from midward.sampling import Sampling
from midward.serving.config import ServeConfig
from midward.serving.engine import Engine
from midward.serving.ingress import Ingress, Page
from midward.serving.server import create_app

NAME = "midward"
_FILES = ("api_key_file", "self_test")
_QUIET = {"log_level": "ERROR", "enable_access_log": False}
#: Requests that a replica takes beyond those that it has room for: it refuses them itself, with 429.
_MORE = 64


class Settings(BaseModel):
    """What a replica is, and how many there are.

    Attributes:
        model, adapter, device, dtype, quantize: as `midward.load` takes them.
        guard: a fitted guard's file or folder, where every replica can read it.
        sampling: the settings of a request that gives none, beyond the guard's and the model's own.
        serving: fields of `ServeConfig`.
        replicas: how many.
        autoscaling: Ray Serve's autoscaling_config in their place, e.g. {min_replicas: 1, max_replicas: 8,
            target_ongoing_requests: 16}.
        gpus: of each; by default 1 where the cluster has any and the device isn't the CPU.
    """

    model_config = ConfigDict(extra="forbid")

    model: str = "sandbox"
    adapter: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None
    guard: Path | None = None
    sampling: dict[str, Any] = {}
    serving: dict[str, Any] = {}
    replicas: int = 1
    autoscaling: dict[str, Any] | None = None
    gpus: float | None = None

    @property
    def config(self) -> ServeConfig:
        """The server's own settings. Raises InputError for those that aren't any."""
        files = {name: Path(self.serving[name]) for name in _FILES if self.serving.get(name)}
        return ServeConfig(**{**self.serving, **files})


class Replica:
    """The server as it is without Ray, asked by method calls instead of a socket."""

    def __init__(self, settings: Settings) -> None:
        model = load(settings.model, settings.adapter, settings.device, settings.dtype, None, settings.quantize)  # type: ignore[arg-type]
        model.fold_adapter()
        fitted_for = guards.sampling_of(settings.guard) if settings.guard else {}
        sampling = Sampling.for_model(model, fitted_for, **settings.sampling)
        guard = guards.load(settings.guard, model, sampling) if settings.guard else None
        self.app = create_app(Engine(model), settings.config, guard=guard, sampling=sampling)

    async def answer(self, scope: Mapping[str, Any], body: bytes) -> AsyncIterator[dict[str, Any]]:
        """ASGI's messages of one answer, as they come. Given up where nobody waits for them."""
        messages: asyncio.Queue[Any] = asyncio.Queue()
        whole = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if not whole.is_set():
                whole.set()
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.Event().wait()  # until it is cancelled: there is no socket to hang up
            return {"type": "http.disconnect"}

        task = asyncio.create_task(self.app({**scope, "state": {}}, receive, messages.put))
        task.add_done_callback(lambda done: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                if message["type"] == "http.response.start":
                    yield {"status": message["status"], "headers": [tuple(pair) for pair in message["headers"]]}
                else:
                    yield {"body": message.get("body", b"")}
            await task
        finally:
            task.cancel()

    async def page(self, scope: Mapping[str, Any]) -> Page:
        """Status and body of what is asked with GET."""
        start, *parts = [message async for message in self.answer(scope, b"")]
        return start["status"], b"".join(part["body"] for part in parts)


def application(settings: Any) -> serve.Application:
    """The application: an ingress, and replicas behind it.

    Args:
        settings: `Settings`, or what a file for `serve deploy` has in their place.

    Raises:
        InputError: the server can't have these.
    """
    settings = Settings.model_validate(settings)
    config = settings.config
    gpus = settings.gpus
    if gpus is None:
        there = 0 if settings.device == "cpu" else ray.cluster_resources().get("GPU", 0)
        gpus = min(1, int(1e4 * there / settings.replicas) / 1e4)
    many: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.autoscaling:
        many = {"autoscaling_config": settings.autoscaling}
    room = config.max_batch + config.max_waiting + _MORE
    of_each = {"max_ongoing_requests": room, "graceful_shutdown_timeout_s": config.drain_timeout}
    share = {"num_cpus": 0, "num_gpus": gpus}
    replica = serve.deployment(ray_actor_options=share, logging_config=_QUIET, **of_each, **many)(Replica)
    most = settings.autoscaling.get("max_replicas", 1) if settings.autoscaling else settings.replicas
    of_each["max_ongoing_requests"] = room * most + _MORE
    ingress = serve.deployment(ray_actor_options={"num_cpus": 0}, logging_config=_QUIET, **of_each)(Ingress)
    return ingress.bind(replica.bind(settings), config.max_body)


def start(settings: Settings) -> None:
    """Serve over the cluster that this process is connected to, and return once everything stands.

    Raises:
        WorkersError: the replicas can't start.
    """
    config = settings.config
    app = application(settings)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(http_options={"host": config.host, "port": config.port}, logging_config=_QUIET)
    try:
        serve.run(app, name=NAME, route_prefix="/", logging_config=_QUIET)
    except RuntimeError as error:
        why = [each.message for each in serve.status().applications[NAME].deployments.values() if each.message]
        serve.shutdown()
        raise WorkersError(f"the replicas can't start: {' '.join(why) or error}") from None


def stop() -> None:
    """Take nothing more, finish what runs (for the drain timeout), and end."""
    serve.delete(NAME)
    serve.shutdown()
