"""The measuring pass: read each frame once and note what the match, the weights and the ledger need of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zemosaic_background import box_medians, sky_and_noise
from zemosaic_fits_io import frame_wcs, read_section
from zemosaic_photometry import FrameMeasure, cell_number
from zemosaic_preprocess import (
    ISOLATED_SIGMA,
    bayer_colours,
    binned,
    half_planes,
    replace_isolated,
)
from zemosaic_registration import APERTURE_FWHM, StarList, aperture_fluxes, find_stars, subtract_background
from zemosaic_reproject import Canvas, Placement, canvas_to_frame, frame_to_canvas, place
from zemosaic_types import FlatModel, FrameError, FrameRecord, LeftOut, Rect

_MIN_VALID_SHARE = 0.05
_SATURATED_SHARE = 0.9
_DEFAULT_FWHM_PX = 3.5

_LARGE_FRAME_PX = 1_000_000
# Variance of 2 x 2 pixels about their centre, along an axis, and as much again for a half-light radius on pixels
# so coarse; a test compares with the full image.
_BLUR_OF_MEANS_PX2 = 0.5

#: Full width at half maximum of a normal distribution over its standard deviation.
FWHM_OF_SIGMA = 2.354820045030949


@dataclass(frozen=True)
class _Planes:
    """The colour planes of a frame as they are measured.

    A large frame is measured on means of 2 x 2 pixels, a raw one on the pixels of each colour: that is enough for
    hundreds of stars, and four times faster. Plane pixel ``p`` of channel c is centred at frame pixel
    ``binning * p + shift[c]`` (y, x), and its noise is that of an original pixel over ``quiet[c]``. `peaks` holds
    the brightest original pixel of each plane pixel, `blur_px2` what means add to the variance of a star.
    """

    values: np.ndarray
    binning: int
    shift: tuple[tuple[float, float], ...]
    quiet: tuple[float, ...]
    peaks: np.ndarray
    blur_px2: float = 0.0

    def to_frame(self, p: np.ndarray, channel: int, axis: int) -> np.ndarray:
        return self.binning * p + self.shift[channel][axis]

    def from_frame(self, p: np.ndarray, channel: int, axis: int) -> np.ndarray:
        return (p - self.shift[channel][axis]) / self.binning


@dataclass(frozen=True)
class MeasuredFrame:
    """A frame that can be used: what it is, what was measured in it, and where it lies on the canvas.

    `cell_px` is the spacing of the canvas's coarse cells, the same for all frames. With a `flat`, `measure` is
    that of the frame after it was divided out.
    """

    record: FrameRecord
    measure: FrameMeasure
    placement: Placement
    cell_px: int
    flat: FlatModel | None = None


def cell_size_px(shapes: list[tuple[int, int]]) -> int:
    """Return the spacing of the canvas's coarse cells: a twelfth of the frames' short side, 16 to 64 px."""
    short = float(np.median([min(shape) for shape in shapes]))
    return int(np.clip(short / 12.0, 16, 64))


def measure_frames(
    records: list[FrameRecord], canvas: Canvas, cell_px: int, n_channels: int
) -> list[MeasuredFrame | LeftOut]:
    """Measure some frames; a frame that cannot be used gives its reason instead."""
    results: list[MeasuredFrame | LeftOut] = []
    for record in records:
        try:
            results.append(measure_frame(record, canvas, cell_px, n_channels))
        except FrameError as error:
            results.append(LeftOut(record.path, str(error), record.line))
    return results


def measure_frame(record: FrameRecord, canvas: Canvas, cell_px: int, n_channels: int) -> MeasuredFrame:
    """Measure sky, noise, stars and coarse levels of one frame.

    Parameters
    ----------
    record : FrameRecord
    canvas : Canvas
    cell_px : int
        Spacing of the canvas's coarse cells.
    n_channels : int
        Channels of the mosaic; a mono frame in a colour mosaic is measured once and counts for all.

    Raises
    ------
    FrameError
        If the frame cannot be read, or its pixels are missing, constant or saturated.
    """
    header = record.header
    raw = read_section(Path(record.path), header, Rect(0, header.shape[0], 0, header.shape[1]))
    planes, sky, noise = _clean_planes(raw, header.bayer)
    _check_levels(sky, noise, header.saturation)
    stars, fwhm_px, flux, flux_error = _measure_stars(planes, noise, header.saturation)
    wcs = frame_wcs(header)
    reference = planes.values.shape[0] // 2
    x = planes.to_frame(stars.x, reference, 1)
    y = planes.to_frame(stars.y, reference, 0)
    star_x, star_y = frame_to_canvas(wcs, x, y, canvas)
    placement = place(wcs, header.shape, canvas)
    cell, level, cell_x, cell_y = _coarse_levels(planes, wcs, placement, canvas, cell_px)
    repeat = n_channels // planes.values.shape[0]
    measure = FrameMeasure(
        sky=np.repeat(sky, repeat),
        noise=np.repeat(noise, repeat),
        fwhm_px=fwhm_px,
        elongation=stars.elongation,
        star_x=star_x,
        star_y=star_y,
        frame_x=x.astype(np.float32),
        frame_y=y.astype(np.float32),
        flux=np.repeat(flux, repeat, axis=1),
        flux_error=np.repeat(flux_error, repeat, axis=1),
        cell=cell,
        level=np.repeat(level, repeat, axis=1),
        cell_x=cell_x,
        cell_y=cell_y,
    )
    return MeasuredFrame(record, measure, placement, cell_px)


def _clean_planes(raw: np.ndarray, bayer: str) -> tuple[_Planes, np.ndarray, np.ndarray]:
    """Return the planes without isolated defects, and the sky and noise of one original pixel a channel."""
    if np.count_nonzero(np.isfinite(raw)) < _MIN_VALID_SHARE * raw.size:
        raise FrameError("no valid pixels (all NaN, or nearly)")
    if not bayer:
        sky, noise = np.transpose([sky_and_noise(plane) for plane in raw])
        if raw.shape[0] == 1:
            mono = np.zeros((2, 2), dtype=np.int64)
            raw = replace_isolated(raw[0].astype(np.float32), mono, sky, noise, ISOLATED_SIGMA)[None]
        values = np.ascontiguousarray(raw, dtype=np.float32)
        n = values.shape[0]
        if values[0].size < _LARGE_FRAME_PX:
            return _Planes(values, 1, ((0.0, 0.0),) * n, (1.0,) * n, values), sky, noise
        means, peaks = binned(values)
        return _Planes(means, 2, ((0.5, 0.5),) * n, (2.0,) * n, peaks, _BLUR_OF_MEANS_PX2), sky, noise
    whole = raw[0].astype(np.float32)
    levels = [sky_and_noise(plane) for plane in half_planes(whole, bayer)]
    sky, noise = np.ascontiguousarray(np.transpose(levels))  # one type, one compiled form of the loops
    noise[1] *= np.sqrt(2.0)  # half_planes averages the two greens
    colours = bayer_colours(bayer)
    clean = replace_isolated(whole, colours, sky, noise, ISOLATED_SIGMA)
    shift = tuple(tuple(np.argwhere(colours == c).mean(axis=0).tolist()) for c in range(3))
    halves = half_planes(clean, bayer)
    return _Planes(halves, 2, shift, (1.0, np.sqrt(2.0), 1.0), halves), sky, noise


def luminance(record: FrameRecord) -> tuple[np.ndarray, int]:
    """Return one plane that shows the stars of a frame: for pattern matching, not for photometry.

    Colours behind a filter array are averaged over their 2 x 2 cell, of a colour cube the green plane is taken;
    isolated defects are replaced.

    Returns
    -------
    plane : ndarray, shape (ny, nx), float32
        NaN = no data.
    binning : int
        Plane pixel ``p`` is centred at frame pixel ``binning * p + (binning - 1) / 2``, along both axes.

    Raises
    ------
    FrameError
        As `measure_frame`.
    """
    header = record.header
    raw = read_section(Path(record.path), header, Rect(0, header.shape[0], 0, header.shape[1]))
    planes, sky, noise = _clean_planes(raw, header.bayer)
    _check_levels(sky, noise, header.saturation)
    red, green, blue = planes.values if len(planes.values) == 3 else (planes.values[0],) * 3
    return 0.25 * red + 0.5 * green + 0.25 * blue if header.bayer else green, planes.binning


def _check_levels(sky: np.ndarray, noise: np.ndarray, saturation: float) -> None:
    if not np.isfinite(sky).all():
        raise FrameError("no valid pixels in one of its colours")
    if (noise <= 0).any():
        raise FrameError("constant image: its pixels show no noise")
    if (sky >= _SATURATED_SHARE * saturation).any():
        raise FrameError(f"saturated: its sky ({sky.max():.0f}) is at the limit of the camera ({saturation:.0f})")


def _measure_stars(
    planes: _Planes, noise: np.ndarray, saturation: float
) -> tuple[StarList, float, np.ndarray, np.ndarray]:
    """Return the stars of a frame, their FWHM in frame pixels, fluxes and errors (m, c)."""
    channels = planes.values.shape[0]
    plane_noise = noise / np.array(planes.quiet)
    flat = [subtract_background(plane) for plane in planes.values]
    bright = np.any(planes.peaks >= 0.7 * saturation, axis=0)
    stars = find_stars(*_detection_image(flat, plane_noise), exclude=bright)
    fwhm = stars.fwhm_px if np.isfinite(stars.fwhm_px) else _DEFAULT_FWHM_PX / planes.binning
    flux = np.empty((stars.x.size, channels), dtype=np.float32)
    error = np.empty_like(flux)
    reference = channels // 2
    x, y = planes.to_frame(stars.x, reference, 1), planes.to_frame(stars.y, reference, 0)
    for c, (residual, mask) in enumerate(flat):
        px, py = planes.from_frame(x, c, 1), planes.from_frame(y, c, 0)
        flux[:, c], error[:, c] = aperture_fluxes(residual, mask, px, py, APERTURE_FWHM * fwhm, plane_noise[c])
    area = planes.binning**2
    blurred = (stars.fwhm_px * planes.binning) ** 2 - FWHM_OF_SIGMA**2 * planes.blur_px2
    return stars, float(np.sqrt(np.maximum(blurred, 1.0))), flux * area, error * area


def _detection_image(flat: list[tuple], noise: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the sum of the planes weighted by their noise, where all have data, and its own noise."""
    mask = np.any([m for _, m in flat], axis=0)
    weight = (1.0 / np.square(noise)).astype(np.float32)
    image = sum(w * residual for w, (residual, _) in zip(weight, flat, strict=True))
    image[mask] = 0.0
    return image, mask, float(np.sqrt(weight.sum()))


def _coarse_levels(
    planes: _Planes, wcs: object, placement: Placement, canvas: Canvas, cell_px: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return numbers, levels and centres (frame pixels) of the canvas's cells whose box lies in the frame."""
    area = placement.bounds.intersect(canvas.rect)
    rows = np.arange(-(-area.y0 // cell_px), -(-area.y1 // cell_px))
    columns = np.arange(-(-area.x0 // cell_px), -(-area.x1 // cell_px))
    cx, cy = np.meshgrid(columns * float(cell_px), rows * float(cell_px))
    x, y = canvas_to_frame(wcs, cx.ravel(), cy.ravel(), canvas)
    # The box covers the same piece of sky whatever the frame's pixel scale.
    half = max(1, round(cell_px * np.sqrt(placement.area_ratio) / (2 * planes.binning)))
    level = np.stack(
        [
            box_medians(plane, planes.from_frame(x, c, 1), planes.from_frame(y, c, 0), half)
            for c, plane in enumerate(planes.values)
        ],
        axis=1,
    )
    number = cell_number(rows[:, None], columns[None, :]).ravel()
    found = np.isfinite(level).any(axis=1)
    return number[found], level[found], x[found].astype(np.float32), y[found].astype(np.float32)
