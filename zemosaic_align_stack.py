"""Frames and a rectangle of the canvas in, stacked image out: what every pipeline stacks with.

The driver cuts the rectangle into slabs that fit the memory budget, gets from every frame its samples of a slab,
and hands the samples of all frames to the stack core as one population. Nothing outside this module and its
companion for a device, `zemosaic_align_stack_gpu`, knows about slabs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from zemosaic_frame_source import FrameSource, RadialWeight, StackFrame
from zemosaic_reproject import Canvas
from zemosaic_stack_core import HALO_PX, NoiseModel, StackResult, stack
from zemosaic_types import FrameError, Rect, StackParams

#: Slabs of more pixels a side only hold more frames that do not reach all of it, and leave the caches.
_SLAB_SIDE_PX = 512
_MIN_SLAB_SIDE_PX = 4
_RESULT_PLANES = 6

_FIELDS = ("image", "weight", "coverage", "rejected_low", "rejected_high")


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What `stack_frames` does with its frames, and how much memory it may take."""

    n_channels: int
    params: StackParams = field(default_factory=StackParams)
    kernel: str = "lanczos3"
    radial: RadialWeight | None = None
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
    """Return the ``(rows, columns)`` of a rectangle that are worked on at once within the memory budget.

    A slab is as square as the budget allows: a flat one would need, of a rotated frame, nearly all of its pixels
    again for every slab.
    """
    planes = options.n_channels * (n_frames + _RESULT_PLANES) + n_frames  # the last: weights a pixel
    pixels = options.mem_limit_bytes // (4 * planes)
    side = int(pixels**0.5) - 2 * HALO_PX
    side = min(max(_MIN_SLAB_SIDE_PX, side), _SLAB_SIDE_PX)
    return tuple(-(-size // -(-size // side)) for size in shape)


def stack_frames(
    frames: list[StackFrame],
    canvas: Canvas,
    rect: Rect,
    options: StackOptions,
    *,
    between_slabs: Callable[[], None] = lambda: None,
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

    Returns
    -------
    StackedRect
        The same for every division of the canvas into rectangles and every memory budget.
    """
    work = _HostStack(frames, canvas, rect, options)
    rows, columns = slab_shape(max(1, len(frames)), rect.shape, options)
    for y in range(rect.y0, rect.y1, rows):
        for x in range(rect.x0, rect.x1, columns):
            between_slabs()
            work.stack_slab(Rect(y, min(y + rows, rect.y1), x, min(x + columns, rect.x1)))
    return StackedRect(work.whole, tuple(sorted(work.problems.items())))


class _HostStack:
    """A rectangle that is being stacked on the host, slab by slab."""

    def __init__(self, frames: list[StackFrame], canvas: Canvas, rect: Rect, options: StackOptions) -> None:
        self.sources = [FrameSource(frame, canvas, options.kernel) for frame in frames]
        self.canvas, self.rect, self.options = canvas, rect, options
        self.whole = _empty_result(len(frames), options.n_channels, rect.shape)
        self.problems: dict[str, str] = {}
        self._weighs_pixels = options.radial is not None or any(
            s.header.alpha_hdu is not None for s in self.sources
        )
        self._buffer = np.empty(0, dtype=np.float32)

    def stack_slab(self, slab: Rect) -> None:
        """Stack one slab and put it into the arrays of the whole rectangle."""
        wide = slab.grown(HALO_PX).intersect(self.canvas.rect)
        active = [k for k, source in enumerate(self.sources) if not source.part_of(wide).empty]
        if not active:
            return
        data, pixel_weight = self._samples(active, wide)
        solutions = [self.sources[k].frame.solution for k in active]
        result = stack(
            data,
            np.array([s.weight for s in solutions]),
            NoiseModel(
                *(np.array([getattr(s, name) for s in solutions]) for name in ("noise", "photon", "level", "blur"))
            ),
            self.options.params,
            pixel_weight=pixel_weight,
            halo=(slab.y0 - wide.y0, wide.y1 - slab.y1, slab.x0 - wide.x0, wide.x1 - slab.x1),
            threads=self.options.threads,
        )
        at = (slice(None), *slab.shifted(-self.rect.y0, -self.rect.x0).slices)
        for name in _FIELDS:
            getattr(self.whole, name)[at] = getattr(result, name)
        self.whole.tally[active] += result.tally

    def _samples(self, active: list[int], wide: Rect) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the samples (n, c, ny, nx) of the active frames and, where they differ, their pixels' weights."""
        data = self._reused((len(active), self.options.n_channels, *wide.shape))
        pixel_weight = np.zeros((len(active), *wide.shape), np.float32) if self._weighs_pixels else None
        for row, k in enumerate(active):
            source = self.sources[k]
            part = source.part_of(wide)
            at = part.shifted(-wide.y0, -wide.x0).slices
            if part != wide:
                data[row] = np.nan
            try:
                source.fill(part, data[(row, slice(None), *at)])
                if pixel_weight is not None:
                    pixel_weight[(row, *at)] = source.pixel_weights(part, self.options.radial)
            except FrameError as error:
                data[row] = np.nan
                self.problems[source.frame.record.frame_id] = str(error)
        return data, pixel_weight

    def _reused(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array on the memory of the slab before: fresh memory costs more than filling it."""
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
