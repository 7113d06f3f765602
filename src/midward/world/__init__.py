"""The sandbox: a fictional world, a small masked-diffusion model trained in it, and an oracle that knows what harm is.

A test bed that proves mechanics and lets methods be compared offline; it is no evidence about LLaDA.
"""

from midward.world.assistant import ASSISTANT
from midward.world.data import (
    ALIGNMENT,
    Trial,
    alignment_answers,
    alignment_prompts,
    alignment_trials,
    benign,
    forbidden,
    instructions,
    sentences,
)
from midward.world.language import REFUSALS
from midward.world.oracle import Reading, coherent, judge, read, refused, steps_right
from midward.world.tasks import TASKS, Task, exercises, score
from midward.world.world import WORLD, Thing, World
from midward.world.wrappers import WRAPPERS, Wrapper, wrappers
