"""Which namespace an array has, why there is no GPU, and what an open one does."""

import importlib.abc
import pickle
import sys
from fractions import Fraction
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from zemosaic_backend import DeviceInfo, find_devices, namespace_of, open_device
from zemosaic_types import DeviceUnavailable, ZeMosaicError

MB = 1024**2
ADD_UP = 'extern "C" __global__ void add_up(const float* a) {}'


class StatusError(RuntimeError):
    def __init__(self, status, text="cudaErrorSomething: something is wrong"):
        super().__init__(text)
        self.status = status


class CUDARuntimeError(StatusError):
    pass


class CUDADriverError(StatusError):
    pass


class NVRTCError(StatusError):
    pass


class OutOfMemoryError(MemoryError):
    pass


class CompileException(Exception):
    pass


class Array:
    """An array of the imitation: its numbers are out of numpy's reach."""

    def __init__(self, host):
        self.host = host

    def __mul__(self, factor):
        return Array(self.host * np.float32(factor))

    def __array__(self, *arguments, **more):
        raise TypeError("implicit conversion to a host array")


class Pool:
    def __init__(self, free=0, used=0, limit=0):
        self.free, self.used, self.limit = free, used, limit

    def free_bytes(self):
        return self.free

    def used_bytes(self):
        return self.used

    def get_limit(self):
        return self.limit

    def free_all_blocks(self):
        self.free = 0


def rounded_twice(a, c, out):
    out.host[0] = a.host[0] * a.host[0] + c.host[0]


def fused(a, c, out):
    exact = Fraction(float(a.host[0])) ** 2 + Fraction(float(c.host[0]))
    out.host[0] = float(exact)


def raiser(error):
    def function(*arguments, **more):
        raise error

    return function


class Imitation(ModuleType):
    """The part of CuPy that the backend uses, for a machine of two GPUs; `calls` tells what was asked of it."""

    def __init__(self):
        super().__init__("cupy")
        self.__version__ = "14.2.0"
        self.ndarray = Array
        self.calls = []
        self.arithmetic = rounded_twice
        self.pool, self.pinned = Pool(), Pool()
        self.memory = [(6000 * MB, 8000 * MB), (500 * MB, 2000 * MB)]
        self.get_default_memory_pool = lambda: self.pool
        self.get_default_pinned_memory_pool = lambda: self.pinned
        self.asnumpy = lambda array: array.host.copy()
        self.cuda = SimpleNamespace(
            is_available=lambda: True,
            runtime=SimpleNamespace(
                is_hip=False,
                CUDARuntimeError=CUDARuntimeError,
                driverGetVersion=lambda: 13000,
                runtimeGetVersion=lambda: 12090,
                getDeviceCount=lambda: len(self.memory),
                getDeviceProperties=lambda index: {"name": f"NVIDIA T{index}".encode() + b"\0"},
            ),
            driver=SimpleNamespace(CUDADriverError=CUDADriverError),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            nvrtc=SimpleNamespace(NVRTCError=NVRTCError),
            compiler=SimpleNamespace(CompileException=CompileException),
            Device=self.device,
        )

    def device(self, index):
        return SimpleNamespace(
            mem_info=self.memory[index],
            use=lambda: self.calls.append(("use", index)),
            synchronize=lambda: self.calls.append(("synchronize", index)),
        )

    def asarray(self, array):
        assert type(array) is np.ndarray
        assert array.dtype.isnative
        return Array(array.copy(order="K"))

    def compile(self, name):
        self.calls.append(("compile", name))

    def RawKernel(self, source, name, options=()):
        self.calls.append(("kernel", name, options))

        class Kernel:
            compile = staticmethod(lambda: self.compile(name))
            __call__ = staticmethod(lambda grid, block, args: self.arithmetic(*args))

        return Kernel()


@pytest.fixture
def cupy(monkeypatch):
    """An imitation of CuPy stands where the real one would be imported from."""
    imitation = Imitation()
    monkeypatch.setitem(sys.modules, "cupy", imitation)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return imitation


class Import(importlib.abc.MetaPathFinder):
    """Stands in front of every other finder and raises `error` where `name` is imported."""

    def __init__(self, name, error):
        self.name, self.error = name, error

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            raise self.error
        return None


def import_raises(monkeypatch, error):
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Import("cupy", error), *sys.meta_path])


# --- namespaces ------------------------------------------------------------------------------------------------


def test_the_namespace_of_a_numpy_array_is_numpy_whether_or_not_there_is_a_gpu(cupy):
    assert namespace_of(np.zeros(3)) is np
    assert namespace_of(np.float32(1)) is np


def test_the_namespace_of_a_gpu_array_is_its_module(cupy):
    assert namespace_of(Array(np.zeros(3))) is cupy


def test_finding_a_namespace_imports_nothing(monkeypatch):
    import_raises(monkeypatch, AssertionError("CuPy was imported"))
    assert namespace_of(np.zeros(3)) is np
    with pytest.raises(TypeError, match="a list is no array"):
        namespace_of([1, 2])


def test_an_array_of_another_library_names_its_namespace_itself(cupy):
    other = ModuleType("other")
    array = SimpleNamespace(__array_namespace__=lambda: other)
    assert namespace_of(array) is other


def test_a_cupy_that_is_only_half_imported_owns_no_array(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
    with pytest.raises(TypeError, match="a str is no array"):
        namespace_of("text")


# --- finding devices -------------------------------------------------------------------------------------------


def test_two_gpus_are_found_and_described(cupy):
    assert find_devices() == [
        DeviceInfo(0, "NVIDIA T0", 6000 * MB, 8000 * MB, "12.9", "CuPy 14.2.0"),
        DeviceInfo(1, "NVIDIA T1", 500 * MB, 2000 * MB, "12.9", "CuPy 14.2.0"),
    ]
    assert cupy.calls == []


def test_a_description_and_a_reason_can_be_sent_to_another_process(cupy):
    info = find_devices()[1]
    assert pickle.loads(pickle.dumps(info)) == info
    reason = pickle.loads(pickle.dumps(DeviceUnavailable("no driver")))
    assert isinstance(reason, ZeMosaicError)
    assert str(reason) == "no driver"


NOT_IMPORTED = {
    "not installed": (
        ModuleNotFoundError("No module named 'cupy'", name="cupy"),
        'CuPy is not installed: pip install "zemosaic[gpu]" for CUDA 12, "zemosaic[gpu13]" (cupy-cuda13x) for',
    ),
    "no driver library": (
        ImportError("libcuda.so.1: cannot open shared object file"),
        "CuPy is installed but cannot be imported: libcuda.so.1: cannot open shared object file; it must fit",
    ),
    "a part of it missing": (
        ModuleNotFoundError("No module named 'fastrlock'", name="fastrlock"),
        "CuPy is installed but cannot be imported: No module named 'fastrlock'; it must fit",
    ),
    "another numpy": (
        ValueError("numpy.dtype size changed, may indicate binary incompatibility"),
        "CuPy is installed but cannot be imported: numpy.dtype size changed",
    ),
}


@pytest.mark.parametrize("case", NOT_IMPORTED)
@pytest.mark.parametrize("ask", [find_devices, open_device])
def test_a_cupy_that_cannot_be_imported_is_a_reason(case, ask, monkeypatch):
    error, reason = NOT_IMPORTED[case]
    import_raises(monkeypatch, error)
    with pytest.raises(DeviceUnavailable) as raised:
        ask()
    assert str(raised.value).startswith(reason)


def test_of_a_page_of_advice_the_reason_behind_it_is_told(monkeypatch):
    page = ImportError("\n=====\nFailed to import CuPy.\n\nOriginal error: ...\n=====\n")
    page.__cause__ = ImportError("undefined symbol:\n  cudaMallocAsync")
    import_raises(monkeypatch, page)
    with pytest.raises(DeviceUnavailable, match="cannot be imported: undefined symbol: cudaMallocAsync; it must"):
        find_devices()


def test_what_is_no_fault_of_cupy_is_not_taken_for_one(monkeypatch):
    import_raises(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        find_devices()


NO_DRIVER = CUDARuntimeError(35, "cudaErrorInsufficientDriver: CUDA driver version is insufficient")
NO_DEVICE = CUDARuntimeError(100, "cudaErrorNoDevice: no CUDA-capable device is detected")

NO_GPU = {
    "no driver": (
        {"driverGetVersion": lambda: 0, "getDeviceCount": raiser(NO_DRIVER)},
        "no NVIDIA driver is installed, or it is not running",
    ),
    "driver too old": (
        {"driverGetVersion": lambda: 11040, "getDeviceCount": raiser(NO_DRIVER)},
        "the NVIDIA driver is too old: it knows CUDA 11.4, and this CuPy is built for CUDA 12.9; "
        "update the driver",
    ),
    "driver of CUDA 12, CuPy of CUDA 13": (
        {"driverGetVersion": lambda: 12080, "runtimeGetVersion": lambda: 13000},
        "the NVIDIA driver is too old: it knows CUDA 12.8, and this CuPy is built for CUDA 13.0; "
        'update the driver or use CuPy for CUDA 12 (pip install "zemosaic[gpu]")',
    ),
    "driver without a GPU": (
        {"getDeviceCount": raiser(NO_DEVICE)},
        "the NVIDIA driver shows no GPU: cudaErrorNoDevice: no CUDA-capable device is detected",
    ),
    "count of nothing": ({"getDeviceCount": lambda: 0}, "the NVIDIA driver shows no GPU"),
    "driver that does not answer": (
        {"driverGetVersion": raiser(CUDARuntimeError(999, "cudaErrorUnknown: unknown error"))},
        "CuPy is damaged or cannot ask the NVIDIA driver: cudaErrorUnknown: unknown error",
    ),
    "AMD": ({"is_hip": True}, "this CuPy is built for AMD GPUs; ZeMosaic computes on NVIDIA GPUs only"),
}


@pytest.mark.parametrize("case", NO_GPU)
@pytest.mark.parametrize("ask", [find_devices, open_device])
def test_where_there_is_no_gpu_the_reason_is_told(case, ask, cupy):
    changes, reason = NO_GPU[case]
    vars(cupy.cuda.runtime).update(changes)
    with pytest.raises(DeviceUnavailable) as raised:
        ask()
    assert str(raised.value) == reason


@pytest.mark.parametrize(
    ("is_available", "reason"),
    [
        (lambda: False, "the NVIDIA driver shows no GPU"),
        (
            raiser(RuntimeError("CuPy failed to load libcuda.so.1")),
            "shows no GPU: CuPy failed to load libcuda.so.1",
        ),
    ],
)
def test_a_cupy_that_finds_itself_unavailable_is_believed(is_available, reason, cupy):
    cupy.cuda.is_available = is_available
    with pytest.raises(DeviceUnavailable, match=f"{reason}$"):
        find_devices()


def test_the_variable_that_hides_gpus_is_named(cupy, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    cupy.cuda.runtime.getDeviceCount = raiser(NO_DEVICE)
    with pytest.raises(
        DeviceUnavailable, match=r"no GPU \(CUDA_VISIBLE_DEVICES=7 chooses which\): cudaErrorNoDev"
    ):
        find_devices()


def test_a_folder_that_happens_to_be_called_cupy_is_a_damaged_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
    with pytest.raises(DeviceUnavailable, match=r"CuPy is damaged .*: module 'cupy' has no attribute 'cuda'"):
        find_devices()


def test_a_gpu_that_does_not_answer_costs_itself_only(cupy, caplog):
    def properties(index):
        if index == 0:
            raise CUDARuntimeError(46, "cudaErrorDevicesUnavailable: busy")
        return {"name": "NVIDIA T1"}

    cupy.cuda.runtime.getDeviceProperties = properties
    assert [info.index for info in find_devices()] == [1]
    assert caplog.messages == ["GPU 0 does not answer: cudaErrorDevicesUnavailable: busy"]
    cupy.cuda.runtime.getDeviceProperties = raiser(CUDARuntimeError(46, "busy"))
    with pytest.raises(DeviceUnavailable, match=r"^GPU 0 does not answer: busy; GPU 1 does not answer: busy$"):
        find_devices()


# --- an open device --------------------------------------------------------------------------------------------


def test_opening_selects_the_gpu_before_anything_is_computed(cupy):
    device = open_device(1)
    assert device.info == find_devices()[1]
    assert device.xp is cupy
    assert cupy.calls[0] == ("use", 1)
    assert ("use", 0) not in cupy.calls


@pytest.mark.parametrize("index", [2, -1])
def test_a_gpu_that_is_not_there_cannot_be_opened(index, cupy):
    with pytest.raises(
        DeviceUnavailable, match=f"^there is no GPU {index}; this machine shows 2, numbered from 0$"
    ):
        open_device(index)
    assert cupy.calls == []


CANNOT_COMPUTE = {
    "no compiler": (RuntimeError("CuPy failed to load libnvrtc.so.12"), "CuPy failed to load libnvrtc.so.12"),
    "no headers": (CompileException("cannot open source file cuda_fp16.h"), "cannot open source file cuda_fp16.h"),
    "no cache": (PermissionError(13, "Permission denied"), "[Errno 13] Permission denied"),
    "full": (OutOfMemoryError("Out of memory allocating 512 bytes"), "Out of memory allocating 512 bytes"),
    "silent": (CUDADriverError(700, ""), "CUDADriverError"),
}


@pytest.mark.parametrize("case", CANNOT_COMPUTE)
def test_a_gpu_that_cannot_compute_is_not_opened(case, cupy):
    error, text = CANNOT_COMPUTE[case]
    cupy.arithmetic = raiser(error)
    with pytest.raises(DeviceUnavailable) as raised:
        open_device(1)
    assert str(raised.value) == (
        f'GPU 1 cannot compute: {text}; if parts of CUDA are missing: pip install "cupy-cuda12x[ctk]"'
    )


def test_the_log_of_a_compiler_is_cut_to_a_reason(cupy):
    cupy.arithmetic = raiser(CompileException("error\n" * 1000))
    with pytest.raises(DeviceUnavailable) as raised:
        open_device()
    assert "error erro ..." in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("arithmetic", [fused, lambda a, c, out: None])
def test_a_gpu_that_fuses_or_does_nothing_is_not_opened(arithmetic, cupy):
    cupy.arithmetic = arithmetic
    with pytest.raises(DeviceUnavailable, match=r"^GPU 0 computes wrongly: "):
        open_device()


def test_selecting_that_fails_is_a_reason(cupy):
    cupy.cuda.Device = raiser(CUDARuntimeError(2, "cudaErrorMemoryAllocation: out of memory"))
    with pytest.raises(
        DeviceUnavailable, match=r"^GPU 0 cannot be opened: cudaErrorMemoryAllocation: out of memory"
    ):
        open_device()


def test_kernels_are_compiled_once_without_fused_operations(cupy):
    device = open_device()
    cupy.calls.clear()
    kernel = device.kernel(ADD_UP, "add_up")
    assert device.kernel(ADD_UP, "add_up") is kernel
    assert cupy.calls == [("kernel", "add_up", ("--fmad=false", "-std=c++17")), ("compile", "add_up")]
    device.kernel(ADD_UP + "\n", "add_up")
    device.kernel(ADD_UP, "another")
    assert [call[1] for call in cupy.calls if call[0] == "compile"] == ["add_up", "add_up", "another"]


def test_a_source_that_does_not_compile_is_told_at_once_and_not_kept(cupy):
    device = open_device()
    cupy.compile = raiser(CompileException("expected a ';'"))
    for _ in range(2):
        with pytest.raises(device.errors, match="expected a ';'"):
            device.kernel(ADD_UP, "add_up")


def test_what_is_uploaded_is_contiguous_and_in_the_byte_order_of_the_machine(cupy):
    device = open_device()
    for array in (
        np.arange(6, dtype=">u2").reshape(2, 3),
        np.arange(6, dtype="<f4").reshape(2, 3).T,
        np.array(5.0),
        np.zeros((2, 3), bool)[:, ::2],
    ):
        before = array.copy()
        copy = device.upload(array)
        assert copy.host.flags.c_contiguous
        array[...] = 1
        np.testing.assert_array_equal(device.download(copy), before, strict=False)
        assert copy.host.shape == before.shape
        assert copy.host.dtype == before.dtype.newbyteorder("=")


def test_a_gpu_array_is_not_uploaded_again(cupy):
    device = open_device()
    copy = device.upload(np.zeros(3, np.float32))
    copy.dtype = np.dtype(np.float32)
    with pytest.raises(TypeError, match="implicit conversion"):
        device.upload(copy)


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (Pool(), 6000),
        (Pool(free=300 * MB, used=900 * MB), 6300),
        (Pool(free=300 * MB, used=900 * MB, limit=2000 * MB), 1100),
        (Pool(free=0, used=2500 * MB, limit=2000 * MB), 0),
        (Pool(free=300 * MB, used=0, limit=64000 * MB), 6300),
    ],
)
def test_free_bytes_count_the_unused_part_of_the_pool_and_its_limit(pool, expected, cupy):
    device = open_device()
    cupy.pool = pool
    assert device.free_bytes() == expected * MB


def test_release_empties_both_pools_and_synchronize_waits_for_the_device(cupy):
    device = open_device(1)
    cupy.pool, cupy.pinned = Pool(free=5), Pool(free=7)
    device.release()
    assert (cupy.pool.free, cupy.pinned.free) == (0, 0)
    device.synchronize()
    assert cupy.calls[-1] == ("synchronize", 1)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OutOfMemoryError("Out of memory allocating 10 bytes"), True),
        (CUDARuntimeError(2), True),
        (CUDADriverError(2), True),
        (CUDARuntimeError(700), False),
        (CUDADriverError(719), False),
        (CompileException("syntax"), False),
        (MemoryError("of the host"), False),
        (NVRTCError(2), False),
        (ValueError("2"), False),
    ],
)
def test_a_full_gpu_is_told_from_other_errors(error, expected, cupy):
    assert open_device().is_out_of_memory(error) is expected


def test_the_errors_of_a_device_are_its_own(cupy):
    errors = open_device().errors
    for kind in (OutOfMemoryError, CUDARuntimeError, CUDADriverError, NVRTCError, CompileException):
        assert kind in errors
    for kind in (MemoryError, RuntimeError, ValueError, TypeError, FloatingPointError):
        assert not issubclass(kind, errors)


def test_an_open_device_stays_in_its_process(cupy):
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(open_device())


# --- on a real GPU ---------------------------------------------------------------------------------------------

MULTIPLY_ADD = """
extern "C" __global__ void multiply_add(const float* a, const float* b, const float* c, float* out, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = a[i] * b[i] + c[i];
}
"""


@pytest.mark.gpu
def test_a_real_gpu_gives_back_what_was_uploaded(gpu_device):
    rng = np.random.default_rng(7)
    for array in (
        rng.normal(size=(5, 7, 3)).astype(np.float32),
        np.array([[np.nan, -0.0], [np.inf, 1e-40]], np.float32),
        rng.integers(0, 2**16, (4, 6)).astype(">u2"),
        rng.normal(size=(6, 4)).T,
        rng.random((3, 9)) > 0.5,
    ):
        copy = gpu_device.upload(array)
        assert namespace_of(copy) is gpu_device.xp
        back = gpu_device.download(copy)
        native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))
        assert back.dtype == native.dtype
        assert back.shape == native.shape
        assert back.tobytes() == native.tobytes()


@pytest.mark.gpu
def test_a_real_gpu_knows_its_free_memory(gpu_device):
    gpu_device.release()
    before = gpu_device.free_bytes()
    assert 0 < before <= gpu_device.info.total_bytes
    held = gpu_device.upload(np.zeros(64 * MB, np.uint8))
    during = gpu_device.free_bytes()
    del held
    assert before - during >= 64 * MB
    assert gpu_device.free_bytes() - during >= 64 * MB
    gpu_device.release()


@pytest.mark.gpu
def test_a_real_gpu_says_when_it_is_full(gpu_device):
    with pytest.raises(gpu_device.errors) as raised:
        gpu_device.xp.empty(gpu_device.info.total_bytes * 2, np.uint8)
    assert gpu_device.is_out_of_memory(raised.value)


@pytest.mark.gpu
def test_a_real_gpu_rounds_a_multiplication_before_the_sum(gpu_device):
    rng = np.random.default_rng(11)
    a, b = (rng.normal(size=10_000).astype(np.float32) for _ in range(2))
    c = -(a * b)  # a fused operation leaves the rounding error of the product
    c[::2] += rng.normal(size=5_000).astype(np.float32)
    out = gpu_device.upload(np.ones_like(a))
    arguments = (*(gpu_device.upload(array) for array in (a, b, c)), out, np.int32(a.size))
    gpu_device.kernel(MULTIPLY_ADD, "multiply_add")((40,), (256,), arguments)
    gpu_device.synchronize()
    assert gpu_device.download(out).tobytes() == (a * b + c).tobytes()


@pytest.mark.gpu
def test_a_kernel_that_does_not_compile_fails_where_it_is_made(gpu_device):
    with pytest.raises(gpu_device.errors, match="undefined") as raised:
        gpu_device.kernel('extern "C" __global__ void wrong() { nothing(); }', "wrong")
    assert not gpu_device.is_out_of_memory(raised.value)
