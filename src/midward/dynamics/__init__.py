"""What the steps of a generation say: pooled states, SRI anchors and signal, recovery rates, generation order.

`sri` is the paper in code. Knows models, goals and sampling only; whether a text refuses is said by a callable that is
passed in.
"""

from typing import TYPE_CHECKING

from midward._front import front_door

if TYPE_CHECKING:
    from midward.dynamics.anchors import Anchors, AnchorsError, AnchorsMismatch, NothingToAverage, View, fit_anchors
    from midward.dynamics.directions import answer_states, asked_states, direction
    from midward.dynamics.signal import SRISignal, sri_signal
    from midward.dynamics.sri import Autoencoder
    from midward.dynamics.states import PooledStates, Pooling, layers_of, steps_of

__getattr__, __dir__, __all__ = front_door(__name__)
