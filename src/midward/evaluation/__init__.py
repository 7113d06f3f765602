"""Numbers from verdicts: rates with their n, 95 % interval and unscored count, and paired comparisons by goal.

The evaluation harness (provider, tasks, attack matrix) will live here too.
"""

from midward.evaluation.rates import Paired, Rate, paired, rate

__all__ = ["Paired", "Rate", "paired", "rate"]
