"""Changing weights: the MOSA objective and its trainer, from prompts to a PEFT adapter.

The method reads in mosa.py, as in the paper. `align` runs it; `AlignConfig` holds every number; `SentenceSet` what is
rewarded and what is not.
This room knows nothing of attacks.
"""

from typing import TYPE_CHECKING

from midward._front import front_door
from midward.alignment.config import RECIPES, AlignConfig, AlignError, resolve

if TYPE_CHECKING:
    from midward.alignment.mosa import MosaObjective, best_start, span_scores
    from midward.alignment.objective import Objective, Terms
    from midward.alignment.run import AlignResult, align
    from midward.alignment.sentences import SentenceSet
    from midward.alignment.trainer import AlignTrainer, RewardWarning

__getattr__, __dir__, __all__ = front_door(__name__)
