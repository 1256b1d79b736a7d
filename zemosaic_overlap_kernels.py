"""Compiled loops of `zemosaic_overlap_fit`: sums over what frames saw of common points.

Sightings are ordered by frame; those of frame ``i`` are ``start[i]`` to ``start[i + 1]``. A frame's model at the
place ``(px, py)`` of a point is ``a + b * (px - cx) + c * (py - cy)``, or ``a`` alone where that is its only
coefficient.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def point_sums(start, point, weight, value, n_points):  # pragma: no cover - compiled
    """Return the sums of ``weight * value`` and of ``weight`` over the sightings of every point."""
    total, weights = np.zeros(n_points), np.zeros(n_points)
    for s in range(start[-1]):
        total[point[s]] += weight[s] * value[s]
        weights[point[s]] += weight[s]
    return total, weights


@njit(cache=True, nogil=True)
def modelled(start, point, place, centre, coefficients, out):  # pragma: no cover - compiled
    """Put the frames' models at their sightings into `out`."""
    for i in range(start.size - 1):
        a = coefficients[i, 0]
        if coefficients.shape[1] == 1:
            for s in range(start[i], start[i + 1]):
                out[s] = a
            continue
        b, c = coefficients[i, 1], coefficients[i, 2]
        for s in range(start[i], start[i + 1]):
            k = point[s]
            out[s] = a + b * (place[k, 0] - centre[i, 0]) + c * (place[k, 1] - centre[i, 1])


@njit(cache=True, nogil=True)
def residuals(
    point, weight, weights, seen, truth, sigma, least_share, residual, pull
):  # pragma: no cover - compiled
    """Put what was seen less the truths into `residual`, and that in units of its error into `pull`.

    NaN where others have less than `least_share` of a point's weight. A sighting takes part in the truth that it
    is compared with, which makes its residual smaller than its error `sigma`.
    """
    for s in range(point.size):
        k = point[s]
        residual[s] = pull[s] = np.nan
        if weight[s] > 0.0:
            others = 1.0 - weight[s] / weights[k]
            if others > least_share:
                residual[s] = seen[s] - truth[k]
                pull[s] = residual[s] / (sigma[s] * np.sqrt(others))


@njit(cache=True, nogil=True)
def frame_sums(start, point, place, centre, weight, value, out):  # pragma: no cover - compiled
    """Put the frames' sums of ``weight * value`` times 1, x and y, as many as `out` has columns, into `out`."""
    for i in range(start.size - 1):
        a = b = c = 0.0
        for s in range(start[i], start[i + 1]):
            v = weight[s] * value[s]
            a += v
            if out.shape[1] == 3:
                k = point[s]
                b += v * (place[k, 0] - centre[i, 0])
                c += v * (place[k, 1] - centre[i, 1])
        out[i, 0] = a
        if out.shape[1] == 3:
            out[i, 1], out[i, 2] = b, c


@njit(cache=True, nogil=True)
def own_blocks(start, point, place, centre, weight, weights, out):  # pragma: no cover - compiled
    """Put every frame's block of the normal matrix into `out` (n, p, p).

    The points are eliminated where `weights` are the sums over their sightings; where they are infinite, not.
    """
    p = out.shape[1]
    basis = np.ones(3)
    for i in range(start.size - 1):
        out[i] = 0.0
        for s in range(start[i], start[i + 1]):
            k = point[s]
            if weights[k] > 0.0:
                own = weight[s] * (1.0 - weight[s] / weights[k])
                basis[1], basis[2] = place[k, 0] - centre[i, 0], place[k, 1] - centre[i, 1]
                for u in range(p):
                    for v in range(p):
                        out[i, u, v] += own * basis[u] * basis[v]


@njit(cache=True, nogil=True)
def normal_product(
    start, point, place, centre, weight, weights, coefficients, at_point, out
):  # pragma: no cover - compiled
    """Put the product of the normal matrix, points eliminated, with `coefficients` (n, p) into `out` (n, p).

    `at_point` (k,) is scratch memory.
    """
    planes = out.shape[1] == 3
    at_point[:] = 0.0
    for i in range(start.size - 1):
        a = coefficients[i, 0]
        b = c = cx = cy = 0.0
        if planes:
            b, c, cx, cy = coefficients[i, 1], coefficients[i, 2], centre[i, 0], centre[i, 1]
        for s in range(start[i], start[i + 1]):
            k = point[s]
            at_point[k] += weight[s] * (a + b * (place[k, 0] - cx) + c * (place[k, 1] - cy))
    for k in range(at_point.size):
        if weights[k] > 0.0:
            at_point[k] /= weights[k]
    for i in range(start.size - 1):
        a = coefficients[i, 0]
        b = c = cx = cy = 0.0
        if planes:
            b, c, cx, cy = coefficients[i, 1], coefficients[i, 2], centre[i, 0], centre[i, 1]
        u = v = w = 0.0
        for s in range(start[i], start[i + 1]):
            k = point[s]
            x, y = place[k, 0] - cx, place[k, 1] - cy
            r = weight[s] * (a + b * x + c * y - at_point[k])
            u += r
            v += r * x
            w += r * y
        out[i, 0] = u
        if planes:
            out[i, 1], out[i, 2] = v, w
