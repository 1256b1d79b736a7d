"""What prepares and resamples one frame, in plain array operations: for arrays on a device.

The functions have the names and the results of the compiled ones (`zemosaic_preprocess`,
`zemosaic_resample_kernels`); those are the definitions, and the tests hold the two forms together. The array
namespace is that of the arrays handed in. Nothing here waits for the device or copies to the host: what
depends on data is computed everywhere and chosen with a mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zemosaic_backend import namespace_of
from zemosaic_reproject import check_kernel

#: An array of numpy, of CuPy, or of the strict stand-in of the tests.
Array = Any

#: Working memory of `replace_isolated` and `demosaic`, results included, in bytes for each raw pixel.
PREPARE_BYTES_PER_PX = 64

#: Working memory of `resample`, result included, in bytes for each pixel of the canvas, three channels.
RESAMPLE_BYTES_PER_PX = 300

#: Steps of a pixel to which Lanczos positions are rounded, as a power of two; rows of the table.
_FRACTION_BITS = 12
_FRACTIONS = 1 << _FRACTION_BITS

#: Less weight than this on present pixels does not make a Lanczos value.
_LEAST_WEIGHT = 0.3

#: Missing pixels around a section, so that taps that lie outside need no test of their own: three that a
#: kernel reaches, one for positions off the section.
_BORDER_PX = 4

#: Where positions outside the frame go; more than a border away from all of its pixels.
_NOWHERE_PX = -2.0 * _BORDER_PX

#: Columns of taps in the order in which the compiled kernel adds them: even ones, then odd ones.
_COLUMN_ORDER = ((0, 4, 2), (1, 5, 3))

#: Batcher's odd-even merge sort of eight values. CuPy sorts a short axis by sorting the whole array with keys.
_SORTING_NETWORK = (
    *((0, 1), (2, 3), (4, 5), (6, 7), (0, 2), (1, 3), (4, 6), (5, 7), (1, 2), (5, 6)),
    *((0, 4), (1, 5), (2, 6), (3, 7), (2, 4), (3, 5), (1, 2), (3, 4), (5, 6)),
)


def to_float(raw: Array) -> Array:
    """Return native uint16 or float32 pixels as float32; the array itself if it is float32."""
    xp = namespace_of(raw)
    return raw if raw.dtype == xp.float32 else raw.astype(xp.float32)


def _phases(colours: Any) -> Iterator[tuple[tuple[int, int], tuple[slice, slice], int]]:
    """Yield the phases (row, column) of the colour cell, what cuts each out of a frame, and its colour."""
    for dy in (0, 1):
        for dx in (0, 1):
            yield (dy, dx), (slice(dy, None, 2), slice(dx, None, 2)), int(colours[dy, dx])


def flattened(raw: Array, colours: Any, rows: Any, columns: Any, pedestal: float) -> Array:
    """Return a raw section with its vignetting undone; bit for bit the compiled result.

    Parameters
    ----------
    raw : array, shape (ny, nx), float32
        NaN = no data, and stays. Not altered.
    colours : ndarray of the host, shape (2, 2), int
        Colour index of each phase of the cell; all zero for one plane of one colour.
    rows, columns : arrays like `raw`, shapes (c, d, ny) and (nx,), float64
        From `zemosaic_flat.section_polynomials`, for this section.
    pedestal : float

    Returns
    -------
    array, shape (ny, nx), float32
    """
    xp = namespace_of(raw)
    out = xp.empty_like(raw)
    for (dy, dx), at, colour in _phases(colours):
        powers, u = rows[colour, :, dy::2], columns[dx::2]
        factor = xp.zeros(raw[at].shape, dtype=xp.float64)
        for k in range(powers.shape[0] - 1, -1, -1):
            factor *= u
            factor += powers[k][:, None]
        value = raw[at].astype(xp.float64)
        value -= pedestal
        value *= factor
        value += pedestal
        out[at] = value.astype(xp.float32)
    return out


def replace_isolated(raw: Array, colours: Any, sky: Any, noise: Any, threshold: float) -> Array:
    """Return a raw section with hot, dead and single-hit pixels replaced; bit for bit the compiled result.

    Parameters
    ----------
    raw : array, shape (ny, nx), float32
        Pixels; NaN = no data, left alone. Not altered.
    colours : ndarray of the host, shape (2, 2), int
        Colour index of each phase of the cell; all zero for a mono frame.
    sky, noise : ndarray of the host, shape (c,), float64
        Of one raw pixel, a value a colour.
    threshold : float
        In noise sigmas.

    Returns
    -------
    array, shape (ny, nx), float32
    """
    xp = namespace_of(raw)
    ny, nx = raw.shape
    step = 1 if colours[0, 0] == colours[0, 1] else 2
    # A border of the step keeps the phase of the colour cell.
    wide = xp.full((ny + 2 * step, nx + 2 * step), xp.nan, dtype=xp.float32)
    wide[step:-step, step:-step] = raw
    there = xp.isfinite(wide)
    isolated = _isolated(wide, there, step, (colours, sky, noise, threshold))
    return xp.where(isolated, _same_colour_median(wide, there, step), raw)


def _shifted(wide: Array, border: int, dy: int, dx: int) -> Array:
    """Return the view of an array with a border that holds, for every pixel, the one (dy, dx) away."""
    ny, nx = wide.shape[0] - 2 * border, wide.shape[1] - 2 * border
    return wide[border + dy : border + dy + ny, border + dx : border + dx + nx]


def _isolated(wide: Array, there: Array, border: int, model: tuple[Any, Any, Any, float]) -> Array:
    """Return where a pixel stands out and its direct neighbours do not share in it, bool (ny, nx)."""
    xp = namespace_of(wide)
    colours, sky, noise, threshold = model
    excess = wide.astype(xp.float64)
    stands = xp.zeros(wide.shape, dtype=xp.bool_)
    for _, at, colour in _phases(colours):
        excess[at] -= float(sky[colour])
        stands[at] = xp.abs(excess[at]) > float(threshold * noise[colour])
    own = _shifted(excess, border, 0, 0)
    shared = _neighbour_excess(xp.where(there, excess, 0.0), there, border) > 0.15 * own
    return _shifted(stands, border, 0, 0) & ~((own > 0.0) & shared)


def _neighbour_excess(excess: Array, there: Array, border: int) -> Array:
    """Mean excess over the sky of the direct neighbours, missing ones (0) apart; infinite if there is none."""
    xp = namespace_of(excess)
    total = xp.zeros_like(_shifted(excess, border, 0, 0))
    count = xp.zeros(total.shape, dtype=xp.int8)
    for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        total += _shifted(excess, border, dy, dx)
        count += _shifted(there, border, dy, dx)
    total /= xp.maximum(count, 1)
    return xp.where(count > 0, total, xp.inf)


def _same_colour_median(wide: Array, there: Array, step: int) -> Array:
    """Median of the up to eight pixels of the same colour around a pixel; its own value if there is none."""
    xp = namespace_of(wide)
    around = [(dy, dx) for dy in (-step, 0, step) for dx in (-step, 0, step) if dy or dx]
    known = xp.where(there, wide, xp.float32(xp.inf))
    ranked = [_shifted(known, step, *shift) for shift in around]
    for a, b in _SORTING_NETWORK:
        ranked[a], ranked[b] = xp.minimum(ranked[a], ranked[b]), xp.maximum(ranked[a], ranked[b])
    own = _shifted(wide, step, 0, 0)
    count = xp.zeros(own.shape, dtype=xp.int8)
    for shift in around:
        count += _shifted(there, step, *shift)
    lower = upper = ranked[0]
    for k in range(1, 5):
        lower = xp.where(count > 2 * k, ranked[k], lower)
        upper = xp.where(count >= 2 * k, ranked[k], upper)
    return xp.where(count > 0, (lower + upper) * 0.5, own)


def demosaic(raw: Array, colours: Any) -> Array:
    """Return red, green and blue at every pixel of a raw section; bit for bit the compiled result.

    Source: H. S. Malvar, L. He, R. Cutler, "High-quality linear interpolation for demosaicing of
    Bayer-patterned color images", ICASSP 2004.

    Parameters
    ----------
    raw : array, shape (ny, nx), float32
        NaN spreads to the pixels that would have used it.
    colours : ndarray of the host, shape (2, 2), int
        For the phase of the section's first pixel.

    Returns
    -------
    array, shape (3, ny, nx), float32
    """
    xp = namespace_of(raw)
    out = xp.empty((3, *raw.shape), dtype=xp.float32)
    padded = _mirrored(raw)
    for phase, at, colour in _phases(colours):
        cell = _Phase(padded, phase)
        if colour == 1:
            beside = int(colours[phase[0], 1 - phase[1]])
            planes, values = (1, beside, 2 - beside), _at_green(cell)
        else:
            planes, values = (colour, 1, 2 - colour), _at_red_or_blue(cell)
        for plane, value in zip(planes, values, strict=True):
            out[(plane, *at)] = value.astype(xp.float32)
    return out


def _mirrored(raw: Array) -> Array:
    """Return `raw` with two more pixels on each side, mirrored without repeating the border pixel."""
    xp = namespace_of(raw)
    for axis, size in enumerate(raw.shape):
        index = xp.abs(xp.arange(-2, size + 2))
        index = xp.where(index >= size, 2 * (size - 1) - index, index)
        raw = xp.take(raw, xp.clip(index, 0, size - 1), axis=axis)
    return raw


class _Phase:
    """One phase of the colour cell in a mirrored section: its pixels, and those a shift away from each."""

    def __init__(self, padded: Array, phase: tuple[int, int]) -> None:
        self.padded = padded
        self.phase = phase

    def shifted(self, dy: int, dx: int) -> Array:
        ny, nx = self.padded.shape[0] - 4, self.padded.shape[1] - 4
        y, x = self.phase
        return self.padded[2 + y + dy : 2 + dy + ny : 2, 2 + x + dx : 2 + dx + nx : 2]

    def pair(self, dy: int, dx: int) -> Array:
        """Return the sum of the two pixels on opposite sides."""
        return self.shifted(-dy, -dx) + self.shifted(dy, dx)

    def diagonal(self) -> Array:
        total = self.shifted(-1, -1) + self.shifted(-1, 1)
        total += self.shifted(1, -1)
        total += self.shifted(1, 1)
        return total


def _at_green(cell: _Phase) -> tuple[Array, Array, Array]:
    """Return, at green pixels: green, the colour beside it in its row, the one in its column.

    As in the compiled form, products with the centre and what they are added to are float64, sums of
    neighbours float32.
    """
    xp = namespace_of(cell.padded)
    centre = cell.shifted(0, 0)
    side, above, diagonal = cell.pair(0, 1), cell.pair(1, 0), cell.diagonal()
    far_side, far_above = cell.pair(0, 2), cell.pair(2, 0)
    five = 5.0 * centre.astype(xp.float64)
    row = five + 4.0 * side - diagonal - far_side + 0.5 * far_above
    column = five + 4.0 * above - diagonal - far_above + 0.5 * far_side
    return centre, row * 0.125, column * 0.125


def _at_red_or_blue(cell: _Phase) -> tuple[Array, Array, Array]:
    """Return, at red (blue) pixels: their own colour, green, blue (red)."""
    xp = namespace_of(cell.padded)
    centre = cell.shifted(0, 0)
    wide = centre.astype(xp.float64)
    far = cell.pair(0, 2) + cell.pair(2, 0)
    green = 4.0 * wide + 2.0 * (cell.pair(0, 1) + cell.pair(1, 0)) - far
    opposite = 6.0 * wide + 2.0 * cell.diagonal() - 1.5 * far
    return centre, green * 0.125, opposite * 0.125


def pixel_map(
    nodes: Array, origin: tuple[int, int, int], corner: tuple[int, int], shape: tuple[int, int]
) -> tuple[Array, Array]:
    """Return the frame x and y of a rectangle of canvas pixels; bit for bit the compiled result.

    Parameters
    ----------
    nodes : array, shape (2, my, mx), float64
        Frame x and y of the canvas's lattice; NaN = off the sky.
    origin : tuple of int
        Canvas row and column of the first node, and the step (a power of two).
    corner : tuple of int
        Canvas row and column of the rectangle's first pixel.
    shape : tuple of int
        Rows and columns of the rectangle; it lies inside the lattice.

    Returns
    -------
    x, y : array, shape `shape`, float64
    """
    xp = namespace_of(nodes)
    row, column, step = origin
    y = xp.arange(shape[0]) + (corner[0] - row)
    x = xp.arange(shape[1]) + (corner[1] - column)
    j, i = y // step, x // step
    down = ((y % step) / step)[:, None]
    across = (x % step) * (1.0 / step)
    return _interpolated(nodes[0], (j, i), down, across), _interpolated(nodes[1], (j, i), down, across)


def _interpolated(nodes: Array, cell: tuple[Array, Array], down: Array, across: Array) -> Array:
    """Interpolate one plane of nodes, first along its columns, then, a pixel at a time, along rows."""
    xp = namespace_of(nodes)
    j, i = cell
    upper = xp.take(nodes, j, axis=0)
    left = upper + down * (xp.take(nodes, j + 1, axis=0) - upper)
    slope = left[:, 1:] - left[:, :-1]
    out = xp.take(slope, i, axis=1)
    out *= across
    out += xp.take(left, i, axis=1)
    return out


def feather(
    nodes: Array,
    origin: tuple[int, int, int],
    corner: tuple[int, int],
    size: tuple[int, int],
    width: float,
    floor: float,
    weight: Array,
) -> Array:
    """Return weights of canvas pixels times the feather of their frame; bit for bit the compiled result.

    Parameters
    ----------
    nodes, origin, corner
        The pixel map, and the canvas pixel to begin with; see `pixel_map`.
    size : tuple of int
        ``(ny, nx)`` of the whole frame.
    width : float
        Frame pixels from the edge at which the weight is whole.
    floor : float
        Least of the feather.
    weight : array, shape (oh, ow), float32

    Returns
    -------
    array, shape (oh, ow), float32
    """
    xp = namespace_of(nodes)
    x, y = pixel_map(nodes, origin, corner, weight.shape)
    distance = xp.minimum(x, size[1] - 1.0 - x)
    distance = xp.minimum(distance, xp.minimum(y, size[0] - 1.0 - y))
    distance += 0.5
    share = xp.maximum(distance / width, 0.0)
    share = xp.maximum(share * share * (3.0 - 2.0 * share), floor)
    return xp.where(distance < width, weight * share, weight).astype(xp.float32)


def resample(
    planes: Array,
    section: tuple[int, int],
    shape: tuple[int, int],
    nodes: Array,
    origin: tuple[int, int, int],
    corner: tuple[int, int],
    out_shape: tuple[int, int],
    kernel: str,
    table: Array | None = None,
) -> Array:
    """Resample a section of a frame onto a rectangle of the canvas.

    ``bilinear`` gives the compiled result bit for bit; so does ``lanczos3`` where the eight by six pixels from its
    first tap on are there, and elsewhere within the rounding of float64 sums before they are cut to float32. The
    working memory is `RESAMPLE_BYTES_PER_PX` for a canvas pixel and a copy of `planes`, 4 px larger on each side.

    Parameters
    ----------
    planes : array, shape (c, h, w), float32
        The frame's pixels in the section, at least one; NaN = no data. It must hold every pixel of the frame
        that the kernel reaches from a position that is asked for.
    section : tuple of int
        Frame row and column of the section's first pixel.
    shape : tuple of int
        ``(ny, nx)`` of the whole frame.
    nodes, origin, corner
        The pixel map, and the canvas pixel to begin with; see `pixel_map`.
    out_shape : tuple of int
        Rows and columns to fill.
    kernel : str
        ``"lanczos3"`` or ``"bilinear"``.
    table : array, shape (4096, 8), float32
        For Lanczos-3: `zemosaic_resample_kernels.lanczos3_table`, on the device.

    Returns
    -------
    array, shape (c, *out_shape), float32
        NaN where the position is outside the frame's pixels or they hold no data.

    Raises
    ------
    ValueError
        If the kernel is unknown, or Lanczos-3 gets no table.
    """
    check_kernel(kernel, has_table=table is not None)
    pixels = _Pixels(planes, section)
    grid = nodes, origin, corner, out_shape
    value = _bilinear(pixels, shape, grid) if kernel == "bilinear" else _lanczos3(pixels, shape, grid, table)
    return value.astype(namespace_of(value).float32)


def _positions(shape: tuple[int, int], grid: tuple[Any, ...]) -> tuple[Array, Array]:
    """Return the pixel map with positions outside the frame, or unknown, moved to where no section reaches."""
    x, y = pixel_map(*grid)
    xp = namespace_of(x)
    inside = (x >= -0.5) & (x < shape[1] - 0.5) & (y >= -0.5) & (y < shape[0] - 0.5)
    return xp.where(inside, x, _NOWHERE_PX), xp.where(inside, y, _NOWHERE_PX)


class _Pixels:
    """The pixels of a section with a border of missing ones, to be gathered by flat index."""

    def __init__(self, planes: Array, section: tuple[int, int]) -> None:
        xp = namespace_of(planes)
        channels, height, width = planes.shape
        b = _BORDER_PX
        padded = xp.full((channels, height + 2 * b, width + 2 * b), xp.nan, dtype=xp.float32)
        padded[:, b:-b, b:-b] = planes
        self.section = section
        self.size = height, width
        self.row = width + 2 * b
        self.flat = padded.reshape((channels, -1))

    def index(self, y: Array, x: Array) -> Array:
        """Return the flat index of frame pixels (y, x), int64, those far off the section moved to its border."""
        xp = namespace_of(y)
        j = xp.clip(y - self.section[0], -2, self.size[0])
        i = xp.clip(x - self.section[1], -2, self.size[1])
        return (j + _BORDER_PX) * self.row + (i + _BORDER_PX)

    def take(self, index: Array) -> Array:
        """Return the pixels at flat indices, float32 (c, *index.shape)."""
        return namespace_of(index).take(self.flat, index, axis=1)


def _bilinear(pixels: _Pixels, shape: tuple[int, int], grid: tuple[Any, ...]) -> Array:
    """Return the weighted mean of the present ones of four pixels, NaN without the nearest; (c, oh, ow)."""
    x, y = _positions(shape, grid)
    xp = namespace_of(x)
    ix, iy = xp.floor(x), xp.floor(y)
    rx, ry = x - ix, y - iy
    first = pixels.index(iy.astype(xp.int64), ix.astype(xp.int64))
    total = weight = None
    for j, wy in enumerate((1.0 - ry, ry)):
        for i, wx in enumerate((1.0 - rx, rx)):
            w = wy * wx
            value = pixels.take(first + (j * pixels.row + i))
            missing = xp.isnan(value)
            share = xp.where(missing, 0.0, w)
            value = share * xp.where(missing, xp.float32(0.0), value)
            total, weight = (value, share) if total is None else (total + value, weight + share)
    near = pixels.take(first + (ry >= 0.5) * pixels.row + (rx >= 0.5))
    gone = xp.isnan(near)
    return xp.where(gone, xp.nan, total / xp.where(gone, 1.0, weight))


def _lanczos3(pixels: _Pixels, shape: tuple[int, int], grid: tuple[Any, ...], table: Array) -> Array:
    """Return Lanczos-3 sums, clamped from below at the smallest of the central 4 x 4 pixels; (c, oh, ow).

    Where taps are missing the weights of the present ones are scaled to 1; NaN if the pixel that the position
    falls into is missing, and that pixel's value if too little weight is left.
    """
    x, y = _positions(shape, grid)
    xp = namespace_of(x)
    x, y = _quantised(x), _quantised(y)
    near = pixels.take(pixels.index(_nearest(y, shape[0]), _nearest(x, shape[1])))
    first = pixels.index(y >> _FRACTION_BITS, x >> _FRACTION_BITS)
    x, y = x & (_FRACTIONS - 1), y & (_FRACTIONS - 1)
    first -= 2 * pixels.row + 2
    total, weight, smallest, full = _lanczos_sums(pixels, first, x, y, table)
    thin = ~full & (weight < _LEAST_WEIGHT)
    total /= xp.where(full | thin, 1.0, weight)
    total = xp.maximum(total, smallest)
    return xp.where(thin | xp.isnan(near), near, total)


def _nearest(position: Array, size: int) -> Array:
    """Return the pixel that a rounded position falls into; rounding pushes none out of the frame."""
    xp = namespace_of(position)
    near = (position + (_FRACTIONS // 2 - 1)) >> _FRACTION_BITS
    return xp.where(near == -1, 0, xp.where(near == size, size - 1, near))


def _quantised(position: Array) -> Array:
    """Return positions in steps of 1 / 4096 px, rounded, int64."""
    xp = namespace_of(position)
    return xp.floor(position * float(_FRACTIONS) + 0.5).astype(xp.int64)


def _lanczos_sums(pixels: _Pixels, first: Array, kx: Array, ky: Array, table: Array) -> tuple[Array, ...]:
    """Add up the taps that are there.

    Columns of six are summed first, then the columns, even ones and odd ones apart: the order of the compiled
    kernel, which works on whole rows of taps at a time.

    Returns
    -------
    total, weight : array, shape (c, oh, ow), float64
        Of the taps that are there.
    smallest : array, shape (c, oh, ow), float32
        Of those among the central 4 x 4.
    full : array, shape (c, oh, ow), bool
        Where all taps are there.
    """
    xp = namespace_of(first)
    shape = (pixels.flat.shape[0], *first.shape)
    smallest = xp.full(shape, xp.inf, dtype=xp.float32)
    full = xp.ones(shape, dtype=xp.bool_)
    down = [_weights(table, ky, j) for j in range(6)]
    halves, weight = [], xp.zeros(shape, dtype=xp.float64)
    for columns in _COLUMN_ORDER:
        half = xp.zeros(shape, dtype=xp.float64)
        for i in columns:
            column, present = xp.zeros_like(half), xp.zeros_like(half)
            index = first + i
            for j in range(6):
                value = pixels.take(index)
                there = value == value  # not NaN
                if 1 <= i <= 4 and 1 <= j <= 4:
                    smallest = xp.fmin(smallest, value)
                column += down[j] * xp.where(there, value, xp.float32(0.0))
                present += down[j] * there
                full &= there
                index += pixels.row
            across = _weights(table, kx, i)
            column *= across
            half += column
            present *= across
            weight += present
        halves.append(half)
    return halves[0] + halves[1], weight, smallest, full


def _weights(table: Array, fraction: Array, tap: int) -> Array:
    """Return the weight of one tap at each fraction, float64."""
    xp = namespace_of(table)
    return xp.take(table[:, tap], fraction).astype(xp.float64)
