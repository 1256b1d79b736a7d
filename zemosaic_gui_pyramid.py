"""Pictures of a mosaic that is larger than memory: its outline, parts of it at any scale, how they are stretched.

Nothing here knows Qt. A part is read in bands of rows and shrunk at once, so that no more than a band and the
picture are ever in memory. Far out only some rows of each block are read: a mosaic of 40,000 x 40,000 pixels need
not be read whole to be shown whole.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.wcs import WCS

from zemosaic_events import CancelToken
from zemosaic_fits_products import read_product_header, read_rows
from zemosaic_preview import BLACK_SIGMA, levels, shaded, shrink_rows, softening_of, usual_levels
from zemosaic_types import FrameError, Rect

logger = logging.getLogger("ZeMosaicWorker.pyramid")

_BAND_SAMPLES = 4_000_000  # read at a time
_ROWS_A_BLOCK = ((16, 4), (32, 2))  # read of each block up to a step, if they divide it; beyond, one
_WHOLE_STEP = 4  # up to here blocks are read whole
_LEVEL_SAMPLES_PX = 1024


@dataclass(frozen=True)
class ImageInfo:
    """A product on disk.

    Attributes
    ----------
    path : Path
    shape : tuple of int
        ``(c, ny, nx)``.
    wcs : WCS or None
        Celestial WCS, None if the header has none.
    unit : str
        BUNIT, empty if it is not given.
    """

    path: Path
    shape: tuple[int, int, int]
    wcs: WCS | None
    unit: str

    @property
    def rect(self) -> Rect:
        """All pixels."""
        return Rect(0, self.shape[1], 0, self.shape[2])

    def sky(self, x: float, y: float) -> tuple[float, float] | None:
        """Return right ascension and declination of a pixel position (0-based), None where there are none."""
        if self.wcs is None:
            return None
        ra, dec = self.wcs.wcs_pix2world(x, y, 0)
        return (float(ra), float(dec)) if np.isfinite([ra, dec]).all() else None


def describe_image(path: Path) -> ImageInfo:
    """Return what a file holds.

    Raises
    ------
    FrameError
        If the file cannot be read, or its primary image is not one of one or three planes.
    """
    if not path.is_file():
        raise FrameError(f"there is no file {path}")
    header = read_product_header(path)
    naxis = header.get("NAXIS", 0)
    planes = header.get("NAXIS3", 1) if naxis == 3 else 1
    if naxis not in (2, 3) or planes not in (1, 3):
        raise FrameError(f"{path} cannot be shown: it holds no image of one or three planes")
    wcs = WCS(header, naxis=2)
    return ImageInfo(
        path=path,
        shape=(planes, header["NAXIS2"], header["NAXIS1"]),
        wcs=wcs if wcs.has_celestial else None,
        unit=str(header.get("BUNIT", "")).strip(),
    )


@dataclass(frozen=True)
class Part:
    """A part of an image: `pixels`, (c, h, w) float32 with NaN = no data, of which each stands for `step` a side.

    `rect` is what it covers of the image; its last row and column may stand for less.
    """

    pixels: np.ndarray
    rect: Rect
    step: int

    def at(self, x: float, y: float) -> np.ndarray | None:
        """Return the values at a pixel position of the image, (c,), None outside."""
        column, row = round(x), round(y)
        if not (self.rect.x0 <= column < self.rect.x1 and self.rect.y0 <= row < self.rect.y1):
            return None
        return self.pixels[:, (row - self.rect.y0) // self.step, (column - self.rect.x0) // self.step]


def read_part(info: ImageInfo, rect: Rect, step: int, cancel: CancelToken) -> Part:
    """Read a part of an image, shrunk by means of blocks; of large blocks only some rows are read.

    Parameters
    ----------
    info : ImageInfo
    rect : Rect
        What is wanted; it is clipped to the image, and begins at a multiple of `step`.
    step : int
    cancel : CancelToken
        Looked at between bands.

    Raises
    ------
    FrameError
        If the file cannot be read.
    RunCancelled
    """
    whole = Rect(rect.y0 // step * step, rect.y1, rect.x0 // step * step, rect.x1).intersect(info.rect)
    if whole.empty:
        return Part(np.empty((info.shape[0], 0, 0), dtype=np.float32), whole, step)
    skip = _rows_skipped(step)
    height = step * max(1, _BAND_SAMPLES // (info.shape[0] * whole.shape[1] * (step // skip)))
    bands = []
    for y in range(whole.y0, whole.y1, height):
        cancel.check()
        rows = read_rows(info.path, y, min(y + height, whole.y1), columns=slice(whole.x0, whole.x1), step=skip)
        bands.append(_shrunk(rows.reshape(info.shape[0], -1, whole.shape[1]), step // skip, step))
    return Part(np.concatenate(bands, axis=1), whole, step)


def _rows_skipped(step: int) -> int:
    """Return of how many rows one is read: a divisor of the step."""
    if step <= _WHOLE_STEP:
        return 1
    most = next((rows for limit, rows in _ROWS_A_BLOCK if step <= limit), 1)
    return step // next(rows for rows in range(most, 0, -1) if step % rows == 0)


def _shrunk(rows: np.ndarray, down: int, across: int) -> np.ndarray:
    """Return means of blocks of ``down`` x ``across`` samples, (c, h, w) float32."""
    if down == across:
        return shrink_rows(rows, across) if across > 1 else rows.astype(np.float32)
    c, m, nx = rows.shape
    height, width = -(-m // down), -(-nx // across)
    padded = np.full((c, height * down, width * across), np.nan, dtype=np.float32)
    padded[:, :m, :nx] = rows
    blocks = padded.reshape(c, height, down, width, across)
    found = np.isfinite(blocks)
    total = np.where(found, blocks, np.float32(0)).sum(axis=(2, 4), dtype=np.float64)
    count = found.sum(axis=(2, 4))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def step_for(rect: Rect, size: tuple[int, int]) -> int:
    """Return how many pixels a side one pixel of a picture of so many, (h, w), should stand for."""
    ratio = max(rect.shape[0] / max(size[0], 1), rect.shape[1] / max(size[1], 1), 1.0)
    # Even beyond the steps whose blocks are read whole: of an even block every second half is enough.
    return round(ratio) if ratio < _WHOLE_STEP + 1 else 2 * round(ratio / 2)


# ---- stretch ---------------------------------------------------------------------------------------------

#: How the channels share black and white: own sky and one span (star colours stay), all alike, each its own.
MODES = ("neutral", "linked", "separate")


@dataclass(frozen=True)
class Stretch:
    """What the user asks for, beside what fits the image; all zero is just that.

    `black` is in sigmas of the sky, `white` in factors of two of the span, `strength` in factors of ten of the
    softening: the larger, the brighter the faint.
    """

    mode: str = MODES[0]
    black: float = 0.0
    white: float = 0.0
    strength: float = 0.0


@dataclass(frozen=True)
class Tones:
    """What an image is like: black, sky, sigma and white of its channels, (c,) each."""

    sky: np.ndarray
    sigma: np.ndarray
    white: np.ndarray
    usual: tuple[np.ndarray, float, float]


def tones_of(image: np.ndarray) -> Tones:
    """Return what a picture of a whole image, (c, h, w), is like."""
    every = max(1, max(image.shape[1:]) // _LEVEL_SAMPLES_PX)
    sample = image[:, ::every, ::every]
    sky, sigma, white = np.transpose([levels(plane) for plane in sample])
    return Tones(sky, sigma, white, usual_levels(sample))


def picture_of(image: np.ndarray, tones: Tones, stretch: Stretch, channel: int | None) -> np.ndarray:
    """Return a part as 8-bit RGBA, (h, w, 4), transparent where there is no data.

    Parameters
    ----------
    image : ndarray, shape (c, h, w), float32
    tones : Tones
        Of the whole image, so that all parts look alike.
    stretch : Stretch
    channel : int or None
        One channel in grey, or all.
    """
    black, span, softening = _levels_for(tones, stretch)
    if channel is not None:
        image, black, span = (
            image[channel : channel + 1],
            black[channel : channel + 1],
            span[channel : channel + 1],
        )
    black = black + stretch.black * np.maximum(tones.sigma.mean(), 1e-12)
    span = np.maximum(span * 2.0**stretch.white, 1e-12)
    softening = float(np.clip(softening * 10.0**-stretch.strength, 1e-6, 10.0))
    return shaded(image, black, span, softening)


def _levels_for(tones: Tones, stretch: Stretch) -> tuple[np.ndarray, np.ndarray, float]:
    """Return black and span, a value a channel, and the softening that fit the image in a mode."""
    black, span, softening = tones.usual
    n = len(black)
    if stretch.mode == "linked":
        black = np.full(n, float(np.min(black)))
        return black, np.full(n, max(float(np.max(tones.white - black)), 1e-12)), softening
    if stretch.mode == "separate":
        own = np.maximum(tones.white - black, BLACK_SIGMA * tones.sigma)
        own = np.maximum(own, 1e-12)
        return black, own, softening_of(float(np.median((tones.sky - black) / own)))
    return black, np.full(n, span), softening
