"""Frames and a rectangle of the canvas in, stacked image out: what every pipeline stacks with.

The driver cuts the rectangle into slabs that fit the memory budget, gets from every frame its samples of a slab,
and hands the samples of all frames to the stack core as one population. Nothing outside this module and its
companion for a device, `zemosaic_align_stack_gpu`, knows about slabs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from zemosaic_align_stack_gpu import DeviceStacker
from zemosaic_backend import Device, to_host
from zemosaic_frame_source import FrameSource, RadialWeight, StackFrame
from zemosaic_noise_model import NoiseModel
from zemosaic_reproject import Canvas
from zemosaic_stack_core import HALO_PX, StackResult, stack
from zemosaic_types import FrameError, Rect, StackParams

#: Slabs of more pixels a side only hold more frames that do not reach all of it, and leave the caches.
_SLAB_SIDE_PX = 512
_MIN_SLAB_SIDE_PX = 4
_RESULT_PLANES = 6

_PLANES = ("image", "weight", "coverage", "rejected_low", "rejected_high")


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What `stack_frames` does with its frames, and how much it may take of the machine.

    `threads` is how many slabs are worked on at once on the host, within the same memory.
    """

    n_channels: int
    params: StackParams = field(default_factory=StackParams)
    kernel: str = "lanczos3"
    radial: RadialWeight | None = None
    feather_px: float = 0.0
    mem_limit_bytes: int = 512 * 1024**2
    threads: int = 1


@dataclass(frozen=True)
class StackedRect:
    """The result for a rectangle of the canvas; arrays as in `StackResult`, `tally` a row a frame.

    `problems` holds (frame id, reason) of frames that could not be read here although they could be measured.
    """

    result: StackResult
    problems: tuple[tuple[str, str], ...]


def slab_shape(n_frames: int, shape: tuple[int, int], options: StackOptions) -> tuple[int, int]:
    """Return the ``(rows, columns)`` of a rectangle that the host works on at once within the memory budget.

    A slab is as square as the budget allows: a flat one would need, of a rotated frame, nearly all of its pixels
    again for every slab.
    """
    planes = options.n_channels * (n_frames + _RESULT_PLANES) + n_frames  # the last: weights a pixel
    pixels = options.mem_limit_bytes // (4 * planes * options.threads)
    side = min(max(_MIN_SLAB_SIDE_PX, int(pixels**0.5) - 2 * HALO_PX), _SLAB_SIDE_PX)
    return _even(shape, side)


def _even(shape: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the size of nearly equal parts of at most `side` pixels that a shape is cut into."""
    rows, columns = (-(-size // max(1, -(-size // side))) for size in shape)
    return rows, columns


def stack_frames(
    frames: list[StackFrame],
    canvas: Canvas,
    rect: Rect,
    options: StackOptions,
    *,
    between_slabs: Callable[[], None] = lambda: None,
    device: DeviceStacker | None = None,
) -> StackedRect:
    """Stack all frames on a rectangle of the canvas.

    Parameters
    ----------
    frames : list of StackFrame
        In frame order; those that do not touch the rectangle cost nothing but their lattice.
    canvas : Canvas
    rect : Rect
        Pixels of the canvas to fill.
    options : StackOptions
    between_slabs : callable
        Called before each slab; what it raises ends the work (a cancelled run).
    device : DeviceStacker, optional
        A GPU to stack on; what fails there is stacked on the host. None for the host.

    Returns
    -------
    StackedRect
        The same for every division of the canvas into rectangles, every memory budget and number of threads, and
        on a device whose kernels can be used; in array operations of a device to the rounding of float32.
    """
    work = _Stacking(frames, canvas, rect, options)
    if device is None or device.given_up:
        slabs, stack_slab = _cut(rect, slab_shape(max(1, len(frames)), rect.shape, options)), work.stack_on_host
        threads = options.threads
    else:
        side = device.slab_side(max(1, len(frames)), options.n_channels, options.params)
        slabs, stack_slab = _cut(rect, _even(rect.shape, side)), partial(device.stack_slab, work)
        threads = 1  # the device has many of its own

    def stack_next(slab: Rect) -> None:
        between_slabs()
        stack_slab(slab)

    _do_all(stack_next, slabs, threads)
    return StackedRect(work.whole, tuple(sorted(work.problems.items())))


def _do_all(function: Callable[[Rect], None], slabs: list[Rect], n_threads: int) -> None:
    """Call a function with each slab, by so many threads; after what it raises no further slab is begun."""
    if n_threads == 1:
        for slab in slabs:
            function(slab)
        return
    failed = threading.Event()

    def unless_failed(slab: Rect) -> None:
        if not failed.is_set():
            with ExitStack() as on_failure:
                on_failure.callback(failed.set)
                function(slab)
                on_failure.pop_all()

    with ThreadPoolExecutor(n_threads, thread_name_prefix="slabs") as pool:
        for _ in pool.map(unless_failed, slabs):
            pass


def _cut(rect: Rect, shape: tuple[int, int]) -> list[Rect]:
    rows, columns = shape
    return [
        Rect(y, min(y + rows, rect.y1), x, min(x + columns, rect.x1))
        for y in range(rect.y0, rect.y1, rows)
        for x in range(rect.x0, rect.x1, columns)
    ]


class _Stacking:
    """A rectangle that is being stacked, slab by slab; see `zemosaic_align_stack_gpu.Stacking`."""

    def __init__(self, frames: list[StackFrame], canvas: Canvas, rect: Rect, options: StackOptions) -> None:
        self.sources = [FrameSource(frame, canvas, options.kernel) for frame in frames]
        self.canvas, self.rect, self.options = canvas, rect, options
        self.n_channels, self.params, self.feather_px = options.n_channels, options.params, options.feather_px
        self.whole = _empty_result(len(frames), options.n_channels, rect.shape)
        self.problems: dict[str, str] = {}
        weighed = any(source.weighs_pixels for source in self.sources)
        self.weighs_pixels = weighed or options.radial is not None or options.feather_px > 0
        self._samples, self._weights = _Reused(), _Reused()
        self._counting = threading.Lock()

    def stack_on_host(self, slab: Rect) -> None:
        """Stack a slab on the host, in parts that fit the memory budget."""
        shape = slab_shape(max(1, len(self.sources)), slab.shape, self.options)
        for part in _cut(slab, shape):
            self.stack_slab(part, self._gather)

    def stack_slab(
        self,
        slab: Rect,
        gather: Callable[..., tuple[Any, Any]],
        *,
        kernels: Callable[[int], Device | None] = lambda _: None,
    ) -> None:
        """Stack a slab from the samples that ``gather(sources, wide)`` returns, and keep the result."""
        wide = slab.grown(HALO_PX).intersect(self.canvas.rect)
        active = [k for k, source in enumerate(self.sources) if not source.part_of(wide).empty]
        if not active:
            return
        data, pixel_weight = gather([self.sources[k] for k in active], wide)
        solutions = [self.sources[k].frame.solution for k in active]
        noise = (np.array([getattr(s, name) for s in solutions]) for name in ("noise", "photon", "level", "blur"))
        result = stack(
            data,
            np.array([s.weight for s in solutions]),
            NoiseModel(*noise),
            self.options.params,
            pixel_weight=pixel_weight,
            halo=(slab.y0 - wide.y0, wide.y1 - slab.y1, slab.x0 - wide.x0, wide.x1 - slab.x1),
            device=kernels(len(active)),
        )
        # Everything comes over before anything is kept: a device may fail on the way.
        tally, *planes = (to_host(getattr(result, name)) for name in ("tally", *_PLANES))
        at = (slice(None), *slab.shifted(-self.rect.y0, -self.rect.x0).slices)
        for name, plane in zip(_PLANES, planes, strict=True):
            getattr(self.whole, name)[at] = plane
        with self._counting:
            self.whole.tally[active] += tally

    def hard_weights(self, source: FrameSource, part: Rect) -> np.ndarray | None:
        """Return the weights of a frame's pixels in a part of the canvas without a feather, None if all are 1."""
        return source.pixel_weights(part, self.options.radial, 0.0)

    def miss(self, source: FrameSource, reason: str) -> None:
        """Note that a frame could not be read here."""
        self.problems[source.frame.record.frame_id] = reason

    def _gather(self, sources: list[FrameSource], wide: Rect) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the samples (n, c, ny, nx) of frames in a rectangle and weights of pixels, None if all are 1."""
        data = self._samples.of((len(sources), self.n_channels, *wide.shape))
        weights = self._weights.of((len(sources), *wide.shape)) if self.weighs_pixels else None
        weighed, radial = False, self.options.radial
        for row, source in enumerate(sources):
            part = source.part_of(wide)
            at = part.shifted(-wide.y0, -wide.x0).slices
            if part != wide:
                data[row] = np.nan
            try:
                source.fill(part, data[(row, slice(None), *at)])
                of_part = None if weights is None else source.pixel_weights(part, radial, self.feather_px)
            except FrameError as error:
                data[row], of_part = np.nan, None
                self.miss(source, str(error))
            if weights is not None and (of_part is None or part != wide):
                weights[row] = 1.0
            if of_part is not None:
                weights[(row, *at)], weighed = of_part, True
        return data, weights if weighed else None


class _Reused(threading.local):
    """Arrays on the memory of the ones before, for each thread: fresh memory costs more than filling it."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, dtype=np.float32)

    def of(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array of this shape, float32, with anything in it; the one before it is gone."""
        size = int(np.prod(shape))
        if self._buffer.size < size:
            self._buffer = np.empty(size, dtype=np.float32)
        return self._buffer[:size].reshape(shape)


def _empty_result(n_frames: int, channels: int, shape: tuple[int, int]) -> StackResult:
    full = (channels, *shape)
    return StackResult(
        image=np.full(full, np.nan, dtype=np.float32),
        weight=np.zeros(full, dtype=np.float32),
        coverage=np.zeros(full, dtype=np.int32),
        rejected_low=np.zeros(full, dtype=np.int32),
        rejected_high=np.zeros(full, dtype=np.int32),
        tally=np.zeros((n_frames, 3), dtype=np.int64),
    )
