"""The stacker's hot loops as CUDA kernels (``zemosaic_cuda/stack.cu``): `zemosaic_stack_kernels` on an NVIDIA GPU.

Two kernels. ``bounds`` sorts the samples of every pixel and notes what its bounds follow from; ``combine`` names
the bounds and makes a second pass over the samples, in frame order, one thread a pixel. The arithmetic is that of
the compiled loops, operation by operation, rounded alike, so rejections are the same and values agree to the last
bit (the tests compile this very source for the host and compare). Only the array operations of
`zemosaic_stack_arrays` know the median.

How a pixel is sorted: ``N_LANES`` neighbouring threads of a warp share it, each reads ``N_OWN`` samples into
registers. A network of minima and maxima sorts them there, then the lanes merge theirs through shuffles. No thread
waits for a branch of another, and nothing but the sorted samples goes through shared memory. Both numbers are part
of the source, so there is one kernel for 1..8 frames, one for 9..16, and so on to 64, then four for every doubling
to `MOST_FRAMES`. Shared memory stays below 48 KB, which every GPU gives without being asked.

Not done: median and median deviation could be selected instead of sorted. Each would take some ten passes over the
samples to close in on them, about as many operations as the network's 17 comparisons a sample (of 256 samples).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from zemosaic_backend import Device, kernel_source
from zemosaic_noise_model import common_step
from zemosaic_stack_kernels import KAPPA, LINEAR_FIT, MODELLED, NONE, WINSORIZED

#: No more than 64 samples of a pixel in each thread of a warp can be sorted.
MOST_FRAMES = 2048

#: Bytes a pixel and channel that are taken besides `data`: 20 for what the bounds follow from, 20 for the result.
PIXEL_BYTES = 40

_BLOCK = 128
_AHEAD = 4  # frames whose samples are on their way while those of the frames before are added
_OWN_STEP = 8  # samples of a thread are rounded up to a multiple: fewer kernels to compile
_MOST_EACH = 64  # registers for samples in a thread; 32 more would leave too few threads at once
_MOST_BLOCKS = 4096  # of `combine` a channel; each adds its tally once
_PLANES = {NONE: 0, MODELLED: 5}  # what `bounds` fills; two, the bounds, for every other method


def can_stack(shape: tuple[int, ...], halo: tuple[int, int, int, int]) -> bool:
    """Return whether `stack_on_cuda` can stack data of a shape (n, c, ny, nx): not empty, not too deep."""
    n, channels, ny, nx = shape
    wanted = min(ny - halo[0] - halo[1], nx - halo[2] - halo[3])
    return 0 < n <= MOST_FRAMES and 0 < channels < 2**16 and wanted > 0 and ny * nx < 2**31 - _BLOCK


def stack_on_cuda(
    device: Device,
    data: Any,
    weight: np.ndarray,
    noise: np.ndarray,
    method: int,
    clip: tuple[tuple[float, float], int, tuple[float, float]],
    to_sigma: np.ndarray,
    shares: tuple[np.float32, ...],
    halo: tuple[int, int, int, int],
    pixel_weight: Any = None,
) -> tuple[Any, ...]:
    """Reject and combine the samples of a rectangle to their weighted mean.

    Parameters
    ----------
    device : Device
        Where `data` is.
    data : GPU array, shape (n, c, ny, nx), float32
        Normalised samples, NaN = no data; `can_stack` must hold.
    weight : ndarray, shape (n, c), float64, on the host
    noise : ndarray, shape (4, n, c), float64, on the host
        For a modelled spread `zemosaic_noise_model.has_whole_steps` must hold.
    method, clip, to_sigma, shares
        As in `zemosaic_stack_kernels.stack_rows`, on the host.
    halo : tuple of int
        Rows below, rows above, columns before and columns after the wanted pixels.
    pixel_weight : GPU array, shape (n, ny, nx), float32, optional
        Further weight a pixel; 0 or more, and a sample of weight 0 is NaN.

    Returns
    -------
    tuple of GPU arrays
        Those of a `zemosaic_stack_core.StackResult`, in its order. The GPU may still be at work on them.

    Raises
    ------
    one of ``device.errors``
        If the GPU runs out of memory, cannot compile the source or cannot start it.
    """
    data = device.xp.ascontiguousarray(data)
    noise = noise if method == MODELLED else np.zeros_like(noise)  # of no use, and perhaps not whole
    own, lanes = _division(data.shape[0])
    source, depth = _source(own, lanes, method, weighed=pixel_weight is not None), _each(own, lanes) * lanes
    planes = device.xp.empty((_PLANES.get(method, 2), *data.shape[1:]), dtype=np.float32)
    if method != NONE:
        _fill_bounds(device, source, data, _padded(noise.transpose(2, 1, 0), depth), to_sigma, clip, planes)
    of_frames = (device.upload(_several(_padded(weight.T, depth), _padded(noise[3].T, depth))),)
    if pixel_weight is not None:
        of_frames += (device.xp.ascontiguousarray(pixel_weight),)
    model = (*map(np.float32, shares), *map(np.float32, clip[0]))
    return _combine(device, source, data, planes, of_frames, model, halo)


def _fill_bounds(
    device: Device, source: str, data: Any, noise: np.ndarray, to_sigma: np.ndarray, clip: tuple, planes: Any
) -> None:
    """Fill what the bounds of every pixel follow from; `noise` (c, depth, 4), zeros beyond the n frames."""
    n, channels, ny, nx = data.shape
    kappas, iterations, limits = clip
    arguments = (
        *(data, np.int32(n), np.int32(channels), np.int64(ny * nx)),
        *map(device.upload, (*_frames(noise, n), to_sigma)),
        *(*map(np.float64, kappas), np.int32(iterations), *map(np.float64, limits), planes),
    )
    lanes = _division(n)[1]
    device.kernel(source, "bounds")((-(-ny * nx * lanes // _BLOCK), channels), (_BLOCK,), arguments)


def _combine(
    device: Device, source: str, data: Any, planes: Any, of_frames: tuple, model: tuple, halo: tuple[int, ...]
) -> tuple[Any, ...]:
    """Return the combined samples; `of_frames` are weights and blurs (see `_several`), and weights of pixels."""
    xp, (n, channels, ny, nx) = device.xp, data.shape
    my, mx = ny - halo[0] - halo[1], nx - halo[2] - halo[3]
    image, weight_out = (xp.empty((channels, my, mx), dtype=np.float32) for _ in range(2))
    counts, tally = xp.empty((3, channels, my, mx), dtype=np.int32), xp.zeros((n, 3), dtype=np.int64)
    arguments = (
        *(data, *map(np.int32, (n, channels, ny, nx)), planes, *of_frames),
        *(*model, *map(np.int32, (halo[0], halo[2], my, mx))),
        *(image, weight_out, counts, tally),
    )
    grid = min(-(-my * mx // _BLOCK), _MOST_BLOCKS), channels
    device.kernel(source, "combine")(grid, (_BLOCK,), arguments)
    return image, weight_out, counts[0], counts[1], counts[2], tally


def compiled_for(n_frames: int) -> int:
    """Return the most frames that the kernels for so many frames can stack."""
    return n_frames if n_frames < 3 else math.prod(_division(n_frames))


def _division(n_frames: int) -> tuple[int, int]:
    """Return how many samples a thread reads and how many threads share a pixel."""
    lanes = 1 << (-(-n_frames // _MOST_EACH) - 1).bit_length()
    return -(-n_frames // (lanes * _OWN_STEP)) * _OWN_STEP, lanes


def _each(own: int, lanes: int) -> int:
    """Return how many samples a thread holds: lanes merge a power of two of them."""
    return own if lanes == 1 else _MOST_EACH


def _padded(table: np.ndarray, depth: int) -> np.ndarray:
    """Return a table (c, n, ...) with zeros for the frames from the n-th to the `depth`-th."""
    padded = np.zeros((table.shape[0], depth, *table.shape[2:]), dtype=table.dtype)
    padded[:, : table.shape[1]] = table
    return padded


def _frames(noise: np.ndarray, n_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the noise (c, depth, 4) of frames as the kernel's ``Frames``, int32 (c, words), and their steps."""
    channels, lanes = noise.shape[0], _division(n_frames)[1]
    steps = np.array([common_step(noise[..., k]) for k in range(4)])
    whole = (noise / steps).astype(np.int32).reshape(channels, -1, lanes, 4)
    by_blur = np.argsort(whole[..., 3], axis=1).astype(np.int32)
    parts = whole, whole.sum(axis=1, dtype=np.int32), by_blur
    return np.concatenate([part.reshape(channels, -1) for part in parts], axis=1), steps


def _several(weight: np.ndarray, blur: np.ndarray) -> np.ndarray:
    """Return weights and blurs (c, depth) as ``Several`` of the kernel: each time so many of both, in bytes."""
    shape = (weight.shape[0], -1, _AHEAD)
    parts = weight.reshape(shape), blur.astype(np.float32).reshape(shape)
    return np.concatenate([part.view(np.uint8) for part in parts], axis=2)


@cache
def _source(own: int, lanes: int, method: int, *, weighed: bool = False) -> str:
    """Return the source for a division of the samples, a method and with or without weights of pixels."""
    values = {"NONE": NONE, "KAPPA": KAPPA, "WINSORIZED": WINSORIZED, "LINEAR_FIT": LINEAR_FIT}
    values |= {"MODELLED": MODELLED, "METHOD": method, "BLOCK": _BLOCK, "AHEAD": _AHEAD, "WEIGHED": int(weighed)}
    values |= {"N_OWN": own, "N_EACH": _each(own, lanes), "N_LANES": lanes}
    return "".join(f"#define {name} {value}\n" for name, value in values.items()) + kernel_source("stack")
