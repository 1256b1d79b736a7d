"""A pretended GPU on the strict stand-in for CuPy, for drivers and runs on machines without one.

`StrictDevice` is a `zemosaic_backend.Device`. The functions below it take the places of `find_devices` and
`open_device`; they can be pickled by reference, so that worker processes may be told to call them.
"""

import os
from dataclasses import replace

from strict_namespace import StrictNamespace, StrictOutOfMemory
from zemosaic_backend import DeviceInfo
from zemosaic_types import DeviceUnavailable

MEGABYTE = 1024**2
_ENDLESS = 2**40

#: What a device does by itself, beside the names of its namespace.
_OWN_NAMES = ("release", "free_bytes", "synchronize")


class StrictDeviceError(RuntimeError):
    """The stand-in's CUDARuntimeError: a failed launch, a device in trouble."""


class StrictDevice:
    """A pretended GPU; its namespace `xp` keeps the account of memory, traffic and calls.

    Parameters
    ----------
    capacity_bytes : int, optional
        Its memory; without end if None.
    fail_on : dict, optional
        Faults as `StrictNamespace` takes them; also on 'release', 'free_bytes' and 'synchronize', whose calls are
        in `xp.calls` too.
    claimed_bytes : int, optional
        What it says is free, in place of the truth: a plan that trusts it is too optimistic.
    """

    errors = (StrictOutOfMemory, StrictDeviceError)
    compiles = False

    def __init__(self, capacity_bytes=None, fail_on=None, *, claimed_bytes=None):
        faults = dict(fail_on or {})
        own = {name: faults.pop(name) for name in _OWN_NAMES if name in faults}
        self.xp = StrictNamespace(capacity_bytes, faults)
        self.xp.fail_on |= own
        self.claimed_bytes = claimed_bytes
        memory = _ENDLESS if capacity_bytes is None else capacity_bytes
        self.info = DeviceInfo(0, "strict stand-in", memory, memory, "0.0", "strict stand-in of CuPy")

    @property
    def releases(self):
        """How often it was asked to give unused memory back."""
        return self.xp.calls["release"]

    def upload(self, array):
        return self.xp.asarray(array, order="C")

    def download(self, array):
        return array.get()

    def free_bytes(self):
        self.xp._enter("free_bytes")
        return self.info.total_bytes - self.xp.live_bytes if self.claimed_bytes is None else self.claimed_bytes

    def release(self):
        self.xp._enter("release")

    def synchronize(self):
        self.xp._enter("synchronize")

    def is_out_of_memory(self, error):
        return isinstance(error, StrictOutOfMemory)

    def kernel(self, source, name):
        raise StrictDeviceError("the stand-in has no CUDA compiler")


def find_stand_ins():
    return [StrictDevice().info]


def find_nothing():
    raise DeviceUnavailable("CuPy is not installed: the stand-in's reason")


def open_stand_in(index=0):
    if index != 0:
        raise DeviceUnavailable(f"there is no GPU {index}; this machine shows 1, numbered from 0")
    return StrictDevice()


def find_two():
    return [replace(StrictDevice().info, index=index) for index in (0, 1)]


def open_one_of_two(index=0):
    device = StrictDevice()
    device.info = find_two()[index]
    return device


def open_deadly(index=0):
    """A device that takes its process with it when it sorts."""
    return StrictDevice(fail_on={"sort": lambda _call: os._exit(9)})


def open_broken(index=0):
    raise DeviceUnavailable(f"GPU {index} cannot be opened: the stand-in's reason")


def open_failing_kernel(index=0):
    """A device that fails whenever it sorts, which every rejection does."""
    return StrictDevice(fail_on={"sort": StrictDeviceError("kernel launch failed")})


def open_full(index=0):
    """A device of 3 MiB that says it has memory without end: slabs of small surveys must be halved."""
    return StrictDevice(3 * MEGABYTE, claimed_bytes=_ENDLESS)


def open_tiny(index=0):
    """A device whose memory not even the smallest slab fits into."""
    return StrictDevice(MEGABYTE // 32)


def open_failing_copy(index=0):
    """A device that computes, but gives nothing back."""
    return StrictDevice(fail_on={"get": StrictDeviceError("copy to the host failed")})
