"""Deciding at inference: SRI Guard and its rivals, one shape: `fit`, `score`, `flag`; `save` and `load` keep them.

Knows models, sampling and dynamics; whether a text refuses or does harm is said by callables that are passed in.
"""

from typing import TYPE_CHECKING

from midward._front import front_door
from midward.guards.config import GuardError, Sizes

if TYPE_CHECKING:
    from midward.guards.classifier import ClassifierGuard
    from midward.guards.csd import CSD
    from midward.guards.detectors import Detector, Mahalanobis
    from midward.guards.diffuguard import DiffuGuard, DiffuGuardAudit
    from midward.guards.engine import BlockStep, Decision, EngineGuard, RowGuard, export_engine, load_engine
    from midward.guards.examine import SelfExamine
    from midward.guards.exchange import Exchange, Labelled, Verdict, prompt_hash
    from midward.guards.files import describe, load, sampling_of, save
    from midward.guards.fitting import fit_guards
    from midward.guards.front import STUB
    from midward.guards.guard import Guard, conformal_threshold
    from midward.guards.labelled import DirectionMonitor, HesitationMonitor, ProjectionMonitor
    from midward.guards.looks import LookGuard, SRIBlocksGuard
    from midward.guards.masks import MaskFilter
    from midward.guards.perplexity import PerplexityFilter
    from midward.guards.prefuse import PreFusion
    from midward.guards.raec import RAEC
    from midward.guards.registry import GuardInfo, every, find, make
    from midward.guards.sri import SRIGuard, SRIMahalanobisGuard

__getattr__, __dir__, __all__ = front_door(__name__)
