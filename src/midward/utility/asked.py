"""What a model is asked, as a config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from midward._flags import Flag
from midward.errors import InputError
from midward.world.tasks import TASKS as EXACT
from midward.world.trials import HARMLESS

#: The sandbox's own: EXACT, the three tasks with one right answer, and sets of harmless requests.
OWN = (*EXACT, *(name for name in HARMLESS if name not in EXACT))


@dataclass(frozen=True)
class Asked:
    """What a model is asked."""

    tasks: Annotated[
        tuple[str, ...] | None,
        Flag(
            "By comma: sandbox (sums, recall, programs), benign, benign-wrapped, banned, gsm8k, mmlu, humaneval, any "
            "other task of lm-evaluation-harness. sandbox by default for the models in the package.",
            grows=True,
        ),
    ] = None
    limit: Annotated[
        int | None, Flag("Samples of each task; the sandbox's have 200, the others all.", min=1, grows=True)
    ] = None
    fewshot: Annotated[
        int | None, Flag("Solved examples before each sample; the task's own number by default.", min=0)
    ] = None
    plain: Annotated[bool, Flag("No chat template around the prompts, as for a base model.")] = False
    include_path: Annotated[Path | None, Flag("Folder of your own harness tasks (YAML).")] = None
    draws: Annotated[int, Flag("Masks of a diffusion model's likelihood, where it isn't exact.", min=2)] = 128
    allow_code_execution: Annotated[
        bool, Flag("Run the programs that the model writes (HumanEval), in bubblewrap.")
    ] = False
    batch_size: Annotated[int, Flag("Rows per forward pass.", min=1, free=True)] = 16

    def split(self, at_home: bool) -> tuple[list[str], list[str]]:
        """The sandbox's tasks among those named, and the harness's.

        Args:
            at_home: whether the model is of the sandbox, so that its tasks are the default.

        Raises:
            InputError: no task is named.
        """
        named = ("sandbox",) if self.tasks is None and at_home else self.tasks
        if not named:
            raise InputError("give --tasks: gsm8k,mmlu,humaneval, other tasks of lm-evaluation-harness, or sandbox.")
        every = [own for name in named for own in (EXACT if name == "sandbox" else (name,))]
        own = [name for name in OWN if name in every]
        return own, list(dict.fromkeys(name for name in every if name not in OWN))
