"""What sets of requests are called that a defence is tried on; nothing here needs torch."""

from __future__ import annotations

from midward._hints import did_you_mean
from midward.errors import InputError
from midward.goals.loading import is_file
from midward.goals.sets import SETS

#: Attacks of one request, as `midward.attacks.shapes` has them: on any goals, but `anchoring`, whose are of the world.
SHAPES = ("prefill", "prefill-mid", "pad", "dija", "anchoring")
#: The sandbox's own trials.
TRIALS = ("benign", "benign-wrapped", "banned", "plain", "contextual", "wrappers")


def check_set(name: str, *, shapes: bool = True) -> None:
    """Raise InputError for what is none of these, no set of goals, and no file's path. Nothing is read. shapes: whether
    an attack's forced shape is a set, too."""
    known = [*TRIALS, *(SHAPES if shapes else ()), *SETS]
    if name not in known and not is_file(name):
        raise InputError(
            f"no set of requests {name!r}.{did_you_mean(name, known)} Available: {', '.join(known)}, or the path of a "
            ".csv, .jsonl or .json file."
        )
