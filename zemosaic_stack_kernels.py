"""Compiled loops of the stacker: which samples of a pixel survive, and what they combine to.

The samples of a pixel are sorted once; the survivors of every rejection here are a contiguous range of the
sorted samples, so they are named by two bounds ``low <= value <= high``, and the combination is a second pass
over the unsorted samples. Sorting runs vertically: a block of pixels by n rows, every comparator of the
network a minimum and a maximum across the block.

Axes are (n, c, ny, nx); NaN = no data. Sums are float64 and run in frame order.
"""

from __future__ import annotations

import numba as nb
import numpy as np

BLOCK = 384

KAPPA, WINSORIZED, LINEAR_FIT = 1, 2, 3

#: Finite-sample factors that make the scaled MAD of n normal samples unbiased, n = 0..9; n / (n - 0.8) above.
#: Source: C. Croux, P. J. Rousseeuw, "Time-efficient algorithms for two highly robust estimators of scale",
#: COMPSTAT 1992.
_MAD_FACTORS = np.array([1.0, 1.0, 1.196, 1.495, 1.363, 1.206, 1.200, 1.140, 1.129, 1.107])
_MAD_TO_SIGMA = 1.482602218505602


@nb.njit(cache=True, nogil=True)
def _exchange(first, second):
    for p in range(first.shape[0]):
        a = first[p]
        b = second[p]
        first[p] = a if a < b else b
        second[p] = b if a < b else a


@nb.njit(cache=True, nogil=True)
def sort_rows(block, n):
    """Sort the first `n` values of every column of a block in place (no NaN).

    Source: merge exchange, algorithm 5.2.2 M of D. E. Knuth, The Art of Computer Programming, vol. 3, after
    K. E. Batcher (1968).
    """
    top = 1
    while top * 2 < n:
        top *= 2
    p = top if n > 1 else 0
    while p > 0:
        q, r, d = top, 0, p
        while True:
            for i in range(n - d):
                if i & p == r:
                    _exchange(block[i], block[i + d])
            if q == p:
                break
            d = q - p
            q //= 2
            r = p
        p //= 2


@nb.njit(cache=True, nogil=True)
def _gather(data, channel, y, x0, width, block, count):
    """Copy the frames with data in a strip into the block, no data as +inf; return how many there are."""
    rows = 0
    count[:width] = 0
    for f in range(data.shape[0]):
        samples = data[f, channel, y, x0 : x0 + width]
        target = block[rows]
        found = 0
        for p in range(width):
            value = samples[p]
            here = value == value
            target[p] = value if here else np.float32(np.inf)
            count[p] += here
            found += here
        rows += found > 0
    return rows


@nb.njit(cache=True, nogil=True)
def _median(block, p, a, b):
    """Median of sorted samples a..b-1 of column p."""
    m = b - a
    upper = block[a + m // 2, p]
    if m % 2:
        return np.float64(upper)
    return 0.5 * (np.float64(upper) + np.float64(block[a + m // 2 - 1, p]))


@nb.njit(cache=True, nogil=True)
def _mad(block, p, m, median):
    """Median absolute deviation of m sorted samples: walk outwards from the middle."""
    i, j = m // 2 - 1, m // 2
    previous, current = 0.0, 0.0
    for _ in range(m // 2 + 1):
        below = median - block[i, p] if i >= 0 else np.inf
        above = block[j, p] - median if j < m else np.inf
        previous = current
        if below <= above:
            current = below
            i -= 1
        else:
            current = above
            j += 1
    return current if m % 2 else 0.5 * (previous + current)


@nb.njit(cache=True, nogil=True)
def robust_statistics(data, noise_variance, median, spread, expected, count_out):
    """Fill the median, robust spread, expected variance and number of the samples of every pixel.

    Parameters
    ----------
    data : ndarray, shape (n, c, ny, nx), float32
        Normalised samples.
    noise_variance : ndarray, shape (n, c), float64
        Expected variance of a sample of each frame.
    median, spread, expected : ndarray, shape (c, ny, nx), float32
        Filled; `spread` is the scaled median absolute deviation, `expected` the mean of the variances of the
        frames present. NaN without samples.
    count_out : ndarray, shape (c, ny, nx), int32
        Filled with the number of samples.
    """
    n, channels, ny, nx = data.shape
    block = np.empty((n, BLOCK), dtype=np.float32)
    count = np.empty(BLOCK, dtype=np.int32)
    variance = np.empty(BLOCK, dtype=np.float64)
    for c in range(channels):
        for y in range(ny):
            for x0 in range(0, nx, BLOCK):
                width = min(BLOCK, nx - x0)
                rows = _gather(data, c, y, x0, width, block, count)
                sort_rows(block[:, :width], rows)
                _sum_variance(data, noise_variance, c, y, x0, variance[:width])
                for p in range(width):
                    m = count[p]
                    x = x0 + p
                    count_out[c, y, x] = m
                    if m == 0:
                        median[c, y, x] = np.nan
                        spread[c, y, x] = np.nan
                        expected[c, y, x] = np.nan
                        continue
                    middle = _median(block, p, 0, m)
                    factor = _MAD_FACTORS[m] if m < 10 else m / (m - 0.8)
                    median[c, y, x] = middle
                    spread[c, y, x] = _MAD_TO_SIGMA * factor * _mad(block, p, m, middle)
                    expected[c, y, x] = variance[p] / m


@nb.njit(cache=True, nogil=True)
def _sum_variance(data, noise_variance, channel, y, x0, out):
    out[:] = 0.0
    for f in range(data.shape[0]):
        samples = data[f, channel, y, x0 : x0 + out.shape[0]]
        variance = noise_variance[f, channel]
        for p in range(out.shape[0]):
            out[p] += variance if samples[p] == samples[p] else 0.0


@nb.njit(cache=True, nogil=True)
def steepness(median):
    """Return the largest step from each pixel to its four neighbours, 0 where there is none.

    Parameters
    ----------
    median : ndarray, shape (c, ny, nx), float32
        NaN = no data.
    """
    channels, ny, nx = median.shape
    out = np.zeros((channels, ny, nx), dtype=np.float32)
    for c in range(channels):
        for y in range(ny):
            for x in range(nx):
                here = median[c, y, x]
                largest = np.float32(0.0)
                if y > 0 and abs(median[c, y - 1, x] - here) > largest:
                    largest = abs(median[c, y - 1, x] - here)
                if y + 1 < ny and abs(median[c, y + 1, x] - here) > largest:
                    largest = abs(median[c, y + 1, x] - here)
                if x > 0 and abs(median[c, y, x - 1] - here) > largest:
                    largest = abs(median[c, y, x - 1] - here)
                if x + 1 < nx and abs(median[c, y, x + 1] - here) > largest:
                    largest = abs(median[c, y, x + 1] - here)
                out[c, y, x] = largest
    return out


@nb.njit(cache=True, nogil=True)
def _deviation(block, p, a, b, median):
    """Standard deviation (population form) of sorted samples a..b-1, from rounded differences to the median."""
    total, squares = 0.0, 0.0
    for r in range(a, b):
        d = np.float64(np.float32(block[r, p] - median))
        total += d
        squares += d * d
    m = b - a
    return np.sqrt(max(squares / m - (total / m) ** 2, 0.0))


@nb.njit(cache=True, nogil=True)
def _trim(block, p, a, b, low, high):
    """Move the ends of a range of sorted samples inwards to low..high."""
    while a < b and block[a, p] < low:
        a += 1
    while b > a and block[b - 1, p] > high:
        b -= 1
    return a, b


@nb.njit(cache=True, nogil=True)
def _kappa_range(block, p, m, kappa_low, kappa_high, iterations):
    """Iterated clip about the median with the standard deviation of the survivors."""
    a, b = 0, m
    for _ in range(iterations):
        if b - a < 3:
            break
        median = _median(block, p, a, b)
        sigma = _deviation(block, p, a, b, median)
        a2, b2 = _trim(block, p, a, b, median - kappa_low * sigma, median + kappa_high * sigma)
        if a2 == a and b2 == b:
            break
        a, b = a2, b2
    return a, b


@nb.njit(cache=True, nogil=True)
def _clamped_deviation(block, p, a, b, low, high):
    """Standard deviation of samples a..b-1 after moving those outside low..high to the limits."""
    middle = 0.5 * (low + high)
    total, squares = 0.0, 0.0
    for r in range(a, b):
        d = min(max(np.float64(block[r, p]), low), high) - middle
        total += d
        squares += d * d
    m = b - a
    return np.sqrt(max(squares / m - (total / m) ** 2, 0.0))


@nb.njit(cache=True, nogil=True)
def _huber_sigma(block, p, a, b, limits):
    """Spread by repeated winsorisation at 1.5 sigma, from a first one at the given fractions."""
    m = b - a
    low = np.float64(block[a + int(limits[0] * m), p])
    high = np.float64(block[b - 1 - int(limits[1] * m), p])
    median = _median(block, p, a, b)
    sigma = 1.134 * _clamped_deviation(block, p, a, b, low, high)
    for _ in range(50):
        before = sigma
        sigma = 1.134 * _clamped_deviation(block, p, a, b, median - 1.5 * before, median + 1.5 * before)
        if abs(sigma - before) <= 0.0005 * before:
            break
    return sigma


@nb.njit(cache=True, nogil=True)
def _winsorized_range(block, p, m, kappa_low, kappa_high, iterations, limits):
    a, b = 0, m
    for _ in range(iterations):
        if b - a < 3:
            break
        median = _median(block, p, a, b)
        sigma = _huber_sigma(block, p, a, b, limits)
        a2, b2 = _trim(block, p, a, b, median - kappa_low * sigma, median + kappa_high * sigma)
        if a2 == a and b2 == b:
            break
        a, b = a2, b2
    return a, b


@nb.njit(cache=True, nogil=True)
def _linear_fit_range(block, p, m, kappa_low, kappa_high, iterations):
    """Clip at both ends by residuals to a line through the sorted samples, in units of their mean size."""
    a, b = 0, m
    for _ in range(iterations):
        k = b - a
        if k < 3:
            break
        centre = 0.5 * (k - 1)
        mean, slope = 0.0, 0.0
        for r in range(k):
            mean += block[a + r, p]
            slope += (r - centre) * block[a + r, p]
        mean /= k
        slope /= k * (np.float64(k) * k - 1.0) / 12.0
        size = 0.0
        for r in range(k):
            size += abs(block[a + r, p] - (mean + slope * (r - centre)))
        size /= k
        a2, b2 = a, b
        while a2 < b2 and mean + slope * (a2 - a - centre) - block[a2, p] > kappa_low * size:
            a2 += 1
        while b2 > a2 and block[b2 - 1, p] - (mean + slope * (b2 - 1 - a - centre)) > kappa_high * size:
            b2 -= 1
        if a2 == a and b2 == b:
            break
        a, b = a2, b2
    return a, b


@nb.njit(cache=True, nogil=True)
def sample_bounds(data, method, kappas, iterations, limits, low, high):
    """Fill the smallest and largest surviving sample of every pixel, from its samples alone.

    Parameters
    ----------
    data : ndarray, shape (n, c, ny, nx), float32
    method : int
        `KAPPA`, `WINSORIZED` or `LINEAR_FIT`.
    kappas, limits : tuple of two floats
        Low and high: rejection thresholds, and fractions of the first winsorisation.
    iterations : int
    low, high : ndarray, shape (c, ny, nx), float32
        Filled; everything survives where there are fewer than three samples.
    """
    n, channels, ny, nx = data.shape
    block = np.empty((n, BLOCK), dtype=np.float32)
    count = np.empty(BLOCK, dtype=np.int32)
    for c in range(channels):
        for y in range(ny):
            for x0 in range(0, nx, BLOCK):
                width = min(BLOCK, nx - x0)
                rows = _gather(data, c, y, x0, width, block, count)
                sort_rows(block[:, :width], rows)
                for p in range(width):
                    m = count[p]
                    a, b = 0, m
                    if m >= 3 and method == KAPPA:
                        a, b = _kappa_range(block, p, m, kappas[0], kappas[1], iterations)
                    elif m >= 3 and method == WINSORIZED:
                        a, b = _winsorized_range(block, p, m, kappas[0], kappas[1], iterations, limits)
                    elif m >= 3 and method == LINEAR_FIT:
                        a, b = _linear_fit_range(block, p, m, kappas[0], kappas[1], iterations)
                    low[c, y, x0 + p] = block[a, p] if b > a else -np.inf
                    high[c, y, x0 + p] = block[b - 1, p] if b > a else np.inf


@nb.njit(cache=True, nogil=True)
def weighted_mean(data, weight, low, high, corner, image, weight_out, counts, tally):
    """Fill the weighted mean of the samples within bounds, and count what became of every sample.

    Parameters
    ----------
    data : ndarray, shape (n, c, ny, nx), float32
    weight : ndarray, shape (n, c), float64
    low, high : ndarray, shape (c, ny, nx), float32
        A sample survives if ``low <= value <= high``.
    corner : tuple of int
        Row and column of `data` that the first pixel of the filled arrays stands for.
    image, weight_out : ndarray, shape (c, my, mx), float32
        Filled; NaN and 0 where nothing survives.
    counts : ndarray, shape (3, c, my, mx), int32
        Filled with the samples that survive, are too low, are too high.
    tally : ndarray, shape (n, 3), int64
        The same a frame; added to.
    """
    n = data.shape[0]
    channels, ny, nx = image.shape
    j, i = corner
    total = np.empty(nx, dtype=np.float64)
    weights = np.empty(nx, dtype=np.float64)
    for c in range(channels):
        for y in range(ny):
            total[:] = 0.0
            weights[:] = 0.0
            counts[:, c, y] = 0
            bottom, top = low[c, j + y, i : i + nx], high[c, j + y, i : i + nx]
            kept_row, low_row, high_row = counts[0, c, y], counts[1, c, y], counts[2, c, y]
            for f in range(n):
                samples = data[f, c, j + y, i : i + nx]
                w = weight[f, c]
                kept, below, above = 0, 0, 0
                for x in range(nx):
                    value = samples[x]
                    good = bottom[x] <= value <= top[x]
                    total[x] += w * value if good else 0.0
                    weights[x] += w if good else 0.0
                    kept_row[x] += good
                    kept += good
                    under = value < bottom[x]
                    over = value > top[x]
                    low_row[x] += under
                    high_row[x] += over
                    below += under
                    above += over
                tally[f, 0] += kept
                tally[f, 1] += below
                tally[f, 2] += above
            for x in range(nx):
                some = weights[x] > 0.0
                image[c, y, x] = total[x] / weights[x] if some else np.nan
                weight_out[c, y, x] = weights[x]


@nb.njit(cache=True, nogil=True)
def weighted_pixels_mean(data, weight, pixel_weight, low, high, corner, image, weight_out, counts, tally):
    """Like `weighted_mean` with a further weight a pixel, `pixel_weight` (n, ny, nx) float32.

    Samples of weight 0 do not count.
    """
    n = data.shape[0]
    channels, ny, nx = image.shape
    j, i = corner
    total = np.empty(nx, dtype=np.float64)
    weights = np.empty(nx, dtype=np.float64)
    for c in range(channels):
        for y in range(ny):
            total[:] = 0.0
            weights[:] = 0.0
            counts[:, c, y] = 0
            for f in range(n):
                for x in range(nx):
                    value = data[f, c, j + y, i + x]
                    w = weight[f, c] * pixel_weight[f, j + y, i + x]
                    if not (value == value and w > 0.0):
                        continue
                    fate = 0
                    if value < low[c, j + y, i + x]:
                        fate = 1
                    elif value > high[c, j + y, i + x]:
                        fate = 2
                    else:
                        total[x] += w * value
                        weights[x] += w
                    counts[fate, c, y, x] += 1
                    tally[f, fate] += 1
            for x in range(nx):
                some = weights[x] > 0.0
                image[c, y, x] = total[x] / weights[x] if some else np.nan
                weight_out[c, y, x] = weights[x]


@nb.njit(cache=True, nogil=True)
def weighted_median(data, weight, pixel_weight, low, high, corner, image):
    """Replace `image` by the weighted median of the samples within bounds.

    The weighted median is the middle of the interval on which the weights below and above balance; with equal
    weights it is the ordinary median. `pixel_weight` is (n, ny, nx), or has no frame (0, 0, 0) for none.
    """
    n = data.shape[0]
    channels, ny, nx = image.shape
    j, i = corner
    values = np.empty(n, dtype=np.float64)
    weights = np.empty(n, dtype=np.float64)
    per_pixel = pixel_weight.shape[0] > 0
    for c in range(channels):
        for y in range(ny):
            for x in range(nx):
                m = 0
                for f in range(n):
                    value = data[f, c, j + y, i + x]
                    w = weight[f, c] * (pixel_weight[f, j + y, i + x] if per_pixel else 1.0)
                    if low[c, j + y, i + x] <= value <= high[c, j + y, i + x] and w > 0.0:
                        values[m] = value
                        weights[m] = w
                        m += 1
                image[c, y, x] = _balanced(values[:m], weights[:m]) if m else np.nan


@nb.njit(cache=True, nogil=True)
def _balanced(values, weights):
    order = np.argsort(values, kind="mergesort")
    half = 0.5 * np.sum(weights)
    below = 0.0
    for k in range(order.shape[0]):
        below += weights[order[k]]
        if below > half * (1.0 + 1e-12):
            return values[order[k]]
        if below >= half * (1.0 - 1e-12):
            return 0.5 * (values[order[k]] + values[order[min(k + 1, order.shape[0] - 1)]])
    return values[order[-1]]
