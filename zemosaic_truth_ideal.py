"""The ideal mosaic of a simulated survey: where its frames lie, what it shows, its noise, what spoils it.

Everything follows from the truth of the frames and from exact WCS positions; no mosaic is looked at. The ideal
mosaic is the mean of the samples of the frames that cover a pixel, each divided by its transparency and weighted
by the inverse of its variance; values are in ADU a frame pixel at transparency 1.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_area
from scipy.ndimage import binary_dilation, binary_erosion

from zemosaic_synthetic import (
    SIGMA_PER_FWHM,
    FrameTruth,
    Survey,
    frame_wcs,
    render_frame,
    render_nebula,
    render_sky,
    world_to_pixel,
)
from zemosaic_types import Rect

SATURATED_ADU = 58000.0  # of a frame's pixel: above it the camera clips, or nearly

_KERNEL_REACH_PX = 3.0  # of resampling, along either axis of a frame
_DEMOSAIC_REACH_PX = 2.0
_TRAIL_EDGE = 0.1  # of a frame's noise: where a trail ends
_PIXEL_VARIANCE = 1.0 / 12.0  # of the place of the light within a pixel, along either axis


def sampled_fraction(survey: Survey) -> np.ndarray:
    """Return the fraction of a frame's pixels that see each channel."""
    return np.array([0.25, 0.5, 0.25] if survey.spec.color else [1.0])


def pixel_area(survey: Survey, wcs: WCS) -> float:
    """Return the area of a mosaic pixel in frame pixels."""
    return float(proj_plane_pixel_area(wcs)) / (survey.spec.pixel_scale_arcsec / 3600.0) ** 2


def in_image(x: np.ndarray, y: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return which positions lie in the pixel area of an image of ``(ny, nx)`` pixels."""
    return (x >= -0.5) & (x < shape[1] - 0.5) & (y >= -0.5) & (y < shape[0] - 0.5)


def ideal_noise(
    survey: Survey, wcs: WCS, shape: tuple[int, int], *, nebula: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the noise of the ideal mosaic and the number of frames over each pixel.

    A colour channel counts its real samples only: a quarter, a half and a quarter of the frame's pixels.

    Parameters
    ----------
    wcs, shape
        The mosaic's pixel grid, ``(ny, nx)``.
    nebula : ndarray, optional
        `render_nebula` on that grid, for its photon noise; made if missing.

    Returns
    -------
    sigma : ndarray
        ``(c, ny, nx)`` float32, one standard deviation of an independent pixel in ADU a frame pixel at
        transparency 1; inf where there is no frame.
    depth : ndarray
        ``(ny, nx)`` int32: frames whose pixel area holds the centre of the pixel.
    """
    spec = survey.spec
    nebula = render_nebula(survey, wcs, shape) if nebula is None else nebula
    samples = sampled_fraction(survey) * pixel_area(survey, wcs)
    information = np.zeros((spec.n_channels, *shape), dtype=np.float32)
    depth = np.zeros(shape, dtype=np.int32)
    for frame in survey.frames:
        rect, inside = footprint(frame, spec.frame_shape, wcs, shape)
        depth[rect.slices] += inside
        t = frame.transparency
        for total, cloud, noise, n in zip(information, nebula, frame.noise_adu, samples, strict=True):
            variance = noise**2 + t / spec.electrons_per_adu * cloud[rect.slices]
            total[rect.slices] += inside * (n * t**2 / variance)
    with np.errstate(divide="ignore"):
        return 1.0 / np.sqrt(information), depth


def ideal_stars(
    survey: Survey, wcs: WCS, shape: tuple[int, int], *, nebula: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the starlight of the ideal mosaic and the noise of one of its pixels, starlight's photons included.

    Every frame's stars have its own seeing, and the weights are those of an empty sky: the same for all pixels
    of a frame. The noise is that of a mean of samples as the camera took them, one a frame. Resampling and
    demosaicing average neighbours, so a pixel of a real mosaic has a little less; a colour's samples are *not*
    thinned out here as they are in `ideal_noise`, because the question is about a single pixel.

    Parameters
    ----------
    wcs, shape
        The mosaic's pixel grid, ``(ny, nx)``.
    nebula : ndarray
        `render_nebula` on that grid.

    Returns
    -------
    stars, sigma : ndarray
        ``(c, ny, nx)`` float32, ADU a frame pixel at transparency 1, without sky and nebula; 0 and inf where
        there is no frame.
    """
    spec = survey.spec
    total, weights, variance = (np.zeros((spec.n_channels, *shape), dtype=np.float32) for _ in range(3))
    for frame in survey.frames:
        rect, inside = footprint(frame, spec.frame_shape, wcs, shape)
        if rect.empty:
            continue
        at, t = rect.slices, frame.transparency
        light = _stars_of(survey, frame, wcs, rect)
        for c, noise in enumerate(frame.noise_adu):
            weight = t**2 / noise**2
            photons = t / spec.electrons_per_adu * (light[c] + nebula[c][at])
            total[c][at] += inside * (weight * light[c])
            variance[c][at] += inside * (weight**2 / t**2 * (noise**2 + photons))
            weights[c][at] += inside * np.float32(weight)
    with np.errstate(divide="ignore", invalid="ignore"):
        stars, sigma = total / weights, np.sqrt(variance) / weights
    empty = weights == 0.0
    stars[empty], sigma[empty] = 0.0, np.inf
    return stars, sigma


def _stars_of(survey: Survey, frame: FrameTruth, wcs: WCS, rect: Rect) -> np.ndarray:
    """Return the stars on a rectangle of the mosaic as a frame sees them, ``(c, ny, nx)`` float64."""
    area = pixel_area(survey, wcs)
    # What is resampled is light summed over the frame's pixels, not over those of the mosaic.
    blur = ((frame.fwhm_px * SIGMA_PER_FWHM) ** 2 + _PIXEL_VARIANCE) / area - _PIXEL_VARIANCE
    fwhm = np.sqrt(max(blur, 0.01)) / SIGMA_PER_FWHM
    return render_sky(_without_nebula(survey), wcs.slice(rect.slices), rect.shape, fwhm_px=fwhm) / area


def _without_nebula(survey: Survey) -> Survey:
    return replace(survey, nebula=replace(survey.nebula, blobs=()))


def spoiled(survey: Survey, wcs: WCS, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mosaic's pixels that a defect of any frame can reach, and those that a saturated star can.

    Defects are trails out to a tenth of their frame's noise, cosmic rays and hot pixels. The reach is that of
    the widest resampling kernel, six pixels square and turned in any way, and of demosaicing.

    Returns
    -------
    defects, saturated : ndarray
        ``(ny, nx)`` bool.
    """
    masks = np.zeros((2, *shape), dtype=bool)
    plain = _without_nebula(survey)
    for frame in survey.frames:
        parts = render_frame(plain, frame.index)
        bad = (parts.trail > _TRAIL_EDGE * min(frame.noise_adu)) | (parts.cosmic > 0.0) | (parts.hot > 0.0)
        for mask, pixels in zip(masks, (bad, parts.scene > SATURATED_ADU), strict=True):
            rows, cols = np.nonzero(pixels)
            x, y = world_to_pixel(wcs, *frame_wcs(frame).all_pix2world(cols, rows, 0))
            inside = in_image(x, y, shape)
            mask[np.rint(y[inside]).astype(int), np.rint(x[inside]).astype(int)] = True
    reach = _KERNEL_REACH_PX + (_DEMOSAIC_REACH_PX if survey.spec.color else 0.0)
    # The corner of the kernel, and half a pixel's diagonal, which rounding may have moved the defect by.
    disk = _disk(np.sqrt(2.0) * (reach / np.sqrt(pixel_area(survey, wcs)) + 0.5))
    return tuple(binary_dilation(mask, disk) for mask in masks)


def _disk(radius: float) -> np.ndarray:
    half = int(radius)
    y, x = np.ogrid[-half : half + 1, -half : half + 1]
    return x * x + y * y <= radius * radius


def footprint(
    frame: FrameTruth, frame_shape: tuple[int, int], wcs: WCS, shape: tuple[int, int]
) -> tuple[Rect, np.ndarray]:
    """Return the pixels of a grid whose centres a frame covers: a rectangle, and a bool array of its shape.

    The inside is filled from the polygon of the frame's edges; pixels along the edges are then decided by
    their exact position in the frame.
    """
    x, y = world_to_pixel(wcs, *frame_wcs(frame).all_pix2world(*_outline(frame_shape), 0))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return Rect(0, 0, 0, 0), np.zeros((0, 0), dtype=bool)
    low = np.floor([y.min(), x.min()]).astype(int) - 2
    high = np.ceil([y.max(), x.max()]).astype(int) + 3
    rect = Rect(low[0], high[0], low[1], high[1]).intersect(Rect(0, shape[0], 0, shape[1]))
    if rect.empty:
        return Rect(0, 0, 0, 0), np.zeros((0, 0), dtype=bool)
    inside = _fill_polygon(x - rect.x0, y - rect.y0, rect.shape)
    rows, cols = np.nonzero(binary_dilation(inside) & ~binary_erosion(inside, border_value=1))
    if rows.size:
        sky = wcs.all_pix2world(cols + rect.x0, rows + rect.y0, 0)
        inside[rows, cols] = in_image(*world_to_pixel(frame_wcs(frame), *sky), frame_shape)
    return rect, inside


def _outline(shape: tuple[int, int], step: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y along the edge of an image's pixel area, once around."""
    ny, nx = shape
    across = np.linspace(-0.5, nx - 0.5, int(np.ceil(nx / step)) + 1)[:-1]
    down = np.linspace(-0.5, ny - 0.5, int(np.ceil(ny / step)) + 1)[:-1]
    left, right = np.full(down.size, -0.5), np.full(down.size, nx - 0.5)
    top, bottom = np.full(across.size, -0.5), np.full(across.size, ny - 0.5)
    x = np.concatenate([across, right, nx - 1 - across, left])
    return x, np.concatenate([top, down, bottom, ny - 1 - down])


def _fill_polygon(x: np.ndarray, y: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the pixel centres inside a closed polygon: every edge turns the rest of its rows over."""
    x2, y2 = np.roll(x, -1), np.roll(y, -1)
    first, last = np.ceil(np.minimum(y, y2)).astype(int), np.ceil(np.maximum(y, y2)).astype(int)
    counts = last - first
    edge = np.repeat(np.arange(x.size), counts)
    rows = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    crossing = x[edge] + (rows - y[edge]) * (x2 - x)[edge] / (y2 - y)[edge]
    keep = (rows >= 0) & (rows < shape[0])
    turns = np.zeros((shape[0], shape[1] + 1), dtype=np.int32)
    np.add.at(turns, (rows[keep], np.clip(np.ceil(crossing[keep]), 0, shape[1]).astype(int)), 1)
    return np.cumsum(turns, axis=1)[:, :-1] % 2 == 1
