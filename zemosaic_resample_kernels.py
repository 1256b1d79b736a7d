"""Compiled resampling: planes of a frame and its coarse pixel map in, canvas pixels out.

The pixel map gives, at every `step`-th pixel of the canvas, where that pixel lies in the frame; between the
nodes it is interpolated bilinearly. Nodes belong to the canvas, so the position of a pixel does not depend on
the rectangle that is being filled.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

#: Positions are rounded to 1 / 4096 px, a sixteenth of what the pixel map is allowed to be off.
FRACTIONS = 4096
_BITS = 12

_OUTSIDE = np.int32(-(2**31))
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_FLOATS, _DOUBLES = ir.VectorType(ir.FloatType(), 8), ir.VectorType(ir.DoubleType(), 8)


def lanczos3_table() -> np.ndarray:
    """Return Lanczos-3 weights, a row for each fraction k / 4096 of a pixel.

    Returns
    -------
    ndarray, shape (4096, 8), float32
        Tap t of a position between pixels ``i`` and ``i + 1`` belongs to pixel ``i - 2 + t``; the last two are 0.
        Each row sums to 1.
    """
    distance = np.arange(FRACTIONS)[:, None] / FRACTIONS - np.arange(-2, 6)[None, :]
    weights = np.sinc(distance) * np.sinc(distance / 3.0) * (np.abs(distance) < 3.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _shuffled(b: ir.IRBuilder, vector: ir.Value, lanes: list[int]) -> ir.Value:
    mask = ir.Constant(ir.VectorType(_I32, len(lanes)), lanes)
    return b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def _smaller(b: ir.IRBuilder, first: ir.Value, second: ir.Value) -> ir.Value:
    return b.select(b.fcmp_ordered("<", first, second), first, second)


def _reduced(b: ir.IRBuilder, vector: ir.Value, combine: Callable) -> ir.Value:
    """Combine the lanes of a vector pairwise, first half with second half."""
    n = vector.type.count
    while n > 1:
        n //= 2
        vector = combine(b, _shuffled(b, vector, list(range(n))), _shuffled(b, vector, list(range(n, 2 * n))))
    return b.extract_element(vector, ir.Constant(_I32, 0))


@intrinsic
def _taps(typingctx, plane, y, x, table, ky, kx):  # noqa: ARG001
    """Return the weighted sum of 6 x 6 pixels, NaN if one of them is, and the smallest of their central 4 x 4.

    The arguments are a (h, w) float32 C array, the row and column of the first of the pixels (8 columns must be
    there), and `lanczos3_table` with the rows of the two fractions. Written in vectors of eight pixels, which the
    compiler does not find by itself and which halve the time; sums are float64, columns first.
    """
    signature = types.UniTuple(types.float64, 2)(plane, y, x, table, ky, kx)

    def generate(context, b, signature, arguments):
        _, y, x, _, ky, kx = arguments
        pixels, weights = (context.make_array(signature.args[k])(context, b, arguments[k]) for k in (0, 3))
        stride = b.extract_value(pixels.strides, 0)

        def load(address):
            return b.load(b.bitcast(address, _FLOATS.as_pointer()), align=4)

        def address(array, row, column):
            offset = b.add(b.mul(row, b.extract_value(array.strides, 0)), b.mul(column, ir.Constant(_I64, 4)))
            return b.gep(b.bitcast(array.data, ir.IntType(8).as_pointer()), [offset])

        wx, wy = (b.fpext(load(address(weights, k, ir.Constant(_I64, 0))), _DOUBLES) for k in (kx, ky))
        row, total, smallest = address(pixels, y, x), None, None
        for j in range(6):
            values = load(row)
            term = b.fmul(b.fpext(values, _DOUBLES), _shuffled(b, wy, [j] * 8))
            total = term if total is None else b.fadd(total, term)
            if 1 <= j <= 4:
                smallest = values if smallest is None else _smaller(b, values, smallest)
            row = b.gep(row, [stride])
        total = _reduced(b, b.fmul(total, wx), lambda b, first, second: b.fadd(first, second))
        smallest = _reduced(b, _shuffled(b, smallest, [1, 2, 3, 4]), _smaller)
        return cgutils.pack_array(b, [total, b.fpext(smallest, ir.DoubleType())])

    return signature, generate


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
def _rounded(x, end, out):
    """Fill positions in units of 1 / FRACTIONS px; what lies outside -0.5..end gets the smallest number."""
    for k in range(x.shape[0]):
        inside = -0.5 <= x[k] < end
        out[k] = np.int32(math.floor(x[k] * FRACTIONS + 0.5)) if inside else _OUTSIDE


@nb.njit(cache=True, nogil=True)
def _sparse_lanczos(plane, iy, ix, wy, wx, near):
    """Lanczos-3 where taps are missing: the weights of the present ones are scaled to 1.

    `near`, the value of the pixel that the position falls into, if too little weight is left.
    """
    ny, nx = plane.shape
    total, weight, smallest = 0.0, 0.0, np.inf
    for j in range(6):
        y = iy - 2 + j
        if y < 0 or y >= ny:
            continue
        for i in range(6):
            x = ix - 2 + i
            if x < 0 or x >= nx or plane[y, x] != plane[y, x]:
                continue
            w = np.float64(wy[j]) * np.float64(wx[i])
            total += w * plane[y, x]
            weight += w
            if 1 <= j <= 4 and 1 <= i <= 4:
                smallest = min(smallest, np.float64(plane[y, x]))
    if weight < 0.3:
        return np.float64(near)
    return max(total / weight, smallest)


@nb.njit(cache=True, nogil=True)
def lanczos3(planes, section, size, lattice, origin, corner, table, out):
    """Resample with Lanczos-3, clamped from below at the smallest of the central 4 x 4 pixels.

    The clamp takes away the dark ring around a hot pixel or a bright star and leaves peaks and fluxes alone.

    Parameters
    ----------
    planes : ndarray, shape (c, h, w), float32
        A section of the frame; NaN = no data. It must hold every pixel of the frame within 3 px of a position
        that is asked for, and 5 px beyond it in x.
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
    qx, qy = np.empty(width, dtype=np.int32), np.empty(width, dtype=np.int32)
    # Which pixels have all their taps depends on the frame, not on the section.
    y_first, y_count = -section[0], max(size[0] - 5, 0)
    x_first, x_count = -section[1], max(size[1] - 7, 0)
    for row in range(height):
        _map_row(lattice, origin[0], origin[1], origin[2], corner[0] + row, corner[1], xs, ys)
        _rounded(xs, size[1] - 0.5, qx)
        _rounded(ys, size[0] - 0.5, qy)
        for k in range(width):
            if qx[k] == _OUTSIDE or qy[k] == _OUTSIDE:
                for c in range(channels):
                    out[c, row, k] = np.nan
                continue
            y, x = np.int64(qy[k] >> _BITS) - 2, np.int64(qx[k] >> _BITS) - 2
            ky, kx = np.int64(qy[k] & (FRACTIONS - 1)), np.int64(qx[k] & (FRACTIONS - 1))
            whole = np.uint64(y) < np.uint64(y_count) and np.uint64(x) < np.uint64(x_count)
            y, x = y + y_first, x + x_first
            for c in range(channels):
                total = np.nan
                if whole:
                    total, smallest = _taps(planes[c], y, x, table, ky, kx)
                    total = smallest if total < smallest else total
                if total != total:
                    # Rounding must not push a position just inside the frame out of it.
                    near_y = min(max((qy[k] + FRACTIONS // 2 - 1) >> _BITS, 0), size[0] - 1) + y_first
                    near_x = min(max((qx[k] + FRACTIONS // 2 - 1) >> _BITS, 0), size[1] - 1) + x_first
                    # A position has no data without the pixel that it falls into; the call takes its time.
                    if 0 <= near_y < planes.shape[1] and 0 <= near_x < planes.shape[2]:
                        near = planes[c, near_y, near_x]
                        if near == near:
                            total = _sparse_lanczos(planes[c], y + 2, x + 2, table[ky], table[kx], near)
                out[c, row, k] = total


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
def nearest(planes, section, size, lattice, origin, corner, out):
    """Fill the pixels that canvas pixels fall into, 0 outside the frame; parameters as in `lanczos3`.

    Planes are of any dtype. Positions are rounded as by `lanczos3`, which gives no data where this pixel has none.
    """
    channels, height, width = out.shape
    xs, ys = np.empty(width), np.empty(width)
    qx, qy = np.empty(width, dtype=np.int32), np.empty(width, dtype=np.int32)
    for row in range(height):
        _map_row(lattice, origin[0], origin[1], origin[2], corner[0] + row, corner[1], xs, ys)
        _rounded(xs, size[1] - 0.5, qx)
        _rounded(ys, size[0] - 0.5, qy)
        for k in range(width):
            inside = qx[k] != _OUTSIDE and qy[k] != _OUTSIDE
            y = min(max((qy[k] + FRACTIONS // 2 - 1) >> _BITS, 0), size[0] - 1) - section[0]
            x = min(max((qx[k] + FRACTIONS // 2 - 1) >> _BITS, 0), size[1] - 1) - section[1]
            for c in range(channels):
                out[c, row, k] = planes[c, y, x] if inside else 0


@nb.njit(cache=True, nogil=True)
def positions(lattice, origin, corner, out_x, out_y):
    """Fill the frame positions of a rectangle of canvas pixels, float64 (oh, ow), from the lattice."""
    for row in range(out_x.shape[0]):
        _map_row(lattice, origin[0], origin[1], origin[2], corner[0] + row, corner[1], out_x[row], out_y[row])


@nb.njit(cache=True, nogil=True)
def feather(lattice, origin, corner, ny, nx, width, floor, out):
    """Multiply weights (oh, ow) of canvas pixels by the feather of a frame of ``ny`` x ``nx`` pixels.

    It rises as ``3 s^2 - 2 s^3`` from the frame's edge (`floor` at least, so that data keep a weight) to 1 at
    `width` pixels from it.
    """
    x, y = np.empty(out.shape[1]), np.empty(out.shape[1])
    for row in range(out.shape[0]):
        _map_row(lattice, origin[0], origin[1], origin[2], corner[0] + row, corner[1], x, y)
        for k in range(out.shape[1]):
            distance = min(min(x[k], nx - 1.0 - x[k]), min(y[k], ny - 1.0 - y[k])) + 0.5
            if distance < width:
                s = max(distance / width, 0.0)
                out[row, k] *= max(floor, s * s * (3.0 - 2.0 * s))
