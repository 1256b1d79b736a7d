"""The stacker: normalise, reject, combine.

Arrays in, arrays out. `stack` takes the samples that all frames give to a rectangle of pixels and returns one
value a pixel. The work is cut in two: a rejection names the bounds between which a pixel's samples survive, a
combination turns the survivors into one value; every rejection goes with every combination.

Rejections
----------
``none``
    Every sample survives.
``kappa_sigma``
    Clip about the median at ``kappa_low`` and ``kappa_high`` standard deviations of the survivors, iterated.
    With ``spread="auto"`` there is one clip, and the deviation is not the sample's but the larger of the
    expected noise of its frames and its robust spread (scaled median absolute deviation, less its own standard
    error), plus a term for steep places: a sample's own standard deviation cannot reject anything among
    n <= 10 samples, where no deviation exceeds (n - 1) / sqrt(n), and a bad sample in twenty widens it enough to
    hide faint ones.
``winsorized_sigma_clip``
    Huber-winsorised spread iterated to convergence (1.5 sigma, factor 1.134), then a clip of the original
    samples about their median, repeated; the form used by PixInsight and Siril. The winsor limits give the
    first winsorisation.
``linear_fit_clip``
    A line through the sorted samples; samples at either end that lie further from it than kappa times the mean
    absolute residual go, repeated.

Under three samples nothing is rejected. Rejected samples are removed, never put back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import zemosaic_stack_kernels as kernels
from zemosaic_types import StackParams

#: Share of the step to the neighbouring pixel that enters the spread: what changes of seeing and a residual
#: misalignment of about 0.3 px do on the flank of a star.
STEEPNESS_SHARE = 0.4

#: Relative standard error of the median absolute deviation of n normal samples, times sqrt n.
MAD_ERROR = 1.17

#: Rows and columns around the wanted pixels that the rejection looks at.
HALO_PX = 1

_SAMPLE_METHODS = {
    "kappa_sigma": kernels.KAPPA,
    "winsorized_sigma_clip": kernels.WINSORIZED,
    "linear_fit_clip": kernels.LINEAR_FIT,
}


@dataclass(frozen=True)
class StackResult:
    """A stacked rectangle of c channels.

    Attributes
    ----------
    image : ndarray, shape (c, ny, nx), float32
        NaN where no sample survives.
    weight : ndarray, shape (c, ny, nx), float32
        Sum of the weights of the survivors, 0 without any.
    coverage, rejected_low, rejected_high : ndarray, shape (c, ny, nx), int32
        Number of samples that survive, or are removed on either side.
    tally : ndarray, shape (n, 3), int64
        Samples of each frame that survive, are too low, are too high, over the rectangle and all channels.
    """

    image: np.ndarray
    weight: np.ndarray
    coverage: np.ndarray
    rejected_low: np.ndarray
    rejected_high: np.ndarray
    tally: np.ndarray


def normalise(data: np.ndarray, gain: np.ndarray, offset: np.ndarray) -> None:
    """Turn samples into ``gain * value + offset``, in place.

    Parameters
    ----------
    data : ndarray, shape (n, c, ny, nx), float32
    gain, offset : ndarray, shape (n, c)
    """
    for samples, g, o in zip(data, gain, offset, strict=True):
        samples *= g.astype(np.float32)[:, None, None]
        samples += o.astype(np.float32)[:, None, None]


def radial_weight(
    radius: np.ndarray, *, feather: float = 0.8, power: float = 2.0, floor: float = 0.05
) -> np.ndarray:
    """Return ``cos(pi/2 * clip(radius / feather, 0, 1)) ** power``, at least `floor`.

    Parameters
    ----------
    radius : ndarray
        Distance from the frame's centre over half its diagonal.
    """
    shape = np.cos(0.5 * np.pi * np.clip(radius / feather, 0.0, 1.0)) ** power
    return np.maximum(shape, floor)


def stack(
    data: np.ndarray,
    weight: np.ndarray,
    noise: np.ndarray,
    params: StackParams,
    *,
    pixel_weight: np.ndarray | None = None,
    halo: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> StackResult:
    """Reject and combine the normalised samples of a rectangle.

    Parameters
    ----------
    data : ndarray, shape (n, c, ny, nx), float32
        Samples in frame order; NaN = no data. Not altered.
    weight : ndarray, shape (n, c), float64
        Relative weight of each frame.
    noise : ndarray, shape (n, c), float64
        Expected standard deviation of a sample of each frame on empty sky, in the units of `data`.
    params : StackParams
    pixel_weight : ndarray, shape (n, ny, nx), float32, optional
        Further weight a pixel; a sample of weight 0 is no data.
    halo : tuple of int
        Rows below, rows above, columns before and columns after the wanted pixels, present in `data` so that
        the steepness of the border is known; they are not in the result.

    Returns
    -------
    StackResult

    Raises
    ------
    ValueError
        If a method is unknown or shapes disagree.
    """
    _check(data, weight, noise, params)
    if pixel_weight is not None:
        data = np.where(pixel_weight[:, None] > 0, data, np.float32(np.nan))
    low, high = rejection_bounds(data, noise, params)
    return combine(data, weight, (low, high), params, pixel_weight=pixel_weight, halo=halo)


def _check(data: np.ndarray, weight: np.ndarray, noise: np.ndarray, params: StackParams) -> None:
    if data.ndim != 4 or weight.shape != data.shape[:2] or noise.shape != data.shape[:2]:
        raise ValueError(f"data {data.shape}, weight {weight.shape} and noise {noise.shape} disagree")
    if params.reject != "none" and params.reject not in _SAMPLE_METHODS:
        raise ValueError(f"unknown rejection {params.reject!r}; known: none, {', '.join(_SAMPLE_METHODS)}")
    if params.combine not in ("mean", "median"):
        raise ValueError(f"unknown combination {params.combine!r}; known: mean, median")
    if params.spread not in ("auto", "sample"):
        raise ValueError(f"unknown spread {params.spread!r}; known: auto, sample")


def rejection_bounds(data: np.ndarray, noise: np.ndarray, params: StackParams) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds (low, high), float32 (c, ny, nx), between which samples survive."""
    shape = data.shape[1:]
    low = np.full(shape, -np.inf, dtype=np.float32)
    high = np.full(shape, np.inf, dtype=np.float32)
    if params.reject == "none" or data.shape[0] < 3:
        return low, high
    if params.reject == "kappa_sigma" and params.spread == "auto":
        return _modelled_bounds(data, noise, params)
    kernels.sample_bounds(
        data,
        _SAMPLE_METHODS[params.reject],
        (float(params.kappa_low), float(params.kappa_high)),
        params.max_iterations,
        (float(params.winsor_limits[0]), float(params.winsor_limits[1])),
        low,
        high,
    )
    return low, high


def _modelled_bounds(data: np.ndarray, noise: np.ndarray, params: StackParams) -> tuple[np.ndarray, np.ndarray]:
    """Clip about the median with the spread described under ``kappa_sigma`` above."""
    shape = data.shape[1:]
    median, spread, expected = (np.empty(shape, dtype=np.float32) for _ in range(3))
    count = np.empty(shape, dtype=np.int32)
    kernels.robust_statistics(data, np.square(noise, dtype=np.float64), median, spread, expected, count)
    # What the samples prove of their spread: one standard error below its estimate.
    proven = spread / (1.0 + MAD_ERROR / np.sqrt(np.maximum(count, 1), dtype=np.float32))
    variance = np.maximum(np.square(proven), expected)
    step = np.square(kernels.steepness(median))
    # The median's own noise makes steps of up to 2.5 sigma of a difference of two medians.
    step -= (2.5**2 * np.pi) * variance / np.maximum(count, 1)
    variance += STEEPNESS_SHARE**2 * np.maximum(step, 0.0)
    sigma = np.sqrt(variance)
    few = count < 3
    low = np.where(few, np.float32(-np.inf), median - np.float32(params.kappa_low) * sigma)
    high = np.where(few, np.float32(np.inf), median + np.float32(params.kappa_high) * sigma)
    return low, high


def combine(
    data: np.ndarray,
    weight: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
    params: StackParams,
    *,
    pixel_weight: np.ndarray | None = None,
    halo: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> StackResult:
    """Combine the samples within `bounds`; see `stack` for the arrays."""
    low, high = bounds
    n, channels, ny, nx = data.shape
    shape = (channels, ny - halo[0] - halo[1], nx - halo[2] - halo[3])
    corner = (halo[0], halo[2])
    image, weight_out = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
    counts = np.empty((3, *shape), dtype=np.int32)
    tally = np.zeros((n, 3), dtype=np.int64)
    weight = np.ascontiguousarray(weight, dtype=np.float64)
    filled = (image, weight_out, counts, tally)
    if pixel_weight is None:
        pixel_weight = np.empty((0, 0, 0), dtype=np.float32)
        kernels.weighted_mean(data, weight, low, high, corner, *filled)
    else:
        kernels.weighted_pixels_mean(data, weight, pixel_weight, low, high, corner, *filled)
    if params.combine == "median":
        kernels.weighted_median(data, weight, pixel_weight, low, high, corner, image)
    return StackResult(image, weight_out, counts[0], counts[1], counts[2], tally)
