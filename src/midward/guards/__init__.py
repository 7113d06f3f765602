"""Deciding at inference: SRI Guard and its rivals, one shape: `fit`, `score`, `flag`; `save` and `load` keep them.

Knows models, sampling and dynamics; whether a text refuses or does harm is said by callables that are passed in.
"""

from typing import TYPE_CHECKING

from midward._front import front_door
from midward.guards.config import EvalConfig, FitConfig, GuardError, Sizes

if TYPE_CHECKING:
    from midward.guards.classifier import ClassifierGuard
    from midward.guards.detectors import Detector, Mahalanobis
    from midward.guards.diffuguard import DiffuGuard, DiffuGuardAudit
    from midward.guards.examine import SelfExamine
    from midward.guards.files import describe, load, sampling_of, save
    from midward.guards.fitting import fit_guards
    from midward.guards.guard import STUB, Exchange, Guard, Verdict, conformal_order, conformal_threshold, prompt_hash
    from midward.guards.masks import MaskFilter
    from midward.guards.perplexity import PerplexityFilter
    from midward.guards.registry import GUARDS, GuardInfo, every, find, make
    from midward.guards.sri import SRIGuard, SRIMahalanobisGuard

__all__ = [
    "GUARDS",
    "STUB",
    "ClassifierGuard",
    "Detector",
    "DiffuGuard",
    "DiffuGuardAudit",
    "EvalConfig",
    "Exchange",
    "FitConfig",
    "Guard",
    "GuardError",
    "GuardInfo",
    "Mahalanobis",
    "MaskFilter",
    "PerplexityFilter",
    "SRIGuard",
    "SRIMahalanobisGuard",
    "SelfExamine",
    "Sizes",
    "Verdict",
    "conformal_order",
    "conformal_threshold",
    "describe",
    "every",
    "find",
    "fit_guards",
    "load",
    "make",
    "prompt_hash",
    "sampling_of",
    "save",
]

# In this order: the guards' own modules also hold names that aren't theirs (the `load` of a model).
__getattr__ = front_door(__name__, "guard", "files", "registry", "detectors", "fitting")
