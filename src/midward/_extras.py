"""What the extras of the package bring; a run goes on without them, and says so once."""

import warnings
from collections.abc import Callable
from functools import cache, wraps
from importlib.util import find_spec
from typing import Any


class ExtraWarning(UserWarning):
    """Something was left out, because a package of an extra isn't installed."""


def figure(draw: Callable[..., Any]) -> Callable[..., Any]:
    """`draw`, which draws with matplotlib; where that isn't installed nothing is drawn, and [] comes back."""

    @wraps(draw)
    def drawn(*args: Any, **options: Any) -> Any:
        if find_spec("matplotlib"):
            return draw(*args, **options)
        _say_once()
        return []

    return drawn


@cache  # other libraries reset Python's own record of what was said
def _say_once() -> None:
    warnings.warn("no figures were drawn; for them: pip install 'midward[figures]'", ExtraWarning, stacklevel=3)
