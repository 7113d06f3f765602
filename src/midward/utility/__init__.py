"""What a model can do: lm-evaluation-harness's tasks and the sandbox's own, for any model, adapter and guard.

`midward.utility.lm.MidwardLM` (with lm-eval installed) is a model as the harness knows it; `harness` loads and runs its
tasks, `programs` runs what a model wrote, `sandbox` measures the sandbox's own tasks.
"""

from typing import TYPE_CHECKING

from midward._front import front_door

if TYPE_CHECKING:
    from midward.utility.readings import against, cells

__getattr__, __dir__, __all__ = front_door(__name__)
