"""`midward serve`: a model behind OpenAI's chat API, with its guard in the loop."""

from __future__ import annotations

from midward.cli._options import GuardFile, ModelOptions, SamplingOptions, load_behind
from midward.cli._show import is_quiet, say
from midward.errors import InputError
from midward.serving.config import ServeConfig


def serve(model: ModelOptions, sampling: SamplingOptions, serving: ServeConfig, guard: GuardFile = None) -> None:
    """Serve a model behind OpenAI's chat API, a guard in front of it, until SIGTERM or Ctrl-C."""
    serving.read_keys()  # before the model is loaded
    if serving.shadow and guard is None:
        raise InputError("--shadow is of a guard; give --guard FILE.")
    try:
        from midward.serving import process
        from midward.serving.engine import Engine
        from midward.serving.server import create_app
    except ModuleNotFoundError as error:
        raise InputError(f"midward serve needs {error.name}: pip install 'midward[serve]'.") from None
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
