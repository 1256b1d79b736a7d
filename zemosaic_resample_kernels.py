"""Compiled resampling: planes of a frame and its coarse pixel map in, canvas pixels out.

The pixel map gives, at every `step`-th pixel of the canvas, where that pixel lies in the frame; between the
nodes it is interpolated bilinearly. Nodes belong to the canvas, so the position of a pixel does not depend on
the rectangle that is being filled.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

#: Entries of a kernel table for each pixel of distance; weights between entries are interpolated linearly.
TABLE_SIZE = 1024


def lanczos3_table() -> np.ndarray:
    """Return Lanczos-3 weights of six taps, a row for each fraction k / 1024, each row summing to 1.

    Returns
    -------
    ndarray, shape (1025, 6), float64
        Tap t of a position between pixels ``i`` and ``i + 1`` belongs to pixel ``i - 2 + t``.
    """
    fraction = np.arange(TABLE_SIZE + 1)[:, None] / TABLE_SIZE
    distance = fraction - np.arange(-2, 4)[None, :]
    weights = np.sinc(distance) * np.sinc(distance / 3.0) * (np.abs(distance) < 3.0)
    return weights / weights.sum(axis=1, keepdims=True)


@nb.njit(cache=True, nogil=True)
def _map_row(lattice, row, column, step, y, x0, out_x, out_y):
    """Fill the frame positions of the canvas pixels (y, x0...) from the lattice, cell by cell."""
    j = (y - row) // step
    fy = ((y - row) % step) / step
    share = 1.0 / step  # exact: steps are powers of two
    done = 0
    while done < out_x.shape[0]:
        i = (x0 + done - column) // step
        first = (x0 + done - column) % step
        count = min(step - first, out_x.shape[0] - done)
        for axis, out in ((0, out_x), (1, out_y)):
            left = lattice[axis, j, i] + fy * (lattice[axis, j + 1, i] - lattice[axis, j, i])
            right = lattice[axis, j, i + 1] + fy * (lattice[axis, j + 1, i + 1] - lattice[axis, j, i + 1])
            slope = right - left
            part = out[done : done + count]
            for k in range(count):
                part[k] = left + (first + k) * share * slope
        done += count


@nb.njit(cache=True, nogil=True)
def _sparse_lanczos(plane, iy, ix, wy, wx):
    """Lanczos-3 where taps are missing: the weights of the present ones are scaled to 1.

    NaN if the pixel that the position falls into is missing; that pixel's value if too little weight is left.
    """
    ny, nx = plane.shape
    near_y = iy + (wy[3] > wy[2])
    near_x = ix + (wx[3] > wx[2])
    if not (0 <= near_y < ny and 0 <= near_x < nx) or plane[near_y, near_x] != plane[near_y, near_x]:
        return np.float64(np.nan)
    total, weight, smallest = 0.0, 0.0, np.inf
    for j in range(6):
        y = iy - 2 + j
        if y < 0 or y >= ny:
            continue
        for i in range(6):
            x = ix - 2 + i
            if x < 0 or x >= nx or plane[y, x] != plane[y, x]:
                continue
            w = wy[j] * wx[i]
            total += w * plane[y, x]
            weight += w
            if 1 <= j <= 4 and 1 <= i <= 4:
                smallest = min(smallest, np.float64(plane[y, x]))
    if weight < 0.3:
        return np.float64(plane[near_y, near_x])
    return max(total / weight, smallest)


@nb.njit(cache=True, nogil=True)
def lanczos3(planes, section, size, lattice, origin, corner, table, out):
    """Resample with Lanczos-3, clamped from below at the smallest of the central 4 x 4 pixels.

    The clamp takes away the dark ring around a hot pixel or a bright star and leaves peaks and fluxes alone.

    Parameters
    ----------
    planes : ndarray, shape (c, h, w), float32
        A section of the frame; NaN = no data. It must hold every pixel of the frame within 3 px of a position
        that is asked for.
    section : tuple of int
        Frame row and column of the section's first pixel.
    size : tuple of int
        ``(ny, nx)`` of the whole frame.
    lattice : ndarray, shape (2, my, mx), float64
        Frame x and y of the nodes; NaN = off the sky.
    origin : tuple of int
        Canvas row and column of the first node, and the step.
    corner : tuple of int
        Canvas row and column of the first pixel of `out`.
    table : ndarray
        From `lanczos3_table`.
    out : ndarray, shape (c, oh, ow), float32
        Filled; NaN where the position is outside the frame's pixels or they hold no data.
    """
    channels, height, width = out.shape
    xs, ys = np.empty(width), np.empty(width)
    wx, wy = np.empty(6), np.empty(6)
    last = planes.shape[1] - 4, planes.shape[2] - 4
    for row in range(height):
        _map_row(lattice, origin[0], origin[1], origin[2], corner[0] + row, corner[1], xs, ys)
        for k in range(width):
            x, y = xs[k], ys[k]
            if not (-0.5 <= x < size[1] - 0.5 and -0.5 <= y < size[0] - 0.5):
                for c in range(channels):
                    out[c, row, k] = np.nan
                continue
            fx, fy = math.floor(x), math.floor(y)
            _weights(table, x - fx, wx)
            _weights(table, y - fy, wy)
            ix, iy = int(fx) - section[1], int(fy) - section[0]
            inside = 2 <= iy <= last[0] and 2 <= ix <= last[1]
            for c in range(channels):
                value = np.nan
                if inside:
                    value = _full_lanczos(planes[c], iy - 2, ix - 2, wy, wx)
                if value != value:
                    value = _sparse_lanczos(planes[c], iy, ix, wy, wx)
                out[c, row, k] = value


@nb.njit(cache=True, nogil=True, inline="always")
def _weights(table, fraction, out):
    position = fraction * TABLE_SIZE
    k = int(position)
    if k >= TABLE_SIZE:
        k = TABLE_SIZE - 1
    rest = position - k
    for t in range(6):
        out[t] = table[k, t] + rest * (table[k + 1, t] - table[k, t])


@nb.njit(cache=True, nogil=True, inline="always")
def _full_lanczos(plane, y0, x0, wy, wx):
    """Six by six taps, all there; NaN if one of them is.

    Unsigned indices spare the check for negative ones, which costs a third of the time here.
    """
    total = 0.0
    smallest = plane[y0 + 1, x0 + 1]
    x = np.uint64(x0)
    for j in range(6):
        row = plane[np.uint64(y0 + j)]
        p0, p1, p2 = row[x], row[x + np.uint64(1)], row[x + np.uint64(2)]
        p3, p4, p5 = row[x + np.uint64(3)], row[x + np.uint64(4)], row[x + np.uint64(5)]
        total += wy[j] * (wx[0] * p0 + wx[1] * p1 + wx[2] * p2 + wx[3] * p3 + wx[4] * p4 + wx[5] * p5)
        if 1 <= j <= 4:
            smallest = p1 if p1 < smallest else smallest
            smallest = p2 if p2 < smallest else smallest
            smallest = p3 if p3 < smallest else smallest
            smallest = p4 if p4 < smallest else smallest
    return max(total, np.float64(smallest)) if total == total else total


@nb.njit(cache=True, nogil=True)
def bilinear(planes, section, size, lattice, origin, corner, out):
    """Resample with the four nearest pixels; parameters as in `lanczos3`.

    Missing pixels lend their weight to the present ones; where the pixel that the position falls into is
    missing the result is NaN.
    """
    channels, height, width = out.shape
    ny, nx = planes.shape[1:]
    xs, ys = np.empty(width), np.empty(width)
    for row in range(height):
        _map_row(lattice, origin[0], origin[1], origin[2], corner[0] + row, corner[1], xs, ys)
        for k in range(width):
            x, y = xs[k], ys[k]
            if not (-0.5 <= x < size[1] - 0.5 and -0.5 <= y < size[0] - 0.5):
                for c in range(channels):
                    out[c, row, k] = np.nan
                continue
            fx, fy = math.floor(x), math.floor(y)
            rx, ry = x - fx, y - fy
            ix, iy = int(fx) - section[1], int(fy) - section[0]
            near_y, near_x = iy + (ry >= 0.5), ix + (rx >= 0.5)
            for c in range(channels):
                centre = planes[c, near_y, near_x]
                if centre != centre:
                    out[c, row, k] = np.nan
                    continue
                total, weight = 0.0, 0.0
                for j in range(2):
                    for i in range(2):
                        jj, ii = iy + j, ix + i
                        if jj < 0 or jj >= ny or ii < 0 or ii >= nx:
                            continue
                        value = planes[c, jj, ii]
                        if value != value:
                            continue
                        w = (ry if j else 1.0 - ry) * (rx if i else 1.0 - rx)
                        total += w * value
                        weight += w
                out[c, row, k] = total / weight


@nb.njit(cache=True, nogil=True)
def positions(lattice, origin, corner, out_x, out_y):
    """Fill the frame positions of a rectangle of canvas pixels, float64 (oh, ow), from the lattice."""
    for row in range(out_x.shape[0]):
        _map_row(lattice, origin[0], origin[1], origin[2], corner[0] + row, corner[1], out_x[row], out_y[row])
