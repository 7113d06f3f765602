"""PEFT, without what it brings along unasked."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Keep PEFT from importing bitsandbytes, and from a warning that nobody can act on.

    PEFT imports bitsandbytes wherever it is installed: it takes its time and, on some CPUs, prints a warning. A network
    that holds quantised layers has it imported already, and then this changes nothing.
    """
    absent = "bitsandbytes" not in sys.modules
    if absent:
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # Python's way to say: not there
    try:
        with warnings.catch_warnings():
            # transformers' attribute under its old name
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        if absent:
            del sys.modules["bitsandbytes"]
            import_utils.is_bnb_available.cache_clear()
            import_utils.is_bnb_4bit_available.cache_clear()


with quiet_peft():
    from peft import (
        LoraConfig,
        PeftConfig,
        PeftModel,
        get_peft_model,
        get_peft_model_state_dict,
        import_utils,
        set_peft_model_state_dict,
    )
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper, get_pattern_key

#: The modules that PEFT puts in place of a network's own.
ADAPTED = (BaseTunerLayer, AuxiliaryTrainingWrapper)

__all__ = [
    "ADAPTED",
    "BaseTunerLayer",
    "LoraConfig",
    "PeftConfig",
    "PeftModel",
    "get_pattern_key",
    "get_peft_model",
    "get_peft_model_state_dict",
    "quiet_peft",
    "set_peft_model_state_dict",
]
