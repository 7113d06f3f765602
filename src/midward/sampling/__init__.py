"""How a response comes out: settings, requests, the canvas that is being filled, and the samplers.

One `sample` serves diffusion models (any order, blocks, guidance) and autoregressive ones (left to right).
Watchers see every denoising step; `Trace` is the watcher that keeps a record.
"""

from .canvas import Canvas
from .requests import Ban, Forced, Request, Response
from .sampler import sample
from .settings import Sampling
from .step import Step, Watcher
from .trace import Trace

__all__ = ["Ban", "Canvas", "Forced", "Request", "Response", "Sampling", "Step", "Trace", "Watcher", "sample"]
