"""What waits for the weights of the English world. Once they are in the package the marks are off by themselves.

Records of what a model or an attack did before are then made anew, each by the command that stands with it.
"""

from pathlib import Path

import pytest

import midward

TOKENIZER = Path(midward.__file__).parent / "world" / "weights" / "tokenizer.json"
AWAITED = "skreel" not in TOKENIZER.read_text(encoding="utf-8")
REASON = "the new world's weights"

#: Of a test that asks the model in the package about its world; while the weights are awaited it isn't run.
weights = pytest.mark.xfail(AWAITED, reason=REASON, run=False)


def renewed():
    """Ends a test here while the weights are awaited; what stands before it is checked at once."""
    if AWAITED:
        pytest.xfail(REASON)
