"""Probes: where in a response a model's safety sits, and what of it an attacker can reach.

Each probe forces, asks for or optimises something at a response position, has the responses judged (`verdicts`), and
leaves rows, tables and one sentence that says what was found with its interval.
"""

from midward.judges.bench import Bench, bench, judge_rows, judge_rows_async, judging, reading
from midward.probes._run import Case, respond
from midward.probes.mirror import Mirror, Window, window
from midward.probes.prefill import Prefill, positions_of

__all__ = [
    "Bench",
    "Case",
    "Mirror",
    "Prefill",
    "Window",
    "bench",
    "judge_rows",
    "judge_rows_async",
    "judging",
    "positions_of",
    "reading",
    "respond",
    "window",
]
