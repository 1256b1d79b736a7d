"""The array namespace of an array, the GPUs of the machine, and one open GPU.

This is the only module that names CuPy, which is optional and imported when a GPU is first asked for, never
before. Whether it comes from ``cupy-cuda12x`` or ``cupy-cuda13x``, the module is the same. A process that computes
on a GPU opens one `Device` and keeps to it; a `DeviceInfo` is what crosses to other processes.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from zemosaic_types import DeviceUnavailable

logger = logging.getLogger("ZeMosaicWorker.backend")

#: Kernels round ``a * b + c`` twice, as the CPU does, and are written in C++17.
KERNEL_OPTIONS = ("--fmad=false", "-std=c++17")

_SOURCES = Path(__file__).with_name("zemosaic_cuda")
_HOW_TO_INSTALL = 'pip install "zemosaic[gpu]" for CUDA 12, "zemosaic[gpu13]" (cupy-cuda13x) for CUDA 13'
_OUT_OF_MEMORY_STATUS = 2  # cudaErrorMemoryAllocation, CUDA_ERROR_OUT_OF_MEMORY
_LONGEST_REASON = 400

# What a compiled library of the wrong version, a missing shared library or a GPU in trouble is known to raise.
_FAULTS = (ImportError, AttributeError, ValueError, RuntimeError, OSError, MemoryError)

_TRIAL = """
extern "C" __global__ void trial(const float* a, const float* c, float* out)
{
    out[0] = a[0] * a[0] + c[0];
}
"""


def namespace_of(array: Any) -> ModuleType:
    """Return the module whose functions work on `array`.

    Returns
    -------
    module
        numpy for its arrays and scalars, CuPy for its arrays, otherwise what the array itself names by the
        array API standard (``__array_namespace__``).

    Raises
    ------
    TypeError
        If `array` is no array.
    """
    if isinstance(array, np.ndarray | np.generic):
        return np
    cupy = sys.modules.get("cupy")  # nobody holds such an array unless it was imported
    if isinstance(array, getattr(cupy, "ndarray", ())):
        return cupy
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    raise TypeError(f"a {type(array).__name__} is no array")


def to_host(array: Any) -> Any:
    """Return a numpy array of what `array` holds; numpy's own come back as they are."""
    return array if isinstance(array, np.ndarray | np.generic) else array.get()


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What a GPU is.

    Attributes
    ----------
    index : int
        Its number among the GPUs that CUDA shows to this process, from 0.
    name : str
        Its maker's name for it.
    free_bytes, total_bytes : int
        Its memory when it was asked.
    runtime : str
        Version of the CUDA runtime, such as ``"12.9"``.
    library : str
        Array library and its version, such as ``"CuPy 14.2.0"``.
    """

    index: int
    name: str
    free_bytes: int
    total_bytes: int
    runtime: str
    library: str


class Device(Protocol):
    """An open GPU, as drivers hold it: used by the thread that opened it, never pickled.

    Attributes
    ----------
    info : DeviceInfo
        What it is.
    xp : module
        Namespace of its arrays.
    errors : tuple of exception classes
        Whatever the GPU itself may raise: out of memory, a failed launch, a kernel that does not compile.
    compiles : bool
        Whether it has CUDA kernels; without, all is done in array operations.
    """

    info: DeviceInfo
    xp: Any
    errors: tuple[type[BaseException], ...]
    compiles: bool

    def upload(self, array: np.ndarray) -> Any:
        """Return a copy on the GPU, same shape and type, C-contiguous, in the byte order of the machine.

        `array` may be changed as soon as the call returns.
        """
        ...

    def download(self, array: Any) -> np.ndarray:
        """Return a copy of a GPU array on the host, once all work that it waits for is done."""
        ...

    def free_bytes(self) -> int:
        """Return the bytes that arrays may still take: free memory and what the pool holds unused.

        One large array may need `release` first: the unused part of the pool may be in pieces.
        """
        ...

    def release(self) -> None:
        """Give unused blocks of the pools back; what is still referred to, also by a traceback, stays."""
        ...

    def synchronize(self) -> None:
        """Wait until the GPU has done all its work; errors of earlier kernels are raised here."""
        ...

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Return whether `error` says that the GPU's memory is full, so that less at a time may do."""
        ...

    def kernel(self, source: str, name: str) -> Callable[..., None]:
        """Return the compiled kernel `name` (declared ``extern "C"``) of a CUDA source.

        Called as ``kernel(grid, block, args)`` with two tuples of int and a tuple of C-contiguous GPU arrays and
        numpy scalars of exactly the declared types (a Python int arrives with 64 bits, a float as double).
        ``a * b + c`` is rounded twice. The same source and name are compiled once.
        """
        ...


class CudaDevice:
    """An NVIDIA GPU by way of CuPy; see `Device`. Made by `open_device`."""

    compiles = True

    def __init__(self, cupy: ModuleType, info: DeviceInfo) -> None:
        self.info = info
        self.xp = cupy
        self._out_of_memory = cupy.cuda.memory.OutOfMemoryError
        self._status_errors = (cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError)
        self.errors = (
            self._out_of_memory,
            *self._status_errors,
            cupy.cuda.nvrtc.NVRTCError,
            cupy.cuda.compiler.CompileException,
        )
        self._kernels: dict[tuple[str, str], Callable[..., None]] = {}

    def upload(self, array: np.ndarray) -> Any:
        """Return a copy on the GPU; FITS data may come big-endian, which no GPU knows."""
        return self.xp.asarray(np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C"))

    def download(self, array: Any) -> np.ndarray:
        """Return a copy on the host."""
        return self.xp.asnumpy(array)

    def free_bytes(self) -> int:
        """Return free memory and the unused part of the pool, within the limit of the pool if it has one."""
        pool = self.xp.get_default_memory_pool()
        free = self.xp.cuda.Device(self.info.index).mem_info[0] + pool.free_bytes()
        limit = pool.get_limit()  # CUPY_GPU_MEMORY_LIMIT; 0 without one
        return min(free, max(0, limit - pool.used_bytes())) if limit else free

    def release(self) -> None:
        """Give unused blocks of device and pinned host memory back."""
        self.xp.get_default_memory_pool().free_all_blocks()
        self.xp.get_default_pinned_memory_pool().free_all_blocks()

    def synchronize(self) -> None:
        """Wait until the GPU has done all its work."""
        self.xp.cuda.Device(self.info.index).synchronize()

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Return whether the pool, the runtime or the driver found no memory."""
        if isinstance(error, self._out_of_memory):
            return True
        return isinstance(error, self._status_errors) and getattr(error, "status", None) == _OUT_OF_MEMORY_STATUS

    def kernel(self, source: str, name: str) -> Callable[..., None]:
        """Return a compiled kernel; a source that does not compile fails here, not at its first launch."""
        if (source, name) not in self._kernels:
            kernel = self.xp.RawKernel(source, name, options=KERNEL_OPTIONS)
            kernel.compile()
            self._kernels[source, name] = kernel
        return self._kernels[source, name]


def kernel_source(name: str) -> str:
    """Return the CUDA source of a file of `zemosaic_cuda`.

    Raises
    ------
    OSError
        If ZeMosaic was installed without it.
    """
    return (_SOURCES / f"{name}.cu").read_text(encoding="utf-8")


def find_devices() -> list[DeviceInfo]:
    """Return the GPUs that answer, in the order of their index; at least one.

    Raises
    ------
    DeviceUnavailable
        If there is none, with the reason: no CuPy or a broken one, no driver or one that is too old, no GPU.
    """
    cupy = _import_cupy()
    devices, faults = [], []
    for index in range(_count_devices(cupy)):
        try:
            devices.append(_describe(cupy, index))
        except DeviceUnavailable as fault:
            logger.warning("%s", fault)
            faults.append(str(fault))
    if not devices:
        raise DeviceUnavailable("; ".join(faults))
    return devices


def print_devices() -> None:
    """Print the names of the GPUs that answer and why there is none, as JSON; for a process that only looks."""
    logging.disable()
    try:
        answer = [[device.name for device in find_devices()], ""]
    except DeviceUnavailable as reason:
        answer = [[], str(reason)]
    sys.stdout.write(json.dumps(answer))


def open_device(index: int = 0) -> Device:
    """Open a GPU for this process, and try it out with one small computation.

    It becomes the current device of the calling thread, which is the one to use it; a process opens one.

    Raises
    ------
    DeviceUnavailable
        As `find_devices`; if there is no GPU of that index; or if it cannot compute.
    """
    cupy = _import_cupy()
    count = _count_devices(cupy)
    if not 0 <= index < count:
        raise DeviceUnavailable(f"there is no GPU {index}; this machine shows {count}, numbered from 0")
    with _reason(f"GPU {index} cannot be opened"):
        cupy.cuda.Device(index).use()
        device = CudaDevice(cupy, _describe(cupy, index))
    _try_out(device)
    return device


def _import_cupy() -> ModuleType:
    try:
        import cupy
    except _FAULTS as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            raise DeviceUnavailable(f"CuPy is not installed: {_HOW_TO_INSTALL}") from error
        # CuPy wraps the error of its compiled part in a page of advice.
        reason = _one_line(error.__cause__ or error)
        raise DeviceUnavailable(
            f"CuPy is installed but cannot be imported: {reason}; it must fit numpy and the driver: "
            f"{_HOW_TO_INSTALL}"
        ) from error
    return cupy


def _count_devices(cupy: ModuleType) -> int:
    """Return the number of GPUs, at least 1; raise `DeviceUnavailable` with what is in the way of one."""
    with _reason("CuPy is damaged or cannot ask the NVIDIA driver"):
        runtime = cupy.cuda.runtime
        if runtime.is_hip:
            raise DeviceUnavailable("this CuPy is built for AMD GPUs; ZeMosaic computes on NVIDIA GPUs only")
        _check_driver(runtime.driverGetVersion(), runtime.runtimeGetVersion())
    with _reason(_shows_none()):
        count = runtime.getDeviceCount()
        available = cupy.cuda.is_available()
    if count < 1 or not available:
        raise DeviceUnavailable(_shows_none())
    return count


def _check_driver(driver: int, needed: int) -> None:
    """Compare CUDA versions as the runtime gives them: 12090 is 12.9, 0 is no driver."""
    if driver == 0:
        raise DeviceUnavailable("no NVIDIA driver is installed, or it is not running")
    if driver // 1000 < needed // 1000:
        advice = "update the driver"
        if driver >= 12000:
            advice = f'{advice} or use CuPy for CUDA 12 (pip install "zemosaic[gpu]")'
        raise DeviceUnavailable(
            f"the NVIDIA driver is too old: it knows CUDA {_version(driver)}, and this CuPy is built for CUDA "
            f"{_version(needed)}; {advice}"
        )


def _shows_none() -> str:
    none, visible = "the NVIDIA driver shows no GPU", os.environ.get("CUDA_VISIBLE_DEVICES")
    return none if visible is None else f"{none} (CUDA_VISIBLE_DEVICES={visible} chooses which)"


def _describe(cupy: ModuleType, index: int) -> DeviceInfo:
    with _reason(f"GPU {index} does not answer"):
        name = cupy.cuda.runtime.getDeviceProperties(index)["name"]
        free, total = cupy.cuda.Device(index).mem_info
        runtime = _version(cupy.cuda.runtime.runtimeGetVersion())
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    return DeviceInfo(index, text.rstrip("\0"), int(free), int(total), runtime, f"CuPy {cupy.__version__}")


def _try_out(device: CudaDevice) -> None:
    """Compile and run a kernel of ours and one of CuPy's; both need parts of CUDA that a driver alone lacks.

    The square of 1 + 2^-12 is 1 + 2^-11 + 2^-24, which float32 rounds to 1 + 2^-11: the result is 0 if that
    rounding takes place before the sum, and 2^-24 if multiplication and sum are fused.
    """
    index, major = device.info.index, device.info.runtime.split(".")[0]
    try:
        a, c, out = (device.upload(np.array([x], np.float32)) for x in (1 + 2**-12, -(1 + 2**-11), 1))
        device.kernel(_TRIAL, "trial")((1,), (1,), (a, c, out))
        result = device.download(out * 2)
    except (*device.errors, *_FAULTS) as error:
        raise DeviceUnavailable(
            f"GPU {index} cannot compute: {_one_line(error)}; if parts of CUDA are missing: "
            f'pip install "cupy-cuda{major}x[ctk]"'
        ) from error
    if result[0] != 0:
        raise DeviceUnavailable(f"GPU {index} computes wrongly: {result[0]} where 0 was expected")


@contextmanager
def _reason(what: str) -> Iterator[None]:
    """Turn a fault into `DeviceUnavailable` with the words of the fault behind `what`."""
    try:
        yield
    except _FAULTS as error:
        raise DeviceUnavailable(f"{what}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + " ..."


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
