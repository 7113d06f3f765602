"""How a response comes out: settings, requests, the canvas that is being filled, and the samplers.

One `sample` serves diffusion models (any order, blocks, guidance) and autoregressive ones (left to right).
Watchers see every denoising step; `Trace` is the one that keeps a record, an `Editor` one that writes. `span_log_probs`
and `span_gradient` say how likely a span is at a place of the response, and what in the prompt would make it likelier.
`agreement` measures what an approximate setting (a cache, a threshold) does to the tokens.
"""

from typing import TYPE_CHECKING

from midward._front import front_door

from .settings import Sampling

if TYPE_CHECKING:
    from ._agreement import Agreement, agreement
    from .canvas import Canvas
    from .likelihood import Span, SpanScore, span_gradient, span_log_probs
    from .requests import SELECTORS, Ban, Edit, Edited, Forced, Request, Response
    from .sampler import fill, sample
    from .step import Adjuster, Editor, Later, Steerer, Step, Watcher
    from .trace import Trace

__getattr__, __dir__, __all__ = front_door(__name__)
