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
def displacements(frame, ux, uy, p, out):
    """Fill `out` (d, 2) with how far corrections `p` (n, 4) move detections at `ux`, `uy` in their frame."""
    for d in range(frame.size):
        tx, ty, a, b = p[frame[d]]
        out[d, 0] = tx + a * ux[d] - b * uy[d]
        out[d, 1] = ty + b * ux[d] + a * uy[d]


@nb.njit(cache=True, nogil=True)
def star_means(star, weight, values, out):
    """Fill `out` (k, 2) with the weighted means of `values` (d, 2) over the detections of each star."""
    total = np.zeros(out.shape[0])
    out[:] = 0.0
    for d in range(star.size):
        total[star[d]] += weight[d]
        out[star[d], 0] += weight[d] * values[d, 0]
        out[star[d], 1] += weight[d] * values[d, 1]
    for k in range(out.shape[0]):
        if total[k] > 0.0:
            out[k, 0] /= total[k]
            out[k, 1] /= total[k]


@nb.njit(cache=True, nogil=True)
def gather(frame, star, ux, uy, weight, values, means, out):
    """Fill `out` (n, 4) with the gradient of half the weighted squares of ``values - means[star]``."""
    out[:] = 0.0
    for d in range(frame.size):
        rx = weight[d] * (values[d, 0] - means[star[d], 0])
        ry = weight[d] * (values[d, 1] - means[star[d], 1])
        f = frame[d]
        out[f, 0] += rx
        out[f, 1] += ry
        out[f, 2] += ux[d] * rx + uy[d] * ry
        out[f, 3] += ux[d] * ry - uy[d] * rx
