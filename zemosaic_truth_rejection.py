"""What a rejection let through and what it took by mistake, from a finished mosaic and the truth of its survey.

Outliers are pixels of the mosaic that noise does not explain. False rejections are samples missing from the
mosaic's counts although nothing was wrong with them: how many there were before the rejection is the number of
frames over the pixel, which the truth knows.
"""

from __future__ import annotations

import numpy as np
from astropy.wcs import WCS
from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter
from scipy.special import erfc

from zemosaic_synthetic import Survey
from zemosaic_truth_ideal import ideal_stars, spoiled

MIN_DEPTH = 5  # rejections are judged where they have that many frames to work with
OUTLIER_SIGMA = 6.0
GAUSSIAN_LOSS = float(erfc(3.0 / np.sqrt(2.0)))  # share of normal samples beyond 3 sigma: 0.27 %

# Share of the step to a neighbouring pixel that counts as noise: what resampling does on the flank of a star, and
# a few samples more or less, each with its own seeing. With it a mean of all good samples and no other has less
# than 5 outliers in a million pixels; a demosaiced one needs more.
_STEP_SHARE = 0.02
_DEMOSAICED_STEP_SHARE = 0.05

_PEAK_SIGMA = 5.0  # of a sample: stars whose central pixels are looked at apart
_LEVEL_BOX_PX = 32
_MIN_BOX_PIXELS = 64
_FIGURES = ("outlier_ppm", "n_outlier_pixels", "false_rejections", "n_clean_samples")
_FIGURES += ("false_rejections_sky", "n_sky_samples", "false_rejections_steep", "n_steep_samples")
_FIGURES += ("false_rejections_peaks", "n_peak_samples")


def rejection_scores(
    survey: Survey,
    wcs: WCS,
    planes: np.ndarray,
    coverage: np.ndarray,
    *,
    depth: np.ndarray,
    nebula: np.ndarray,
    star_mask: np.ndarray,
) -> dict[str, tuple]:
    """Return the figures of a `MosaicScore` that judge the rejection, a value a channel each.

    Saturated stars are left out, and where fewer than `MIN_DEPTH` frames overlap nothing is judged.

    Parameters
    ----------
    wcs : WCS
        Of the mosaic.
    planes : ndarray, shape (c, ny, nx), float32
        The mosaic less the nebula, in ADU a frame pixel at transparency 1; NaN where there is no data.
    coverage : ndarray, shape (c, ny, nx) or (1, ny, nx)
        Samples that survived. Numbers that are not of an integer type are weights and count nothing: then
        there are no figures of false rejections.
    depth : ndarray, shape (ny, nx), int
        Frames over each pixel.
    nebula : ndarray, shape (c, ny, nx)
    star_mask : ndarray, shape (ny, nx), bool
        True where there is starlight; the sky is the rest.
    """
    stars, sigma = ideal_stars(survey, wcs, depth.shape, nebula=nebula)
    defects, saturated = spoiled(survey, wcs, depth.shape)
    steps = _steps(stars, demosaiced=survey.spec.color)
    share = _DEMOSAICED_STEP_SHARE if survey.spec.color else _STEP_SHARE
    deep = (depth >= MIN_DEPTH) & ~saturated
    clean = deep & ~defects
    counts = np.broadcast_to(coverage, planes.shape)
    rows = []
    for plane, light, noise, step, count in zip(planes, stars, sigma, steps, counts, strict=True):
        row = _outliers(plane - light, np.hypot(noise, share * step), deep)
        of_a_sample = noise * np.sqrt(np.maximum(depth, 1))
        # There seeing and misalignment tell: on the flanks by the step, on the peaks without one.
        peaks = (light > _PEAK_SIGMA * of_a_sample) & (light == maximum_filter(light, 3))
        for where in (clean, clean & ~star_mask, clean & (step > of_a_sample), clean & peaks):
            row += _false_rejections(count, depth, where)
        rows.append(row)
    return dict(zip(_FIGURES, zip(*rows, strict=True), strict=True))


def _steps(stars: np.ndarray, *, demosaiced: bool) -> np.ndarray:
    """Return how far the starlight of the pixels around differs from each pixel's, ``(c, ny, nx)``.

    Demosaicing looks two pixels far and lets one colour's step into the others.
    """
    size = 5 if demosaiced else 3
    steps = [np.maximum(maximum_filter(p, size) - p, p - minimum_filter(p, size)) for p in stars]
    return np.broadcast_to(np.max(steps, axis=0), stars.shape)


def _outliers(difference: np.ndarray, tolerance: np.ndarray, where: np.ndarray) -> tuple[float, int]:
    """Return the parts per million of pixels that are off by more than `OUTLIER_SIGMA`, and the pixels looked at.

    The level of the surroundings is taken away first: a sky, gradients, and what levels them, are no outliers.
    """
    where = where & np.isfinite(difference)
    count = int(np.count_nonzero(where))
    if not count:
        return np.nan, 0
    off = np.abs(difference - _local_level(np.where(where, difference, np.float32(np.nan))))
    return 1e6 * float(np.count_nonzero(off[where] > OUTLIER_SIGMA * tolerance[where])) / count, count


def _local_level(plane: np.ndarray) -> np.ndarray:
    """Return the medians of boxes, interpolated linearly between their centres; NaN nowhere.

    A box of too few pixels has the level of the nearest one that has enough; without any it is the median.
    """
    size, (ny, nx) = _LEVEL_BOX_PX, plane.shape
    padded = np.pad(plane, ((0, -ny % size), (0, -nx % size)), constant_values=np.nan)
    boxes = padded.reshape(padded.shape[0] // size, size, -1, size).swapaxes(1, 2)
    boxes = boxes.reshape(*boxes.shape[:2], size * size)
    full = np.isfinite(boxes).sum(axis=2) >= _MIN_BOX_PIXELS
    if not full.any():
        return np.full_like(plane, np.nanmedian(plane))
    levels = np.zeros(full.shape, dtype=np.float32)
    levels[full] = np.nanmedian(boxes[full], axis=1)
    nearest = distance_transform_edt(~full, return_distances=False, return_indices=True)
    return _between_centres(_between_centres(levels[tuple(nearest)], ny).T, nx).T


def _between_centres(levels: np.ndarray, length: int) -> np.ndarray:
    """Interpolate ``(n, m)`` box values along the first axis to ``(length, m)`` pixels."""
    place = np.clip((np.arange(length) + 0.5) / _LEVEL_BOX_PX - 0.5, 0.0, len(levels) - 1.0)
    low = np.minimum(place.astype(int), max(len(levels) - 2, 0))
    share = (place - low).astype(np.float32)[:, None]
    return levels[low] * (1.0 - share) + levels[np.minimum(low + 1, len(levels) - 1)] * share


def _false_rejections(count: np.ndarray, depth: np.ndarray, where: np.ndarray) -> tuple[float, int]:
    """Return the share of missing samples beyond what a 3 sigma clip takes of normal ones, and the number of all.

    The share is NaN where there are none, or the coverage counts none.
    """
    samples = int(depth[where].sum(dtype=np.int64))
    if not samples or not np.issubdtype(count.dtype, np.integer):
        return np.nan, samples
    return 1.0 - float(count[where].sum(dtype=np.int64)) / samples - GAUSSIAN_LOSS, samples
