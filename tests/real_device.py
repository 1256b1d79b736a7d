"""Ways to open a real GPU that then gets into trouble; as `strict_device`, for worker processes to call."""

import numpy as np

from zemosaic_backend import open_device

_ENDLESS = 2**40
_LIMIT_BYTES = 24 * 1024**2

_INTO_NOTHING = """
extern "C" __global__ void into_nothing(unsigned long long address) { *reinterpret_cast<int*>(address) = 1; }
"""


def open_poisoned(index=0):
    """A GPU on which a kernel has written where no memory is: every later call of CUDA in its process fails."""
    device = open_device(index)
    device.kernel(_INTO_NOTHING, "into_nothing")((1,), (1,), (np.uint64(64),))
    return device


def open_full(index=0):
    """A GPU that gives out 24 MiB but says it has memory without end: slabs must be halved."""
    device = open_device(index)
    device.xp.get_default_memory_pool().set_limit(_LIMIT_BYTES)
    device.free_bytes = lambda: _ENDLESS
    return device


def open_without_kernels(index=0):
    """A GPU that compiles nothing of ours: all is done in CuPy's own operations."""
    device = open_device(index)
    device.compiles = False
    return device
