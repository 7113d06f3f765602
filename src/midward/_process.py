"""What a process of ours, a command or Inspect with our models, asks of the machine; a program that imports midward
keeps its own ways."""

import ctypes
import os

# glibc's mallopt: parameter, bytes. Blocks up to the largest that it allows come from the heap, of which so much may
# lie free: a step frees and asks for the same again, and each time anew the system's pages cost a tenth of a small
# model's time (docs/findings/speed.md).
_MALLOPT = {"MALLOC_MMAP_THRESHOLD_": (-3, 32 << 20), "MALLOC_TRIM_THRESHOLD_": (-1, 64 << 20)}


def settle_process() -> None:
    """Have waiting threads sleep and freed memory stay. Where the environment says otherwise, it decides."""
    # Read when torch is loaded. OpenMP's threads then sleep while they wait; on a busy machine or under a quota of CPU
    # time spinning ones keep a small model's next product from being computed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or "GLIBC_TUNABLES" in os.environ:
        return
    for name, (parameter, size) in _MALLOPT.items():
        if name not in os.environ:
            mallopt(parameter, size)
            os.environ[name] = str(size)  # for processes that this one starts
