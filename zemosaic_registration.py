"""Star lists: which stars a frame shows, where, how bright and how sharp.

Kernels over arrays. Detection and aperture photometry are SExtractor's, through ``sep`` (E. Bertin,
S. Arnouts, A&AS 117, 393, 1996; K. Barbary, JOSS 1, 58, 2016).
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np
import sep

from zemosaic_events import tagged_logger

logger = tagged_logger("ZeMosaicWorker.registration")

#: Radius of the photometric aperture in units of the frame's FWHM: one shape of star gives one share of its
#: light whatever the seeing.
APERTURE_FWHM = 2.0

# Around an aperture, in units of its radius; brighter pixels belong to other stars.
_RING = (1.25, 2.5)
_RING_SIGMA = 5.0

_MESH_PX = 64
_THRESHOLD_SIGMA = 3.0
_MAX_STARS = 500
_MOST_FOR_WIDTH = 100  # stars; more tell the median width no better than it varies over a frame
# The buffer is allocated anew for every frame, so the large one is for frames that need it.
_PIXEL_STACKS = (300_000, 5_000_000)
_SUB_OBJECTS = 20_000

_SIGMA_PER_FWHM = 0.42466090014400953
_MOST_WINDOWED_PX = 1.0
# Standard error of a centre: so much of the FWHM over the signal to noise, and at least so many px.
_CENTROID_OF_FWHM, _CENTROID_FLOOR_PX = 0.6, 0.05


@dataclass(frozen=True)
class StarList:
    """Stars of one plane, brightest first.

    Attributes
    ----------
    x, y : ndarray, shape (m,), float64
        Centres in the plane's pixels.
    flux : ndarray, shape (m,), float64
        Detected flux, for ordering only.
    fwhm_px : float
        Median full width at half maximum in the plane's pixels; NaN without stars.
    elongation : float
        Median ratio of the axes; NaN without stars.
    """

    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    fwhm_px: float
    elongation: float


def subtract_background(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the plane less its mesh background, and the mask of missing pixels.

    Parameters
    ----------
    plane : ndarray, shape (ny, nx), float32
        NaN = no data.

    Returns
    -------
    residual : ndarray, shape (ny, nx), float32
        0 where there is no data.
    mask : ndarray, shape (ny, nx), bool
        True = no data.
    """
    mask = ~np.isfinite(plane)
    whole = not mask.any()
    data = plane if whole else np.where(mask, np.float32(0), plane)
    data = np.ascontiguousarray(data, dtype=np.float32)
    mesh = min(_MESH_PX, *plane.shape)
    background = sep.Background(data, mask=None if whole else mask, bw=mesh, bh=mesh)
    residual = background.back(dtype=np.float32)
    np.subtract(data, residual, out=residual)
    residual[mask] = 0.0
    return residual, mask


def find_stars(
    residual: np.ndarray, mask: np.ndarray, noise: float, *, exclude: np.ndarray | None = None
) -> StarList:
    """Return the unsaturated, roundish, whole stars of a background-subtracted plane.

    Parameters
    ----------
    residual, mask : ndarray, shape (ny, nx)
        From `subtract_background`.
    noise : float
        Standard deviation of a pixel.
    exclude : ndarray of bool, shape (ny, nx), optional
        Stars whose brightest pixel lies on one of these (saturated) pixels are left out.
    """
    sources = _extract(residual, mask, noise)
    whole = (sources["flag"] & (sep.OBJ_TRUNC | sep.OBJ_MERGED)) == 0
    good = whole & (sources["a"] < 2.0 * sources["b"])
    if exclude is not None:
        good &= ~exclude[sources["ypeak"], sources["xpeak"]]
    sources = sources[good]
    sources = sources[np.argsort(-sources["flux"], kind="stable")][:_MAX_STARS]
    if len(sources) == 0:
        nothing = np.empty(0)
        return StarList(nothing, nothing, nothing, np.nan, np.nan)
    sharpest = sources[: np.clip(len(sources) // 2, 10, _MOST_FOR_WIDTH)]
    radius, _ = sep.flux_radius(residual, sharpest["x"], sharpest["y"], 6.0 * sharpest["a"], 0.5, mask=mask)
    return StarList(
        sources["x"].astype(np.float64),
        sources["y"].astype(np.float64),
        sources["flux"].astype(np.float64),
        float(2.0 * np.median(radius)),
        float(np.median(sharpest["a"] / sharpest["b"])),
    )


def windowed_centres(residual: np.ndarray, stars: StarList) -> tuple[np.ndarray, np.ndarray]:
    """Return the centres (x, y) of stars by a Gaussian window, of faint ones twice as sure as those detected.

    A centre that the window carries away, to a brighter neighbour, stays where it was detected.
    """
    if stars.x.size == 0:
        return stars.x, stars.y
    x, y, flag = sep.winpos(residual, stars.x, stars.y, max(stars.fwhm_px, 1.0) * _SIGMA_PER_FWHM)
    kept = (flag == 0) & (np.hypot(x - stars.x, y - stars.y) < _MOST_WINDOWED_PX)
    return np.where(kept, x, stars.x), np.where(kept, y, stars.y)


def centroid_errors(stars: StarList, noise: float) -> np.ndarray:
    """Return the standard errors of the centres of stars along an axis, in pixels of the plane.

    `noise` is the standard deviation of a pixel.
    """
    star_noise = noise * np.sqrt(np.pi) * stars.fwhm_px
    return np.hypot(_CENTROID_OF_FWHM * stars.fwhm_px * star_noise / stars.flux, _CENTROID_FLOOR_PX)


def _extract(residual: np.ndarray, mask: np.ndarray, noise: float) -> np.ndarray:
    """Return sep's sources; in a field too crowded for it, none, which costs the frame its gain only."""
    sep.set_sub_object_limit(_SUB_OBJECTS)
    for pixel_stack in _PIXEL_STACKS:
        sep.set_extract_pixstack(pixel_stack)
        try:
            return sep.extract(residual, _THRESHOLD_SIGMA, err=noise, mask=mask, minarea=5, deblend_nthresh=16)
        except Exception as error:
            if type(error) is not Exception:  # sep's own errors are bare ones: its buffers are full
                raise
            reason = error
    logger.warning("a field too crowded for star detection: %s", reason)
    return sep.extract(np.zeros((8, 8), dtype=np.float32), 1.0)


def aperture_fluxes(
    residual: np.ndarray, mask: np.ndarray, x: np.ndarray, y: np.ndarray, radius: float, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return fluxes in circular apertures and their background noise, NaN where an aperture is not whole.

    The mean of a ring around each star is taken off: a mesh background cannot follow a nebula, and leaves to a
    star a share of it that changes with the place of the mesh, from frame to frame.

    Parameters
    ----------
    residual, mask : ndarray, shape (ny, nx)
    x, y : ndarray, shape (m,)
        Centres in the plane's pixels.
    radius : float
        In pixels of the plane.
    noise : float
        Standard deviation of a pixel.
    """
    flux, error, flag = sep.sum_circle(residual, x, y, radius, err=noise, mask=mask)
    background, area = _ring_means(residual, mask, x, y, radius, noise)
    disk = np.pi * radius**2
    broken = (flag & (sep.APER_TRUNC | sep.APER_HASMASKED)) != 0
    broken |= ~(area > disk)
    flux = flux - background * disk
    with np.errstate(divide="ignore"):
        error = error * np.sqrt(1.0 + disk / area)
    return np.where(broken, np.nan, flux), np.where(broken, np.nan, error)


def _ring_means(
    residual: np.ndarray, mask: np.ndarray, x: np.ndarray, y: np.ndarray, radius: float, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return means of rings around stars, their pixels held within `_RING_SIGMA`, and the area that has data."""
    radii = tuple(float(factor * radius) for factor in _RING)
    total, area = ring_sums(residual, mask, x, y, radii, float(_RING_SIGMA * noise))
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / area, area


@nb.njit(cache=True, nogil=True)
def ring_sums(residual, mask, x, y, radii, limit):
    """Return the sums and the numbers of the pixels in rings, each pixel held within a limit.

    Parameters
    ----------
    residual : ndarray, shape (ny, nx), float32
    mask : ndarray, shape (ny, nx), bool
        True = no data; such pixels do not count.
    x, y : ndarray, shape (m,), float64
        Centres of the rings, in the plane's pixels.
    radii : tuple of float
        Between which the centre of a pixel of the ring lies.
    limit : float
        Values beyond it on either side are taken as it.

    Returns
    -------
    total, area : ndarray, shape (m,), float64
    """
    ny, nx = residual.shape
    total, area = np.zeros(x.size), np.zeros(x.size)
    inner, outer = radii[0] * radii[0], radii[1] * radii[1]
    for k in range(x.size):
        for j in range(max(0, int(y[k] - radii[1])), min(ny, int(y[k] + radii[1]) + 2)):
            for i in range(max(0, int(x[k] - radii[1])), min(nx, int(x[k] + radii[1]) + 2)):
                distance = (j - y[k]) ** 2 + (i - x[k]) ** 2
                if inner < distance < outer and not mask[j, i]:
                    total[k] += min(max(np.float64(residual[j, i]), -limit), limit)
                    area[k] += 1.0
    return total, area
