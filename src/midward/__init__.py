"""midward measures, aligns and guards diffusion language models.

`import midward` is light: names below import their room (and torch) on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from midward._front import front_door

if TYPE_CHECKING:
    from .alignment import align
    from .chat import Chat, load
    from .models import Family, LanguageModel, ModelError
    from .sampling import Ban, Edit, Forced, Request, Response, Sampling, Step, Trace, sample

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = front_door(__name__)
__all__ += ["__version__"]
