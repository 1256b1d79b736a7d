"""The stretched picture of a mosaic, and its 16-bit version for viewers."""

from __future__ import annotations

import numpy as np

from zemosaic_background import fast_median, mad
from zemosaic_types import MAD_TO_SIGMA

MAX_PREVIEW_PX = 3200

#: How far below the sky a picture is black.
BLACK_SIGMA = 2.8

_WHITE_PERCENT = 99.9
_WHITE_SIGMA = 20.0
_SKY_BRIGHTNESS = 0.13
_CURVE_STEPS = 1 << 16  # of brightness in the table of the stretch
_MAX_SAMPLES = 1_000_000


def shrink_factor(shape: tuple[int, int], max_px: int = MAX_PREVIEW_PX) -> int:
    """Return the whole number of mosaic pixels a side that one pixel of a picture stands for."""
    return max(1, -(-max(shape) // max_px))


def shrink_rows(rows: np.ndarray, factor: int) -> np.ndarray:
    """Return block means of some rows, NaN only where a whole block has no data.

    Parameters
    ----------
    rows : ndarray, shape (c, m, nx)
        `m` is a multiple of `factor`, or less than it at the end of the image.
    factor : int

    Returns
    -------
    ndarray, shape (c, ceil(m / factor), ceil(nx / factor)), float32
    """
    c, m, nx = rows.shape
    height, width = -(-m // factor), -(-nx // factor)
    padded = np.full((c, height * factor, width * factor), np.nan, dtype=np.float32)
    padded[:, :m, :nx] = rows
    total, count = np.zeros((c, height, width)), np.zeros((c, height, width), dtype=np.int32)
    for dy, dx in np.ndindex(factor, factor):
        part = padded[:, dy::factor, dx::factor]
        found = np.isfinite(part)
        total += np.where(found, part, np.float32(0))
        count += found
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def stretch(image: np.ndarray) -> np.ndarray:
    """Return an image as 8-bit RGBA, first row on top, transparent where there is no data.

    Every channel starts at its own sky, so the sky comes out neutral; all share one asinh scale, chosen so that
    the sky is dark grey, so star colours stay.

    Parameters
    ----------
    image : ndarray, shape (c, ny, nx), float32
        c is 1 or 3; first row at the bottom; NaN = no data.

    Returns
    -------
    ndarray, shape (ny, nx, 4), uint8
    """
    return shaded(image, *usual_levels(image))[::-1]


def usual_levels(image: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Return what `stretch` shows an image with: black, a value a channel, the span to white, the softening."""
    sky, sigma, white = np.transpose([levels(plane) for plane in image])
    black = sky - BLACK_SIGMA * sigma
    span = max(float(np.max(np.maximum(white, sky + _WHITE_SIGMA * sigma) - black)), 1e-12)
    return black, span, softening_of(float(np.median((sky - black) / span)))


def shaded(image: np.ndarray, black: np.ndarray, span: float | np.ndarray, softening: float) -> np.ndarray:
    """Return an image as 8-bit RGBA in its own order of rows, transparent where there is no data.

    Parameters
    ----------
    image : ndarray, shape (c, ny, nx), float32
        c is 1 or 3; NaN = no data.
    black : ndarray, shape (c,)
    span : float or ndarray, shape (c,)
        From black to white.
    softening : float
        Of the asinh, as a share of the span: the smaller, the more the faint is lifted.

    Returns
    -------
    ndarray, shape (ny, nx, 4), uint8
    """
    covered = np.isfinite(image).any(axis=0)
    curve = np.arcsinh(np.arange(_CURVE_STEPS + 1) / _CURVE_STEPS / softening) / np.arcsinh(1.0 / softening)
    curve = np.rint(255.0 * curve).astype(np.uint8)
    rgba = np.zeros((*image.shape[1:], 4), dtype=np.uint8)
    for k, (plane, width) in enumerate(zip(image, np.broadcast_to(span, len(image)), strict=True)):
        scaled = (plane - np.float32(black[k])) * np.float32(_CURVE_STEPS / width)
        np.fmax(scaled, 0, out=scaled)  # no data is 0 too
        shade = curve.take(np.fmin(scaled, _CURVE_STEPS, out=scaled).astype(np.int32))
        for channel in (k,) if len(image) == 3 else range(3):
            rgba[..., channel] = shade
    rgba[..., 3] = np.uint8(255) * covered
    return rgba


def softening_of(sky: float) -> float:
    """Return the asinh softening, 1e-4 to 1, that shows a sky of this share of the span at `_SKY_BRIGHTNESS`."""
    softening = np.geomspace(1.0, 1e-4, 1001)
    brightness = np.arcsinh(sky / softening) / np.arcsinh(1.0 / softening)  # ascending
    return float(np.exp(np.interp(_SKY_BRIGHTNESS, brightness, np.log(softening))))


def levels(plane: np.ndarray) -> tuple[float, float, float]:
    """Return sky, its sigma and the white level of the pixels that have data."""
    values = plane[np.isfinite(plane)]
    values = values[:: max(1, values.size // _MAX_SAMPLES)].astype(np.float64)
    if values.size == 0:
        return 0.0, 0.0, 1.0
    return float(fast_median(values)), MAD_TO_SIGMA * mad(values), float(np.percentile(values, _WHITE_PERCENT))


def to_uint16(rows: np.ndarray) -> np.ndarray:
    """Return values rounded and clipped to 0..65535; no data becomes 0.

    The scale and the zero point stay: a value is the same number in both files.
    """
    return np.clip(np.rint(np.nan_to_num(rows, nan=0.0)), 0, 65535).astype(np.uint16)
