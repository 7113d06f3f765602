"""What a model can do: lm-evaluation-harness's tasks and the sandbox's three, for any model, adapter and guard.

`MidwardLM` is the harness's view of a model; `Answers` keeps what was asked; `run_program` runs what a model wrote.
"""

from typing import TYPE_CHECKING, Any

from midward.utility.answers import Answers
from midward.utility.execution import Limits, protections, run_program
from midward.utility.readings import against, cells, load_run

if TYPE_CHECKING:
    from midward.utility.lm import MidwardLM

__all__ = ["Answers", "Limits", "MidwardLM", "against", "cells", "load_run", "protections", "run_program"]


def __getattr__(name: str) -> Any:
    if name != "MidwardLM":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are {', '.join(__all__)}")
    from midward.utility.harness import require

    require()
    from midward.utility.lm import MidwardLM

    return MidwardLM
