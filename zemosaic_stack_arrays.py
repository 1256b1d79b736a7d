"""The stacker's arithmetic in array operations of any namespace: numpy, CuPy, or a stand-in of either.

The same as the compiled loops of `zemosaic_stack_kernels`, sample by sample and sum by sum; what is computed
stands in `zemosaic_stack_core`. Axes are (n, c, ny, nx), NaN = no data; per-frame values come as host arrays and
enter as scalars. Sums are float64 and run in frame order, one array operation a frame: slow for many frames, but
the same on every backend. Only names that CuPy has are used, and nothing comes back to the host except whether
an iteration has ended.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from zemosaic_backend import namespace_of, to_host
from zemosaic_types import StackParams

_INF = np.float32(np.inf)
_NAN = np.float32(np.nan)

#: Bytes of temporary arrays per sample and per pixel that these functions hold at most, besides their arguments.
SAMPLE_BYTES = 36
PIXEL_BYTES = 160


class _Sorted:
    """The samples of every pixel in ascending order, no data as +inf at the end; `count` (c, ny, nx) int32."""

    def __init__(self, data: Any) -> None:
        self.xp = xp = namespace_of(data)
        here = data == data
        self.count = xp.sum(here, axis=0, dtype=np.int32)
        self.values = xp.sort(xp.where(here, data, _INF), axis=0)
        self.n = data.shape[0]

    def at(self, rank: Any) -> Any:
        """Return the samples of a rank (c, ny, nx); ranks out of range give some sample."""
        xp = self.xp
        rank = xp.clip(rank, 0, self.n - 1)
        return xp.take_along_axis(self.values, rank[None], axis=0)[0]

    def middle(self, first: Any, last: Any) -> Any:
        """Return the median of the samples of ranks ``first <= rank < last``, float64."""
        span = last - first
        low, high = self.at(first + (span - 1) // 2), self.at(first + span // 2)
        return 0.5 * (low.astype(np.float64) + high.astype(np.float64))


def model_bounds(
    data: Any,
    noise: np.ndarray,
    to_sigma: np.ndarray,
    shares: tuple[np.float32, ...],
    kappas: tuple[float, float],
) -> tuple[Any, Any, Any]:
    """Return the bounds (low, high) of the clip with the modelled spread, and the curvature; float32 (c, ny, nx).

    The bounds are for samples less the frame's blur times the curvature.

    Parameters
    ----------
    data : array, shape (n, c, ny, nx), float32
    noise : ndarray, shape (4, n, c), float64
        Variance of the sky, variance per unit of signal, that times the level where signal begins, blur.
    to_sigma : ndarray, shape (n + 1,), float32
        What turns the median absolute deviation of so many samples into the spread they prove.
    shares : tuple of four float32
        As in `zemosaic_stack_kernels.stack_rows`.
    kappas : tuple of float
    """
    xp = namespace_of(data)
    ranked = _Sorted(data)
    count = ranked.count
    median = xp.where(count > 0, ranked.middle(xp.zeros_like(count), count).astype(np.float32), _NAN)
    proven = _mad(data, median, count) * xp.take(xp.asarray(to_sigma), count)
    sky, photon, floor, mean_blur = (_mean_over_present(data, row, count) for row in noise)
    signal = photon * median - floor
    expected = (sky + xp.where(signal > 0.0, signal, 0.0)).astype(np.float32)
    squared = proven * proven
    variance = xp.where(squared > expected, squared, expected)
    few = variance / xp.maximum(count, 1).astype(np.float32)
    step, curve = _largest_steps(median), _curvatures(median)
    steep, bent = step * step - shares[1] * few, curve * curve - shares[2] * few
    steep, bent = (xp.where(v > 0.0, v, np.float32(0.0)) for v in (steep, bent))
    sigma = xp.sqrt(variance + shares[0] * steep)
    bent = xp.sqrt(bent)
    curve = xp.where(curve > 0.0, bent, -bent)
    centre = median - mean_blur.astype(np.float32) * curve
    room = shares[3] * _span_over_present(data, noise[3]).astype(np.float32) * xp.abs(curve)
    low = xp.where(count > 2, centre - (np.float32(kappas[0]) * sigma + room), -_INF)
    high = xp.where(count > 2, centre + (np.float32(kappas[1]) * sigma + room), _INF)
    return low, high, xp.where(count > 0, curve, np.float32(0.0))


def _mad(data: Any, median: Any, count: Any) -> Any:
    """Return the median absolute deviation from the float32 median, float32; 0 without samples."""
    xp = namespace_of(data)
    ranked = _Sorted(xp.abs(data - median))
    low, high = ranked.at((count - 1) // 2), ranked.at(count // 2)
    return xp.where(count > 1, np.float32(0.5) * (low + high), np.float32(0.0))


def _mean_over_present(data: Any, shares: np.ndarray, count: Any) -> Any:
    """Return the mean of `shares` (n, c) over the frames that a pixel has, float64 (c, ny, nx); 0 without any."""
    xp = namespace_of(data)
    total = xp.zeros(data.shape[1:], dtype=np.float64)
    for k, c in np.ndindex(shares.shape):
        total[c] += xp.where(data[k, c] == data[k, c], float(shares[k, c]), 0.0)
    return total / xp.maximum(count, 1)


def _span_over_present(data: Any, values: np.ndarray) -> Any:
    """Return how far the `values` (n, c) of the frames that a pixel has lie apart, float64; -inf without any."""
    xp = namespace_of(data)
    lowest, highest = xp.full(data.shape[1:], np.inf), xp.full(data.shape[1:], -np.inf)
    for k, c in np.ndindex(values.shape):
        here, value = data[k, c] == data[k, c], float(values[k, c])
        lowest[c] = xp.where(here, xp.minimum(lowest[c], value), lowest[c])
        highest[c] = xp.where(here, xp.maximum(highest[c], value), highest[c])
    return highest - lowest


def _largest_steps(median: Any) -> Any:
    """Return the largest step from each pixel to its four neighbours; missing ones make none."""
    xp = namespace_of(median)
    step = xp.zeros_like(median)
    across, down = xp.abs(median[:, :, 1:] - median[:, :, :-1]), xp.abs(median[:, 1:] - median[:, :-1])
    across, down = (xp.where(d == d, d, np.float32(0.0)) for d in (across, down))
    for part, d in (
        ((slice(None), slice(None), slice(1, None)), across),
        ((slice(None), slice(None), slice(None, -1)), across),
        ((slice(None), slice(1, None)), down),
        ((slice(None), slice(None, -1)), down),
    ):
        step[part] = xp.maximum(step[part], d)
    return step


def _curvatures(median: Any) -> Any:
    """Return half the Laplacian, 0 where a neighbour is missing; beyond the border a pixel continues itself."""
    xp = namespace_of(median)
    across, down = xp.zeros_like(median), xp.zeros_like(median)
    inner = median[:, :, 1:-1]
    across[:, :, 1:-1] = (median[:, :, :-2] - inner) + (median[:, :, 2:] - inner)
    down[:, 1:] = median[:, :-1] - median[:, 1:]
    down[:, :-1] += median[:, 1:] - median[:, :-1]
    bend = np.float32(0.5) * (across + down)
    return xp.where(bend == bend, bend, np.float32(0.0))


def sample_bounds(data: Any, params: StackParams) -> tuple[Any, Any]:
    """Return the smallest and largest surviving sample of every pixel, float32 (c, ny, nx).

    Everything survives where there are fewer than three samples.

    Parameters
    ----------
    data : array, shape (n, c, ny, nx), float32
    params : StackParams
        With the rejection ``kappa_sigma`` (textbook form), ``winsorized_sigma_clip`` or ``linear_fit_clip``.
    """
    xp = namespace_of(data)
    ranked = _Sorted(data)
    first, last = xp.zeros_like(ranked.count), ranked.count.copy()
    clip = {"kappa_sigma": _Kappa, "winsorized_sigma_clip": _Winsorized, "linear_fit_clip": _LinearFit}
    method = clip[params.reject](ranked, params)
    going = last >= 3
    for _ in range(params.max_iterations):
        if not bool(to_host(xp.any(going))):
            break
        first2, last2 = method.trim(first, last)
        going = going & ((first2 != first) | (last2 != last))
        method.remove(first, last, xp.where(going, first2, first), xp.where(going, last2, last))
        first, last = xp.where(going, first2, first), xp.where(going, last2, last)
        going = going & (last - first >= 3)
    some = last > first
    return xp.where(some, ranked.at(first), -_INF), xp.where(some, ranked.at(last - 1), _INF)


def _sigma(xp: Any, total: Any, squares: Any, share: Any) -> Any:
    """Return the standard deviation from sums of differences and of squares of 1 / share samples."""
    mean = total * share
    return xp.sqrt(xp.maximum(squares * share - mean * mean, 0.0))


class _Clip:
    """A clip of sorted samples at both ends; `trim` narrows the ranks of the survivors once."""

    def __init__(self, ranked: _Sorted, params: StackParams) -> None:
        self.xp, self.ranked, self.params = ranked.xp, ranked, params

    def trim(self, first: Any, last: Any) -> tuple[Any, Any]:
        median, sigma = self.ranked.middle(first, last), self.sigma(first, last)
        return self.within(
            first, last, median - self.params.kappa_low * sigma, median + self.params.kappa_high * sigma
        )

    def within(self, first: Any, last: Any, low: Any, high: Any) -> tuple[Any, Any]:
        """Move the ends of the ranks inwards to the samples within low..high."""
        xp = self.xp
        below, upto = xp.zeros_like(first), xp.zeros_like(first)
        for values in self.ranked.values:
            below += values < low
            upto += values <= high
        first = xp.minimum(xp.maximum(first, below), last)
        return first, xp.maximum(first, xp.minimum(last, upto))

    def differences(self, centre: Any, r: int, first: Any, last: Any) -> Any:
        """Return the differences of the samples of rank r to a float32 centre, 0 outside the ranks."""
        inside = (first <= r) & (last > r)
        return self.xp.where(inside, self.ranked.values[r] - centre, np.float32(0.0)).astype(np.float64)

    def remove(self, first: Any, last: Any, first2: Any, last2: Any) -> None:
        """Take notice of what was clipped."""


class _Kappa(_Clip):
    """The iterated clip with the standard deviation of the survivors, from sums about the first median."""

    def __init__(self, ranked: _Sorted, params: StackParams) -> None:
        super().__init__(ranked, params)
        first, last = self.xp.zeros_like(ranked.count), ranked.count
        self.centre = ranked.middle(first, last).astype(np.float32)
        self.total = self.xp.zeros(first.shape, dtype=np.float64)
        self.squares = self.xp.zeros(first.shape, dtype=np.float64)
        self._add(first, last, 1.0)

    def _add(self, first: Any, last: Any, sign: float) -> None:
        for r in range(self.ranked.n):
            d = self.differences(self.centre, r, first, last)
            self.total += sign * d
            self.squares += sign * (d * d)

    def sigma(self, first: Any, last: Any) -> Any:
        xp = self.xp
        return _sigma(xp, self.total, self.squares, 1.0 / xp.maximum(last - first, 1))

    def remove(self, first: Any, last: Any, first2: Any, last2: Any) -> None:
        self._add(first, first2, -1.0)
        self._add(last2, last, -1.0)


class _Winsorized(_Clip):
    """The clip with the Huber-winsorised spread of the survivors."""

    def sigma(self, first: Any, last: Any) -> Any:
        xp, ranked = self.xp, self.ranked
        low_share, high_share = (float(v) for v in self.params.winsor_limits)
        count = xp.maximum(last - first, 1)
        median = ranked.middle(first, last)
        low = ranked.at(first + (low_share * count).astype(np.int32)).astype(np.float64)
        high = ranked.at(last - 1 - (high_share * count).astype(np.int32)).astype(np.float64)
        sigma = 1.134 * self._clamped(first, last, median, low, high)
        going = count >= 3
        for _ in range(50):
            if not bool(to_host(xp.any(going))):
                break
            new = 1.134 * self._clamped(first, last, median, median - 1.5 * sigma, median + 1.5 * sigma)
            change = xp.abs(new - sigma)
            going, sigma = going & (change > 0.0005 * sigma), xp.where(going, new, sigma)
        return sigma

    def _clamped(self, first: Any, last: Any, median: Any, low: Any, high: Any) -> Any:
        """Return the standard deviation after moving samples outside low..high to the limits."""
        xp, centre = self.xp, median.astype(np.float32)
        down, up = low - centre, high - centre
        total, squares = xp.zeros_like(median), xp.zeros_like(median)
        for r in range(self.ranked.n):
            values, inside = self.ranked.values[r], (first <= r) & (last > r)
            d = (values - centre).astype(np.float64)
            d = xp.where(values < low, down, xp.where(values > high, up, d))
            d = xp.where(inside, d, 0.0)
            total += d
            squares += d * d
        return _sigma(xp, total, squares, 1.0 / xp.maximum(last - first, 1))


class _LinearFit(_Clip):
    """The clip by residuals to a line through the sorted survivors, in units of their mean size."""

    def trim(self, first: Any, last: Any) -> tuple[Any, Any]:
        xp, ranked, params = self.xp, self.ranked, self.params
        count = xp.maximum(last - first, 1).astype(np.float64)
        centre = 0.5 * (count - 1.0)
        mean, slope, size = (xp.zeros(first.shape, dtype=np.float64) for _ in range(3))
        for r in range(ranked.n):
            value = self._inside(r, first, last)
            mean += value
            slope += (r - first - centre) * value
        mean = mean / count
        slope = slope / xp.maximum(count * (count * count - 1.0) / 12.0, 1e-300)
        residuals = []
        for r in range(ranked.n):
            line = mean + slope * (r - first - centre)
            inside = (first <= r) & (last > r)
            residuals.append(xp.where(inside, line - ranked.values[r], 0.0))
            size += xp.abs(residuals[-1])
        size = size / count
        return self._ends(first, last, residuals, params.kappa_low * size, params.kappa_high * size)

    def _inside(self, r: int, first: Any, last: Any) -> Any:
        inside = (first <= r) & (last > r)
        return self.xp.where(inside, self.ranked.values[r], np.float32(0.0)).astype(np.float64)

    def _ends(self, first: Any, last: Any, residuals: list, low: Any, high: Any) -> tuple[Any, Any]:
        """Move both ends inwards over samples whose residual is too large, until one is not."""
        first2, last2 = first.copy(), last.copy()
        for r, residual in enumerate(residuals):
            first2 += (first2 == r) & (last > r) & (residual > low)
        for r in range(len(residuals) - 1, -1, -1):
            last2 -= (last2 == r + 1) & (first2 <= r) & (-residuals[r] > high)
        return first2, last2


def combine_arrays(
    data: Any,
    weight: np.ndarray,
    bounds: tuple[Any, ...] | None,
    blur: np.ndarray,
    inside: tuple[slice, slice],
    pixel_weight: Any,
    use_median: bool,
) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Combine the samples within bounds; returns the arrays of a `zemosaic_stack_core.StackResult`.

    Parameters
    ----------
    data : array, shape (n, c, ny, nx), float32
    weight : ndarray, shape (n, c), float64
    bounds : tuple of arrays (c, ny, nx), or None
        Low and high, and perhaps the curvature; None keeps every sample.
    blur : ndarray, shape (n, c), float32
        What a frame's samples are less by in units of the curvature before they are held against the bounds.
    inside : tuple of slices
        Rows and columns that are wanted.
    pixel_weight : array, shape (n, ny, nx), float32, or None
    use_median : bool
    """
    xp = namespace_of(data)
    data = data[:, :, inside[0], inside[1]]
    low, high, *curve = (-_INF, _INF) if bounds is None else (b[:, inside[0], inside[1]] for b in bounds)
    matched = xp.stack([_matched(data[k], blur[k], curve) for k in range(data.shape[0])]) if curve else data
    total, weights = (xp.zeros(data.shape[1:], dtype=np.float64) for _ in range(2))
    counts = xp.zeros((3, *data.shape[1:]), dtype=np.int32)
    tally = []
    for k in range(data.shape[0]):
        values, w = data[k], _weights(xp, weight[k], pixel_weight, k, inside)
        held = matched[k]
        good, under, over = (held >= low) & (held <= high), held < low, held > high
        total += xp.where(good, w * values.astype(np.float64), 0.0)
        weights += xp.where(good, w, 0.0)
        for fate, which in enumerate((good, under, over)):
            counts[fate] += which
            tally.append(xp.sum(which, dtype=np.int64))
    some = weights > 0.0
    image = xp.where(some, total / xp.where(some, weights, 1.0), np.nan).astype(np.float32)
    if use_median:
        good = (matched >= low) & (matched <= high)
        image = _weighted_medians(data, good, weight, pixel_weight, inside)
    fates = xp.stack(tally).reshape(data.shape[0], 3)
    return image, weights.astype(np.float32), counts[0], counts[1], counts[2], fates


def _weights(xp: Any, weight: np.ndarray, pixel_weight: Any, k: int, inside: tuple[slice, slice]) -> Any:
    """Return the weights of frame k's samples, float64, to be broadcast over (c, ny, nx)."""
    w = xp.asarray(weight)[:, None, None]
    return w if pixel_weight is None else w * pixel_weight[k][inside].astype(np.float64)


def _matched(values: Any, blur: np.ndarray, curve: list) -> Any:
    """Return the samples (c, ny, nx) of a frame as they would be with the usual blur."""
    return values - namespace_of(values).asarray(blur)[:, None, None] * curve[0]


def _weighted_medians(data: Any, good: Any, weight: np.ndarray, pixel_weight: Any, inside: tuple) -> Any:
    """Return the middle of the interval on which the weights of the survivors below and above balance."""
    xp = namespace_of(data)
    weights = xp.stack([_weights(xp, weight[k], pixel_weight, k, inside) for k in range(data.shape[0])])
    weights = xp.where(good, weights, 0.0)
    order = xp.argsort(xp.where(good, data, _INF), axis=0)
    values, weights = xp.take_along_axis(data, order, axis=0), xp.take_along_axis(weights, order, axis=0)
    half = 0.5 * _sum_in_order(weights)
    below, middle = xp.zeros_like(half), xp.full(half.shape, np.nan)
    count = xp.sum(good, axis=0, dtype=np.int32)
    open_ = count > 0
    for k in range(data.shape[0]):
        below += weights[k]
        value = values[k].astype(np.float64)
        upper = xp.where(count > k + 1, values[min(k + 1, data.shape[0] - 1)].astype(np.float64), value)
        past = below > half * (1.0 + 1e-12)
        found = open_ & (past | (below >= half * (1.0 - 1e-12)))
        middle = xp.where(found, xp.where(past, value, 0.5 * (value + upper)), middle)
        open_ = open_ & ~found
    return middle.astype(np.float32)


def _sum_in_order(values: Any) -> Any:
    total = namespace_of(values).zeros_like(values[0])
    for value in values:
        total += value
    return total
