"""Compiled loop of the detections: which of them are one star.

Stars are kept in lists, one for each entry of a table to which the cells of a grid, as wide as the radius, are
assigned by their numbers. Cells that share a list do no harm, since distances decide.
"""

from __future__ import annotations

import numba as nb
import numpy as np


@nb.njit(cache=True, nogil=True)
def identify(places, start, n_founding, radius, number):
    """Fill `number` (m,) with the number of the nearest star within `radius` of each place; -1 if there is none.

    Parameters
    ----------
    places : ndarray, shape (m, 2), float64
    start : ndarray, shape (n + 1,), int64
        Those of frame f are ``start[f]:start[f + 1]``; they are compared with the stars of the frames before.
    n_founding : int
        In so many frames, the first, a place without a star founds one, numbered from 0 as they come.
    radius : float
    number : ndarray, shape (m,), int64
    """
    size = 1
    while size < places.shape[0]:
        size *= 2
    first = np.full(size, -1, dtype=np.int32)
    following = np.empty(start[n_founding], dtype=np.int32)
    founder = np.empty(start[n_founding], dtype=np.int32)
    n_stars = 0
    for f in range(start.size - 1):
        for d in range(start[f], start[f + 1]):
            number[d] = _nearest(places, d, radius, first, following, founder)
        if f >= n_founding:
            continue
        for d in range(start[f], start[f + 1]):
            if number[d] < 0:
                entry = _entry(np.floor(places[d, 0] / radius), np.floor(places[d, 1] / radius), size)
                founder[n_stars], following[n_stars], first[entry] = d, first[entry], n_stars
                number[d] = n_stars
                n_stars += 1


@nb.njit(cache=True, nogil=True)
def _entry(column, row, size):
    """Return the entry of the table, whose size is a power of 2, for a cell."""
    return (int(column) * 73856093 ^ int(row) * 19349663) & (size - 1)


@nb.njit(cache=True, nogil=True)
def _nearest(places, d, radius, first, following, founder):
    """Return the number of the nearest star within the radius of a place, -1 if there is none."""
    x, y = places[d, 0], places[d, 1]
    column, row = np.floor(x / radius), np.floor(y / radius)
    nearest, best = -1, radius * radius
    for i in range(-1, 2):
        for j in range(-1, 2):
            star = first[_entry(column + i, row + j, first.size)]
            while star >= 0:
                away = (places[founder[star], 0] - x) ** 2 + (places[founder[star], 1] - y) ** 2
                if away < best:
                    nearest, best = star, away
                star = following[star]
    return nearest
