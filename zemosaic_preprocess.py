"""Kernels that prepare the pixels of one exposure: vignetting, isolated bad pixels, demosaicing.

Arrays in, arrays out; nothing here knows a file, a header or a canvas. Every pixel's result depends on raw
pixels at most `SUPPORT_PX` away, so a section read with that margin gives the same values as the whole frame.
"""

from __future__ import annotations

import numba as nb
import numpy as np

#: Reach of bad-pixel replacement (2 px) and demosaicing (2 px) together; even, to keep the colour cell's phase.
SUPPORT_PX = 4

#: Pixels that stand this many noise sigmas alone are taken as defects; see `replace_isolated`.
ISOLATED_SIGMA = 8.0

_CHUNK_PX = 64
_COLOURS = "RGB"


def bayer_colours(bayer: str) -> np.ndarray:
    """Return the 2 x 2 colour indices (0 red, 1 green, 2 blue) of a pattern such as ``"GRBG"``.

    Returns
    -------
    ndarray, shape (2, 2), int64
    """
    return np.array([_COLOURS.index(letter) for letter in bayer.upper()], dtype=np.int64).reshape(2, 2)


def half_planes(raw: np.ndarray, bayer: str) -> np.ndarray:
    """Return a mosaic of colours as three planes of half the size; the two greens are averaged.

    Parameters
    ----------
    raw : ndarray, shape (ny, nx)
        Raw pixels behind a colour filter array; an odd last row or column is dropped.
    bayer : str
        Pattern as stored, row 0 first.

    Returns
    -------
    ndarray, shape (3, ny // 2, nx // 2), float32
        Pixel (j, i) of the green plane is centred at raw pixel (2 j + 0.5, 2 i + 0.5).
    """
    planes = np.empty((3, raw.shape[0] // 2, raw.shape[1] // 2), dtype=np.float32)
    _separate(np.ascontiguousarray(raw, dtype=np.float32), bayer_colours(bayer), planes)
    return planes


@nb.njit(cache=True, nogil=True)
def _separate(raw, colours, planes):  # pragma: no cover - compiled
    half = np.float32(0.5)
    above, below = colours[0], colours[1]
    first = 0 if above[0] == 1 else 1  # column of the green pixel in the upper row of a cell
    for j in range(planes.shape[1]):
        for i in range(planes.shape[2]):
            y, x = 2 * j, 2 * i
            planes[1, j, i] = half * raw[y, x + first] + half * raw[y + 1, x + 1 - first]
            planes[above[1 - first], j, i] = raw[y, x + 1 - first]
            planes[below[first], j, i] = raw[y + 1, x + first]


def binned(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means and largest values of 2 x 2 pixels, (c, ny // 2, nx // 2) float32; NaN if one of them is.

    Pixel (j, i) is centred at (2 j + 0.5, 2 i + 0.5); an odd last row or column is dropped.
    """
    c, ny, nx = planes.shape
    means = np.empty((c, ny // 2, nx // 2), dtype=np.float32)
    peaks = np.empty_like(means)
    _bin(np.ascontiguousarray(planes), means, peaks)
    return means, peaks


@nb.njit(cache=True, nogil=True)
def _bin(planes, means, peaks):  # pragma: no cover - compiled
    quarter = np.float32(0.25)
    for k in range(means.shape[0]):
        for j in range(means.shape[1]):
            for i in range(means.shape[2]):
                a, b = planes[k, 2 * j, 2 * i], planes[k, 2 * j, 2 * i + 1]
                d, e = planes[k, 2 * j + 1, 2 * i], planes[k, 2 * j + 1, 2 * i + 1]
                mean = ((a + d) + (b + e)) * quarter
                means[k, j, i] = mean
                peaks[k, j, i] = max(max(a, d), max(b, e)) if mean == mean else np.float32(np.nan)


@nb.njit(cache=True, nogil=True)
def flattened(raw, colours, rows, columns, pedestal):
    """Return a raw section with its vignetting undone: ``pedestal + (value - pedestal) * Q`` of its own colour.

    Parameters
    ----------
    raw : ndarray, shape (ny, nx), float32
        NaN = no data, and stays.
    colours : ndarray, shape (2, 2), int64
        Colour index of each phase of the cell; all zero for one plane of one colour.
    rows, columns : ndarray, shapes (c, d, ny) and (nx,), float64
        From `zemosaic_flat.section_polynomials`, for this section.
    pedestal : float

    Returns
    -------
    ndarray, shape (ny, nx), float32
    """
    ny, nx = raw.shape
    out = np.empty_like(raw)
    for y in range(ny):
        for phase in range(2):
            powers = rows[colours[y & 1, phase], :, y]
            for x in range(phase, nx, 2):
                factor = powers[-1]
                for k in range(powers.size - 2, -1, -1):
                    factor = factor * columns[x] + powers[k]
                out[y, x] = (raw[y, x] - pedestal) * factor + pedestal
    return out


@nb.njit(cache=True, nogil=True)
def replace_isolated(raw, colours, sky, noise, threshold):
    """Return a copy of a raw section with hot, dead and single-hit pixels replaced.

    A pixel is replaced when it stands more than `threshold` noise sigmas above its colour's sky while its four
    direct neighbours, of whatever colour, hold on average less than 0.15 of its excess: light that came through
    the optics never does that, at a FWHM of 2 px or more. A pixel as far below the sky is dead. The new value
    is the median of its neighbours of the same colour.

    Parameters
    ----------
    raw : ndarray, shape (ny, nx), float32
        Pixels; NaN = no data, left alone.
    colours : ndarray, shape (2, 2), int64
        Colour index of each phase of the cell; all zero for a mono frame.
    sky, noise : ndarray, shape (c,), float64
        Of one raw pixel, a value a colour.
    threshold : float
        In noise sigmas.

    Returns
    -------
    ndarray, shape (ny, nx), float32
    """
    ny, nx = raw.shape
    out = raw.copy()
    mono = colours[0, 0] == colours[0, 1]
    step = 1 if mono else 2
    level, limit = np.empty((2, nx)), np.empty((2, nx))
    # In float32 twice as many fit into a vector; less than the limit by more than such numbers are off.
    near_level, near_limit = np.empty((2, nx), np.float32), np.empty((2, nx), np.float32)
    for x in range(nx):
        for phase in range(2):
            colour = colours[phase, x & 1]
            level[phase, x], limit[phase, x] = sky[colour], threshold * noise[colour]
            near_level[phase, x] = level[phase, x]
            near_limit[phase, x] = limit[phase, x] * (1.0 - 1e-6) - 2e-7 * abs(level[phase, x])
    for y in range(ny):
        for x0 in range(0, nx, _CHUNK_PX):
            x1 = min(nx, x0 + _CHUNK_PX)
            if not _any_far(raw[y, x0:x1], near_level[y & 1, x0:x1], near_limit[y & 1, x0:x1]):
                continue
            for x in range(x0, x1):
                excess = raw[y, x] - level[y & 1, x]
                if not abs(excess) > limit[y & 1, x]:
                    continue
                if excess > 0 and _neighbour_excess(raw, colours, sky, y, x) > 0.15 * excess:
                    continue
                out[y, x] = _same_colour_median(raw, y, x, step)
    return out


@nb.njit(cache=True, nogil=True, inline="always")
def _any_far(values, level, limit):
    """Return whether a value is further from its level than its limit; without a branch, so it runs in vectors."""
    found = np.int32(0)
    for x in range(values.shape[0]):
        found = np.int32(found | np.int32(abs(values[x] - level[x]) > limit[x]))
    return found != 0


@nb.njit(cache=True, nogil=True)
def _neighbour_excess(raw, colours, sky, y, x):
    """Mean excess over the sky of the direct neighbours, NaN ones apart; infinite if there is none."""
    ny, nx = raw.shape
    total, count = 0.0, 0
    for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        j, i = y + dy, x + dx
        if 0 <= j < ny and 0 <= i < nx and np.isfinite(raw[j, i]):
            total += raw[j, i] - sky[colours[j & 1, i & 1]]
            count += 1
    return total / count if count else np.inf


@nb.njit(cache=True, nogil=True)
def _same_colour_median(raw, y, x, step):
    """Median of the up to eight pixels of the same colour around a pixel; its own value if there is none."""
    ny, nx = raw.shape
    found = np.empty(8, dtype=np.float32)
    count = 0
    for dy in (-step, 0, step):
        for dx in (-step, 0, step):
            j, i = y + dy, x + dx
            inside = 0 <= j < ny and 0 <= i < nx and not (dy == 0 and dx == 0)
            if inside and np.isfinite(raw[j, i]):
                found[count] = raw[j, i]
                count += 1
    return np.median(found[:count]) if count else raw[y, x]


@nb.njit(cache=True, nogil=True)
def _reflected(index, size):
    """Mirror an index at the border without repeating the border pixel, which keeps the colour phase."""
    if size == 1:
        return 0
    if index < 0:
        index = -index
    if index >= size:
        index = 2 * (size - 1) - index
    return min(max(index, 0), size - 1)


@nb.njit(cache=True, nogil=True)
def _padded(raw):
    ny, nx = raw.shape
    out = np.empty((ny + 4, nx + 4), dtype=np.float32)
    for y in range(ny + 4):
        j = _reflected(y - 2, ny)
        for x in range(nx + 4):
            out[y, x] = raw[j, _reflected(x - 2, nx)]
    return out


@nb.njit(cache=True, nogil=True)
def demosaic(raw, colours):
    """Return red, green and blue at every pixel of a raw section (linear, gradient-corrected).

    Source: H. S. Malvar, L. He, R. Cutler, "High-quality linear interpolation for demosaicing of
    Bayer-patterned color images", ICASSP 2004. The filters sum to one and add no flux; borders are mirrored.

    Parameters
    ----------
    raw : ndarray, shape (ny, nx), float32
        NaN spreads to the pixels that would have used it.
    colours : ndarray, shape (2, 2), int64
        From `bayer_colours`, for the phase of the section's first pixel.

    Returns
    -------
    ndarray, shape (3, ny, nx), float32
    """
    ny, nx = raw.shape
    p = _padded(raw)
    out = np.empty((3, ny, nx), dtype=np.float32)
    eighth, half = np.float32(0.125), np.float32(0.5)
    for y in range(ny):
        for x in range(nx):
            j, i = y + 2, x + 2
            centre = p[j, i]
            side = p[j, i - 1] + p[j, i + 1]
            above = p[j - 1, i] + p[j + 1, i]
            diagonal = p[j - 1, i - 1] + p[j - 1, i + 1] + p[j + 1, i - 1] + p[j + 1, i + 1]
            far_side = p[j, i - 2] + p[j, i + 2]
            far_above = p[j - 2, i] + p[j + 2, i]
            colour = colours[y & 1, x & 1]
            if colour == 1:
                beside = colours[y & 1, (x + 1) & 1]
                row = 5 * centre + 4 * side - diagonal - far_side + half * far_above
                column = 5 * centre + 4 * above - diagonal - far_above + half * far_side
                out[1, y, x] = centre
                out[beside, y, x] = row * eighth
                out[2 - beside, y, x] = column * eighth
            else:
                far = far_side + far_above
                out[colour, y, x] = centre
                out[1, y, x] = (4 * centre + 2 * (side + above) - far) * eighth
                out[2 - colour, y, x] = (6 * centre + 2 * diagonal - np.float32(1.5) * far) * eighth
    return out
