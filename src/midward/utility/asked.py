"""What a model is asked, as a config."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

from midward._flags import BatchSize, Flag
from midward.errors import InputError
from midward.world.tasks import TASKS as EXACT
from midward.world.trials import HARMLESS

#: The sandbox's own: EXACT, the three tasks with one right answer, and sets of harmless requests.
OWN = (*EXACT, *(name for name in HARMLESS if name not in EXACT))


@dataclass(frozen=True)
class Asked:
    """What a model is asked.

    Args:
        tasks: By comma: sandbox (sums, recall, programs), benign, benign-wrapped, banned, gsm8k, mmlu, humaneval, any
            other task of lm-evaluation-harness. sandbox by default for the models in the package.
        limit: Samples of each task; the sandbox's have 200, the others all.
        fewshot: Solved examples before each sample; the task's own number by default.
        plain: No chat template around the prompts, as for a base model.
        include_path: Folder of your own harness tasks (YAML).
        draws: Masks of a diffusion model's likelihood, where it isn't exact.
        allow_code_execution: Run the programs that the model writes (HumanEval), in bubblewrap.
    """

    tasks: Annotated[tuple[str, ...] | None, Flag(grows=True)] = None
    limit: Annotated[int | None, Flag(min=1, grows=True)] = None
    fewshot: Annotated[int | None, Flag(min=0)] = None
    plain: Annotated[bool, Flag()] = False
    include_path: Annotated[Path | None, Flag()] = None
    draws: Annotated[int, Flag(min=2)] = 128
    allow_code_execution: Annotated[bool, Flag()] = False
    batch_size: BatchSize = 16

    def split(self, at_home: bool) -> tuple[list[str], list[str]]:
        """The sandbox's tasks among those named, and the harness's.

        Args:
            at_home: whether the model is of the sandbox, so that its tasks are the default.

        Raises:
            InputError: no task is named, or one by nearly the name of a task of the sandbox's. (The harness has none of
                such a name, and its index alone takes many seconds; a folder of one's own may have one.)
        """
        named = ("sandbox",) if self.tasks is None and at_home else self.tasks
        if not named:
            raise InputError("give --tasks: gsm8k,mmlu,humaneval, other tasks of lm-evaluation-harness, or sandbox.")
        for name in named if self.include_path is None else ():
            if name not in (*OWN, "sandbox") and (near := get_close_matches(name, (*OWN, "sandbox"), 1, cutoff=0.8)):
                raise InputError(f"no task is called {name!r}. Did you mean {near[0]!r}?")
        every = [own for name in named for own in (EXACT if name == "sandbox" else (name,))]
        own = [name for name in OWN if name in every]
        return own, list(dict.fromkeys(name for name in every if name not in OWN))
