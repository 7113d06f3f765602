"""What SGLang finds of midward (entry point `sglang.srt.plugins`), in each of its processes: nothing is loaded unless a
guard is named, and an engine whose guard can't be armed doesn't start."""

from __future__ import annotations

import os

#: Names of files in the environment: the guard's, and the one that `midward.guards.export_engine` wrote for it.
GUARD, ENGINE = "MIDWARD_SGLANG_GUARD", "MIDWARD_SGLANG_ENGINE"


def register() -> None:
    """Put the guard of the environment in front of SGLang's dLLM algorithms. Raises SystemExit where it can't be armed:
    SGLang goes on without a plug-in that raises any other error."""
    guard, engine = os.environ.get(GUARD), os.environ.get(ENGINE)
    if not guard and not engine:
        return
    try:
        if not guard or not engine:
            raise ValueError(f"{GUARD if engine else ENGINE} isn't set; both files are needed.")
        from midward.guards.sglang import install

        install(guard, engine)
    except Exception as error:
        raise SystemExit(f"midward's guard can't be armed, so the engine doesn't start: {error}") from error
