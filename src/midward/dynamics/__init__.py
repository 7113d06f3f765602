"""What the steps of a generation say: pooled states, SRI anchors and signal, recovery rates, generation order.

Knows models and sampling only. Whether a text refuses or does harm is said by callables that are passed in.
"""

from midward.dynamics.anchors import Anchors, AnchorsError, AnchorsMismatch, fit_anchors, fit_layers
from midward.dynamics.signal import TAU, SRISignal, sri_signal
from midward.dynamics.states import PooledStates, Pooling, layers_of, steps_of

__all__ = [
    "TAU",
    "Anchors",
    "AnchorsError",
    "AnchorsMismatch",
    "PooledStates",
    "Pooling",
    "SRISignal",
    "fit_anchors",
    "fit_layers",
    "layers_of",
    "sri_signal",
    "steps_of",
]
