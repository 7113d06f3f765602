"""Changing weights: alignment methods behind one objective, and their trainer, from prompts to a PEFT adapter.

Each method reads in its file, as in its paper: mosa.py, tokens.py (sft, rt, a2d), dpo.py, ra.py. `align` runs one;
`AlignConfig` holds every number; `SentenceSet` what refusals say.
This room knows nothing of attacks.
"""

from typing import TYPE_CHECKING

from midward._front import front_door
from midward.alignment.config import RECIPES, AlignConfig, AlignError, resolve

if TYPE_CHECKING:
    from midward.alignment.dpo import PreferenceObjective
    from midward.alignment.mosa import MosaObjective, best_start, span_scores
    from midward.alignment.objective import Objective, Terms
    from midward.alignment.ra import Reward, RolloutObjective
    from midward.alignment.run import AlignResult, align
    from midward.alignment.sentences import SentenceSet
    from midward.alignment.tokens import TokenObjective
    from midward.alignment.trainer import AlignTrainer, RewardWarning

__getattr__, __dir__, __all__ = front_door(__name__)
