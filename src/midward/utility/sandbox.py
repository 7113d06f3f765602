"""The sandbox's three tasks, offline: sums, recall, programs (in the sandbox's own eight words, run by its oracle)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from midward.sampling import Sampling
from midward.store import key_of
from midward.utility import processes
from midward.utility.answers import Answers, Question
from midward.world import tasks

COUNT = 200  # exercises of each task, unless told


def run(
    answers: Answers, names: Sequence[str], sampling: Sampling, *, count: int = COUNT, split: str = "test"
) -> list[dict[str, Any]]:
    """Put `count` exercises of each task to the model; rows as `harness.run` has them, with the measure "correct".

    The exercises are the same ones every time, and the first n of a larger count. Under `torchrun` each process takes
    its share; the first one gets all rows, the others none. Raises InputError for an unknown task or too large a count.
    """
    exercises = [
        (number, task) for name in names for number, task in enumerate(tasks.exercises(name, count, 0, split=split))
    ]
    share = exercises[processes.rank() :: processes.world_size()]
    questions = [Question(tuple(answers.model.encode(task.prompt)), sampling) for _, task in share]
    rows = [
        {
            "task": task.task,
            "subtask": task.task,
            "id": f"{split}-{number:04d}",
            "doc": key_of(prompt=task.prompt, key=task.key),
            "measure": "correct",
            "value": float(tasks.score(task, answer.text)),
            "prompt": task.prompt,
            "response": answer.text,
            "target": task.answer,
            "flagged": answer.flagged,
        }
        for (number, task), answer in zip(share, answers.texts(questions), strict=True)
    ]
    gathered = [row for part in processes.gather(rows) or [] for row in part]
    return sorted(gathered, key=lambda row: (names.index(row["task"]), row["id"]))
