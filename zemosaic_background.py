"""Robust statistics of an image's pixels: the level of its sky, the noise of a pixel, medians of boxes.

Kernels over arrays of numpy. Stars, nebulae, gradients and missing pixels do not lead them astray.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from zemosaic_types import MAD_TO_SIGMA

_MAX_SAMPLES = 65_536
_MAX_MISSING = 0.25  # share of a box's pixels


def fast_median(values: np.ndarray) -> np.ndarray:
    """Return what ``np.median(values, axis=-1)`` does, several times faster.

    numpy partitions in vectors where it is asked for one place, and `numpy.median` asks for several at once.

    Parameters
    ----------
    values : ndarray, shape (..., n), float
        At least one along the last axis, none of them NaN.
    """
    n = values.shape[-1]
    parted = np.partition(values, n // 2, axis=-1)
    upper = parted[..., n // 2]
    return upper if n % 2 else (parted[..., : n // 2].max(axis=-1) + upper) / 2


def mad(values: np.ndarray) -> float:
    """Return the median absolute deviation of values from their median; see `fast_median` for the values."""
    return _deviation(values, fast_median(values))


def _deviation(values: np.ndarray, middle: float) -> float:
    return float(fast_median(np.abs(values - middle)))


def sky_and_noise(plane: np.ndarray) -> tuple[float, float]:
    """Return the sky level and the noise of one pixel, both robust against stars, nebulae and gradients.

    The noise comes from differences of horizontal neighbours (median absolute deviation over sqrt 2), which a
    smooth sky does not enter; the sky is the median of what lies within 3 noise sigmas of the median, iterated.

    Parameters
    ----------
    plane : ndarray, shape (ny, nx)
        Pixels of one colour; NaN = no data.

    Returns
    -------
    sky, noise : float
        In the plane's units; NaN if no pixel is finite. A noise of 0 means a constant image.
    """
    difference, values = _thinned_differences(plane), _thinned(plane)
    if difference.size == 0 or values.size == 0:
        return float("nan"), float("nan")
    noise = MAD_TO_SIGMA * mad(difference) / np.sqrt(2.0)
    if noise == 0.0:
        # Coarsely quantised: most neighbours are equal, the others still tell.
        noise = np.sqrt(np.pi) / 2.0 * float(np.mean(np.abs(difference)))
    sky = _iterated_median(values)
    return float(sky), float(noise)


def _thinned(values: np.ndarray) -> np.ndarray:
    """Return at most `_MAX_SAMPLES` finite values, evenly taken (a fixed choice, no random numbers)."""
    flat = values.reshape(-1)[:: _stride(values.size)].astype(np.float64)
    return flat[np.isfinite(flat)]


def _thinned_differences(plane: np.ndarray) -> np.ndarray:
    """Return what `_thinned` takes of the differences of horizontal neighbours, without making them all."""
    ny, nx = plane.shape
    if nx < 2:
        return np.empty(0)
    place = np.arange(0, ny * (nx - 1), _stride(ny * (nx - 1)))
    left = place + place // (nx - 1)  # in the flat plane, whose rows are one longer
    flat = plane.reshape(-1)
    difference = (flat[left + 1].astype(np.float32) - flat[left]).astype(np.float64)
    return difference[np.isfinite(difference)]


def _stride(size: int) -> int:
    """Return at which distance values are taken; an odd one does not fall into step with rows of even size."""
    return max(1, size // _MAX_SAMPLES) | 1


def _iterated_median(values: np.ndarray) -> float:
    """Return the median after clipping at 3 robust sigmas until nothing changes."""
    values = np.sort(values)
    for _ in range(10):
        middle = _middle(values)
        reach = 3.0 * MAD_TO_SIGMA * _deviation(values, middle)
        low, high = np.searchsorted(values, (middle - reach, np.nextafter(middle + reach, np.inf)))
        if high - low == values.size or high - low < 10:
            break
        values = values[low:high]
    return _middle(values)


def _middle(values: np.ndarray) -> float:
    """Return the median of sorted values."""
    return float(values[(values.size - 1) // 2] + values[values.size // 2]) / 2


def box_medians(plane: np.ndarray, x: np.ndarray, y: np.ndarray, half: int) -> np.ndarray:
    """Return medians of square boxes of side ``2 * half + 1``.

    NaN where a box leaves the plane or lacks more than `_MAX_MISSING` of its pixels: single bad ones are no loss,
    and more would move what a box stands for.

    Parameters
    ----------
    plane : ndarray, shape (ny, nx), float32
    x, y : ndarray, shape (k,)
        Centres, rounded to the nearest pixel; NaN allowed.
    half : int
    """
    out = np.full(x.shape, np.nan, dtype=np.float32)
    side = 2 * half + 1
    if min(plane.shape) < side:
        return out
    fits = (x >= half) & (x <= plane.shape[1] - 1 - half) & (y >= half) & (y <= plane.shape[0] - 1 - half)
    column = np.rint(x[fits]).astype(int) - half
    row = np.rint(y[fits]).astype(int) - half
    windows = sliding_window_view(plane, (side, side))
    boxes = windows[row, column].reshape(row.size, -1)
    missing = np.count_nonzero(np.isnan(boxes), axis=1)
    medians = np.full(row.size, np.nan, dtype=np.float32)
    whole, pierced = missing == 0, (missing > 0) & (missing <= _MAX_MISSING * side**2)
    medians[whole] = fast_median(boxes if whole.all() else boxes[whole])
    medians[pierced] = np.nanmedian(boxes[pierced], axis=1)
    out[fits] = medians
    return out
