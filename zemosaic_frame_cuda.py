"""What prepares and resamples one frame, as CUDA kernels (``zemosaic_cuda/frame.cu``) for an NVIDIA GPU.

`FrameKernels` has the functions of `zemosaic_frame_arrays`. The arithmetic is that of the compiled loops
(`zemosaic_preprocess`, `zemosaic_resample_kernels`), operation by operation and rounded alike: both give the same
bits (the tests compile this very source for the host and compare). A thread computes one pixel of a raw section or
of the canvas, in all of its colours.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from zemosaic_backend import Device, kernel_source
from zemosaic_reproject import check_kernel

_BLOCK = 128
_MOST_ROWS = 65535  # of a grid; a block takes rows in turn


class FrameKernels:
    """The functions of `zemosaic_frame_arrays` on a device that compiles; see there for what they take and return.

    Arrays are on that device. One of ``device.errors`` is raised if it cannot compile the source, start a kernel,
    or has no memory left.
    """

    #: Working memory, as in `zemosaic_frame_arrays`: bytes for each raw pixel, and for each pixel of the canvas.
    PREPARE_BYTES_PER_PX = 32
    RESAMPLE_BYTES_PER_PX = 24

    def __init__(self, device: Device) -> None:
        self._device = device

    def flattened(self, raw: Any, colours: Any, rows: Any, columns: Any, pedestal: float) -> Any:
        """Return a raw section with its vignetting undone."""
        out, (ny, nx), (channels, terms, _) = self._device.xp.empty_like(raw), raw.shape, rows.shape
        of_flat = rows, *map(np.int32, (channels, terms)), columns, np.float64(pedestal)
        return self._run("flattened", (ny, nx), raw, _coded(colours), *of_flat, out=out)

    def replace_isolated(self, raw: Any, colours: Any, sky: Any, noise: Any, threshold: float) -> Any:
        """Return a raw section with hot, dead and single-hit pixels replaced."""
        out = self._device.xp.empty_like(raw)
        levels = (*_three(np.asarray(sky)), *_three(threshold * np.asarray(noise)))
        return self._run("replace_isolated", raw.shape, raw, _coded(colours), *levels, out=out)

    def demosaic(self, raw: Any, colours: Any) -> Any:
        """Return red, green and blue at every pixel of a raw section."""
        out = self._device.xp.empty((3, *raw.shape), dtype=np.float32)
        return self._run("demosaic", raw.shape, raw, _coded(colours), out=out)

    def resample(
        self,
        planes: Any,
        section: tuple[int, int],
        shape: tuple[int, int],
        nodes: Any,
        origin: tuple[int, int, int],
        corner: tuple[int, int],
        out_shape: tuple[int, int],
        kernel: str,
        table: Any = None,
    ) -> Any:
        """Resample a section of a frame onto a rectangle of the canvas.

        Raises
        ------
        ValueError
            If the kernel is unknown, or Lanczos-3 gets no table.
        """
        check_kernel(kernel, has_table=table is not None)
        planes = self._device.xp.ascontiguousarray(planes)
        out = self._device.xp.empty((planes.shape[0], *out_shape), dtype=np.float32)
        of_frame = planes, *map(np.int32, (*planes.shape, *section, *shape))
        weights = (table,) if kernel == "lanczos3" else ()
        return self._run(kernel, out_shape, *of_frame, *_map(nodes, origin, corner), *weights, out=out)

    def feather(
        self,
        nodes: Any,
        origin: tuple[int, int, int],
        corner: tuple[int, int],
        size: tuple[int, int],
        width: float,
        floor: float,
        weight: Any,
    ) -> Any:
        """Return weights of canvas pixels times the feather of their frame."""
        out = self._device.xp.empty_like(weight)
        where = *_map(nodes, origin, corner), *map(np.int32, size)
        return self._run("feather", weight.shape, *where, np.float64(width), np.float64(floor), weight, out=out)

    def _run(self, name: str, shape: tuple[int, int], *arguments: Any, out: Any) -> Any:
        """Have a kernel fill `out`, a thread for each pixel of `shape`; return it."""
        ny, nx = shape
        grid = -(-nx // _BLOCK), min(ny, _MOST_ROWS)
        given = *map(np.int32, (ny, nx)), *arguments, out
        self._device.kernel(_source(), name)(grid, (_BLOCK,), given)
        return out


@cache
def _source() -> str:
    return f"#define BLOCK {_BLOCK}\n" + kernel_source("frame")


def _coded(colours: Any) -> np.int32:
    """Return the colours of the 2 x 2 cell in one number, two bits each, row by row."""
    return np.int32(sum(int(colour) << 2 * k for k, colour in enumerate(np.ravel(colours))))


def _three(values: np.ndarray) -> tuple[np.float64, ...]:
    """Return a value a colour; a frame of one colour has only the first."""
    return tuple(np.float64(values[min(k, values.size - 1)]) for k in range(3))


def _map(nodes: Any, origin: tuple[int, int, int], corner: tuple[int, int]) -> tuple[Any, ...]:
    return nodes, *map(np.int32, (*nodes.shape[1:], *origin, *corner))
