"""One frame of a stack: what the drivers know of it, and its samples of any rectangle of the canvas.

A source reads the section of the raw frame that a rectangle needs, prepares it (isolated defects, demosaicing) and
resamples it. The stacking drivers of the host and of a device share what is said here about sections and weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import zemosaic_preprocess as compiled
from zemosaic_fits_io import frame_wcs, read_alpha, read_planes, read_section
from zemosaic_flat import section_polynomials
from zemosaic_preprocess import ISOLATED_SIGMA, SUPPORT_PX, bayer_colours
from zemosaic_reproject import (
    KERNEL_REACH_PX,
    Canvas,
    Lattice,
    Placement,
    feather,
    frame_positions,
    is_inside,
    lattice,
    resample,
    section_for,
)
from zemosaic_stack_core import normalise, radial_weight
from zemosaic_types import FlatModel, FrameRecord, FrameSolution, Rect

MONO = np.zeros((2, 2), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class StackFrame:
    """A frame as the stack needs it; `sky` and `noise` are of one original pixel, a value a channel.

    With a `flat` they are those of the frame after it was divided out.
    """

    record: FrameRecord
    placement: Placement
    solution: FrameSolution
    sky: tuple[float, ...]
    noise: tuple[float, ...]
    flat: FlatModel | None = None


def paths_of(frames: Iterable[StackFrame]) -> dict[str, str]:
    """Return the files of frames by frame id."""
    return {frame.record.frame_id: frame.record.path for frame in frames}


@dataclass(frozen=True, slots=True)
class RadialWeight:
    """Weights that fall off towards the corners of a frame; see `zemosaic_stack_core.radial_weight`."""

    feather: float = 0.8
    power: float = 2.0
    floor: float = 0.05


class PreparingForms(Protocol):
    """What makes planes of a raw frame: `zemosaic_preprocess`, or its functions for arrays elsewhere."""

    flattened: Callable[..., Any]
    replace_isolated: Callable[..., Any]
    demosaic: Callable[..., Any]


class FrameSource:
    """One frame, ready to give its samples of any rectangle of the canvas.

    Attributes
    ----------
    frame : StackFrame
    header : FrameHeader
    grid : Lattice
        Its pixel map.
    colours : ndarray, shape (2, 2), or None
        Colours of the cell of a raw frame, all 0 for a mono one; None for planes that were demosaiced or stacked
        before.
    """

    def __init__(self, frame: StackFrame, canvas: Canvas, kernel: str) -> None:
        self.frame = frame
        self.header = frame.record.header
        self.kernel = kernel
        self.grid: Lattice = lattice(frame_wcs(self.header), canvas, frame.placement.bounds, frame.placement.step)
        self.colours = _colours(frame)
        self._path = Path(frame.record.path)

    def part_of(self, rect: Rect) -> Rect:
        """Return the part of a canvas rectangle that the frame may touch."""
        return self.frame.placement.bounds.intersect(rect)

    def section_of(self, part: Rect) -> Rect:
        """Return the section of the frame that `part` needs, with what demosaicing looks at; it may be empty.

        It starts on the phase of the colour cell.
        """
        needed = section_for(self.grid, part, self.header.shape, KERNEL_REACH_PX[self.kernel])
        if needed.empty:
            return needed
        grown = needed.grown(SUPPORT_PX).intersect(Rect(0, self.header.shape[0], 0, self.header.shape[1]))
        return Rect(grown.y0 // 2 * 2, grown.y1, grown.x0 // 2 * 2, grown.x1)

    def read(self, section: Rect) -> np.ndarray:
        """Read a section as it is stored, (c, h, w) uint16 or float32; see `read_section` for errors."""
        return read_section(self._path, self.header, section)

    def fill(self, part: Rect, samples: np.ndarray) -> None:
        """Put the frame's normalised samples of `part` into `samples` (c, h, w); a mono frame fills all colours.

        Raises
        ------
        FrameError
            If the frame cannot be read.
        """
        section = self.section_of(part)
        if section.empty:
            samples[...] = np.nan
            return
        planes = self.prepared(np.ascontiguousarray(self.read(section), dtype=np.float32), section)
        samples[...] = resample(planes, section, self.header.shape, self.grid, part, kernel=self.kernel)
        normalise(samples, np.array(self.frame.solution.gain), *self.ramps(part))

    def ramps(self, part: Rect) -> tuple[np.ndarray, np.ndarray | None]:
        """Return what the match adds to the rows (c, h) and columns (c, w) of `part`; see `normalise`.

        It is settled by the position on the canvas alone, so that every division of the canvas gets the same.
        """
        solution = self.frame.solution
        rows = np.repeat(np.array(solution.offset)[:, None], part.shape[0], axis=1)
        if not solution.gradient:
            return rows.astype(np.float32), None
        slope_x, slope_y = np.array(solution.gradient).T[:, :, None]
        rows += slope_y * (np.arange(part.y0, part.y1) - solution.centre[1])
        columns = slope_x * (np.arange(part.x0, part.x1) - solution.centre[0])
        return rows.astype(np.float32), columns.astype(np.float32)

    def prepared(
        self,
        raw: Any,
        section: Rect,
        forms: PreparingForms = compiled,
        upload: Callable[[np.ndarray], Any] = np.asarray,
    ) -> Any:
        """Return the planes of a section, (c, h, w) float32: without vignetting and defects, demosaiced.

        Parameters
        ----------
        raw : array, shape (c, h, w), float32
            Pixels of the section as they are stored, wherever the forms want them.
        section : Rect
        forms : PreparingForms
            `zemosaic_preprocess`, or the same functions for arrays on a device.
        upload : callable
            Takes an array to where `raw` is.
        """
        flat = self.frame.flat
        if flat is not None:
            flat = (*(upload(a) for a in section_polynomials(flat, section)), flat.pedestal)
        if self.colours is None:
            return raw if flat is None else _flattened_planes(forms.flattened, raw, *flat)
        whole = raw[0] if flat is None else forms.flattened(raw[0], self.colours, *flat)
        sky, noise = np.array(self.frame.sky), np.array(self.frame.noise)
        clean = forms.replace_isolated(whole, self.colours, sky, noise, ISOLATED_SIGMA)
        return clean[None] if self.colours is MONO else forms.demosaic(clean, self.colours)

    def pixel_weights(self, part: Rect, radial: RadialWeight | None, feather_px: float) -> np.ndarray | None:
        """Return the weight of each pixel of `part`, float32: its own, resampled, `radial`, and a feather.

        None if all are 1.

        Raises
        ------
        FrameError
            If the frame cannot be read.
        """
        weight, feathered = self._own_weights(part), self.is_feathered(part, feather_px)
        if weight is None:
            if radial is None and not feathered:
                return None
            weight = np.ones(part.shape, dtype=np.float32)
        if radial is not None:
            weight *= self._radial(part, radial)
        if feathered:
            feather(self.grid, part, self.header.shape, feather_px, weight)
        return weight

    def is_feathered(self, part: Rect, feather_px: float) -> bool:
        """Return whether a pixel of `part` may lie closer to the edge of the frame than the feather is wide."""
        return feather_px > 0 and not is_inside(self.grid, part, self.header.shape, feather_px)

    @property
    def weighs_pixels(self) -> bool:
        """Whether the frame brings weights of its own pixels."""
        return self.header.alpha_hdu is not None or self.header.weight_hdu is not None

    def _own_weights(self, part: Rect) -> np.ndarray | None:
        """Return the weights that the file gives the pixels of `part`, colours averaged; None if it gives none."""
        if not self.weighs_pixels:
            return None
        section = self.section_of(part)
        own = None if section.empty else self._stored_weights(section)
        if own is None:
            return np.zeros(part.shape, dtype=np.float32)
        plane = resample(own[None], section, self.header.shape, self.grid, part, kernel="bilinear")[0]
        return np.nan_to_num(plane)

    def _stored_weights(self, section: Rect) -> np.ndarray | None:
        if self.header.weight_hdu is None:
            return read_alpha(self._path, self.header, section)
        return read_planes(self._path, self.header, self.header.weight_hdu, section).mean(axis=0)

    def _radial(self, part: Rect, radial: RadialWeight) -> np.ndarray:
        ny, nx = self.header.shape
        x, y = frame_positions(self.grid, part)
        radius = np.hypot(x - 0.5 * (nx - 1), y - 0.5 * (ny - 1)) / (0.5 * np.hypot(nx, ny))
        return radial_weight(radius, feather=radial.feather, power=radial.power, floor=radial.floor)


def _flattened_planes(flattened: Callable, planes: Any, rows: Any, columns: Any, pedestal: float) -> Any:
    """Return planes (c, h, w) of one colour each with the flat divided out, by either form of `flattened`."""
    out = planes.copy()
    for c in range(planes.shape[0]):
        out[c] = flattened(planes[c], MONO, rows[c : c + 1], columns, pedestal)
    return out


def _colours(frame: StackFrame) -> np.ndarray | None:
    header = frame.record.header
    if header.layout in ("chw", "hwc") or header.weight_hdu is not None:
        return None
    return bayer_colours(header.bayer) if header.bayer else MONO
