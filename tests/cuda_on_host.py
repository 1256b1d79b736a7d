"""CUDA kernels on the host: a GPU's threads one after the other, for machines without one.

The source is compiled as C++ behind `SHIM`, which says what the words of CUDA mean here. The threads of a block
are fibers that take turns: each runs to its next shuffle, ballot or barrier, then the next one does. So lanes do
exchange values and threads do wait for each other. A launch whose lanes get out of step ends the process.
"""

import ctypes
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from strict_device import StrictDevice, StrictDeviceError
from strict_namespace import StrictArray

#: None where there is none, and where there are no fibers (``ucontext.h``).
COMPILER = (shutil.which("g++") or shutil.which("clang++")) if sys.platform == "linux" else None
OPTIONS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-w")

SHIM = r"""
#include <cmath>
#include <cstring>
#include <functional>
#include <tuple>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct Index { int x, y; };
static Index threadIdx, blockIdx, gridDim, blockDim;

namespace host {

enum State { RUNS, WAITS, ENDED };

struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    State state;
    unsigned turn, slot[2];  // of exchanges in a warp, two in turn: the last is still read while one is written
};

static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static std::function<void()> body;

static void pause() { swapcontext(&fibers[threadIdx.x].context, &scheduler); }

static void enter()
{
    body();
    fibers[threadIdx.x].state = ENDED;
    pause();
}

// Give every lane of the warp its value, and return those that the others gave.
static std::vector<unsigned> exchange(unsigned mine)
{
    Fiber& me = fibers[threadIdx.x];
    const unsigned turn = me.turn++ % 2;
    me.slot[turn] = mine;
    pause();
    std::vector<unsigned> values;
    for (int lane = 0, first = threadIdx.x / 32 * 32; lane < 32; ++lane) {
        if (fibers[first + lane].turn != me.turn && fibers[first + lane].turn != me.turn + 1) std::abort();
        values.push_back(fibers[first + lane].slot[turn]);
    }
    return values;
}

static void run_block()
{
    for (auto& fiber : fibers) {
        fiber.stack.resize(1 << 18);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, enter, 0);
        fiber.state = RUNS;
        fiber.turn = 0;
    }
    for (bool some = true; some;) {
        some = false;
        for (size_t t = 0; t < fibers.size(); ++t) {
            if (fibers[t].state != RUNS) continue;
            threadIdx = {int(t), 0};
            swapcontext(&scheduler, &fibers[t].context);
            some = true;
        }
        if (some) continue;
        for (auto& fiber : fibers)
            if (fiber.state == WAITS) fiber.state = RUNS, some = true;
    }
}

// Returns 0, or the number of the first argument that is not as large as it was declared.
template <typename... A, size_t... I>
int launch(void (*kernel)(A...), std::index_sequence<I...>, const int* shape, const int* sizes, void** arguments)
{
    const int declared[] = {int(sizeof(A))...};
    for (size_t k = 0; k < sizeof...(A); ++k)
        if (declared[k] != sizes[k]) return int(k) + 1;
    if (sizes[sizeof...(A)] != 0) return int(sizeof...(A)) + 1;
    body = [&] { kernel(*static_cast<A*>(arguments[I])...); };
    gridDim = {shape[0], shape[1]};
    blockDim = {shape[2], 1};
    fibers.resize(shape[2]);
    for (blockIdx.y = 0; blockIdx.y < shape[1]; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < shape[0]; ++blockIdx.x) run_block();
    return 0;
}

template <typename... A>
int launch(void (*kernel)(A...), const int* shape, const int* sizes, void** arguments)
{
    return launch(kernel, std::index_sequence_for<A...>(), shape, sizes, arguments);
}

}  // namespace host

inline void __syncthreads()
{
    host::fibers[threadIdx.x].state = host::WAITS;
    host::pause();
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask)
{
    unsigned words[sizeof(T) / 4];
    std::memcpy(words, &value, sizeof(T));
    for (unsigned& word : words) word = host::exchange(word)[threadIdx.x % 32 ^ mask];
    std::memcpy(&value, words, sizeof(T));
    return value;
}

inline unsigned __ballot_sync(unsigned, bool vote)
{
    unsigned lanes = 0, lane = 0;
    for (unsigned value : host::exchange(vote)) lanes |= value << lane++;
    return lanes;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }

inline float __int_as_float(int bits)
{
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

template <typename T>
T atomicAdd(T* to, T value)
{
    const T before = *to;
    *to += value;
    return before;
}
"""

_NAME = re.compile(r"^(?:extern \"C\" __global__ .*|KERNEL) (\w+)\(", re.MULTILINE)

LAUNCHER = """
extern "C" int run_{name}(const int* shape, const int* sizes, void** arguments)
{{
    return host::launch(&{name}, shape, sizes, arguments);
}}
"""


class HostKernels(StrictDevice):
    """The strict stand-in of a device, with kernels: they are compiled into a folder and run on the host."""

    compiles = True

    def __init__(self, folder, **more):
        super().__init__(**more)
        self.folder = folder
        self.launches = []
        self._libraries, self._kernels = {}, {}

    def kernel(self, source, name):
        if (source, name) not in self._kernels:
            self._kernels[source, name] = self._launcher(source, name)
        return self._kernels[source, name]

    def _library(self, source, name):
        """The compiled source with all of its kernels at once; with that one alone if it leaves others out."""
        if source not in self._libraries:
            names = _NAME.findall(source)
            try:
                self._libraries[source] = self._compiled(source, names)
            except StrictDeviceError:
                self._libraries[source] = self._compiled(source, [name])
        return self._libraries[source]

    def _compiled(self, source, names):
        stem = self.folder / f"kernels_{len(list(self.folder.iterdir()))}"
        code, library = stem.with_suffix(".cpp"), stem.with_suffix(".so")
        launchers = "".join(LAUNCHER.format(name=name) for name in names)
        code.write_text(SHIM + source + launchers, encoding="utf-8")
        done = subprocess.run([COMPILER, *OPTIONS, str(code), "-o", str(library)], capture_output=True, text=True)
        if done.returncode:
            raise StrictDeviceError(done.stderr)
        return ctypes.CDLL(str(library))

    def _launcher(self, source, name):
        run = getattr(self._library(source, name), f"run_{name}")

        def launch(grid, block, arguments):
            self.launches.append((name, grid))
            held = [_memory(argument) for argument in arguments]
            sizes = [8 if isinstance(a, StrictArray) else a.itemsize for a in arguments]
            pointers = (ctypes.c_void_p * len(held))(*(memory.ctypes.data for memory in held))
            shape = np.array([*grid, *block], dtype=np.int32)  # of two numbers and one
            sizes = np.array([*sizes, 0], dtype=np.int32)
            wrong = run(shape.ctypes.data_as(ctypes.c_void_p), sizes.ctypes.data_as(ctypes.c_void_p), pointers)
            if wrong:
                raise StrictDeviceError(f"argument {wrong} of {name} is not what was declared")

        return launch


def compiled_by_nvcc(source, folder):
    """What nvcc says of the registers of a source's kernels, and its PTX; without nvcc the test is skipped."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    code = folder / "kernels.cu"
    code.write_text(source, encoding="utf-8")
    options = ["nvcc", "-std=c++17", "-fmad=false", "-arch=sm_80", str(code)]
    run = {"capture_output": True, "text": True, "check": True, "cwd": folder}
    told = subprocess.run([*options, "-cubin", "-Xptxas", "-v", "-o", "kernels.cubin"], **run).stderr
    subprocess.run([*options, "-ptx", "-o", "kernels.ptx"], **run)
    return told, (folder / "kernels.ptx").read_text(encoding="utf-8")


def open_host_kernels(index=0):
    """A `HostKernels` for worker processes to open; its folder goes with it."""
    folder = tempfile.TemporaryDirectory(prefix="kernels_")
    device = HostKernels(Path(folder.name))
    device.kept = folder
    return device


def open_wrong_kernels(index=0):
    """One whose kernels do nothing."""
    device = open_host_kernels(index)
    device.kernel = lambda source, name: lambda grid, block, arguments: None
    return device


def _memory(argument):
    """What the pointer of an argument points to: the address of a device array, or the value of a scalar."""
    if isinstance(argument, np.generic):
        return np.array([argument])
    if not isinstance(argument, StrictArray):
        raise TypeError(f"a kernel takes no {type(argument)}")
    if not argument._data.flags.c_contiguous:
        raise TypeError("a kernel takes C-contiguous arrays")
    return np.array([argument._data.ctypes.data], dtype=np.uint64)
