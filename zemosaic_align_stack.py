"""Frames and a rectangle of the canvas in, stacked image out.

The driver cuts the rectangle into slabs that fit the memory budget, reads from every frame the section that a slab
needs, prepares and resamples it, and hands the samples of all frames to the stack core as one population.
Nothing outside this module knows about slabs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zemosaic_fits_io import frame_wcs, read_alpha, read_section
from zemosaic_preprocess import ISOLATED_SIGMA, SUPPORT_PX, bayer_colours, demosaic, replace_isolated
from zemosaic_reproject import (
    KERNEL_REACH_PX,
    Canvas,
    Lattice,
    Placement,
    frame_positions,
    lattice,
    resample,
    section_for,
)
from zemosaic_stack_core import HALO_PX, StackResult, normalise, radial_weight, stack
from zemosaic_types import FrameError, FrameRecord, FrameSolution, Rect, StackParams

#: Arrays of a slab besides the samples themselves, in units of one frame's samples: bounds and results.
_EXTRA_PLANES = 16
_MIN_BLOCK_PX = 4


@dataclass(frozen=True, slots=True)
class StackFrame:
    """A frame as the stack needs it; `sky` and `noise` are of one original pixel, a value a channel."""

    record: FrameRecord
    placement: Placement
    solution: FrameSolution
    sky: tuple[float, ...]
    noise: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RadialWeight:
    """Weights that fall off towards the corners of a frame; see `zemosaic_stack_core.radial_weight`."""

    feather: float = 0.8
    power: float = 2.0
    floor: float = 0.05


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What `stack_frames` does with its frames, and how much memory it may take."""

    n_channels: int
    params: StackParams = field(default_factory=StackParams)
    kernel: str = "lanczos3"
    radial: RadialWeight | None = None
    mem_limit_bytes: int = 512 * 1024**2


@dataclass(frozen=True)
class StackedRect:
    """The result for a rectangle of the canvas; arrays as in `StackResult`, `tally` a row a frame.

    `problems` holds (frame id, reason) of frames that could not be read here although they could be measured.
    """

    result: StackResult
    problems: tuple[tuple[str, str], ...]


def block_shape(n_frames: int, shape: tuple[int, int], options: StackOptions) -> tuple[int, int]:
    """Return the ``(rows, columns)`` of a tile that are worked on at once within the memory budget.

    A block is as square as the budget allows: a flat one would need, of a rotated frame, nearly all of its
    pixels again for every block.
    """
    planes = options.n_channels * (n_frames + _EXTRA_PLANES) + n_frames  # the last: weights a pixel
    pixels = options.mem_limit_bytes // (4 * planes)
    side = max(_MIN_BLOCK_PX, int(pixels**0.5) - 2 * HALO_PX)
    ny, nx = shape
    if side >= nx:
        return max(_MIN_BLOCK_PX, min(ny, pixels // (nx + 2 * HALO_PX) - 2 * HALO_PX)), nx
    if side >= ny:
        return ny, max(_MIN_BLOCK_PX, min(nx, pixels // (ny + 2 * HALO_PX) - 2 * HALO_PX))
    return side, side


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
    sources = [_Source(frame, canvas) for frame in frames]
    whole = _empty_result(len(frames), options.n_channels, rect.shape)
    problems: dict[str, str] = {}
    rows, columns = block_shape(max(1, len(frames)), rect.shape, options)
    for y in range(rect.y0, rect.y1, rows):
        for x in range(rect.x0, rect.x1, columns):
            between_slabs()
            slab = Rect(y, min(y + rows, rect.y1), x, min(x + columns, rect.x1))
            _stack_slab(sources, canvas, slab, rect, options, whole, problems)
    return StackedRect(whole, tuple(sorted(problems.items())))


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


def _stack_slab(
    sources: list[_Source],
    canvas: Canvas,
    slab: Rect,
    rect: Rect,
    options: StackOptions,
    whole: StackResult,
    problems: dict[str, str],
) -> None:
    """Stack one slab and put it into the arrays of the whole rectangle."""
    wide = slab.grown(HALO_PX).intersect(canvas.rect)
    active = [k for k, s in enumerate(sources) if not s.frame.placement.bounds.intersect(wide).empty]
    if not active:
        return
    data = np.full((len(active), options.n_channels, *wide.shape), np.nan, dtype=np.float32)
    pixel_weight = (
        np.zeros((len(active), *wide.shape), dtype=np.float32) if _weighs_pixels(sources, options) else None
    )
    for row, k in enumerate(active):
        try:
            sources[k].fill(wide, options, data[row], None if pixel_weight is None else pixel_weight[row])
        except FrameError as error:
            data[row] = np.nan
            record = sources[k].frame.record
            problems[record.frame_id] = str(error)
    solutions = [sources[k].frame.solution for k in active]
    halo = (slab.y0 - wide.y0, wide.y1 - slab.y1, slab.x0 - wide.x0, wide.x1 - slab.x1)
    result = stack(
        data,
        np.array([s.weight for s in solutions]),
        np.array([s.noise for s in solutions]),
        options.params,
        pixel_weight=pixel_weight,
        halo=halo,
    )
    at = (slice(None), *slab.shifted(-rect.y0, -rect.x0).slices)
    for name in ("image", "weight", "coverage", "rejected_low", "rejected_high"):
        getattr(whole, name)[at] = getattr(result, name)
    whole.tally[active] += result.tally


def _weighs_pixels(sources: list[_Source], options: StackOptions) -> bool:
    return options.radial is not None or any(s.frame.record.header.alpha_hdu is not None for s in sources)


class _Source:
    """One frame, ready to give its samples of any rectangle of the canvas."""

    def __init__(self, frame: StackFrame, canvas: Canvas) -> None:
        self.frame = frame
        self.header = frame.record.header
        self.path = Path(frame.record.path)
        placement = frame.placement
        self.grid: Lattice = lattice(frame_wcs(self.header), canvas, placement.bounds, placement.step)

    def fill(self, wide: Rect, options: StackOptions, samples: np.ndarray, weight: np.ndarray | None) -> None:
        """Put the frame's normalised samples (c, ny, nx) of `wide`, and their weights (ny, nx), into place."""
        part = self.frame.placement.bounds.intersect(wide)
        reach = KERNEL_REACH_PX[options.kernel]
        section = self._section(section_for(self.grid, part, self.header.shape, reach))
        if section.empty:
            return
        at = part.shifted(-wide.y0, -wide.x0).slices
        planes = self._planes(section)
        block = resample(planes, section, self.header.shape, self.grid, part, kernel=options.kernel)
        target = samples[(slice(None), *at)]
        target[...] = block
        solution = self.frame.solution
        normalise(target[None], np.array([solution.gain]), np.array([solution.offset]))
        if weight is not None:
            weight[at] = self._weights(section, part, options)

    def _section(self, needed: Rect) -> Rect:
        """Enlarge a section by what demosaicing looks at, starting on the phase of the colour cell."""
        if needed.empty:
            return needed
        grown = needed.grown(SUPPORT_PX).intersect(Rect(0, self.header.shape[0], 0, self.header.shape[1]))
        return Rect(grown.y0 // 2 * 2, grown.y1, grown.x0 // 2 * 2, grown.x1)

    def _planes(self, section: Rect) -> np.ndarray:
        """Read and prepare a section, (c, h, w) float32."""
        raw = read_section(self.path, self.header, section)
        if self.header.layout in ("chw", "hwc"):
            return np.ascontiguousarray(raw, dtype=np.float32)
        sky, noise = np.array(self.frame.sky), np.array(self.frame.noise)
        raw = np.ascontiguousarray(raw[0], dtype=np.float32)
        if not self.header.bayer:
            mono = np.zeros((2, 2), dtype=np.int64)
            return replace_isolated(raw, mono, sky, noise, ISOLATED_SIGMA)[None]
        colours = bayer_colours(self.header.bayer)
        return demosaic(replace_isolated(raw, colours, sky, noise, ISOLATED_SIGMA), colours)

    def _weights(self, section: Rect, part: Rect, options: StackOptions) -> np.ndarray:
        """Return the weight of each pixel of `part`: the frame's alpha, resampled like data, and radial weight."""
        weight = np.ones(part.shape, dtype=np.float32)
        alpha = read_alpha(self.path, self.header, section)
        if alpha is not None:
            plane = resample(alpha[None], section, self.header.shape, self.grid, part, kernel="bilinear")[0]
            weight = np.nan_to_num(plane)
        if options.radial is not None:
            weight *= self._radial(part, options.radial)
        return weight

    def _radial(self, part: Rect, radial: RadialWeight) -> np.ndarray:
        ny, nx = self.header.shape
        x, y = frame_positions(self.grid, part)
        radius = np.hypot(x - 0.5 * (nx - 1), y - 0.5 * (ny - 1)) / (0.5 * np.hypot(nx, ny))
        return radial_weight(radius, feather=radial.feather, power=radial.power, floor=radial.floor)
