"""Compiled clips of one pixel's sorted samples: which of them survive, judged by the samples alone.

Each takes the samples in ascending order and returns the range (first, last + 1) of those that survive; the
definitions stand in `zemosaic_stack_core`.
"""

from __future__ import annotations

import numba as nb
import numpy as np

# Division by zero is inf or NaN, as in numpy: a check before every division would cost the vectors.
compiled = nb.njit(cache=True, nogil=True, error_model="numpy")
inlined = nb.njit(cache=True, nogil=True, error_model="numpy", inline="always")


@compiled
def median_of(values, a, b):
    """Median of sorted values a..b-1."""
    return 0.5 * (np.float64(values[a + (b - a - 1) // 2]) + np.float64(values[a + (b - a) // 2]))


@compiled
def _trim(values, a, b, low, high):
    """Move the ends of a range of sorted values inwards to low..high."""
    while a < b and values[a] < low:
        a += 1
    while b > a and values[b - 1] > high:
        b -= 1
    return a, b


@compiled
def deviation(total, squares, share):
    """Standard deviation (population form) from the sums of differences and of squares of 1 / share samples."""
    mean = total * share
    return np.sqrt(max(squares * share - mean * mean, 0.0))


@compiled
def kappa_range(values, m, total, squares, kappas, iterations):
    """Iterated clip about the median with the standard deviation of the survivors.

    `total` and `squares` are the sums of the float32 differences of all values to their float32 median, and of
    their squares; what is clipped is taken off again.
    """
    a, b = 0, m
    centre = np.float32(median_of(values, 0, m))
    for _ in range(iterations):
        if b - a < 3:
            break
        median, sigma = median_of(values, a, b), deviation(total, squares, 1.0 / (b - a))
        a2, b2 = _trim(values, a, b, median - kappas[0] * sigma, median + kappas[1] * sigma)
        if a2 == a and b2 == b:
            break
        for r in range(a, b):
            if r < a2 or r >= b2:
                d = np.float64(values[r] - centre)
                total -= d
                squares -= d * d
        a, b = a2, b2
    return a, b


@compiled
def _running_sums(values, a, b, median, sums):
    """Fill the sums of the differences of sorted values to the median, and of their squares, up to each."""
    centre, total, squares = np.float32(median), 0.0, 0.0
    for r in range(a, b):
        d = np.float64(values[r] - centre)
        total += d
        squares += d * d
        sums[0, r + 1 - a], sums[1, r + 1 - a] = total, squares


@compiled
def _huber_sigma(values, a, b, limits, sums):
    """Spread by repeated winsorisation at 1.5 sigma, from a first one at the given fractions."""
    m, median = b - a, median_of(values, a, b)
    _running_sums(values, a, b, median, sums)
    centre = np.float64(np.float32(median))
    low, high = np.float64(values[a + int(limits[0] * m)]), np.float64(values[b - 1 - int(limits[1] * m)])
    sigma, share, i, j = 0.0, 1.0 / m, 0, m
    for turn in range(51):
        if turn:
            low, high = median - 1.5 * sigma, median + 1.5 * sigma
        while i > 0 and values[a + i - 1] >= low:
            i -= 1
        while i < m and values[a + i] < low:
            i += 1
        while j < m and values[a + j] <= high:
            j += 1
        while j > i and values[a + j - 1] > high:
            j -= 1
        down, up = low - centre, high - centre
        total = i * down + (sums[0, j] - sums[0, i]) + (m - j) * up
        squares = i * down * down + (sums[1, j] - sums[1, i]) + (m - j) * up * up
        before, sigma = sigma, 1.134 * deviation(total, squares, share)
        if turn and abs(sigma - before) <= 0.0005 * before:
            break
    return sigma


@compiled
def winsorized_range(values, m, kappas, iterations, limits, sums):
    """Repeated clip of the original samples with their Huber-winsorised spread; `sums` (2, m + 1) is scratch."""
    a, b = 0, m
    for _ in range(iterations):
        if b - a < 3:
            break
        median, sigma = median_of(values, a, b), _huber_sigma(values, a, b, limits, sums)
        a2, b2 = _trim(values, a, b, median - kappas[0] * sigma, median + kappas[1] * sigma)
        if a2 == a and b2 == b:
            break
        a, b = a2, b2
    return a, b


@compiled
def _line(values, a, b):
    """Mean, slope and mean absolute residual of the line fitted to sorted values a..b-1 over their ranks."""
    k = b - a
    centre = 0.5 * (k - 1)
    mean, slope, size = 0.0, 0.0, 0.0
    for r in range(k):
        mean += values[a + r]
        slope += (r - centre) * values[a + r]
    mean /= k
    slope /= k * (np.float64(k) * k - 1.0) / 12.0
    for r in range(k):
        size += abs(values[a + r] - (mean + slope * (r - centre)))
    return mean, slope, size / k


@compiled
def linear_fit_range(values, m, kappas, iterations):
    """Clip at both ends by residuals to a line through the sorted samples, in units of their mean size."""
    a, b = 0, m
    for _ in range(iterations):
        if b - a < 3:
            break
        mean, slope, size = _line(values, a, b)
        centre = a + 0.5 * (b - a - 1)
        a2, b2 = a, b
        while a2 < b2 and mean + slope * (a2 - centre) - values[a2] > kappas[0] * size:
            a2 += 1
        while b2 > a2 and values[b2 - 1] - (mean + slope * (b2 - 1 - centre)) > kappas[1] * size:
            b2 -= 1
        if a2 == a and b2 == b:
            break
        a, b = a2, b2
    return a, b
