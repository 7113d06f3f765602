"""Goals: what to ask a model when attacking it, or when checking that it doesn't refuse too much.

`load("advbench")` gives goals of a published set (pinned revision, checked sha256, cached), of the sandbox, or of a
.csv, .jsonl or .json file. No harmful row is in the repository.
"""

from midward.goals.goal import Goal, GoalsError, of_trial, on_sandbox
from midward.goals.loading import load, says_harm
from midward.goals.sets import SETS, GoalSet
