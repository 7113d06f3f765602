"""`midward serve`: a model behind OpenAI's chat API, with its guard in the loop."""

from __future__ import annotations

import os
import signal
from dataclasses import asdict
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Annotated

from midward._flags import Flag
from midward.cli._options import ModelOptions, SamplingOptions, load_behind
from midward.cli._show import is_quiet, say
from midward.errors import InputError
from midward.guards.config import FITTED, guard_file
from midward.serving.config import ServeConfig

NONE = Path("none")  # told by identity: a guard's file may be called so, too


def _guard(text: str) -> Path:
    return NONE if text == "none" else guard_file(text)


def serve(
    model: ModelOptions,
    sampling: SamplingOptions,
    serving: ServeConfig,
    guard: Annotated[Path | None, Flag(read=_guard)] = None,
    replicas: Annotated[int, Flag(min=1)] = 1,
) -> None:
    """Serve a model behind OpenAI's chat API, a guard in front of it, until SIGTERM or Ctrl-C.

    Args:
        guard: A fitted guard's file or folder, or none; by default what `midward guard fit` left in ./guard.
        replicas: Copies of model and guard, over Ray Serve: on this machine, or on the cluster at RAY_ADDRESS.
    """
    serving.read_keys()  # before the model is loaded
    if guard is None and any(FITTED.glob("*.safetensors")):
        try:
            guard = guard_file(FITTED)
        except InputError as error:
            raise InputError(f"{error} Give --guard FILE, or --guard none to serve without one.") from None
        say(f"guard     {guard} was fitted here; --guard none serves without one")
    if guard is None or guard is NONE:
        if serving.shadow:
            raise InputError("--shadow is of a guard; give --guard FILE.")
        why = (
            "no --guard, and none in ./guard, where `midward guard fit` leaves one" if guard is None else "--guard none"
        )
        say(f"unguarded it is served as it is: {why}")
        guard = None
    if replicas > 1:
        _replicated(model, sampling, serving, guard, replicas)
        return
    process = _process()
    from midward.serving.engine import Engine
    from midward.serving.server import create_app

    bound = process.listen(serving.host, serving.port)
    loaded, chosen = load_behind(model, sampling, guard)
    loaded.fold_adapter()
    app = create_app(Engine(loaded), serving, guard=loaded.guard, sampling=chosen)
    host, port = bound.getsockname()[:2]
    say(f"serving   {app.state.server.name} at http://{f'[{host}]' if ':' in host else host}:{port}/v1")
    if not is_quiet():
        process.log_to_stderr()
    process.run(app, bound)
    say("stopped   what ran is finished")


def _process() -> ModuleType:
    """What serves in this process; all that it imports is there then."""
    try:
        from midward.serving import process
    except ModuleNotFoundError as error:
        raise InputError(f"midward serve needs {error.name}: pip install 'midward[serve]'.") from None
    return process


def _replicated(
    model: ModelOptions, sampling: SamplingOptions, serving: ServeConfig, guard: Path | None, count: int
) -> None:
    if model.device_map:
        raise InputError("--replicas have a device each; --device-map spreads one model over all.")
    if not serving.port:
        raise InputError("--replicas need a --port; 0 is none.")
    process = _process()
    from midward import guards
    from midward.models.loading import checkpoint_folder
    from midward.runs.workers import connected, require_ray

    require_ray()
    checkpoint_folder(model.model)  # a wrong one is told before Ray starts
    if guard is not None:
        guards.describe(guard)
    process.listen(serving.host, serving.port).close()
    connected(cluster="RAY_ADDRESS" in os.environ)
    from midward.serving import replicas

    stopped = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    given = {name: value for name, value in asdict(model).items() if name != "device_map"}
    config = asdict(serving)
    replicas.start(replicas.Settings(**given, guard=guard, sampling=sampling.values, serving=config, replicas=count))
    say(f"serving   {count} replicas of {model.model} at http://{serving.host}:{serving.port}/v1")
    stopped.wait()
    replicas.stop()
    say("stopped   what ran is finished")
