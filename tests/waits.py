"""What a host would wait for a device for, counted on any machine."""

from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

#: Calls that copy to the host, on any device; calls that copy what the host holds to the device.
COPIES, UPLOADS = {"tolist", "cpu"}, {"tensor", "as_tensor"}
#: Operators whose shape or value the host waits for.
VALUES = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2"}


class Waits(TorchDispatchMode):
    """Counts what the host would wait for a device for, and operators."""

    def __init__(self):
        super().__init__()
        self.count, self.operators = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.operators[name] += 1
        indices = args[1] if name in ("index", "index_put_") else ()
        if name in VALUES or any(each is not None and each.dtype == torch.bool for each in indices):
            self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


class Copies(TorchFunctionMode):
    """Counts copies between host and device."""

    def __init__(self, names=COPIES):
        super().__init__()
        self.count, self.names = Counter(), names

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if (name := getattr(func, "__name__", "")) in self.names:
            self.count[name] += 1
        return func(*args, **(kwargs or {}))
