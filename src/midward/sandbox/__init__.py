"""The sandbox: a fictional world, a small masked-diffusion model trained in it, and an oracle that knows what harm is.

A test bed that proves mechanics and lets methods be compared offline; it is no evidence about LLaDA.
"""

from midward.sandbox.data import ALIGNMENT, Goal, alignment_prompts, benign, forbidden, instructions, sentences
from midward.sandbox.language import OPENINGS, REFUSALS
from midward.sandbox.oracle import Reading, coherent, read, refused, steps_right
from midward.sandbox.tasks import TASKS, Task, exercises, score
from midward.sandbox.world import WORLD, Thing, World
from midward.sandbox.wrappers import WRAPPERS, Wrapper, wrappers

__all__ = [
    "ALIGNMENT",
    "OPENINGS",
    "REFUSALS",
    "TASKS",
    "WORLD",
    "WRAPPERS",
    "Goal",
    "Reading",
    "Task",
    "Thing",
    "World",
    "Wrapper",
    "alignment_prompts",
    "benign",
    "coherent",
    "exercises",
    "forbidden",
    "instructions",
    "read",
    "refused",
    "score",
    "sentences",
    "steps_right",
    "wrappers",
]
