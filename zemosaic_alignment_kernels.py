"""Compiled loops of the alignment: offsets of pairs of frames, and the normal equations without their matrix."""

from __future__ import annotations

import numba as nb
import numpy as np

_BIN_PX = 3.0
_TIGHTEN_PX = (6.0, 4.0, 3.0, 3.0)


@nb.njit(cache=True, nogil=True)
def pair_offsets(pairs, start, x, y, reach, out):
    """Fill `out` with the offset at which most stars of two frames coincide, for every pair.

    Parameters
    ----------
    pairs : ndarray, shape (p, 2), int64
        Indices of frames.
    start : ndarray, shape (n + 1,), int64
        The detections of frame f are ``start[f]:start[f + 1]``.
    x, y : ndarray, shape (d,), float64
        Positions on the canvas; y ascends within a frame.
    reach : float
        Largest offset along an axis that is looked for, px.
    out : ndarray, shape (p, 4), float64
        Mean of ``second - first`` along x and y over the coinciding stars, their number, and the number that
        chance makes coincide somewhere within `reach`.
    """
    n_bins = int(2.0 * reach / _BIN_PX) + 2
    votes = np.zeros((n_bins, n_bins), dtype=np.int32)
    for p in range(pairs.shape[0]):
        i, j = pairs[p]
        limits = (start[i], start[i + 1], start[j], start[j + 1])
        total = _count_votes(limits, x, y, reach, votes)
        dx, dy = _peak(votes)
        dx, dy = (dx + 1.0) * _BIN_PX - reach, (dy + 1.0) * _BIN_PX - reach
        n = 0
        for radius in _TIGHTEN_PX:
            dx, dy, n = _mean_within(limits, x, y, dx, dy, radius)
        out[p, 0], out[p, 1], out[p, 2] = dx, dy, n
        out[p, 3] = (total - n) * np.pi * _TIGHTEN_PX[-1] ** 2 / (2.0 * reach) ** 2


@nb.njit(cache=True, nogil=True)
def _count_votes(limits, x, y, reach, votes):
    """Count the differences of all pairs of stars of two frames in bins; return how many there are."""
    a0, a1, b0, b1 = limits
    votes[:] = 0
    total = 0
    for a in range(a0, a1):
        while b0 < b1 and y[b0] < y[a] - reach:
            b0 += 1
        b = b0
        while b < b1 and y[b] <= y[a] + reach:
            dx = x[b] - x[a]
            if abs(dx) <= reach:
                votes[int((y[b] - y[a] + reach) / _BIN_PX), int((dx + reach) / _BIN_PX)] += 1
                total += 1
            b += 1
    return total


@nb.njit(cache=True, nogil=True)
def _peak(votes):
    """Return column and row of the first of the 2 x 2 bins that hold most votes; the least offset of equals."""
    best, column, row, nearest = -1, 0, 0, 0.0
    middle = 0.5 * (votes.shape[0] - 2)
    for r in range(votes.shape[0] - 1):
        for c in range(votes.shape[1] - 1):
            n = votes[r, c] + votes[r, c + 1] + votes[r + 1, c] + votes[r + 1, c + 1]
            away = (r - middle) ** 2 + (c - middle) ** 2
            if n > best or (n == best and away < nearest):
                best, column, row, nearest = n, c, r, away
    return float(column), float(row)


@nb.njit(cache=True, nogil=True)
def _mean_within(limits, x, y, dx, dy, radius):
    """Return the mean of the differences within `radius` of an offset, and their number."""
    a0, a1, b0, b1 = limits
    sum_x = sum_y = 0.0
    n = 0
    for a in range(a0, a1):
        while b0 < b1 and y[b0] < y[a] + dy - radius:
            b0 += 1
        b = b0
        while b < b1 and y[b] <= y[a] + dy + radius:
            ex, ey = x[b] - x[a], y[b] - y[a]
            if (ex - dx) ** 2 + (ey - dy) ** 2 <= radius * radius:
                sum_x += ex
                sum_y += ey
                n += 1
            b += 1
    if n == 0:
        return dx, dy, 0
    return sum_x / n, sum_y / n, n


@nb.njit(cache=True, nogil=True)
def gradient(start, star, place, weight, total, offset, correction, at_star, out):
    """Fill `out` with the gradient of half the weighted squares of what corrections leave about the stars' means.

    Shifts are complex numbers, ``x + i y``; a frame's correction moves what is at ``w`` by ``t + c * w``.

    Parameters
    ----------
    start : ndarray, shape (n + 1,), int64
        The detections of frame f are ``start[f]:start[f + 1]``.
    star : ndarray, shape (d,), int64
    place, offset : ndarray, shape (d,), complex128
        Where a detection is in its frame, and how far it lies from its star without a correction.
    weight : ndarray, shape (d,), float64
    total : ndarray, shape (k,), float64
        Sums of the weights of each star.
    correction, out : ndarray, shape (n, 2), complex128
        ``t`` and ``c``.
    at_star : ndarray, shape (k,), complex128
        Scratch memory.
    """
    at_star[:] = 0.0
    for i in range(start.size - 1):
        t, c = correction[i]
        for d in range(start[i], start[i + 1]):
            at_star[star[d]] += weight[d] * (offset[d] + t + c * place[d])
    for k in range(total.size):
        if total[k] > 0.0:
            at_star[k] *= 1.0 / total[k]
    for i in range(start.size - 1):
        t, c = correction[i]
        shift = turn = 0.0j
        for d in range(start[i], start[i + 1]):
            pull = weight[d] * (offset[d] + t + c * place[d] - at_star[star[d]])
            shift += pull
            turn += place[d].conjugate() * pull
        out[i, 0], out[i, 1] = shift, turn
